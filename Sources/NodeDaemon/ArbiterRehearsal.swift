import Arbitration
import ControlAPI
import HostSystem
import MirrorModule
import Model
import ModuleConfig

/// What `vmha check`, and `vmha cluster set` before it changes the arbiter, try on one node. Powers nothing off; writes one key of its own.
final class ArbiterRehearsal {
  let cluster: ClusterConfiguration
  let node: NodeID
  private(set) var checks: [ArbiterCheck] = []

  init(_ cluster: ClusterConfiguration, node: NodeID) {
    self.cluster = cluster
    self.node = node
  }

  private var nodeName: String { cluster.node(node)?.name ?? "\(node)" }

  func run() {
    let inUse = cluster.arbitersInUse
    if inUse.contains(where: \.asksWitness), let witness = cluster.witness { rehearse(witness) }
    if inUse.contains(where: \.fences) { rehearseFence() }
    if inUse.contains(.policyPing) {
      attempt("ping") { "\(try PingAddresses.first(of: cluster.pingAddresses)) answers" }
    }
  }

  private func attempt(_ what: String, module: String? = nil, _ work: () throws -> String) {
    let begin = monotonicNow()
    var passed = true
    var detail = ""
    do { detail = try work() } catch {
      passed = false
      detail = "\(error)"
    }
    checks.append(
      ArbiterCheck(
        node: nodeName, what: what, module: module, passed: passed, detail: detail,
        milliseconds: Int((monotonicNow() - begin).milliseconds)))
  }

  private func rehearse(_ witness: WitnessConfiguration) {
    for file in witness.files {
      attempt("file \(file)") {
        if file == witness.passwordFile || file == witness.keyFile {
          _ = try SecretFile.read(file)
        } else {
          do { _ = try DurableFile.read(file, bytesMax: SecretFile.bytesMax * 16) } catch {
            throw ArbitrationError(.configuration, SecretFile.reason(error))
          }
        }
        return "readable"
      }
    }
    for endpoint in witness.endpoints {
      var one = witness
      one.endpoints = [endpoint]
      let etcd = EtcdWitness(one, cluster: cluster.uuid)
      attempt("read \(endpoint)") {
        "etcd cluster \(hexadecimal(try etcd.read(etcd.rehearsalKey(of: node)).cluster))"
      }
    }
    let etcd = EtcdWitness(witness, cluster: cluster.uuid)
    attempt("compare-and-swap") { try Self.swap(etcd, node) }
  }

  /// As a claim does it: read, swap what was read, read again; and a swap of what is no longer there must not take.
  private static func swap(_ etcd: EtcdWitness, _ node: NodeID) throws -> String {
    let key = etcd.rehearsalKey(of: node)
    let before = try etcd.read(key)
    let register = WitnessRegister(
      branch: BranchID(rawValue: randomUInt64()), number: 0, holder: node, parent: .empty)
    try etcd.swap(key, expect: before.modRevision, register)
    let after = try etcd.read(key)
    guard after.register == register, after.modRevision > before.modRevision else {
      throw ArbitrationError(.failed, "what was written is not what a later read shows")
    }
    guard try !etcd.swap(key, expect: before.modRevision, register) else {
      throw ArbitrationError(.failed, "etcd swapped a value that was no longer there")
    }
    return "written, read back, and a late one refused"
  }

  private func rehearseFence() {
    guard let agent = Arbiters.agent(against: node.peer, cluster) else { return }
    let target = cluster.node(node.peer)?.name ?? ""
    attempt(FenceTarget.check) { try agent.describeTarget() }
    attempt("fence monitor") {
      try agent.monitor()
      return "the device that powers \(target) answers"
    }
    attempt("fence status") {
      guard try agent.isOn() else {
        throw ArbitrationError(.failed, "it says that \(target) is off: does it look at the right machine?")
      }
      return "\(target) is on"
    }
    attempt("fence list") { try agent.checkList() }
  }

  /// The register of one module, against what its core knows.
  func look(at runner: ModuleRunner, _ etcd: EtcdWitness) {
    guard runner.status.state != .stop else { return }
    attempt("register", module: runner.module.text) {
      let reading = try etcd.read(etcd.key(of: runner.module))
      if let why = runner.witnessObjection(reading) { throw ArbitrationError(.failed, why) }
      return reading.register.map { "g\($0.number) of node \($0.holder.rawValue)" } ?? ""
    }
  }
}

/// R5: a node that powers itself off instead of its peer proves nothing, and ends what it should have saved.
enum FenceTarget {
  static let check = "fence target"

  /// Both nodes' options name the same machine: one of them would power itself off.
  static func sharedByBoth(_ checks: [ArbiterCheck]) -> ArbiterCheck? {
    let targets = checks.filter { $0.what == check && $0.passed && $0.detail != FenceOptions.unnamed }
    guard targets.count == 2, targets[0].node != targets[1].node, targets[0].detail == targets[1].detail else {
      return nil
    }
    return ArbiterCheck(
      node: "both", what: "a fence target each", module: nil, passed: false,
      detail:
        "both nodes would power the same machine off, one of them itself: \(targets[0].detail); the file of fence-1 must "
        + "name node 1, and that of fence-2 node 2", milliseconds: 0)
  }
}

extension Daemon {
  /// A fence agent alone may be asked three times.
  static let rehearsalTimeout: Duration = .seconds(75)

  /// On this node: the present configuration with the modules' registers, or one that is to be set.
  func rehearse(_ planned: ClusterConfiguration?) throws -> [ArbiterCheck] {
    let view = snapshot()
    guard let cluster = planned ?? view.cluster else { throw ControlError.noCluster() }
    let rehearsal = ArbiterRehearsal(cluster, node: view.node)
    rehearsal.run()
    if planned == nil, let witness = cluster.witness {
      let etcd = EtcdWitness(witness, cluster: cluster.uuid)
      for runner in view.runners.values.sorted(by: { $0.module < $1.module })
      where cluster.arbiter(of: runner.module).asksWitness { rehearsal.look(at: runner, etcd) }
    }
    return rehearsal.checks
  }

  /// On both nodes. What the peer could not be asked is a check that failed.
  func rehearseBoth(_ planned: ClusterConfiguration?) throws -> CheckReport {
    let view = snapshot()
    guard let cluster = planned ?? view.cluster else { throw ControlError.noCluster() }
    var checks = try rehearse(planned)
    if cluster.nodes.count == 2 {
      do {
        let request = PeerRequest.rehearse(configuration: planned.map { Array($0.xml().utf8) })
        guard case .checks(let theirs) = try callPeer(request, timeout: Self.rehearsalTimeout) else {
          throw HostError(.invalid, "peer.rehearse", path: peerName, "the peer's answer was not one")
        }
        checks += theirs
      } catch {
        checks.append(
          ArbiterCheck(
            node: peerName, what: "ask the node", module: nil, passed: false, detail: "\(error)", milliseconds: 0))
      }
    }
    let clusters = Set(checks.filter { $0.passed && $0.what.hasPrefix("read ") }.map(\.detail))
    if clusters.count > 1 {
      checks.append(
        ArbiterCheck(
          node: "both", what: "one witness", module: nil, passed: false,
          detail: "the endpoints are not of one cluster: " + clusters.sorted().joined(separator: ", "), milliseconds: 0)
      )
    }
    if let both = FenceTarget.sharedByBoth(checks) { checks.append(both) }
    var report = CheckReport(arbiter: arbiterText(cluster.arbiter, cluster), checks: checks)
    if !cluster.moduleArbiters.isEmpty {
      report.moduleArbiters = .init(
        uniqueKeysWithValues: cluster.moduleArbiters.map { ($0.key.text, arbiterText($0.value, cluster)) })
    }
    return report
  }

  public func check() async throws -> CheckReport { try await onThread { try self.rehearseBoth(nil) } }
}
