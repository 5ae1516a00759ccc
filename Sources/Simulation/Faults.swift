import MirrorModule
import Model

/// A run of random faults, then everything is healed and the module must come back.
struct RandomRun {
  let world: World

  init(seed: UInt64, arbiter: ArbiterPolicy) {
    var random = Random(state: seed ^ 0x5eed)
    var options = World.Options()
    options.seed = seed
    options.arbiter = arbiter
    options.preferred = random.chance(50) ? .first : .second
    options.beatsOnChangeOnly = random.chance(85)
    options.reportsExit = random.chance(50)
    options.isCalm = false
    options.hasPowerCuts = random.chance(60) || arbiter.fences
    options.beginsInSync = random.chance(40)
    // What a forced copy does not descend from is not promised: in few runs only.
    if random.chance(8) { options.forceAfter = random.milliseconds(4000...20_000) }
    if random.chance(30) { options.splitPolicy = .keepPreferred }
    world = World(options)
  }

  /// What went wrong, or nil.
  func failure() -> Violation? {
    for node in world.nodes { node.startDaemon() }
    world.run(for: .milliseconds(600))
    world.command(.start(force: false), at: world.nodes[world.random.below(2)])
    if world.random.chance(70) {
      _ = world.run(upTo: .seconds(60)) { world.isConverged && world.ledger.guestStarts > 0 }
    }
    for _ in 0..<(4 + world.random.below(12)) {
      fault()
      world.run(for: world.random.milliseconds(world.random.chance(50) ? 1...800 : 500...12_000))
      if let violation = world.violations.first { return violation }
    }
    return healed()
  }

  private var states: String {
    world.nodes.map { node in
      "\(node.name): \(world.status(node).map { "\($0.state) \($0.readiness): \($0.sentence)" } ?? "-") [\(node.engine?.text ?? "-")]"
    }.joined(separator: " | ")
  }

  private func missed(_ invariant: String, _ sentence: String) -> Violation {
    Violation(invariant: invariant, sentence: sentence, atMs: world.now / 1_000_000)
  }

  private func healed() -> Violation? {
    world.faultRecorder?("everything is healed")
    world.heal()
    world.run(for: .seconds(8))
    for node in world.nodes { world.command(.start(force: false), at: node) }
    var isBack = world.run(upTo: .seconds(120)) { world.isConverged || world.isSplit }
    if !isBack, world.violations.isEmpty, let node = nodeToForce {
      world.meet(.forcedAtEnd)
      world.command(.start(force: true), at: node)
      isBack = world.run(upTo: .seconds(120)) { world.isConverged || world.isSplit }
    }
    if let violation = world.violations.first { return violation }
    guard isBack else { return missed("I9", "does not come back: " + states) }
    if world.isSplit, world.random.chance(70) {
      // Resolved, it comes back too.
      world.run(for: .seconds(2))
      // Beside a copy whose record was lost and that was forced, the other one may be half copied: nobody can keep that.
      let choices = world.nodes.filter { world.peer(of: $0).record?.standing == .uptodate }
      let choice = choices.isEmpty ? nil : choices[world.random.below(choices.count)]
      // Refused while the nodes are just meeting, it is repeated.
      for _ in 0..<4 where !world.isConverged {
        if let choice { world.giveUp(choice) }
        _ = world.run(upTo: .seconds(30)) { world.isConverged }
      }
      if let violation = world.violations.first { return violation }
      guard world.isConverged else { return missed("I9", "does not come back after it was resolved: " + states) }
    }
    world.run(for: .seconds(60))
    if world.isConverged { world.checkRegister() }
    if let violation = world.violations.first { return violation }
    if !world.maySplit, world.isSplit { return missed("I9", "SPLIT without an unproven right") }
    if !world.isConverged && !world.isSplit { return missed("I9", "does not stay in sync: " + states) }
    world.meet(world.isConverged ? .convergedAtEnd : .splitAtEnd)
    return nil
  }

  /// What only the operator can choose: an outdated copy (R6), or either one where a record was lost (R0).
  private var nodeToForce: SimNode? {
    // Whoever goes on by himself is not to be forced: the status says that nobody does.
    guard world.coverage.hasMet(.recordLost), world.nodes.allSatisfy({ world.status($0)?.readiness == .blocked })
    else { return nil }
    let choices = world.nodes.filter { node in
      let peer = world.peer(of: node)
      guard let record = node.record, world.status(peer)?.state != .prim else { return false }
      switch record.standing {
      case .uptodate: return peer.record?.recordLost == true
      case .outdated: return peer.record?.standing != .uptodate
      // Whoever forces the half copy has a mixed one, as he was told.
      case .inconsistent: return record.recordLost == true && !node.copy.isMixed
      }
    }
    return choices.isEmpty ? nil : choices[world.random.below(choices.count)]
  }

  private func arbiterFault(at node: SimNode) {
    let kind = world.random.below(15)
    world.faultRecorder?("fault \(kind) of the arbiter at \(node.name)")
    switch kind {
    case 9, 10, 11:
      // Both nodes see the other one lost, and both ask at the same time.
      world.replicationUp = [false, false]
      world.lanUp = [false, false]
      world.run(for: world.random.milliseconds(3000...9000))
    case 0: world.witness.isReached = [false, false]
    case 1, 2: world.witness.isReached[node.index] = false
    case 3, 4, 5: world.witness.isReached = [true, true]
    case 12: world.witness.stopOrStartMember()
    case 13, 14: world.witness.cutOrMendWay(of: node)
    case 6: node.fenceFails.toggle()
    case 7: world.witness.setBack()
    default: if world.random.chance(40) { world.witness.lose() }
    }
  }

  private func diskFault(at node: SimNode) {
    switch world.random.below(9) {
    case 6, 7: node.isDiskHung.toggle()
    case 8:
      // Whoever reads it next finds it lost.
      if node.daemon == nil, world.random.chance(50) { node.isRecordLost = true }
    case 0, 1:
      node.isDiskSlow.toggle()
      if node.isDiskSlow { world.meet(.diskSlow) }
    case 2: node.intentsFail.toggle()
    case 3:
      guard !node.isOn else { return }
      world.meet(.intentsDamaged)
      node.intentFile.damage(&world.random)
    case 4:
      guard node.engine != nil, world.random.chance(40) else { return }
      world.meet(.diskError)
      node.engine?.breakDisk(world.random.chance(50) ? 5 : 28)
    default: if world.random.chance(40) { node.writesFail.toggle() }
    }
  }

  private func fault() {
    let node = world.nodes[world.random.below(2)]
    if world.arbiter.usesOthers, world.random.chance(25) { return arbiterFault(at: node) }
    let kind = world.random.below(40)
    world.faultRecorder?("fault \(kind) at \(node.name)")
    switch kind {
    case 0, 1: world.options.hasPowerCuts ? node.powerCut() : node.killDaemon()
    case 2, 3: world.powerOn(node)
    case 4: node.killEngine()
    case 5:
      world.meet(.vmhadKilled)
      node.killDaemon()
    case 6: node.daemonDiesAfter = world.random.below(12)
    case 7: node.startDaemon()
    case 8:
      // A process that waits for its disk cannot die.
      guard let guest = node.guest, !guest.isStuck else { return }
      world.meet(.guestCrashed)
      guest.end(.failed)
    case 9: node.freeze()
    case 10, 11: node.thaw()
    case 12:
      world.meet(.cutReplication)
      world.replicationUp = [false, false]
    case 13:
      world.meet(.cutEverything)
      world.replicationUp = [false, false]
      world.lanUp = [false, false]
    case 14:
      world.meet(.cutOneWay)
      world.replicationUp[node.index] = false
    case 15:
      world.replicationUp[node.index] = false
      world.lanUp[node.index] = false
    case 16, 17:
      world.replicationUp = [true, true]
      world.lanUp = [true, true]
    case 18: if world.random.chance(30) { node.persistFails = true }
    case 19: if world.random.chance(50) { node.guestStartFails.toggle() }
    case 20: world.command(.swap, at: node)
    case 21: world.command(.stop, at: node)
    case 22: world.command(.start(force: false), at: node)
    case 23: node.guest?.resume(byHand: true)
    case 24: node.suspendFails.toggle()
    case 25: world.giveUp(node)
    case 26: for node in world.nodes { world.giveUp(node) }  // at the same time
    case 27, 28: node.replaceEngine()
    case 29, 30, 31, 32, 33: diskFault(at: node)
    case 34:
      if world.isConverged {
        let next = Campaign.arbiters[world.random.below(Campaign.arbiters.count)]
        world.changeArbiter(to: next, by: node)
      } else {
        world.command(.start(force: true), at: node)
      }
    case 35, 36, 37: node.engineDiesStoring = true
    default: for node in world.nodes where node.isOn && !node.isFrozen { node.startDaemon() }
    }
  }
}
