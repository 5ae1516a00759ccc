/// One thing that was tried on one node.
public struct ArbiterCheck: Sendable, Codable, Hashable {
  public var node: String
  /// "read https://10.0.0.3:2379", "fence status"...
  public var what: String
  /// Name of the VM it is about; nil = all.
  public var module: String?
  public var passed: Bool
  /// What was found, or why it failed.
  public var detail: String
  public var milliseconds: Int
  public init(node: String, what: String, module: String?, passed: Bool, detail: String, milliseconds: Int) {
    self.node = node
    self.what = what
    self.module = module
    self.passed = passed
    self.detail = detail
    self.milliseconds = milliseconds
  }
  enum CodingKeys: String, CodingKey {
    case node, what, module, passed, detail
    case milliseconds = "ms"
  }
}

/// `POST /v1/check`: the arbiter, rehearsed on both nodes.
public struct CheckReport: Sendable, Codable, Hashable {
  /// As `ClusterStatus.arbiter`.
  public var arbiter: String
  /// By name: the modules that have an arbiter of their own, in the same words; nil = none has.
  public var moduleArbiters: [String: String]?
  /// All of `checks` did. True with none: an arbiter that nobody answers for cannot fail.
  public var passed: Bool
  public var checks: [ArbiterCheck]
  public init(arbiter: String, checks: [ArbiterCheck]) {
    self.arbiter = arbiter
    self.checks = checks
    passed = checks.allSatisfy(\.passed)
  }
  enum CodingKeys: String, CodingKey {
    case arbiter, passed, checks
    case moduleArbiters = "module_arbiters"
  }
}
