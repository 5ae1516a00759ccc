import MirrorModule
import Model

/// What guests were told, by write number.
struct Ledger {
  private var last = 0
  /// Acknowledged, and then flushed: with the branch it was acknowledged under.
  var flushed: [(number: Int, branch: BranchID)] = []
  /// Acknowledged, not flushed yet.
  var acknowledged: [(number: Int, branch: BranchID)] = []
  var guestStarts = 0
  mutating func newWrite() -> Int {
    last += 1
    return last
  }
}

/// The invariants of docs/invariants.md, by number.
extension World {
  /// "I1: ..." by its number.
  func violate(_ text: String) {
    let parts = text.split(separator: ":", maxSplits: 1).map(String.init)
    violations.append(
      Violation(invariant: parts[0], sentence: String((parts.last ?? "").drop { $0 == " " }), atMs: now / 1_000_000))
  }

  private func permitsAlone(_ policy: AcknowledgePolicy) -> Bool {
    switch policy {
    case .alone, .resyncing, .settling: true
    case .frozen, .both: false
    }
  }

  /// May acknowledge a write now, or as soon as one comes.
  private func isWriter(_ node: SimNode) -> Bool {
    guard let engine = node.engine, engine.isMounted, node.isOn else { return false }
    if case .both(let id) = engine.policy { return self.peer(of: node).engine?.replicaOf == id }
    return permitsAlone(engine.policy)
  }

  /// I1: never two writers.
  func checkStep() {
    for node in nodes { checkSuspension(node) }
    if !options.maySplit, isWriter(nodes[0]), isWriter(nodes[1]) { violate("I1: two writers") }
  }

  /// I2: R2, what an acknowledgement stands on.
  func acknowledged(_ kind: SimEngine.Request.Kind, by node: SimNode, _ policy: AcknowledgePolicy) {
    guard let record = node.record else { return violate("I2: \(node.name) acknowledges without a record") }
    if permitsAlone(policy), record.peerOutdated == nil, peer(of: node).record?.standing != .inconsistent {
      violate("I2: \(node.name) acknowledges alone without a durable right")
    }
    switch kind {
    case .write(let number):
      ledger.acknowledged.append((number, record.generation.branch))
      if case .both(let id) = policy, peer(of: node).engine?.session?.id == id,
        !peer(of: node).copy.log.contains(number)
      {
        violate("I2: write \(number) is acknowledged by \(node.name) and not on the peer")
      }
    case .flush:
      let log = node.copy.log
      // Only copies that descend from the flusher's branch are known to have it on disk.
      let branch = record.generation.branch
      ledger.flushed += ledger.acknowledged.filter { log.contains($0.number) }.map { ($0.number, branch) }
      ledger.acknowledged.removeAll { log.contains($0.number) }
    }
  }

  /// I3: a started guest finds every write that was acknowledged and flushed; without power cuts every one.
  /// Under an unproven right only the branches its copy descends from are promised.
  func checkGuestStart(_ node: SimNode) {
    ledger.guestStarts += 1
    guard let record = node.record else { return violate("I4: \(node.name) starts a guest without a record") }
    if record.standing != .uptodate || node.copy.isMixed {
      violate("I4: \(node.name) starts a guest on a copy that is \(record.standing.rawValue)")
    }
    if !options.maySplit, peer(of: node).guest != nil, isWriter(peer(of: node)) {
      violate("I1: \(node.name) starts a guest while the peer's runs")
    }
    let holds = Set(node.copy.log)
    let promised = options.hasPowerCuts ? ledger.flushed : ledger.flushed + ledger.acknowledged
    for write in promised where !holds.contains(write.number) {
      if options.maySplit, !record.history.contains(write.branch) { continue }
      return violate("I3: \(node.name) starts a guest without write \(write.number) of \(write.branch)")
    }
  }

  /// How long vmhad may take from the engine's word until the guest stands: a busy core's messages and two tries.
  private static let suspensionTime: Int64 = 3_000_000_000

  /// I11: a guest that is cut off stands still, whoever resumed it.
  private func checkSuspension(_ node: SimNode) {
    guard let guest = node.guest, guest.state == .running, !guest.isSuspended, !guest.hasLostDisks, !node.isFrozen,
      !node.suspendFails, let held = node.engine?.heldSince, let daemon = node.daemon, !daemon.isStuck
    else { return }
    if now - max(held, guest.runsSince, daemon.startedAt, node.thawedAt, node.suspendsSince) > Self.suspensionTime {
      violate("I11: \(node.name)'s guest runs on while it is cut off")
    }
  }

  /// I11: vmha lets it go on only by a right, or with its peer.
  func checkResume(_ node: SimNode) {
    if node.record?.peerOutdated != nil { return }
    guard let engine = node.engine, case .both = engine.policy, engine.heldSince == nil else {
      return violate("I11: \(node.name) resumes its guest without a right")
    }
  }

  /// I5: durable first, then act.
  func checkBefore(_ directive: Directive, at node: SimNode) {
    let record = node.record
    switch directive {
    case .startGuest:
      if record?.standing != .uptodate { violate("I4: \(node.name) starts a guest that is not up to date") }
    case .replyConsent(_, .granted):
      if record?.standing == .uptodate || record?.peerOutdated != nil {
        violate("I5: \(node.name) consents before it is durable")
      }
    case .engine(.clearIntents):
      if record?.standing != .uptodate { violate("I5: \(node.name) forgets its intents before ADOPT is durable") }
    case .resumeGuest: checkResume(node)
    case .askConsent:
      if record?.standing != .uptodate { violate("I4: \(node.name) asks for consent and is not up to date") }
    case .fencePeer:
      if record?.standing != .uptodate || record?.bootAtLastSync != "\(node.name)\(node.boot)" {
        violate("I13: \(node.name) fences and was not in sync in this boot")
      }
    case .swapWitness(_, _, let register):
      if record?.generation.branch != register.branch, record?.claim != register.branch {
        violate("I5: \(node.name) claims before the claim is durable")
      }
    default: break
    }
  }

  func checkPolicy(_ policy: AcknowledgePolicy, at node: SimNode) {
    if policy == .alone, node.record?.peerOutdated == nil {
      violate("I5: \(node.name) thaws alone before R4 is durable")
    }
  }

  /// M5: maps count only between copies that were the same when both began to keep them.
  func checkPairing(of source: SimNode) {
    let theirs = peer(of: source).record?.pairing
    if theirs == nil || source.record?.pairing != theirs {
      violate("M5: \(source.name) relies on maps of another pairing")
    }
  }

  func checkSent(_ message: PeerMessage, by node: SimNode) {
    guard let record = node.record else { return }
    switch message {
    case .adopt(let generation, _, _):
      if record.peerOutdated != nil || record.generation != generation {
        violate("I5: \(node.name) sends ADOPT before R8.3 is durable")
      }
    case .adopted: if record.standing != .uptodate { violate("I5: \(node.name) sends ADOPTED before it is durable") }
    case .witnessAdopted(let mark):
      if record.witness != mark { violate("I5: \(node.name) agrees to a witness before it is durable") }
    case .adoptWitness: break
    case .targetReady: if record.standing != .inconsistent { violate("I5: target is not durably inconsistent") }
    case .hello, .gaveUp, .token, .giveUp, .goOn: break
    }
  }

  /// I6: a generation never goes back, and no history is left but by a resync.
  func checkPersist(_ next: DurableRecord, at node: SimNode) {
    guard let old = node.record else { return }
    if old.generation.branch != .empty, next.generation.branch == .empty {
      // I12: no branch is given up before it is archived as a whole.
      if node.archives[old.generation.branch] != node.copy.log || node.engine?.isMounted ?? false {
        violate("I12: \(node.name) gives up \(old.generation) and has not archived it")
      }
      if peer(of: node).record?.generation.branch == .empty { violate("I12: both nodes have given up their branches") }
      return
    }
    meet(old, next)
    if next.generation.number < old.generation.number { violate("I6: \(node.name)'s generation goes back") }
    if old.generation != next.generation, next.peerOutdated == nil, old.standing != .inconsistent {
      violate("I6: \(node.name) raises without the mark 'peer outdated'")
    }
    if old.generation.branch != .empty, !next.history.contains(old.generation.branch) {
      violate("I6: \(node.name) leaves its history")
    }
  }

  /// I14: in sync and settled, the witness would let either node go on: what is in its register is an ancestor of both copies.
  func checkRegister() {
    guard options.arbiter.asksWitness else { return }
    for node in nodes {
      guard let record = node.record, let register = witness.register, record.history.contains(register.branch) else {
        return violate("I14: in sync, and the register gives \(node.name) no right")
      }
      if record.witness?.cluster != witness.cluster || record.witness.map({ $0.revision > witness.revision }) ?? true {
        violate("I14: in sync, and \(node.name) does not know this witness")
      }
      if let trouble = status(node)?.arbiterTrouble { violate("I14: in sync, and \(node.name) says: \(trouble)") }
    }
  }

  /// I7: no busy loop.
  func checkLoad(_ node: SimNode, events: Int, directives: [Directive]) {
    if events > 300 { violate("I7: \(node.name)'s core is busy: \(events) events in a second") }
    if directives.count > 40 { violate("I7: \(directives.count) directives for one event") }
  }

  /// I3: R4, R10: what a fresh guest is going to see cannot be lost behind it.
  func checkFreshCopy(_ node: SimNode) {
    if node.copy.flushed < node.copy.log.count {
      violate("I3: \(node.name) starts a fresh guest on a copy that is not on its disk")
    }
  }

  /// I15: a guest that ends again and again is not started for ever.
  func checkRestarts(of node: SimNode, _ starts: Int, max: Int) {
    if starts > 1 + max { violate("I15: \(node.name) starts its guest for the \(starts)th time") }
  }

  /// I8: in sync means equal.
  func checkEqualCopies() {
    let a = nodes[0].copy
    let b = nodes[1].copy
    // A request may be on its way.
    let common = min(a.log.count, b.log.count)
    if a.isMixed || b.isMixed || abs(a.log.count - b.log.count) > 1 || a.log.prefix(common) != b.log.prefix(common) {
      violate("I8: in sync, but the copies differ")
    }
  }

  func record(_ node: SimNode, _ directive: Directive) {
    guard let recorder else { return }
    if let line = names.describe(directive) { recorder(node, line) }
  }
}
