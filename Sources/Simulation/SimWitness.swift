import MirrorModule
import Model

extension ArbiterPolicy {
  /// Something beside the two nodes has a part in it.
  var usesOthers: Bool { asksWitness || fences || self == .ping }
}

/// The register in etcd: linearizable; what is on its way to it may be late, lost or doubled, and so may its answers.
final class SimWitness {
  private unowned let world: World
  private(set) var cluster: UInt64 = 77
  private(set) var revision: Int64 = 5
  private(set) var modRevision: Int64 = 0
  private(set) var register: WitnessRegister?
  /// What was on its way to a server that is no more does not arrive.
  private var incarnation = 0
  private var backups: [(cluster: UInt64, revision: Int64, modRevision: Int64, register: WitnessRegister?)] = []
  /// By node, both ways.
  var isReached = [true, true]

  init(world: World) { self.world = world }

  private var isKind: Bool { world.options.isCalm || world.isHealed }

  func read(_ id: UInt64, for daemon: SimDaemon) {
    let node = daemon.node
    send(for: daemon, id, within: world.delay(5, 1...900)) { [unowned self] in
      let reading = WitnessReading(
        cluster: cluster, revision: revision, modRevision: modRevision, register: register)
      answer(.witnessRead(id: id, reading), at: daemon, node)
    }
  }

  func swap(_ id: UInt64, _ expect: Int64, _ next: WitnessRegister, for daemon: SimDaemon) {
    let node = daemon.node
    let apply = { [unowned self] in
      if modRevision == expect {
        backups.append((cluster, revision, modRevision, register))
        revision += 1
        modRevision = revision
        register = next
      }
      answer(.witnessSwapped(id: id), at: daemon, node)
    }
    // Later than the answer is waited for, later than a reboot: the network keeps what it has.
    let isSlow = !isKind && world.random.chance(20)
    if isSlow { world.meet(.witnessLate) }
    send(for: daemon, id, within: isSlow ? world.delay(0, 1...40_000) : world.delay(5, 1...900), apply)
    if !isKind, world.random.chance(10) {
      world.meet(.witnessTwice)
      let planned = incarnation
      world.after(world.delay(0, 1...20_000)) { [unowned self] in
        if isReached[node.index], planned == incarnation { apply() }
      }
    }
  }

  private func send(for daemon: SimDaemon, _ id: UInt64, within delay: Duration, _ work: @escaping () -> Void) {
    let node = daemon.node
    node.after(World.witnessTimeout) {
      daemon.deliver(.arbiterFailed(id: id, why: "no answer in time"))
    }
    guard isReached[node.index] else { return world.meet(.witnessUnreachable) }
    guard isKind || !world.random.chance(5) else { return world.meet(.witnessRequestLost) }
    let planned = incarnation
    world.after(delay) { [unowned self] in if planned == incarnation { work() } }
  }

  private func answer(_ event: Event, at daemon: SimDaemon, _ node: SimNode) {
    guard isReached[node.index], isKind || !world.random.chance(15) else { return world.meet(.witnessAnswerLost) }
    node.after(world.delay(5, 1...900)) { daemon.deliver(event) }
  }

  /// Restored from a backup that both nodes can tell from what they saw. One that is newer than what a stale node last saw cannot be told
  /// (docs/operating/arbiters.md).
  func setBack() {
    let seen = world.nodes.compactMap { $0.record?.witness }
    guard let least = seen.map(\.modRevision).min(), seen.count == 2,
      let backup = backups.last(where: { $0.cluster == cluster && $0.modRevision < least })
    else { return }
    world.meet(.witnessSetBack)
    (cluster, revision, modRevision, register) = backup
    incarnation += 1
    if world.random.chance(50) { revision += 40 }  // others write to it
  }

  /// All is lost: a new cluster, or the key is deleted.
  func lose() {
    world.meet(.witnessEmptied)
    if world.options.isCalm || world.random.chance(50) {
      cluster += 1
      revision = 1
      incarnation += 1
    } else {
      revision += 1
    }
    modRevision = 0
    register = nil
  }
}
