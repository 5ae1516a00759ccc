import ControlAPI
import Model
import ModuleConfig

// What the operator must know before the day it matters (R5 policy), of the cluster's arbiter and of those that modules have for themselves.
extension Daemon {
  static func splitWarnings(_ cluster: ClusterConfiguration, _ modules: [ModuleName]) -> [StatusWarning] {
    let followers = modules.filter { cluster.moduleArbiters[$0] == nil }
    var warnings: [StatusWarning] = []
    if cluster.arbiter.canSplit, modules.isEmpty || !followers.isEmpty {
      let whose = followers.count < modules.count ? " (\(list(followers)))" : ""
      warnings.append(
        StatusWarning(
          "can split: no witness\(whose); if both nodes live and lose sight of each other, both go on and one copy's writes are given up later",
          whatToDo:
            "vmha cluster set arbiter=witness witness-endpoints=https://HOST:2379 (docs/operating/arbiters.md); "
            + "or accept that a lost node stops its VMs: vmha cluster set arbiter=wait"))
    }
    if let own = cluster.ownSplitWarning(of: modules) {
      warnings.append(StatusWarning(own.what, whatToDo: own.whatToDo))
    }
    return warnings
  }

  /// " (vm1, vm2)", if not all modules ask the same.
  static func modules(
    asking part: Arbiters.Part, _ cluster: ClusterConfiguration, _ modules: [ModuleName]
  ) -> String {
    if cluster.moduleArbiters.isEmpty { return "" }
    let asking = modules.filter { part.isAsked(by: cluster.arbiter(of: $0)) }
    return asking.isEmpty ? "" : " (\(list(asking)))"
  }

  private static func list(_ modules: [ModuleName]) -> String { modules.map(\.text).joined(separator: ", ") }
}
