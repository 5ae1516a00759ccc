// swift-tools-version: 6.2
import PackageDescription

let strict: [SwiftSetting] = [
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
  .enableUpcomingFeature("MemberImportVisibility"),
]

func module(_ name: String, _ dependencies: [Target.Dependency] = []) -> Target {
  .target(name: name, dependencies: dependencies, swiftSettings: strict)
}

func tests(_ name: String, _ dependencies: [Target.Dependency] = [], exclude: [String] = []) -> Target {
  .testTarget(
    name: "\(name)Tests", dependencies: [.init(stringLiteral: name)] + dependencies, exclude: exclude,
    swiftSettings: strict)
}

let log = Target.Dependency.product(name: "Logging", package: "swift-log")

let package = Package(
  name: "vmha",
  products: [
    .executable(name: "vmha", targets: ["vmha"]),
    .executable(name: "vmhad", targets: ["vmhad"]),
    .executable(name: "vmha-replicad", targets: ["vmha-replicad"]),
  ],
  dependencies: [
    .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
    .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
    .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
    .package(url: "https://github.com/groue/GRDB.swift", from: "7.10.0"),
    .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
    .package(url: "https://github.com/apple/swift-http-types", from: "1.8.0"),
  ],
  targets: [
    // C libraries
    .systemLibrary(name: "CFuse3", pkgConfig: "fuse3", providers: [.apt(["libfuse3-dev"])]),
    .systemLibrary(name: "CLibvirt", pkgConfig: "libvirt", providers: [.apt(["libvirt-dev"])]),
    .systemLibrary(name: "CLibxml2", pkgConfig: "libxml-2.0", providers: [.apt(["libxml2-dev"])]),
    .systemLibrary(name: "COpenSSL", pkgConfig: "openssl", providers: [.apt(["libssl-dev"])]),
    .systemLibrary(name: "CCurl", pkgConfig: "libcurl", providers: [.apt(["libcurl4-openssl-dev"])]),
    .target(name: "CHostShims"),
    .target(name: "CKeeper"),

    // Pure: no I/O, no clock, no random source of their own
    module("Model"),
    module("Membership", ["Model"]),
    module("MirrorModule", ["Model"]),
    module("Replication", ["Model"]),

    // Adapters
    module("HostSystem", ["Model", "CHostShims"]),
    module("SecureLinks", ["Model", "HostSystem", "COpenSSL"]),
    module("ModuleConfig", ["Model", "HostSystem", "CLibxml2"]),
    module("VirtualMachines", ["Model", "HostSystem", "ModuleConfig", "CLibvirt", "CLibxml2"]),
    module("Arbitration", ["Model", "HostSystem", "ModuleConfig", "CCurl"]),
    module("ReplicatedFiles", ["Model", "Replication", "HostSystem", "SecureLinks", "CFuse3", "CKeeper"]),

    // Surface
    module("ControlAPI", ["Model", "HostSystem"]),
    module(
      "ControlHTTP",
      [
        "ControlAPI", log,
        .product(name: "Hummingbird", package: "hummingbird"),
        .product(name: "HummingbirdCore", package: "hummingbird"),
        .product(name: "NIOCore", package: "swift-nio"),
        .product(name: "NIOHTTP1", package: "swift-nio"),
        .product(name: "NIOPosix", package: "swift-nio"),
        .product(name: "NIOFoundationCompat", package: "swift-nio"),
        .product(name: "HTTPTypes", package: "swift-http-types"),
      ]),
    module("Drills", ["Model", "ControlAPI"]),
    module(
      "CommandLineTool",
      [
        "Model", "ControlAPI", "ControlHTTP", "Drills",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ]),

    // Shell
    module(
      "NodeDaemon",
      [
        "CHostShims", "Model", "Membership", "MirrorModule", "Replication", "HostSystem", "SecureLinks", "ModuleConfig",
        "Arbitration", "VirtualMachines", "ControlAPI", .product(name: "GRDB", package: "GRDB.swift"),
      ]),

    .executableTarget(name: "vmha", dependencies: ["CommandLineTool"], swiftSettings: strict),
    .executableTarget(
      name: "vmhad",
      dependencies: [
        "NodeDaemon", "HostSystem", "ControlHTTP", log,
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: strict),
    .executableTarget(
      name: "vmha-replicad", dependencies: ["ReplicatedFiles", "HostSystem", "Model", "CKeeper"], swiftSettings: strict),

    // The simulated world, and the program that runs many of it; not installed
    module("Simulation", ["Model", "Membership", "MirrorModule", "Replication"]),
    .executableTarget(
      name: "vmha-sim",
      dependencies: [
        "Simulation", "MirrorModule", "HostSystem", "Model",
        .product(name: "ArgumentParser", package: "swift-argument-parser"),
      ], swiftSettings: strict),

    tests("HostSystem", ["Model"]),
    tests("SecureLinks", ["Model", "HostSystem", "COpenSSL"]),
    tests("Membership", ["Model"]),
    tests("MirrorModule", ["Model", "Simulation"], exclude: ["Transcripts"]),
    tests("Replication", ["Model"]),
    tests("ModuleConfig", ["Model", "HostSystem"]),
    tests("Arbitration", ["Model", "HostSystem", "ModuleConfig", "SecureLinks"]),
    tests("VirtualMachines", ["Model", "HostSystem", "CLibvirt"]),
    .target(name: "CPosixCalls", path: "Tests/CPosixCalls"),
    tests(
      "ReplicatedFiles",
      [
        "Model", "Replication", "HostSystem", "SecureLinks", "CFuse3", "CKeeper", "CPosixCalls", "vmha-faulty-engine",
      ]),
    .executableTarget(
      name: "vmha-faulty-engine", dependencies: ["ReplicatedFiles", "HostSystem", "Model"], path: "Tests/FaultyEngine",
      swiftSettings: strict),
    .target(
      name: "ControlTestSupport", dependencies: ["ControlAPI", "ControlHTTP", "Model", log],
      path: "Tests/ControlTestSupport", swiftSettings: strict),
    tests("ControlAPI", ["ControlHTTP", "ControlTestSupport", "Model", log]),
    tests(
      "NodeDaemon",
      [
        "Model", "Membership", "MirrorModule", "HostSystem", "ModuleConfig", "VirtualMachines", "ControlAPI",
        "SecureLinks", .product(name: "GRDB", package: "GRDB.swift"),
      ]),
    tests("CommandLineTool", ["Model", "ControlAPI", "ControlTestSupport"]),
    tests("Drills", ["Model", "ControlAPI", "ControlTestSupport"]),
    .testTarget(
      name: "FuzzTests", dependencies: ["Model", "Replication", "HostSystem", "NodeDaemon"], swiftSettings: strict),
    .testTarget(name: "LabTests", swiftSettings: strict),
  ],
  swiftLanguageModes: [.v6]
)
