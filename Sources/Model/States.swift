/// What a module is doing on one node, in the words users know (docs/states.md).
public enum ModuleState: String, Sendable, Codable, Hashable, CaseIterable {
  case stop = "STOP"
  case wait = "WAIT"
  /// Primary without an in-sync peer.
  case alone = "ALONE"
  case prim = "PRIM"
  case second = "SECOND"
}

public enum Readiness: String, Sendable, Codable, Hashable, CaseIterable {
  case ready
  /// On its way: starting, stopping, resynchronising.
  case transient
  /// Cannot go on without the operator or the peer; the sentence says what it needs.
  case blocked
}

/// One line of a module's account of itself: what it decided and why, in plain words.
public struct Reason: Sendable, Codable, Hashable {
  public var rule: String?
  public var sentence: String
  public init(_ sentence: String, rule: String? = nil) {
    self.sentence = sentence
    self.rule = rule
  }
}
