import ModuleConfig

/// Where a disk of a domain is.
public enum DiskSource: Codable, Sendable, Hashable {
  case file(String)
  /// A volume of a storage pool; the file behind it is asked of libvirt.
  case volume(pool: String, volume: String)
  /// A block device or LVM volume.
  case block(String)
  /// iSCSI, RBD, NBD...: the protocol's name.
  case network(String)
  /// An empty drive.
  case empty
  /// dir, nvme, vhostuser...
  case other(String)
}

public struct DomainDisk: Codable, Sendable, Hashable {
  /// disk, cdrom, floppy or lun.
  public var device: String
  public var source: DiskSource
  /// raw, qcow2...; nil = libvirt takes raw.
  public var format: String?
  /// vda, sdb...: unique within the domain.
  public var target: String
  public var isReadOnly: Bool
  /// Meant to be opened by several guests at once.
  public var isShareable: Bool
  /// Changes are thrown away at the guest's end.
  public var isTransient: Bool
  public var isEncrypted: Bool
  public init(
    device: String, source: DiskSource, format: String?, target: String, isReadOnly: Bool = false,
    isShareable: Bool = false, isTransient: Bool = false, isEncrypted: Bool = false
  ) {
    self.device = device
    self.source = source
    self.format = format
    self.target = target
    self.isReadOnly = isReadOnly
    self.isShareable = isShareable
    self.isTransient = isTransient
    self.isEncrypted = isEncrypted
  }

  /// Holds data of the guest's own, as against a medium that it only reads.
  public var isWritable: Bool { (device == "disk" || device == "lun") && !isReadOnly }
}

public enum DomainInterface: Codable, Sendable, Hashable {
  case bridge(String)
  case network(String)
  /// macvtap on a device of the host.
  case direct(String)
  case user
  case other(String)
}

/// A file of the host that the domain reads and that is not one of its disks.
public struct HostFile: Codable, Sendable, Hashable {
  public var path: String
  /// kernel, initrd, firmware, cdrom...
  public var use: String
  public init(path: String, use: String) {
    self.path = path
    self.use = use
  }
}

public struct DomainTPM: Codable, Sendable, Hashable {
  /// emulator, passthrough or external.
  public var backend: String
  public init(backend: String) { self.backend = backend }
}

/// What vmha reads in a domain's XML. The XML itself stays the authority: rewriting changes it in place.
public struct DomainDefinition: Codable, Sendable, Hashable {
  public var identity: DomainIdentity
  public var machine: DomainMachine
  public var disks: [DomainDisk]
  /// The file of the UEFI variables, as given.
  public var nvram: String?
  /// The guest boots by UEFI with variables of its own, whether or not their file is named.
  public var hasUEFIVariables: Bool
  public var tpm: DomainTPM?
  public var interfaces: [DomainInterface]
  /// Kernel, initrd, firmware and the like. Not the media of cdrom drives, which are among the disks.
  public var hostFiles: [HostFile]
  /// Host directories shared into the guest (virtiofs, 9p).
  public var sharedDirectories: [String]
  /// PCI, USB and other devices of the host, in words.
  public var hostDevices: [String]
  /// Guest memory that lives in files or devices of the host (nvdimm), in words.
  public var hostMemory: [String]
  /// Arguments handed to QEMU past libvirt, which may name files that vmha does not see.
  public var hasRawArguments: Bool

  /// Throws `HypervisorError` with code `invalidDefinition`.
  public init(xml: String) throws(HypervisorError) {
    let root = try Self.document(xml).element
    guard root.name == "domain", let name = root.first("name")?.text, let uuid = root.first("uuid")?.text else {
      throw Self.invalid("it is not the XML of a domain with name and uuid")
    }
    identity = DomainIdentity(name: name, uuid: uuid.lowercased())
    let type = root.first(["os", "type"])
    let devices = root.first("devices")?.children ?? []
    func all(_ name: String) -> [XMLElement] { devices.filter { $0.name == name } }
    machine = DomainMachine(
      type: root.attributes["type"] ?? "qemu", architecture: type?.attributes["arch"] ?? "x86_64",
      machine: type?.attributes["machine"] ?? "", emulator: all("emulator").first?.text)
    disks = all("disk").map(Self.disk)
    interfaces = all("interface").map(Self.interface)
    tpm = all("tpm").first.map { DomainTPM(backend: $0.first("backend")?.attributes["type"] ?? "emulator") }
    sharedDirectories = all("filesystem").map {
      $0.first("source").flatMap { $0.attributes["dir"] ?? $0.attributes["file"] ?? $0.attributes["socket"] } ?? "?"
    }
    let redirected = all("redirdev").filter { $0.attributes["type"] != "spicevmc" }
    hostDevices =
      all("hostdev").map(Self.hostDevice) + redirected.map { "redirected \($0.attributes["bus"] ?? "") device" }
    hostMemory = all("memory").compactMap { memory in
      guard let model = memory.attributes["model"], model != "dimm", model != "virtio-mem" else { return nil }
      return "\(model) \(memory.first(["source", "path"])?.text ?? "")"
    }
    hasRawArguments = root.children.contains { $0.name == "commandline" && !$0.children.isEmpty }
    let os = root.first("os")
    nvram = os?.first("nvram").flatMap { $0.text.isEmpty ? nil : $0.text }
    let loader = os?.first("loader")
    let isFlash = os?.attributes["firmware"] == "efi" || loader?.attributes["type"] == "pflash"
    hasUEFIVariables = nvram != nil || (isFlash && loader?.attributes["stateless"] != "yes")
    hostFiles = Self.hostFiles(os: os, devices: devices)
  }

  static func document(_ xml: String) throws(HypervisorError) -> XMLDocument {
    do throws(ConfigurationError) {
      return try XMLDocument(bytes: Array(xml.utf8), name: "domain XML")
    } catch {
      throw invalid(error.description)
    }
  }

  static func invalid(_ what: String) -> HypervisorError {
    HypervisorError(.invalidDefinition, "read the definition", what)
  }

  private static func disk(_ element: XMLElement) -> DomainDisk {
    let source = element.first("source")
    let attributes = source?.attributes ?? [:]
    let found: DiskSource =
      switch element.attributes["type"] ?? "file" {
      case "file": attributes["file"].map(DiskSource.file) ?? .empty
      case "volume":
        if let pool = attributes["pool"], let volume = attributes["volume"] {
          .volume(pool: pool, volume: volume)
        } else {
          .empty
        }
      case "block": attributes["dev"].map(DiskSource.block) ?? .empty
      case "network": .network(attributes["protocol"] ?? "network")
      case let type: .other(type)
      }
    return DomainDisk(
      device: element.attributes["device"] ?? "disk", source: found,
      format: element.first("driver")?.attributes["type"], target: element.first("target")?.attributes["dev"] ?? "",
      isReadOnly: element.first("readonly") != nil, isShareable: element.first("shareable") != nil,
      isTransient: element.first("transient") != nil,
      isEncrypted: element.first("encryption") != nil || source?.first("encryption") != nil)
  }

  private static func interface(_ element: XMLElement) -> DomainInterface {
    let source = element.first("source")?.attributes ?? [:]
    switch element.attributes["type"] ?? "" {
    case "bridge": return .bridge(source["bridge"] ?? "")
    case "network": return .network(source["network"] ?? "")
    case "direct": return .direct(source["dev"] ?? "")
    case "user": return .user
    case let type: return .other(type)
    }
  }

  private static func hostDevice(_ element: XMLElement) -> String {
    let address = element.first(["source", "address"])?.attributes ?? [:]
    let place = address.sorted { $0.key < $1.key }.map { "\($0.key)=\($0.value)" }.joined(separator: " ")
    return trimmed("\(element.attributes["type"] ?? element.attributes["mode"] ?? "") device \(place)")
  }

  private static func hostFiles(os: XMLElement?, devices: [XMLElement]) -> [HostFile] {
    var found: [HostFile] = []
    func add(_ path: String?, _ use: String) {
      if let path, path.hasPrefix("/") { found.append(HostFile(path: path, use: use)) }
    }
    for (name, use) in [
      ("kernel", "kernel"), ("initrd", "initrd"), ("dtb", "device tree"), ("loader", "firmware"),
    ] { add(os?.first(name)?.text, use) }
    add(os?.first("nvram")?.attributes["template"], "firmware variables template")
    add(os?.first(["acpi", "table"])?.text, "ACPI table")
    for device in devices { add(device.first("rom")?.attributes["file"], "option ROM") }
    return found
  }
}
