import Model

/// What comes before a resync that waits for its turn; the module's guest runs meanwhile, ALONE.
public struct ResyncWait: Sendable, Codable, Hashable {
  /// Resyncs of a higher priority, running or waiting.
  public var higherPriority: Int
  public var others: Int
  public init(higherPriority: Int, others: Int) {
    self.higherPriority = higherPriority
    self.others = others
  }
  enum CodingKeys: String, CodingKey {
    case others
    case higherPriority = "higher_priority"
  }
}

/// `vmha set`: nil = leave as it is. Done on both nodes or, if one cannot be reached, on neither.
public struct ModuleChanges: Sendable, Codable, Hashable {
  /// As `arbiter`: back to the cluster's.
  public static let clustersArbiter = "cluster"
  /// Counts at once, for a resync that waits; one that runs is not interrupted.
  public var resyncPriority: ResyncPriority?
  /// R5: the module's own arbiter, as `ClusterChanges.arbiter`, or `clustersArbiter`.
  public var arbiter: String?
  public init(resyncPriority: ResyncPriority? = nil, arbiter: String? = nil) {
    self.resyncPriority = resyncPriority
    self.arbiter = arbiter
  }
  public var isEmpty: Bool { self == ModuleChanges() }
  enum CodingKeys: String, CodingKey {
    case arbiter
    case resyncPriority = "resync_priority"
  }
}
