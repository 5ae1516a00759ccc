import ControlAPI
import HostSystem
import MirrorModule
import Model
import ModuleConfig

// R5: the arbiter is changed by command only, while both nodes are in sync, and both acknowledge it.
extension Daemon {
  /// nil = the arbiter and what belongs to it stay as they are. Else: the configurations to write, one after the other.
  ///
  /// Two arbiters do not exclude each other, and two nodes never change at the same instant: between two of them lies `wait`, under which
  /// nobody gets a right, acknowledged by both.
  static func stepsToArbiter(
    of new: ClusterConfiguration, from old: ClusterConfiguration
  ) -> [ClusterConfiguration]? {
    let isSame =
      new.arbiter == old.arbiter && new.witness == old.witness && new.fences == old.fences
      && new.pingAddresses == old.pingAddresses
    if isSame { return nil }
    if new.arbiter == .wait || old.arbiter == .wait { return [new] }
    var between = old
    between.arbiter = .wait
    return [between, new]
  }

  func checkArbiterMayChange(to new: ClusterConfiguration) throws {
    let what = "the arbiter was not changed"
    try requireInSync(what)
    let report = try rehearseBoth(new)
    guard let failed = report.checks.first(where: { !$0.passed }) else { return }
    throw ControlError(
      .refused, what, why: "\(failed.node): \(failed.what): \(failed.detail)",
      next: "mend it and repeat; docs/operating/arbiters.md says how to set one up")
  }

  /// Every module, on both nodes, as they say now; throws `ControlError` with `what`.
  func requireInSync(_ what: String) throws {
    guard snapshot().cluster?.nodes.count == 2 else { return }
    let reports: [ModuleReport]
    do {
      guard case .report(let answer) = try callPeer(.report, timeout: Self.reportTimeout) else {
        throw HostError(.invalid, "peer.report", path: peerName, "the peer's answer was not one")
      }
      reports = answer
    } catch {
      throw ControlError(
        .peerUnreachable, what, why: "both nodes must acknowledge it, and \(peerName) does not answer: \(error)",
        next: "repeat it when both nodes are up", httpStatus: 409)
    }
    for report in ownReports() + reports where !report.status.inSync && report.status.state != .stop {
      throw ControlError(
        .refused, what,
        why: "\(report.module) is not in sync (\(report.status.sentence)): a right that is under way must not meet "
          + "another",
        next: "wait until 'vmha status' shows PRIM and SECOND ready, or stop the VM")
    }
  }

  /// The settings of `vmha cluster set` that belong to an arbiter, by their names there; an empty value takes one back.
  static func apply(_ settings: [String: String], to cluster: inout ClusterConfiguration) throws {
    func list(_ text: String) -> [String] { text.split(separator: ",").map(String.init) }
    func optional(_ text: String) -> String? { text.isEmpty ? nil : text }
    var witness = cluster.witness ?? WitnessConfiguration(endpoints: [])
    for (name, value) in settings.sorted(by: { $0.key < $1.key }) {
      switch name {
      case "witness-endpoints": witness.endpoints = list(value)
      case "witness-ca": witness.authorityFile = optional(value)
      case "witness-certificate": witness.certificateFile = optional(value)
      case "witness-key": witness.keyFile = optional(value)
      case "witness-user": witness.user = optional(value)
      case "witness-password-file": witness.passwordFile = optional(value)
      case "ping": cluster.pingAddresses = list(value)
      case "fence-1": cluster.fences[.first] = try fence(name, value)
      case "fence-2": cluster.fences[.second] = try fence(name, value)
      default:
        throw ControlError(
          .invalidRequest, "there is no arbiter setting '\(name)'", next: "see: vmha cluster set --help")
      }
    }
    cluster.witness = witness == WitnessConfiguration(endpoints: []) ? nil : witness
  }

  private static func fence(_ name: String, _ value: String) throws -> FenceConfiguration? {
    if value.isEmpty { return nil }
    let parts = value.split(separator: ":", maxSplits: 1).map(String.init)
    guard parts.count == 2 else {
      throw ControlError(
        .invalidRequest, "'\(name)=\(value)' is not possible", why: "it must be AGENT:FILE",
        next: "for example \(name)=fence_ipmilan:/etc/vmha/\(name).options")
    }
    return FenceConfiguration(agent: parts[0], optionsFile: parts[1])
  }
}
