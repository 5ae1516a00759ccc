import Model

/// A program in the module's folder that vmhad runs at a step of the guest's life. See vm-modules/kvm/README.md.
public enum ModuleScript: String, Codable, Sendable, Hashable, CaseIterable {
  case beforeStart = "before-start"
  case afterStart = "after-start"
  case beforeStop = "before-stop"
  case afterStop = "after-stop"
}

/// How to ask whether the guest's service answers. Used by status and drills, never for a decision.
public enum ModuleCheck: Codable, Sendable, Hashable {
  /// A TCP connection is accepted.
  case tcp(address: String, port: Int)
  /// An echo is answered.
  case ping(address: String)
}

/// One disk of the VM that the module protects.
public struct ModuleDisk: Codable, Sendable, Hashable {
  /// The guest's name for it, as in the domain: vda, sdb...
  public var target: String
  /// Relative to the mount point.
  public var file: String
  /// Where the file was before `vmha add`, and goes back to on `vmha remove`. Absolute.
  public var originalPath: String
  /// raw, qcow2...
  public var format: String
  public init(target: String, file: String, originalPath: String, format: String) {
    self.target = target
    self.file = file
    self.originalPath = originalPath
    self.format = format
  }
}

/// A file that was moved into the module and that is not the top file of a disk: a backing file, UEFI NVRAM, vTPM state.
public struct ModuleFile: Codable, Sendable, Hashable {
  public var file: String
  public var originalPath: String
  public init(file: String, originalPath: String) {
    self.file = file
    self.originalPath = originalPath
  }
}

/// The contents of module.xml, the same on both nodes.
public struct ModuleConfiguration: Codable, Sendable, Hashable {
  public static let diskCountMax = 64
  public static let fileCountMax = 1024
  public static let stopTimeoutDefault = Duration.seconds(120)
  public static let startTimeoutDefault = Duration.seconds(60)
  public static let restartsMaxDefault = 3
  public static let restartWindowDefault = Duration.seconds(86_400)

  /// Also the libvirt name of the VM.
  public var name: ModuleName
  public var number: ModuleNumber
  /// libvirt's UUID of the VM. Lower-case, with dashes.
  public var uuid: String
  /// Where the files really are: `<dir>/.vmha-<name>`.
  public var backingDirectory: String
  /// Where the guest sees them while it runs, and an empty folder else: `<dir>/<name>`.
  public var mountPoint: String
  /// Where the VM runs when both nodes could run it.
  public var preferredNode: NodeID
  /// From the ACPI request until the guest is forced off. 1 s to 1 h.
  public var stopTimeout: Duration
  /// libvirt must have started QEMU by then. 1 s to 1 h.
  public var startTimeout: Duration
  /// Restarts of a guest that died within `restartWindow` before the module stops; 0 = never restarted. 0 to 100.
  public var restartsMax: Int
  /// 1 min to 30 d.
  public var restartWindow: Duration
  public var check: ModuleCheck?
  /// When several modules wait to be resynchronised. nil = normal, which is never written.
  public var resyncPriority: ResyncPriority?
  public var disks: [ModuleDisk]
  public var otherFiles: [ModuleFile]

  public init(
    name: ModuleName, number: ModuleNumber, uuid: String, backingDirectory: String, mountPoint: String,
    preferredNode: NodeID, stopTimeout: Duration = Self.stopTimeoutDefault,
    startTimeout: Duration = Self.startTimeoutDefault, restartsMax: Int = Self.restartsMaxDefault,
    restartWindow: Duration = Self.restartWindowDefault, check: ModuleCheck? = nil, disks: [ModuleDisk],
    otherFiles: [ModuleFile] = []
  ) {
    self.name = name
    self.number = number
    self.uuid = uuid
    self.backingDirectory = backingDirectory
    self.mountPoint = mountPoint
    self.preferredNode = preferredNode
    self.stopTimeout = stopTimeout
    self.startTimeout = startTimeout
    self.restartsMax = restartsMax
    self.restartWindow = restartWindow
    self.check = check
    self.disks = disks
    self.otherFiles = otherFiles
  }

  /// The two folders of a module that lives in `directory`.
  public static func backingDirectory(of name: ModuleName, in directory: String) -> String {
    "\(directory)/.vmha-\(name)"
  }
  public static func mountPoint(of name: ModuleName, in directory: String) -> String { "\(directory)/\(name)" }

  /// The disks and everything else that was moved into the module.
  public var allFiles: [ModuleFile] {
    disks.map { ModuleFile(file: $0.file, originalPath: $0.originalPath) } + otherFiles
  }
}
