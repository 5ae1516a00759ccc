import MirrorModule
import Model

/// What guests were told, by write number.
struct Ledger {
  struct Acknowledged {
    let number: Int
    /// Empty for a change of names.
    let blocks: Range<Int>
    let branch: BranchID
    let node: Int
    /// Which acknowledgement it was.
    let serial: Int
  }
  /// By number: when its turn in the file came last, and under which branch it came first. What overlaps is applied in this order.
  private(set) var turns: [(order: Int, branch: BranchID)] = [(0, .empty)]
  private var lastTurn = 0
  /// Acknowledged and then flushed, under this branch. By block the last one, by order.
  var floors = [[BranchID: Int]](repeating: [:], count: Contents.blockCount)
  var names: [(number: Int, branch: BranchID)] = []
  /// Not flushed yet.
  var acknowledged: [Acknowledged] = []
  var acknowledgements = 0
  var guestStarts = 0

  /// Branches that the operator began on a copy whose record was lost: what they descend from is not known, and nothing but what was
  /// written since is promised of them.
  var blind: Set<BranchID> = []

  mutating func newWrite() -> Int {
    turns.append((0, .empty))
    return turns.count - 1
  }

  mutating func begins(_ number: Int, _ branch: BranchID) {
    lastTurn += 1
    // One that is done again by the engine that replaced the first may be on the peer since the first time.
    turns[number] = (lastTurn, turns[number].order == 0 ? branch : turns[number].branch)
  }

  /// The block holds this write or one that came after it.
  func holds(_ contents: Contents, _ block: Int, _ number: Int) -> Bool {
    turns[contents.blocks[block]].order >= turns[number].order
  }

  mutating func promise(_ write: Acknowledged, _ branch: BranchID, of contents: Contents) {
    if write.blocks.isEmpty, contents.names.contains(write.number) { names.append((write.number, branch)) }
    for block in write.blocks where holds(contents, block, write.number) {
      if let known = floors[block][branch], turns[known].order >= turns[write.number].order { continue }
      floors[block][branch] = write.number
    }
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
    let engines = (nodes[0].engine, nodes[1].engine)
    if let held = engines.0?.heldSince { checkSuspension(nodes[0], heldSince: held) }
    if let held = engines.1?.heldSince { checkSuspension(nodes[1], heldSince: held) }
    if !maySplit, isWriter(nodes[0]), isWriter(nodes[1]) { violate("I1: two writers") }
    if let a = engines.0, a.isMounted, case .both(let id) = a.policy, let b = engines.1, b.isMounted,
      b.policy == .both(id)
    {
      violate("I1: both nodes have mounted in one session (R10)")
    }
  }

  /// I2: R2, what an acknowledgement stands on.
  func acknowledged(_ request: SimRequest, by node: SimNode, _ policy: AcknowledgePolicy) {
    guard let record = node.servedUnder ?? node.record else {
      return violate("I2: \(node.name) acknowledges without a record")
    }
    if permitsAlone(policy), record.peerOutdated == nil, peer(of: node).record?.standing != .inconsistent {
      violate("I2: \(node.name) acknowledges alone without a durable right")
    }
    let branch = record.generation.branch
    let peer = self.peer(of: node)
    let other: Contents? =
      if case .both(let id) = policy, peer.engine?.session?.id == id { peer.copy.contents } else { nil }
    switch request.kind {
    case .write(let number, let blocks):
      note(number, blocks, branch, node)
      for block in blocks {
        if !ledger.holds(node.copy.contents, block, number) {
          violate("I17: write \(number) is acknowledged by \(node.name), and block \(block) shows an older one")
        }
        if let other, !ledger.holds(other, block, number) {
          violate("I2: write \(number) is acknowledged by \(node.name) and not on the peer")
        }
      }
    case .name(let number):
      note(number, 0..<0, branch, node)
      if let other, !other.names.contains(number) {
        violate("I2: change \(number) of names is acknowledged by \(node.name) and not on the peer")
      }
    case .flush:
      let contents = request.contentsBefore
      let isCovered = { (write: Ledger.Acknowledged) in
        write.serial <= request.acknowledgedBefore && write.node == node.index
      }
      // Only copies that descend from the flusher's branch are known to have it on disk.
      for write in ledger.acknowledged where isCovered(write) { ledger.promise(write, branch, of: contents) }
      ledger.acknowledged.removeAll(where: isCovered)
    }
  }

  private func note(_ number: Int, _ blocks: Range<Int>, _ branch: BranchID, _ node: SimNode) {
    ledger.acknowledgements += 1
    ledger.acknowledged.append(
      Ledger.Acknowledged(
        number: number, blocks: blocks, branch: branch, node: node.index, serial: ledger.acknowledgements))
  }

  /// A write's turn in its file has come at this node.
  func begins(_ number: Int, at node: SimNode) {
    ledger.begins(number, (node.servedUnder ?? node.record)?.generation.branch ?? .empty)
  }

  /// I3: a started guest finds every write that was acknowledged and flushed; without power cuts every one.
  /// Under an unproven right only the branches its copy descends from are promised.
  func checkGuestStart(_ node: SimNode) {
    ledger.guestStarts += 1
    guard let record = node.record else { return violate("I4: \(node.name) starts a guest without a record") }
    if record.standing != .uptodate || node.copy.isMixed {
      violate("I4: \(node.name) starts a guest on a copy that is \(record.standing.rawValue)")
    }
    if !maySplit, peer(of: node).guest != nil, isWriter(peer(of: node)) {
      violate("I1: \(node.name) starts a guest while the peer's runs")
    }
    checkPromises(node, record)
  }

  private func checkPromises(_ node: SimNode, _ record: DurableRecord) {
    let contents = node.copy.contents
    let isPromised = { [maySplit] (branch: BranchID) in !maySplit || record.history.contains(branch) }
    func miss(_ number: Int, _ branch: BranchID) {
      violate("I3: \(node.name) starts a guest without write \(number) of \(branch)")
    }
    for block in 0..<Contents.blockCount {
      let held = ledger.turns[contents.blocks[block]]
      if held.order > 0, !record.history.contains(held.branch), ledger.blind.isDisjoint(with: record.history) {
        violate(
          "I8: \(node.name) starts a guest on block \(block) of branch \(held.branch), which is not in its history")
      }
      for (branch, number) in ledger.floors[block] where isPromised(branch) {
        if !ledger.holds(contents, block, number) { return miss(number, branch) }
      }
    }
    for (number, branch) in ledger.names where isPromised(branch) && !contents.names.contains(number) {
      return miss(number, branch)
    }
    guard !options.hasPowerCuts else { return }
    for write in ledger.acknowledged where isPromised(write.branch) {
      let isThere =
        write.blocks.isEmpty
        ? contents.names.contains(write.number)
        : write.blocks.allSatisfy { ledger.holds(contents, $0, write.number) }
      if !isThere { return miss(write.number, write.branch) }
    }
  }

  /// How long vmhad may take from the engine's word until the guest stands: a busy core's messages and two tries.
  private static let suspensionTime: Int64 = 3_000_000_000

  /// I11: a guest that is cut off stands still, whoever resumed it.
  private func checkSuspension(_ node: SimNode, heldSince held: Int64) {
    guard let guest = node.guest, guest.state == .running, !guest.isSuspended, !guest.hasLostDisks, !node.isFrozen,
      !node.suspendFails, let daemon = node.daemon, !daemon.isStuck
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

  /// I16: R1: who asks for a right, consents or goes alone by an arbiter has told its engine to end the session it knows of.
  private func checkSessionOver(_ node: SimNode, _ what: String) {
    guard let engine = node.engine, let known = node.daemon?.session, engine.session?.id == known,
      engine.endsAhead == 0
    else { return }
    violate("I16: \(node.name) \(what) in a session that it has not ended (R1)")
  }

  private func checkSessionOver(_ directive: Directive, at node: SimNode) {
    let isOwnClaim = node.record?.claim != nil
    switch directive {
    case .askConsent: checkSessionOver(node, "asks for consent")
    case .replyConsent(_, .granted): checkSessionOver(node, "consents")
    // Without a claim it only looks, as it does in sync.
    case .readWitness where isOwnClaim: checkSessionOver(node, "asks the witness")
    case .swapWitness where isOwnClaim: checkSessionOver(node, "claims")
    case .fencePeer: checkSessionOver(node, "fences")
    case .ping: checkSessionOver(node, "asks the ping addresses")
    case .persist(let next):
      // By consent R7's own session goes on.
      guard let right = next.peerOutdated, right != .consent, next.generation != node.record?.generation else { return }
      checkSessionOver(node, "goes alone by \(right.rawValue)")
    default: break
    }
  }

  /// I5: durable first, then act.
  func checkBefore(_ directive: Directive, at node: SimNode) {
    let record = node.record
    checkSessionOver(directive, at: node)
    switch directive {
    case .startGuest:
      if record?.standing != .uptodate { violate("I4: \(node.name) starts a guest that is not up to date") }
    case .replyConsent(_, .granted):
      if record?.standing == .uptodate || record?.peerOutdated != nil {
        violate("I5: \(node.name) consents before it is durable")
      }
    case .engine(.clearIntents):
      if record?.standing != .uptodate { violate("I5: \(node.name) forgets its intents before ADOPT is durable") }
    case .engine(.setPolicy(let policy)): checkPolicy(policy, at: node)
    case .sendPeer(_, let message): checkSent(message, by: node)
    case .resumeGuest: checkResume(node)
    case .askConsent:
      if record?.standing != .uptodate { violate("I4: \(node.name) asks for consent and is not up to date") }
    case .fencePeer:
      if record?.standing != .uptodate || record?.bootAtLastSync != node.bootID {
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
    let target = peer(of: source)
    // Lost since it said HELLO in this very session: its copy and map are what they were then.
    let isSameSession = target.engine?.session?.id == source.engine?.session?.id
    if isSameSession, target.record?.recordLost == true { return }
    let theirs = target.record?.pairing
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
    case .targetReady:
      if record.standing != .inconsistent { violate("I5: target is not durably inconsistent") }
      if node.guest != nil { violate("I1: \(node.name) is a target while its guest is still there (R7)") }
    case .hello, .gaveUp, .token, .giveUp, .goOn: break
    }
  }

  /// I5 once more where it leaves: between the core's word and this the record may have changed.
  func checkLeaving(_ message: PeerMessage, by engine: SimEngine) {
    switch message {
    // A target may have adopted meanwhile, when an earlier vmhad had already said that it is ready.
    case .targetReady: return
    // It was durable when the core said it (`checkBefore`), and the end of its session is queued behind it: to the source it is one that
    // was on its way for longer (docs/invariants.md).
    case .adopted where engine.endsAhead > 0: return
    default: checkSent(message, by: engine.node)
    }
  }

  /// I6: a generation never goes back, and no history is left but by a resync.
  func checkPersist(_ next: DurableRecord, at node: SimNode) {
    guard let old = node.record else { return }
    meet(old, next)
    if old.generation.branch != .empty, next.generation.branch == .empty {
      // I12: no branch is given up before it is archived as a whole.
      if node.archives[old.generation.branch] != node.copy.contents || node.engine?.isMounted ?? false {
        violate("I12: \(node.name) gives up \(old.generation) and has not archived it")
      }
      // One that has lost its record meanwhile has given up nothing: its copy is kept, and can be forced.
      if let kept = peer(of: node).record, kept.generation.branch == .empty, kept.recordLost != true {
        violate("I12: both nodes have given up their branches")
      }
      return
    }
    if old.recordLost == true, next.recordLost != true, next.peerOutdated != .force { checkProof(beside: node) }
    if next.generation.number < old.generation.number { violate("I6: \(node.name)'s generation goes back") }
    if old.generation != next.generation, next.peerOutdated == nil, old.standing != .inconsistent {
      violate("I6: \(node.name) raises without the mark 'peer outdated'")
    }
    if old.generation.branch != .empty, !next.history.contains(old.generation.branch) {
      violate("I6: \(node.name) leaves its history")
    }
  }

  /// I18: a copy whose record was lost is given up only for one that has a right, or that was in sync in this boot under a fence.
  private func checkProof(beside node: SimNode) {
    let peer = self.peer(of: node)
    // What the peer has become since it said so proves nothing against it.
    guard let session = node.engine?.session?.id, peer.engine?.session?.id == session, let record = peer.record else {
      return
    }
    let wasInSync = record.bootAtLastSync == peer.bootID && peer.arbiter.fences
    if record.standing != .uptodate || record.peerOutdated == nil && !wasInSync {
      violate("I18: \(node.name) lost its record, and gives its copy up for one that may be older")
    }
  }

  /// I14: in sync and settled, the witness would let either node go on: what is in its register is an ancestor of both copies.
  func checkRegister() {
    guard arbiter.asksWitness else { return }
    for node in nodes {
      guard let record = node.record, let register = witness.own.register, record.history.contains(register.branch)
      else {
        return violate("I14: in sync, and the register gives \(node.name) no right")
      }
      if record.witness?.cluster != witness.own.cluster
        || record.witness.map({ $0.revision > witness.own.revision }) ?? true
      {
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
    if !node.copy.isDurable {
      violate("I3: \(node.name) starts a fresh guest on a copy that is not on its disk")
    }
  }

  /// I15: a guest that ends again and again is not started for ever.
  func checkRestarts(of node: SimNode, _ starts: Int, max: Int) {
    if starts > 1 + max { violate("I15: \(node.name) starts its guest for the \(starts)th time") }
  }

  /// I8: in sync means equal. To be asked when no request is on its way.
  func checkEqualCopies() {
    let (a, b) = (nodes[0], nodes[1])
    if a.copy.isMixed || b.copy.isMixed || a.copy.contents != b.copy.contents {
      violate("I8: in sync, but the copies differ: \(a.copy.contents) and \(b.copy.contents)")
    }
  }

  func record(_ node: SimNode, _ directive: Directive) {
    guard let recorder else { return }
    if let line = names.describe(directive) { recorder(node, line) }
  }
}
