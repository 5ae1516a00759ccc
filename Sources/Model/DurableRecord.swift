/// What a node's copy of a module is worth (DESIGN section 1).
public enum Standing: String, Sendable, Codable, Hashable {
  /// Holds every write that was ever acknowledged, as far as this node can know.
  case uptodate
  /// Consistent, but older than the peer's copy.
  case outdated
  /// In the middle of a resync: not usable as it is.
  case inconsistent
}

/// Number for people, branch for decisions: generations are compared by descent, never by number (R7).
public struct Generation: Sendable, Codable, Hashable, CustomStringConvertible {
  public var number: UInt32
  public var branch: BranchID
  public init(number: UInt32, branch: BranchID) {
    self.number = number
    self.branch = branch
  }
  public var description: String { "g\(number) (\(branch))" }
}

/// Where a right to be alone came from (R5).
public enum RightKind: String, Sendable, Codable, Hashable {
  case consent, witness, fence, policy, force
  /// An unproven right can lead to a split; a standing that rests on it counts only while the policy is still configured.
  public var isProven: Bool {
    switch self {
    case .consent, .witness, .fence: true
    case .policy, .force: false
    }
  }
}

/// R0: the durable record of one module on one node. Written as one atomic file in two copies before any step that relies on it.
public struct DurableRecord: Sendable, Codable, Hashable {
  /// Entries kept in `history`; older ones are dropped from the front. One is added for each right to be alone.
  public static let historyCountMax = 4096

  public var generation: Generation
  /// Branches this copy descends from, oldest first; the last one is `generation.branch`, or a claim absorbed after it.
  public var history: [BranchID]
  public var standing: Standing
  /// The right by which this node knows the peer's copy to be outdated; nil = the peer may be up to date.
  public var peerOutdated: RightKind?
  public var claim: BranchID?
  /// The generation at which this node last gave its consent.
  public var consentedTo: Generation?
  /// Boot id of the host when the module was last in sync: the same boot = the page cache was kept (`continuous`).
  public var bootAtLastSync: String?
  /// The arbiter (by its name in cluster.xml) when the module was last in sync: what another one has allowed since is not known.
  /// nil = a version that did not say.
  public var arbiterAtLastSync: String?
  /// Random, the same on both nodes from the end of one resync to the end of the next. Write-intent maps count only between copies of
  /// one pairing: a node that was set back behind the last resync (a restored backup, a snapshot of the host) has another one.
  public var pairing: UInt64?
  /// The module's role when it was last in sync (R7: last writer).
  public var wroteLast: Bool
  /// R5: the witness as it was last seen; nil = never while both nodes were in sync: then it gives this node no right.
  public var witness: WitnessMark?
  /// R0: the record before this one was lost, and with it whether this node was alone: its copy may be the newest, and only the operator
  /// can say so. Ends when this node becomes a target (R7), or by force. nil = no, as in records of versions that do not know of it.
  public var recordLost: Bool?

  public init(generation: Generation, standing: Standing) {
    self.generation = generation
    self.standing = standing
    history = [generation.branch]
    wroteLast = false
  }

  /// A copy that holds nothing, or nothing that can be known: only ever the target of a resync.
  public static let empty = DurableRecord(generation: Generation(number: 0, branch: .empty), standing: .inconsistent)

  /// R0: what a node writes that finds its record lost.
  public static var lost: DurableRecord {
    var record = empty
    record.recordLost = true
    return record
  }

  public mutating func appendHistory(_ branches: [BranchID]) {
    for branch in branches where !history.contains(branch) { history.append(branch) }
    if history.count > Self.historyCountMax { history.removeFirst(history.count - Self.historyCountMax) }
  }
}
