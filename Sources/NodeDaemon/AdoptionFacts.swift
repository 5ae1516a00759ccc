import Model
import VirtualMachines

// What `vmha add` and `vmha remove` know before they decide. Gathered by AdoptionSurvey, judged by AdoptionPlan; plain values, so that
// every judgement can be tested without a host.

/// `vmha add`: which VM, and where its module shall be.
public struct AdoptionRequest: Codable, Sendable, Hashable {
  /// libvirt's name of the VM.
  public var name: String
  /// nil = the node the command is given on.
  public var preferredNode: NodeID?
  /// Absolute; nil = the folder of the VM's first disk.
  public var directory: String?
  /// On the other node, absolute: the folder of a copy that was carried there; nil = none was.
  public var seedDirectory: String?
  public init(
    name: String, preferredNode: NodeID? = nil, directory: String? = nil, seedDirectory: String? = nil
  ) {
    self.name = name
    self.preferredNode = preferredNode
    self.directory = directory
    self.seedDirectory = seedDirectory
  }
}

/// What stands at a path.
public struct FileFacts: Codable, Sendable, Hashable {
  public enum Kind: String, Codable, Sendable, Hashable {
    case regular, folder, symbolicLink, blockDevice, other, missing
  }
  public var kind: Kind
  public var bytes: UInt64
  /// What it takes on the disk: less than `bytes` if it has holes.
  public var allocatedBytes: UInt64
  /// Number of the mount it is on: a rename works only within one.
  public var mount: Int
  public var linkCount: Int
  public var inode: UInt64
  /// Last change of its contents, nanoseconds since 1970.
  public var modified: Int64
  /// Processes and loop devices that have it open, in words.
  public var users: [String]
  public init(
    kind: Kind, bytes: UInt64 = 0, allocatedBytes: UInt64 = 0, mount: Int = 0, linkCount: Int = 1, inode: UInt64 = 0,
    modified: Int64 = 0, users: [String] = []
  ) {
    self.kind = kind
    self.bytes = bytes
    self.allocatedBytes = allocatedBytes
    self.mount = mount
    self.linkCount = linkCount
    self.inode = inode
    self.modified = modified
    self.users = users
  }
  public static let missing = FileFacts(kind: .missing)
}

/// What stands where one of the module's two folders shall be.
public enum PlaceFacts: String, Codable, Sendable, Hashable {
  case absent, emptyFolder, occupied, mounted
  public var isFree: Bool { self == .absent || self == .emptyFolder }
}

/// The folder that gets the module's two folders.
public struct FolderFacts: Codable, Sendable, Hashable {
  public var path: String
  public var exists: Bool
  /// Of its file system, or of that of the nearest parent that exists.
  public var freeBytes: UInt64
  public var mount: Int
  public init(path: String, exists: Bool, freeBytes: UInt64, mount: Int = 0) {
    self.path = path
    self.exists = exists
    self.freeBytes = freeBytes
    self.mount = mount
  }
}

/// A writable disk of the VM, with the files it consists of.
public struct DiskFacts: Codable, Sendable, Hashable {
  /// nil if it is no file.
  public var path: String?
  /// Top first; empty if it could not be read.
  public var chain: [DiskImage]
  /// Why it could not be read.
  public var problem: String?
  public init(path: String?, chain: [DiskImage] = [], problem: String? = nil) {
    self.path = path
    self.chain = chain
    self.problem = problem
  }
}

/// What can be said of both hosts.
public struct AdoptionHostFacts: Codable, Sendable, Hashable {
  /// Modules on this host, the unfinished ones included.
  public var modules: [ModuleName: ModuleNumber]
  /// Files of modules that cannot be read.
  public var moduleProblems: [String]
  public var directory: FolderFacts
  public var mountPoint: PlaceFacts
  public var backingDirectory: PlaceFacts
  /// vmha's libvirt hook is installed.
  public var hasHook: Bool
  public init(
    modules: [ModuleName: ModuleNumber] = [:], moduleProblems: [String] = [], directory: FolderFacts,
    mountPoint: PlaceFacts = .absent, backingDirectory: PlaceFacts = .absent, hasHook: Bool = true
  ) {
    self.modules = modules
    self.moduleProblems = moduleProblems
    self.directory = directory
    self.mountPoint = mountPoint
    self.backingDirectory = backingDirectory
    self.hasHook = hasHook
  }
}

/// What the node that has the VM knows.
public struct AdoptionFacts: Codable, Sendable, Hashable {
  public var node: NodeID
  /// nil: libvirt has no such VM here.
  public var domain: DomainFacts?
  public var xml: String
  public var definition: DomainDefinition?
  /// By target, the writable disks only.
  public var disks: [String: DiskFacts]
  /// Every file that may be moved or must be on the other node, by the path the domain gives it.
  public var files: [String: FileFacts]
  /// Other domains that use one of these files, by path.
  public var otherUsers: [String: [String]]
  public var host: AdoptionHostFacts
  public init(
    node: NodeID, domain: DomainFacts?, xml: String = "", definition: DomainDefinition? = nil,
    disks: [String: DiskFacts] = [:], files: [String: FileFacts] = [:], otherUsers: [String: [String]] = [:],
    host: AdoptionHostFacts
  ) {
    self.node = node
    self.domain = domain
    self.xml = xml
    self.definition = definition
    self.disks = disks
    self.files = files
    self.otherUsers = otherUsers
    self.host = host
  }
}

/// What the other node is asked before an add.
public struct AdoptionPeerQuestion: Codable, Sendable, Hashable {
  public var name: ModuleName
  public var uuid: String
  public var directory: String
  public var networks: [String]
  /// Bridges and devices of the host.
  public var devices: [String]
  /// Media, kernels, firmware...
  public var files: [String]
  public var machine: DomainMachine
  /// nil: no copy was carried there.
  public var seed: AdoptionSeedQuestion?
  public init(
    name: ModuleName, uuid: String, directory: String, networks: [String], devices: [String], files: [String],
    machine: DomainMachine, seed: AdoptionSeedQuestion? = nil
  ) {
    self.name = name
    self.uuid = uuid
    self.directory = directory
    self.networks = networks
    self.devices = devices
    self.files = files
    self.machine = machine
    self.seed = seed
  }
}

/// What the other node answers.
public struct AdoptionPeerFacts: Codable, Sendable, Hashable {
  public enum Network: String, Codable, Sendable, Hashable { case active, inactive, missing }
  public var host: AdoptionHostFacts
  /// libvirt's own words if it cannot be asked; the rest then says nothing about domains and networks.
  public var hypervisorProblem: String?
  public var domainWithName: DomainIdentity?
  public var domainWithUUID: DomainIdentity?
  public var networks: [String: Network]
  public var missingDevices: [String]
  public var missingFiles: [String]
  /// Why it cannot run such a machine; nil if it can.
  public var machineProblem: String?
  /// nil: it was not asked, or does not know of such copies.
  public var seed: AdoptionSeedFacts?
  public init(
    host: AdoptionHostFacts, hypervisorProblem: String? = nil, domainWithName: DomainIdentity? = nil,
    domainWithUUID: DomainIdentity? = nil, networks: [String: Network] = [:], missingDevices: [String] = [],
    missingFiles: [String] = [], machineProblem: String? = nil
  ) {
    self.host = host
    self.hypervisorProblem = hypervisorProblem
    self.domainWithName = domainWithName
    self.domainWithUUID = domainWithUUID
    self.networks = networks
    self.missingDevices = missingDevices
    self.missingFiles = missingFiles
    self.machineProblem = machineProblem
  }
}

/// One result of the checks.
public struct AdoptionFinding: Codable, Sendable, Hashable, CustomStringConvertible {
  public enum Severity: String, Codable, Sendable, Hashable { case error, warning, info }
  /// `error` forbids it, `warning` asks for attention, `info` tells.
  public var severity: Severity
  public var what: String
  public var whatToDo: String?
  public init(_ severity: Severity, _ what: String, whatToDo: String? = nil) {
    self.severity = severity
    self.what = what
    self.whatToDo = whatToDo
  }
  public var description: String { "\(severity): \(what)" + (whatToDo.map { ": \($0)" } ?? "") }
}
