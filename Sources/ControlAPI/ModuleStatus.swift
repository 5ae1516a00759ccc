import Model

/// What the operator last asked of a module.
public enum ModuleWish: String, Sendable, Codable, Hashable, CaseIterable {
  case started, stopped
}

public enum GuestState: String, Sendable, Codable, Hashable, CaseIterable {
  case running, paused, off
  /// libvirt could not be asked, or the node cannot be reached.
  case unknown
}

/// One module on both nodes: `GET /v1/modules/NAME`, and part of `ClusterStatus`.
public struct ModuleStatus: Sendable, Codable, Hashable {
  public var name: String
  public var number: Int
  /// Name of the node that a start of the VM goes to.
  public var preferredNode: String
  public var wish: ModuleWish
  /// One entry per node of the cluster, in the order of node ids.
  public var nodes: [ModuleNodeStatus]
  /// Name of the link its replication session runs over; nil without a session.
  public var replicationLink: String?
  /// Guest requests waiting for an acknowledgement on the primary.
  public var requestsInFlight: Int
  /// The module's newest entry in the journal.
  public var lastEvent: JournalEvent?
  /// The last result of the TCP or ping check of module.xml; nil if it names none.
  public var check: CheckStatus?
  /// Neither branch descends from the other (R12): both copies are kept, and the operator has to choose.
  public var split: Bool
  /// Who decides when the nodes lose sight of each other; nil: this vmhad does not say.
  public var arbiter: ModuleArbiter?
  /// nil: this vmhad does not know of priorities.
  public var resyncPriority: ResyncPriority?
  /// The add, remove or verification that works on the module now.
  public var operation: String?
  /// nil: this node knows nothing of it.
  public var verification: VerificationStatus?

  public init(name: String, number: Int, preferredNode: String, wish: ModuleWish, nodes: [ModuleNodeStatus]) {
    self.name = name
    self.number = number
    self.preferredNode = preferredNode
    self.wish = wish
    self.nodes = nodes
    requestsInFlight = 0
    split = false
  }

  enum CodingKeys: String, CodingKey {
    case name, number, wish, nodes, check, split, operation, verification, arbiter
    case preferredNode = "preferred_node"
    case resyncPriority = "resync_priority"
    case replicationLink = "replication_link"
    case requestsInFlight = "requests_in_flight"
    case lastEvent = "last_event"
  }

  /// The node that serves the guest, or is about to: PRIM or ALONE by current knowledge.
  public var primary: ModuleNodeStatus? {
    nodes.first { $0.current && ($0.state == .prim || $0.state == .alone) }
  }

  /// PRIM ready with its guest running here, SECOND ready and uptodate there: either node may be lost without harm.
  public var isProtected: Bool {
    guard nodes.count == 2, !split, let primary, primary.state == .prim, primary.readiness == .ready,
      let second = nodes.first(where: { $0.state == .second })
    else { return false }
    return second.current && second.readiness == .ready && second.standing == .uptodate
      && primary.standing == .uptodate
  }
}

/// A module on one node.
public struct ModuleNodeStatus: Sendable, Codable, Hashable {
  /// The node's name.
  public var node: String
  public var id: NodeID
  /// False: the node cannot be reached, the rest is what was last known of it.
  public var current: Bool
  public var state: ModuleState
  public var readiness: Readiness
  /// nil: not known (never heard of), or no durable record.
  public var standing: Standing?
  /// True: this node lost its durable record, and nobody knows what its copy is worth. nil = no.
  public var recordLost: Bool?
  public var generation: GenerationStatus?
  public var guest: GuestState
  /// What it is doing or waiting for, and why.
  public var sentence: String
  /// Since when state and readiness hold.
  public var since: WallTime?
  /// On both ends of a running resync.
  public var resync: ResyncStatus?
  /// On both ends of a resync that waits for its turn.
  public var resyncWait: ResyncWait?
  /// Only while the module is SPLIT, or this copy waits for the other node.
  public var branch: BranchFacts?

  public init(
    node: String, id: NodeID, current: Bool, state: ModuleState, readiness: Readiness, standing: Standing?,
    generation: GenerationStatus?, guest: GuestState, sentence: String, since: WallTime?
  ) {
    self.node = node
    self.id = id
    self.current = current
    self.state = state
    self.readiness = readiness
    self.standing = standing
    self.generation = generation
    self.guest = guest
    self.sentence = sentence
    self.since = since
  }
  enum CodingKeys: String, CodingKey {
    case node, id, current, state, readiness, standing, generation, guest, sentence, since, resync, branch
    case resyncWait = "resync_wait"
    case recordLost = "record_lost"
  }
}

/// R5: the arbiter of one module.
public struct ModuleArbiter: Sendable, Codable, Hashable {
  /// `policy=none`, `policy=ping`, `wait`, `witness`, `fence` or `witness+fence`.
  public var kind: String
  /// Its own; false = the cluster's.
  public var own: Bool
  /// In words, as `ClusterStatus.arbiter`.
  public var text: String
  public init(kind: String, own: Bool, text: String) {
    self.kind = kind
    self.own = own
    self.text = text
  }
}

public struct GenerationStatus: Sendable, Codable, Hashable {
  public var number: UInt32
  /// 16 hexadecimal digits (a 64-bit number does not survive every JSON reader).
  public var branch: String
  public init(number: UInt32, branch: String) {
    self.number = number
    self.branch = branch
  }
  public init(_ generation: Generation) {
    self.init(number: generation.number, branch: generation.branch.description)
  }
}

public struct ResyncStatus: Sendable, Codable, Hashable {
  public var bytesTotal: UInt64
  public var bytesDone: UInt64
  /// Bytes that really crossed the link (holes and zeros do not).
  public var bytesSent: UInt64
  public var bytesPerSecond: UInt64
  /// nil until a rate is known.
  public var secondsLeft: Int?
  /// For how long nothing has moved, from ten seconds on; nil = it moves.
  public var stalledSeconds: Int?

  public init(
    bytesTotal: UInt64, bytesDone: UInt64, bytesSent: UInt64, bytesPerSecond: UInt64, secondsLeft: Int?,
    stalledSeconds: Int? = nil
  ) {
    self.bytesTotal = bytesTotal
    self.bytesDone = bytesDone
    self.bytesSent = bytesSent
    self.bytesPerSecond = bytesPerSecond
    self.secondsLeft = secondsLeft
    self.stalledSeconds = stalledSeconds
  }

  public init(_ progress: ResyncProgress) {
    self.init(
      bytesTotal: progress.bytesTotal, bytesDone: progress.bytesDone, bytesSent: progress.bytesSent,
      bytesPerSecond: progress.bytesPerSecond, secondsLeft: progress.secondsLeft,
      stalledSeconds: progress.stalledSeconds)
  }

  enum CodingKeys: String, CodingKey {
    case bytesTotal = "bytes_total"
    case bytesDone = "bytes_done"
    case bytesSent = "bytes_sent"
    case bytesPerSecond = "bytes_per_second"
    case secondsLeft = "seconds_left"
    case stalledSeconds = "stalled_s"
  }
}

/// The check that module.xml names: what drills and `status` take for "the guest answers".
public struct CheckStatus: Sendable, Codable, Hashable {
  public enum Kind: String, Sendable, Codable, Hashable { case tcp, ping }
  public var kind: Kind
  /// Numeric address or host name.
  public var address: String
  /// TCP only.
  public var port: Int?
  public var answers: Bool
  /// When it was last tried; nil = never.
  public var time: WallTime?
  /// Why it does not answer.
  public var why: String?
  public init(kind: Kind, address: String, port: Int?, answers: Bool, time: WallTime?, why: String? = nil) {
    self.kind = kind
    self.address = address
    self.port = port
    self.answers = answers
    self.time = time
    self.why = why
  }
}
