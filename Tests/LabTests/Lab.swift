import Foundation
import Glibc
import Testing

/// What this machine offers. Nothing is skipped as root with the devices there.
enum Machine {
  static let problem: String? = {
    if getuid() != 0 { return "the lab needs root: sudo make lab-test" }
    for device in ["/dev/fuse", "/dev/net/tun", "/dev/loop-control"] where access(device, F_OK) != 0 {
      return "\(device) does not exist on this machine"
    }
    for program in ["/usr/sbin/libvirtd", "/usr/bin/qemu-system-x86_64", "/usr/sbin/nft", "/usr/bin/jq"]
    where access(program, X_OK) != 0 {
      return "\(program) is missing: make packages"
    }
    return nil
  }()

  /// Linux 6.9 hands the requests of a dead FUSE server out again.
  static let repeatsRequests: Bool = {
    var names = utsname()
    uname(&names)
    let release = withUnsafeBytes(of: &names.release) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    let numbers = release.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap { Int($0) }
    return numbers.count == 2 && (numbers[0], numbers[1]) >= (6, 9)
  }()

  static let repository = URL(fileURLWithPath: #filePath)
    .deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path

  /// Where the programs under test are: VMHA_BIN, or beside this test's own bundle.
  static let programs: String = {
    let environment = ProcessInfo.processInfo.environment
    if let folder = environment["VMHA_BIN"], !folder.isEmpty { return folder }
    let bundle = CommandLine.arguments[0]
    for start in [bundle, (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? bundle] {
      var folder = URL(fileURLWithPath: start).deletingLastPathComponent()
      for _ in 0..<4 {
        if access(folder.appendingPathComponent("vmhad").path, X_OK) == 0 { return folder.path }
        folder.deleteLastPathComponent()
      }
    }
    return repository + "/.build/debug"
  }()

  static func number(_ name: String, default usual: Int) -> Int {
    ProcessInfo.processInfo.environment[name].flatMap(Int.init) ?? usual
  }
}

/// Two nodes, driven by tools/lab as a user would. Every command has a time limit.
final class Lab: Sendable {
  let name: String
  /// What was acknowledged, over all probes of this lab.
  let memory: String

  init(_ suffix: String = "") {
    name = "test\(getpid())\(suffix)"
    memory = FileManager.default.temporaryDirectory.appendingPathComponent("vmha-lab-\(name)").path
  }

  func start(_ words: [String]) throws -> Command {
    try Command([Machine.repository + "/tools/lab", "--name", name] + words)
  }

  func run(_ words: [String], within limit: Double = 60) async throws -> Output {
    try await start(words).finish(within: limit)
  }

  /// As `run`; an exit code other than 0 fails the test.
  @discardableResult
  func must(_ words: String..., within limit: Double = 60) async throws -> Output {
    try await must(words, within: limit)
  }

  @discardableResult
  func must(_ words: [String], within limit: Double = 60) async throws -> Output {
    let output = try await run(words, within: limit)
    guard output.ok else { throw CommandFailure(description: output.description) }
    return output
  }

  @discardableResult
  func vmha(_ node: String, _ words: String..., within limit: Double = 180) async throws -> Output {
    let output = try await run(["exec", node, "vmha"] + words, within: limit)
    guard output.ok else { throw CommandFailure(description: output.description) }
    return output
  }

  func up(vmha: Bool = true) async throws {
    try FileManager.default.createDirectory(atPath: memory, withIntermediateDirectories: true)
    if vmha {
      try await must("up", "--bin", Machine.programs, within: 120)
      try await must("wait-for", "vmhad", "node1", "--timeout", "20")
      try await must("wait-for", "vmhad", "node2", "--timeout", "20")
    } else {
      try await must("up", "--no-vmha", within: 120)
    }
  }

  func down() async throws {
    try await must("down", within: 60)
    if FileManager.default.fileExists(atPath: memory) { try FileManager.default.removeItem(atPath: memory) }
  }

  /// Everything that helps to understand a failure, before the lab is taken down.
  func evidence() async -> String {
    var text = ""
    for words in [
      ["status"], ["exec", "node1", "vmha", "status"], ["exec", "node2", "vmha", "status"],
      ["exec", "node1", "vmha", "log", "-n", "80"], ["exec", "node2", "vmha", "log", "-n", "80"],
    ] {
      do {
        text += "\n--- \(words.joined(separator: " "))\n" + (try await run(words, within: 20)).all
      } catch {
        text += "\n--- \(words.joined(separator: " ")): \(error)"
      }
    }
    return text
  }

  // MARK: - Status

  func view(_ node: String) async throws -> ClusterView {
    let output = try await run(["exec", node, "vmha", "status", "--json"], within: 15)
    guard output.ok else { throw CommandFailure(description: output.description) }
    return try JSONDecoder().decode(ClusterView.self, from: Data(output.out.utf8))
  }

  /// Asks a node every 200 ms until `condition` holds; returns how long that took.
  @discardableResult
  func until(
    _ what: String, on node: String, within limit: Double, _ condition: (ClusterView) throws -> Bool
  ) async throws -> Double {
    let begun = DispatchTime.now().uptimeNanoseconds
    var last = "no status"
    while true {
      do {
        let view = try await view(node)
        if try condition(view) { return Double(DispatchTime.now().uptimeNanoseconds - begun) / 1e9 }
        last = view.account
      } catch {
        last = "\(error)"
      }
      if Double(DispatchTime.now().uptimeNanoseconds - begun) / 1e9 > limit {
        throw CommandFailure(description: "not after \(limit) s: \(what). \(last)")
      }
      try await Task.sleep(for: .milliseconds(200))
    }
  }

  func until(_ what: String, within limit: Double, _ condition: () async throws -> Bool) async throws {
    let deadline = Date(timeIntervalSinceNow: limit)
    while try await !condition() {
      guard Date() < deadline else { throw CommandFailure(description: "not after \(limit) s: \(what)") }
      try await Task.sleep(for: .milliseconds(200))
    }
  }

  // MARK: - Guests

  /// A client asks the guests during `body`, which begins when each has answered it once. A lost record fails the test, with what the
  /// client saw.
  @discardableResult
  func watching(_ guests: [String], _ body: () async throws -> Void) async throws -> [String: ProbeReport] {
    let watch = try start(["probe", "--seconds", "3600", "--state", memory] + guests)
    let failure: (any Error)?
    do {
      try await until("the client hears \(guests)", within: 90) {
        let heard = try watch.outSoFar()
        return guests.allSatisfy { heard.contains(" \($0) answer ") }
      }
      try await body()
      failure = nil
    } catch {
      failure = error
    }
    watch.stop()
    let output = try await watch.finish(within: 3700)
    if let failure { throw CommandFailure(description: "\(failure)\nclient: \(output.out)\(output.err)") }
    var reports: [String: ProbeReport] = [:]
    for guest in guests {
      let report = try ProbeReport(output.out, guest: guest)
      #expect(report.lost == 0, "\(guest) lost what it had acknowledged:\n\(report.account)")
      #expect(report.answers > 0, "\(guest) never answered:\n\(output.out)\(output.err)")
      reports[guest] = report
    }
    return reports
  }
}
