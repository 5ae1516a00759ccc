import Model

/// Everything `vmha status` shows, as one node sees it: `GET /v1/status`. JSON names are stable; new ones may be added.
/// Optional members are left out when they have no value.
public struct ClusterStatus: Sendable, Codable, Hashable {
  /// Version of the vmhad that answers.
  public var version: String
  /// When it answered, by its clock.
  public var time: WallTime
  /// nil: this host belongs to no cluster yet; then `nodes`, `links` and `modules` are empty.
  public var cluster: ClusterIdentity?
  /// Name of the node that answers.
  public var thisNode: String
  public var nodes: [NodeStatus]
  public var links: [LinkStatus]
  /// Who gives the right to be alone, in words: "policy none: goes on after 3 s without the peer".
  public var arbiter: String
  public var warnings: [StatusWarning]
  public var modules: [ModuleStatus]

  public init(version: String, time: WallTime, cluster: ClusterIdentity?, thisNode: String) {
    self.version = version
    self.time = time
    self.cluster = cluster
    self.thisNode = thisNode
    nodes = []
    links = []
    arbiter = ""
    warnings = []
    modules = []
  }

  enum CodingKeys: String, CodingKey {
    case version, time, cluster, nodes, links, arbiter, warnings, modules
    case thisNode = "this_node"
  }
}

public struct ClusterIdentity: Sendable, Codable, Hashable {
  public var name: String
  public var uuid: String
  /// Raised by each change of cluster.xml, the same on both nodes.
  public var revision: Int
  public init(name: String, uuid: String, revision: Int) {
    self.name = name
    self.uuid = uuid
    self.revision = revision
  }
}

public struct NodeStatus: Sendable, Codable, Hashable {
  public var name: String
  public var id: NodeID
  /// This node itself is always reachable.
  public var reachable: Bool
  /// Since when `reachable` holds; nil if it was never seen since this vmhad started.
  public var since: WallTime?
  /// The host's boot id; nil if unknown.
  public var boot: String?
  public init(name: String, id: NodeID, reachable: Bool, since: WallTime?, boot: String?) {
    self.name = name
    self.id = id
    self.reachable = reachable
    self.since = since
    self.boot = boot
  }
}

public enum LinkState: String, Sendable, Codable, Hashable, CaseIterable {
  case up
  /// Beats are missing, for less than the detection time.
  case late
  case lost
  /// We hear the peer on this link, the peer does not hear us.
  case oneWay = "one-way"
}

public struct LinkStatus: Sendable, Codable, Hashable {
  public var name: String
  /// Numeric address by node name.
  public var addresses: [String: String]
  public var state: LinkState
  public var since: WallTime?
  /// Whether modules may replicate over it.
  public var replication: Bool
  public init(name: String, addresses: [String: String], state: LinkState, since: WallTime?, replication: Bool) {
    self.name = name
    self.addresses = addresses
    self.state = state
    self.since = since
    self.replication = replication
  }
}

/// Something that is not an error now and may hurt later: "can split: no witness".
public struct StatusWarning: Sendable, Codable, Hashable {
  public var what: String
  public var whatToDo: String
  public init(_ what: String, whatToDo: String) {
    self.what = what
    self.whatToDo = whatToDo
  }
  enum CodingKeys: String, CodingKey {
    case what
    case whatToDo = "what_to_do"
  }
}
