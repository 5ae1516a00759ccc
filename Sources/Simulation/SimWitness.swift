import MirrorModule
import Model

extension ArbiterPolicy {
  /// Something beside the two nodes has a part in it.
  var usesOthers: Bool { asksWitness || fences || self == .ping }
}

/// The register in etcd, behind several endpoints; what is on its way to one may be late, lost or doubled, and so may the answers.
final class SimWitness {
  /// Linearizable, whichever member is asked.
  struct Store {
    var cluster: UInt64
    var revision: Int64
    var modRevision: Int64 = 0
    var createRevision: Int64?
    var register: WitnessRegister?
  }
  private struct Call {
    var id: UInt64
    var daemon: SimDaemon
    var isSwap: Bool
    var first: Int
    var work: (inout Store) -> Event
  }
  /// As many as a site has that lets one fail.
  static let endpointCount = 3

  private unowned let world: World
  /// The second one is no witness of these nodes: some worlds have an endpoint of it in their configuration.
  private var stores = [Store(cluster: 77, revision: 5), Store(cluster: 990, revision: 12)]
  private var storeBehind: [Int]
  var own: Store { stores[0] }
  /// What was on its way to a server that is no more does not arrive.
  private var incarnation = 0
  private var backups: [Store] = []
  /// By node, both ways, to all of them.
  var isReached = [true, true]
  /// By node and endpoint: the way to that one.
  private var isNear: [[Bool]]
  private var isUp: [Bool]
  /// By node: the endpoint that answered last is asked first.
  private var preferred = [0, 0]

  init(world: World) {
    self.world = world
    storeBehind = Array(repeating: 0, count: Self.endpointCount)
    isUp = Array(repeating: true, count: Self.endpointCount)
    isNear = Array(repeating: isUp, count: 2)
    if !world.options.isCalm, world.random.chance(3) { storeBehind[world.random.below(Self.endpointCount)] = 1 }
  }

  private var isKind: Bool { world.options.isCalm || world.isHealed }
  private var hasQuorum: Bool { isUp.filter { $0 }.count > Self.endpointCount / 2 }

  func read(_ id: UInt64, for daemon: SimDaemon) {
    call(id, for: daemon, isSwap: false) { store in
      .witnessRead(
        id: id,
        WitnessReading(
          cluster: store.cluster, revision: store.revision, modRevision: store.modRevision,
          createRevision: store.createRevision, register: store.register))
    }
  }

  func swap(_ id: UInt64, _ expect: Int64, _ next: WitnessRegister, for daemon: SimDaemon) {
    call(id, for: daemon, isSwap: true) { [unowned self] store in
      if store.modRevision == expect {
        backups.append(store)
        store.revision += 1
        store.modRevision = store.revision
        store.createRevision = store.createRevision ?? store.revision
        store.register = next
      }
      return .witnessSwapped(id: id)
    }
  }

  // MARK: the client (EtcdWitness.call)

  private func call(_ id: UInt64, for daemon: SimDaemon, isSwap: Bool, _ work: @escaping (inout Store) -> Event) {
    ask(Call(id: id, daemon: daemon, isSwap: isSwap, first: preferred[daemon.node.index], work: work), step: 0)
  }

  /// One endpoint after the other. What was asked of one that did not answer in time may still be done.
  private func ask(_ call: Call, step: Int) {
    let (daemon, node) = (call.daemon, call.daemon.node)
    guard step < Self.endpointCount else {
      return daemon.deliver(.arbiterFailed(id: call.id, why: "no answer in time"))
    }
    if step > 0 { world.meet(.witnessNextEndpoint) }
    let endpoint = (call.first + step) % Self.endpointCount
    var isOver = false
    func goOn(after delay: Duration) {
      node.after(delay) { [self] in
        if isOver { return }
        isOver = true
        ask(call, step: step + 1)
      }
    }
    goOn(after: World.witnessCallMax)
    guard isReached[node.index], isNear[node.index][endpoint], isUp[endpoint] else {
      world.meet(.witnessUnreachable)
      // A port that nobody listens at answers at once.
      if !world.options.isCalm, world.random.chance(30) { goOn(after: world.delay(5, 1...900)) }
      return
    }
    guard hasQuorum else { return goOn(after: world.delay(5, 1...900)) }
    guard isKind || !world.random.chance(5) else { return world.meet(.witnessRequestLost) }
    // Later than the answer is waited for, later than a reboot: the network keeps what it has.
    let isSlow = call.isSwap && !isKind && world.random.chance(20)
    if isSlow { world.meet(.witnessLate) }
    arrive(call, at: endpoint, after: isSlow ? world.delay(0, 1...40_000) : world.delay(5, 1...900)) { [self] event in
      guard isReached[node.index], isKind || !world.random.chance(15) else { return world.meet(.witnessAnswerLost) }
      node.after(world.delay(5, 1...900)) { [self] in
        if isOver { return }
        isOver = true
        preferred[node.index] = endpoint
        daemon.deliver(event)
      }
    }
    if call.isSwap, !isKind, world.random.chance(10) {
      world.meet(.witnessTwice)
      arrive(call, at: endpoint, after: world.delay(0, 1...20_000)) { _ in }
    }
  }

  private func arrive(_ call: Call, at endpoint: Int, after delay: Duration, _ answer: @escaping (Event) -> Void) {
    let planned = incarnation
    world.after(delay) { [unowned self] in
      guard planned == incarnation, isUp[endpoint], hasQuorum else { return }
      if storeBehind[endpoint] != 0 { world.meet(.witnessStranger) }
      answer(call.work(&stores[storeBehind[endpoint]]))
    }
  }

  // MARK: faults

  func stopOrStartMember() { isUp[world.random.below(Self.endpointCount)].toggle() }

  func cutOrMendWay(of node: SimNode) { isNear[node.index][world.random.below(Self.endpointCount)].toggle() }

  /// Also what the operator would mend.
  func heal() {
    isReached = [true, true]
    isUp = isUp.map { _ in true }
    isNear = isNear.map { _ in isUp }
    storeBehind = storeBehind.map { _ in 0 }
  }

  /// Restored from a backup that both nodes can tell from what they saw. One that is newer than what a stale node last saw cannot be told
  /// (docs/operating/arbiters.md).
  func setBack() {
    let seen = world.nodes.compactMap { $0.record?.witness }
    guard let least = seen.map(\.modRevision).min(), seen.count == 2,
      let backup = backups.last(where: { $0.cluster == stores[0].cluster && $0.modRevision < least })
    else { return }
    world.meet(.witnessSetBack)
    stores[0] = backup
    incarnation += 1
    if world.random.chance(50) { stores[0].revision += 40 }  // others write to it
  }

  /// All is lost: a new cluster, or the key is deleted.
  func lose() {
    world.meet(.witnessEmptied)
    if world.options.isCalm || world.random.chance(50) {
      stores[0] = Store(cluster: stores[0].cluster + 1, revision: 1)
      incarnation += 1
    } else {
      stores[0].revision += 1
      stores[0].modRevision = 0
      stores[0].createRevision = nil
      stores[0].register = nil
    }
  }
}
