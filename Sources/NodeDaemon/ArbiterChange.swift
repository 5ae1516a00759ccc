import ControlAPI
import HostSystem
import MirrorModule
import Model
import ModuleConfig

/// R5: the arbiter is changed by command only, while both nodes are in sync, and both acknowledge it. One command, from its checks to its
/// last step; what it needs of the node comes in, so that a test can stop it anywhere.
struct ArbiterChange {
  /// Both cores must have what the configuration says within so many looks: they may be busy with what came before.
  static let looksMax = 100
  static let lookEvery: Duration = .milliseconds(100)

  /// What was not done, if it is refused.
  let what: String
  /// Of every module, of both nodes. Throws `ControlError`.
  let reports: () throws -> [ModuleReport]
  let rehearse: (ClusterConfiguration) throws -> CheckReport
  /// On both nodes, durably.
  let write: (_ new: ClusterConfiguration, _ old: ClusterMembership) throws -> ClusterMembership
  /// Waits; true: it is no use waiting any longer.
  let pause: (Duration) -> Bool

  /// Writes `new`, or first what must lie between. Throws `ControlError`, `ClusterError` or `ConfigurationError`.
  func run(to new: ClusterConfiguration, from membership: ClusterMembership) throws -> ClusterMembership {
    let steps = ArbiterSteps(from: membership.configuration, to: new)
    guard !steps.isEmpty else { return try write(new, membership) }
    try new.validate()
    try requireInSync(what, steps, under: membership.configuration)
    if let failed = try rehearse(steps.trial).checks.first(where: { !$0.passed }) {
      throw ControlError(
        .refused, what, why: "\(failed.node): \(failed.what): \(failed.detail)",
        next: "mend it and repeat; docs/operating/arbiters.md says how to set one up")
    }
    var path = steps.configurations
    let first = try write(path.removeFirst(), membership)
    guard let last = path.first else { return first }
    let half = "the arbiter is 'wait' now, and not \(steps.wanted) yet"
    // A right of the arbiter before may have come while `wait` was on its way: then this node, or the other, is alone.
    try requireInSync(half, steps, under: first.configuration)
    do { return try write(last, first) } catch {
      throw ControlError(
        .failed, half, why: "\(error)", next: "see 'vmha cluster show'; repeat the command when both nodes are up")
    }
  }

  /// Every module that gets another arbiter, as both nodes say now: in sync or stopped, and its core has what `present` says, so that no
  /// right of another arbiter is still to come.
  private func requireInSync(_ what: String, _ steps: ArbiterSteps, under present: ClusterConfiguration) throws {
    guard present.nodes.count == 2 else { return }
    for look in 1... {
      let reports = try reports().filter { steps.affects($0.module) }
      if let report = reports.first(where: { !$0.status.inSync && $0.status.state != .stop }) {
        throw ControlError(
          .refused, what,
          why: "\(report.module) is not in sync (\(report.status.sentence)): a right that is under way must not meet "
            + "another",
          next: "wait until 'vmha status' shows PRIM and SECOND ready, or stop the VM")
      }
      let late = reports.first { $0.status.arbiter != arbiterPolicy(present.arbiter(of: $0.module)) }
      guard let late else { return }
      guard look < Self.looksMax, !pause(Self.lookEvery) else {
        throw ControlError(
          .refused, what,
          why:
            "\(late.module) has not taken the present arbiter, \(present.arbiter(of: late.module).rawValue), into use on "
            + "both nodes",
          next: "see 'vmha log \(late.module)'; both nodes must run the same version; then repeat the command")
      }
    }
  }
}

extension Daemon {
  /// Throws as `ArbiterChange.run`.
  func changeStepwise(
    to new: ClusterConfiguration, from membership: ClusterMembership, _ what: String
  ) throws -> ClusterMembership {
    let change = ArbiterChange(
      what: what, reports: { try self.ownReports() + self.peerReports(what) },
      rehearse: { try self.rehearseBoth($0) }, write: { try self.changeCluster(to: $0, from: $1) },
      pause: { self.isStopping(within: $0) })
    return try change.run(to: new, from: membership)
  }

  private func peerReports(_ what: String) throws -> [ModuleReport] {
    do {
      guard case .report(let reports) = try callPeer(.report, timeout: Self.reportTimeout) else {
        throw HostError(.invalid, "peer.report", path: peerName, "the peer's answer was not one")
      }
      return reports
    } catch {
      throw ControlError(
        .peerUnreachable, what, why: "both nodes must acknowledge it, and \(peerName) does not answer: \(error)",
        next: "repeat it when both nodes are up", httpStatus: 409)
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
