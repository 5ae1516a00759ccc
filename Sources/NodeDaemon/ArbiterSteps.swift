import Model
import ModuleConfig

// R5: two arbiters do not exclude each other, and two nodes never change at the same instant.

/// What decides for a module, with all that makes it this one and no other.
struct ArbiterRule: Hashable, Sendable {
  let kind: Arbiter
  let witness: WitnessConfiguration?
  let fences: [NodeID: FenceConfiguration]
  let pingAddresses: [String]

  init(_ kind: Arbiter, in cluster: ClusterConfiguration) {
    self.kind = kind
    witness = kind.asksWitness ? cluster.witness : nil
    fences = kind.fences ? cluster.fences : [:]
    pingAddresses = kind == .policyPing ? cluster.pingAddresses : []
  }
}

/// The way from one cluster.xml to another that may give modules another arbiter.
///
/// Both nodes write one configuration after the other, so that at any time one has a configuration and the other the same or the next.
/// For a module that changes its arbiter one of two neighbours is `wait`, under which nobody gets a right; for one that does not, all are
/// the same.
struct ArbiterSteps: Sendable {
  private let from: ClusterConfiguration
  private let to: ClusterConfiguration

  init(from: ClusterConfiguration, to: ClusterConfiguration) {
    self.from = from
    self.to = to
  }

  /// No module, present or to come, gets another arbiter.
  var isEmpty: Bool { !isDefaultAffected && affectedByName.isEmpty }

  /// Whether this module gets another arbiter.
  func affects(_ module: ModuleName) -> Bool {
    Self.differ(from.arbiter(of: module), from, to.arbiter(of: module), to)
  }

  /// What is to be written, in order; the last is the wanted one.
  var configurations: [ClusterConfiguration] {
    let touched = affectedByName.map { (from.arbiter(of: $0), to.arbiter(of: $0)) }
    let pairs = touched + (isDefaultAffected ? [(from.arbiter, to.arbiter)] : [])
    guard pairs.contains(where: { $0 != .wait && $1 != .wait }) else { return [to] }
    var between = from
    if isDefaultAffected { between.arbiter = .wait }
    for module in named { between.moduleArbiters[module] = affects(module) ? .wait : from.arbiter(of: module) }
    return [between, to]
  }

  /// What must work before anything is changed: the wanted arbiters of those that get another one, and nothing else.
  var trial: ClusterConfiguration {
    var trial = to
    if !isDefaultAffected { trial.arbiter = .wait }
    trial.moduleArbiters = [:]
    for module in affectedByName { trial.moduleArbiters[module] = to.arbiter(of: module) }
    return trial
  }

  /// "witness, for vm1, vm2"
  var wanted: String {
    let names = affectedByName.map { "\(to.arbiter(of: $0).rawValue) for \($0)" }
    return ((isDefaultAffected ? [to.arbiter.rawValue] : []) + names).joined(separator: ", ")
  }

  private var isDefaultAffected: Bool { Self.differ(from.arbiter, from, to.arbiter, to) }
  /// Those that have one of their own before or after.
  private var named: [ModuleName] { Set(from.moduleArbiters.keys).union(to.moduleArbiters.keys).sorted() }
  private var affectedByName: [ModuleName] { named.filter(affects) }

  private static func differ(
    _ old: Arbiter, _ from: ClusterConfiguration, _ new: Arbiter, _ to: ClusterConfiguration
  ) -> Bool {
    ArbiterRule(old, in: from) != ArbiterRule(new, in: to)
  }
}
