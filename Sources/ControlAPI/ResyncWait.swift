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
  /// Counts at once, for a resync that waits; one that runs is not interrupted.
  public var resyncPriority: ResyncPriority?
  public init(resyncPriority: ResyncPriority? = nil) { self.resyncPriority = resyncPriority }
  public var isEmpty: Bool { self == ModuleChanges() }
  enum CodingKeys: String, CodingKey { case resyncPriority = "resync_priority" }
}
