import Model

/// The fixed ports of vmha, the same on every host.
public enum ClusterPorts {
  /// TCP, TLS 1.3 with mutual certificates: requests between the two daemons.
  public static let control = 7440
  /// UDP: the heartbeat.
  public static let heartbeat = 7440
  /// TCP: the replication engine of one module.
  public static func engine(_ number: ModuleNumber) -> Int { control + number.rawValue }
}

/// What may give the right to be alone when the peer cannot (R5).
public enum Arbiter: String, Codable, Sendable, Hashable, CaseIterable {
  /// Go on alone after the detection time, without asking anybody. Can split; status says so.
  case policyNone = "policy=none"
  /// As `policy=none`, if a ping address answers. Can split; status says so.
  case policyPing = "policy=ping"
  /// Freeze until the peer consents or the operator decides.
  case wait
  /// A register in etcd decides.
  case witness
  /// An agent powers the peer off.
  case fence
  /// Both must say yes.
  case witnessAndFence = "witness+fence"

  public var asksWitness: Bool { self == .witness || self == .witnessAndFence }
  public var fences: Bool { self == .fence || self == .witnessAndFence }
  public var canSplit: Bool { self == .policyNone || self == .policyPing }
}

/// What the arbiter may do for a node that has just booted and does not see its peer.
public enum BootPolicy: String, Codable, Sendable, Hashable, CaseIterable {
  /// The same as at run time, once `bootWait` is over.
  case arbiter
  /// Wait for the peer or the operator, whatever the arbiter is.
  case wait
}

/// Whose copy of a SPLIT module goes on without the operator (R12).
public enum SplitPolicy: String, Codable, Sendable, Hashable, CaseIterable {
  /// Both are kept until the operator chooses.
  case ask
  /// The copy on the module's preferred node; the other one is archived first.
  case keepPreferred = "keep-preferred"
}

/// A host of the cluster.
public struct ClusterNode: Codable, Sendable, Hashable {
  public var id: NodeID
  /// The host's name, which is also the CN of its certificate.
  public var name: String
  public init(id: NodeID, name: String) {
    self.id = id
    self.name = name
  }
}

/// A network over which the nodes reach each other.
public struct ClusterLink: Codable, Sendable, Hashable {
  public var name: String
  /// Whether modules may replicate over this link. The heartbeat uses every link.
  public var replication: Bool
  /// Numeric IPv4 or IPv6 address of each node on this link, all of one family.
  public var addresses: [NodeID: String]
  public init(name: String, replication: Bool, addresses: [NodeID: String]) {
    self.name = name
    self.replication = replication
    self.addresses = addresses
  }
}

/// Something that is allowed but that an operator should know about.
public struct ConfigurationWarning: Codable, Sendable, Hashable {
  public var what: String
  public var whatToDo: String
  public init(what: String, whatToDo: String) {
    self.what = what
    self.whatToDo = whatToDo
  }
}

/// The contents of cluster.xml, the same on both nodes.
public struct ClusterConfiguration: Codable, Sendable, Hashable {
  public static let linkCountMax = 8
  public static let nameLengthMax = 64
  public static let pulseDefault = Duration.milliseconds(250)
  public static let detectionDefault = Duration.seconds(3)
  public static let bootWaitDefault = Duration.seconds(60)
  public static let scrubIntervalDefault = Duration.seconds(7 * 86_400)
  public static let scrubRateMiBDefault = 32

  /// Lower-case, with dashes. The O of every certificate of the cluster.
  public var uuid: String
  public var name: String
  /// Raised by one with each change; the higher one is the newer one.
  public var revision: Int
  /// In order of their ids: node 1 alone until the other host has joined, then both.
  public var nodes: [ClusterNode]
  /// Best first: 1 to `linkCountMax`, at least one of which carries replication.
  public var links: [ClusterLink]
  /// A beat leaves on every link this often. 50 ms to 5 s.
  public var pulse: Duration
  /// No beat on any link for this long: the peer counts as lost. 1 s to 120 s, at least four pulses.
  public var detection: Duration
  /// Of every module that has none of its own.
  public var arbiter: Arbiter
  /// R5: the modules that have one of their own. Which etcd, fence agents and ping addresses is the cluster's affair. At most
  /// `moduleCountMax`.
  public var moduleArbiters: [ModuleName: Arbiter] = [:]
  /// nil = none is set up. Stays when another arbiter is chosen.
  public var witness: WitnessConfiguration?
  /// What powers that node off.
  public var fences: [NodeID: FenceConfiguration] = [:]
  /// For `policy=ping`: numeric addresses outside the two hosts, at most `pingAddressCountMax`.
  public var pingAddresses: [String] = []
  /// How long a node that has just booted waits for its peer. From the detection time to one hour.
  public var bootWait: Duration
  public var bootPolicy: BootPolicy
  /// After a blackout a copy that waits for its lost peer for so long is started by force. Zero = never, else `bootWait` to 30 days. Can split.
  public var forceAfter = Duration.zero
  public var splitPolicy = SplitPolicy.ask
  /// Both copies of a module are compared this often. Zero = never, else one minute to one year.
  public var scrubInterval = Self.scrubIntervalDefault
  /// What such a comparison may read on a node in a second, in MiB. 1 to 10240.
  public var scrubRateMiB = Self.scrubRateMiBDefault

  public init(
    uuid: String, name: String, revision: Int = 1, nodes: [ClusterNode], links: [ClusterLink],
    pulse: Duration = Self.pulseDefault, detection: Duration = Self.detectionDefault, arbiter: Arbiter = .policyNone,
    bootWait: Duration = Self.bootWaitDefault, bootPolicy: BootPolicy = .arbiter
  ) {
    self.uuid = uuid
    self.name = name
    self.revision = revision
    self.nodes = nodes
    self.links = links
    self.pulse = pulse
    self.detection = detection
    self.arbiter = arbiter
    self.bootWait = bootWait
    self.bootPolicy = bootPolicy
  }

  public func node(_ id: NodeID) -> ClusterNode? { nodes.first { $0.id == id } }
  public func node(named name: String) -> ClusterNode? { nodes.first { $0.name == name } }
  public var replicationLinks: [ClusterLink] { links.filter(\.replication) }
}
