/// `vmha add`: which VM, and where it shall live.
public struct AddRequest: Sendable, Codable, Hashable {
  /// libvirt's name of the VM.
  public var name: String
  /// Name of the node a start goes to; nil = the node the request is given to.
  public var preferredNode: String?
  /// Absolute path of the folder that gets `<directory>/<VM>`; nil = the folder of the VM's first disk.
  public var directory: String?
  /// Absolute path of a folder on the other node that holds a copy of the disks, carried there by hand; nil = there is none.
  public var seedDirectory: String?
  public init(
    name: String, preferredNode: String? = nil, directory: String? = nil, seedDirectory: String? = nil
  ) {
    self.name = name
    self.preferredNode = preferredNode
    self.directory = directory
    self.seedDirectory = seedDirectory
  }
  enum CodingKeys: String, CodingKey {
    case name, directory
    case seedDirectory = "seed_directory"
    case preferredNode = "preferred_node"
  }
}

/// What the checks before an `add` found, and what it will do. Making a plan changes nothing.
public struct AddPlan: Sendable, Codable, Hashable {
  public struct Finding: Sendable, Codable, Hashable {
    /// `error` forbids the add; `warning` asks for attention; `info` and `notice` tell.
    public var severity: Severity
    public var what: String
    public var whatToDo: String?
    public init(_ severity: Severity, _ what: String, whatToDo: String? = nil) {
      self.severity = severity
      self.what = what
      self.whatToDo = whatToDo
    }
    enum CodingKeys: String, CodingKey {
      case severity, what
      case whatToDo = "what_to_do"
    }
  }
  public var name: String
  /// The number the module will have; nil if none is free.
  public var number: Int?
  public var findings: [Finding]
  /// In order, one sentence each.
  public var steps: [String]
  /// Bytes that must be copied from one disk to another, on either host (0 = files are renamed).
  public var bytesToCopy: UInt64

  public init(name: String, number: Int?, findings: [Finding], steps: [String], bytesToCopy: UInt64) {
    self.name = name
    self.number = number
    self.findings = findings
    self.steps = steps
    self.bytesToCopy = bytesToCopy
  }
  /// True if no finding is an error.
  public var isPossible: Bool { !findings.contains { $0.severity == .error } }
  enum CodingKeys: String, CodingKey {
    case name, number, findings, steps
    case bytesToCopy = "bytes_to_copy"
  }
}

/// Handle of something that goes on in vmhad after the request was answered.
public struct OperationID: RawRepresentable, Sendable, Codable, Hashable, CustomStringConvertible {
  public let rawValue: String
  public init(rawValue: String) { self.rawValue = rawValue }
  public var description: String { rawValue }
}

/// How far an `add`, `remove`, `verify`, `branch export` or `branch drop` is: `GET /v1/operations/ID`. Finished ones are kept for at least an hour.
public struct OperationStatus: Sendable, Codable, Hashable {
  public enum Kind: String, Sendable, Codable, Hashable {
    case add, remove, verify, exportBranch = "export", dropBranch = "drop"
  }
  public var id: OperationID
  public var kind: Kind
  public var module: String
  /// What it is doing now, or what it came to.
  public var sentence: String
  /// Every sentence so far, in order, so that no step is missed between two looks. At most `stepCountMax`.
  public var steps: [String]
  public var bytesDone: UInt64
  /// 0 = nothing to copy in this step.
  public var bytesTotal: UInt64
  /// Of `verify`; nil until they are known.
  public var bytesPerSecond: UInt64?
  public var secondsLeft: Int?
  public var finished: Bool
  /// Of a `verify` that has ended, also of one that was interrupted.
  public var verification: VerificationResult?
  /// Only with `finished`.
  public var error: ControlError?
  public static let stepCountMax = 200

  public init(id: OperationID, kind: Kind, module: String, sentence: String) {
    self.id = id
    self.kind = kind
    self.module = module
    self.sentence = sentence
    steps = []
    bytesDone = 0
    bytesTotal = 0
    finished = false
  }
  enum CodingKeys: String, CodingKey {
    case id, kind, module, sentence, steps, finished, error, verification
    case bytesDone = "bytes_done"
    case bytesTotal = "bytes_total"
    case bytesPerSecond = "bytes_per_second"
    case secondsLeft = "seconds_left"
  }
}

/// Answer to start, stop, swap and crash: it was accepted and goes on in vmhad; follow it by log (from `cursor`) and status.
public struct Acceptance: Sendable, Codable, Hashable {
  public var module: String
  /// Journal cursor from before the command.
  public var cursor: Int64
  public var time: WallTime
  /// What will happen: "vm1 starts on node1".
  public var sentence: String
  /// Name of the node that shall serve the guest afterwards; nil if none (stop) or not yet known.
  public var targetNode: String?
  public init(module: String, cursor: Int64, time: WallTime, sentence: String, targetNode: String?) {
    self.module = module
    self.cursor = cursor
    self.time = time
    self.sentence = sentence
    self.targetNode = targetNode
  }
  enum CodingKeys: String, CodingKey {
    case module, cursor, time, sentence
    case targetNode = "target_node"
  }
}

/// This host's end of a link.
public struct OwnLink: Sendable, Codable, Hashable {
  public var name: String
  /// Numeric IPv4 or IPv6 address of this host.
  public var address: String
  public var replication: Bool
  public init(name: String, address: String, replication: Bool) {
    self.name = name
    self.address = address
    self.replication = replication
  }
}

public struct ClusterInitialiseRequest: Sendable, Codable, Hashable {
  public var name: String
  /// nil = the host name.
  public var nodeName: String?
  public var links: [OwnLink]
  public init(name: String, nodeName: String? = nil, links: [OwnLink]) {
    self.name = name
    self.nodeName = nodeName
    self.links = links
  }
  enum CodingKeys: String, CodingKey {
    case name, links
    case nodeName = "node_name"
  }
}

/// What the other host needs to join. The token works once, until `expires`.
public struct JoinTicket: Sendable, Codable, Hashable {
  public var clusterName: String
  /// Address of this host that the other one dials.
  public var address: String
  /// SHA-256 of the cluster CA's certificate, 64 hexadecimal digits.
  public var fingerprint: String
  /// 32 hexadecimal digits.
  public var token: String
  public var expires: WallTime
  /// Names of the links of the cluster; the joining host gives its address for each.
  public var linkNames: [String]
  /// Set if the cluster has both nodes: only a host that takes this node's place is let in.
  public var replaces: String?
  public init(
    clusterName: String, address: String, fingerprint: String, token: String, expires: WallTime, linkNames: [String],
    replaces: String? = nil
  ) {
    self.clusterName = clusterName
    self.address = address
    self.fingerprint = fingerprint
    self.token = token
    self.expires = expires
    self.linkNames = linkNames
    self.replaces = replaces
  }
  /// The line to type on the other host, complete but for its own addresses.
  public var commandLine: String {
    (["vmha cluster join \(address) --fingerprint \(fingerprint) --token \(token)"]
      + linkNames.map { "--link \($0)=ADDRESS" }).joined(separator: " ")
  }
  enum CodingKeys: String, CodingKey {
    case address, fingerprint, token, expires, replaces
    case clusterName = "cluster_name"
    case linkNames = "link_names"
  }
}

public struct ClusterJoinRequest: Sendable, Codable, Hashable {
  public var address: String
  public var fingerprint: String
  public var token: String
  /// nil = the host name.
  public var nodeName: String?
  /// `replication` is the cluster's own affair here and ignored.
  public var links: [OwnLink]
  public init(address: String, fingerprint: String, token: String, nodeName: String? = nil, links: [OwnLink]) {
    self.address = address
    self.fingerprint = fingerprint
    self.token = token
    self.nodeName = nodeName
    self.links = links
  }
  enum CodingKeys: String, CodingKey {
    case address, fingerprint, token, links
    case nodeName = "node_name"
  }
}

/// cluster.xml as people read it: `GET /v1/cluster`.
public struct ClusterDescription: Sendable, Codable, Hashable {
  public struct Node: Sendable, Codable, Hashable {
    public var id: Int
    public var name: String
    public init(id: Int, name: String) {
      self.id = id
      self.name = name
    }
  }
  public struct Link: Sendable, Codable, Hashable {
    public var name: String
    /// By node name.
    public var addresses: [String: String]
    public var replication: Bool
    public init(name: String, addresses: [String: String], replication: Bool) {
      self.name = name
      self.addresses = addresses
      self.replication = replication
    }
  }
  public var identity: ClusterIdentity
  public var nodes: [Node]
  public var links: [Link]
  public var pulseMilliseconds: Int
  public var detectionMilliseconds: Int
  public var bootWaitMilliseconds: Int
  /// `policy=none`, `policy=ping`, `wait`, `witness`, `fence` or `witness+fence`.
  public var arbiter: String
  /// What the arbiter may do for a node that has just booted alone: `arbiter` (the same) or `wait`.
  public var bootPolicy: String?
  /// A copy that waits for its lost peer for so long is started by force; 0 = never.
  public var forceAfterSeconds: Int?
  /// Whose copy of a SPLIT module goes on by itself: `ask` (nobody's) or `keep-preferred`.
  public var splitPolicy: String?
  /// Between two scrubs of a module; 0 = never.
  public var scrubIntervalSeconds: Int?
  /// What a scrub may read in a second, in MiB.
  public var scrubRateMiB: Int?
  /// What is set up for arbiters, whichever is chosen: names and values as `vmha cluster set` takes them.
  public var arbiterSettings: [String: String]?
  /// By name: the modules that have an arbiter of their own, and which.
  public var moduleArbiters: [String: String]?
  /// SHA-256 of the CA certificate; nil if it cannot be read.
  public var fingerprint: String?
  /// End of this node's certificate.
  public var certificateExpires: WallTime?
  public var warnings: [StatusWarning]

  public init(
    identity: ClusterIdentity, nodes: [Node], links: [Link], pulseMilliseconds: Int, detectionMilliseconds: Int,
    bootWaitMilliseconds: Int, arbiter: String
  ) {
    self.identity = identity
    self.nodes = nodes
    self.links = links
    self.pulseMilliseconds = pulseMilliseconds
    self.detectionMilliseconds = detectionMilliseconds
    self.bootWaitMilliseconds = bootWaitMilliseconds
    self.arbiter = arbiter
    warnings = []
  }
  enum CodingKeys: String, CodingKey {
    case identity, nodes, links, arbiter, fingerprint, warnings
    case moduleArbiters = "module_arbiters"
    case bootPolicy = "boot_policy"
    case forceAfterSeconds = "force_after_s"
    case splitPolicy = "split_policy"
    case scrubIntervalSeconds = "scrub_interval_s"
    case scrubRateMiB = "scrub_rate_mib"
    case arbiterSettings = "arbiter_settings"
    case pulseMilliseconds = "pulse_ms"
    case detectionMilliseconds = "detection_ms"
    case bootWaitMilliseconds = "boot_wait_ms"
    case certificateExpires = "certificate_expires"
  }
}

/// `vmha cluster set`: nil and empty = leave as it is. All of it is done, or none.
public struct ClusterChanges: Sendable, Codable, Hashable {
  public var pulseMilliseconds: Int?
  public var detectionMilliseconds: Int?
  public var bootWaitMilliseconds: Int?
  /// `policy=none`, `policy=ping`, `wait`, `witness`, `fence` or `witness+fence`.
  public var arbiter: String?
  /// `witness-endpoints`, `witness-ca`, `witness-certificate`, `witness-key`, `witness-user`, `witness-password-file`, `fence-1`,
  /// `fence-2` (AGENT:FILE), `ping`; an empty value takes one back.
  public var arbiterSettings: [String: String]?
  /// `arbiter` or `wait`.
  public var bootPolicy: String?
  /// 0 = never.
  public var forceAfterSeconds: Int?
  public var splitPolicy: String?
  /// 0 = never.
  public var scrubIntervalSeconds: Int?
  public var scrubRateMiB: Int?
  public var addLinks: [ClusterDescription.Link]
  /// Names.
  public var removeLinks: [String]
  public init() {
    addLinks = []
    removeLinks = []
  }
  public var isEmpty: Bool { self == ClusterChanges() }
  enum CodingKeys: String, CodingKey {
    case arbiter
    case arbiterSettings = "arbiter_settings"
    case bootPolicy = "boot_policy"
    case forceAfterSeconds = "force_after_s"
    case splitPolicy = "split_policy"
    case scrubIntervalSeconds = "scrub_interval_s"
    case scrubRateMiB = "scrub_rate_mib"
    case pulseMilliseconds = "pulse_ms"
    case detectionMilliseconds = "detection_ms"
    case bootWaitMilliseconds = "boot_wait_ms"
    case addLinks = "add_links"
    case removeLinks = "remove_links"
  }
}
