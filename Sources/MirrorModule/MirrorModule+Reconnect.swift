import Model

// R7, R8, R10: meeting again, the steps that end a resync, and the writer token.
extension MirrorModule {
  func hello() -> Hello? {
    record.map {
      Hello(
        node: settings.node, record: $0, isAlone: isAlone,
        guestRunning: guest.isPresent, continuous: isContinuous, provesNewest: provesNewest($0))
    }
  }

  mutating func connected(_ session: SessionID, link: String) {
    // R1: the engine said this before it read that its session must end.
    guard endsPending == 0 else { return }
    switch phase {
    case .waiting, .alone, .frozen:
      guard wish.started, openAsk == nil, let mine = hello() else { return endSession() }
      dropSession()
      dropArbitration()
      // A peer whose vmhad is away never says HELLO: the handshake gets this long, then the arbiter is asked again.
      if peerAlive == false { arm(.arbiter, after: settings.detection) }
      timers[.patience] = nil
      connectedAt = now
      hasPeerLostRecord = false
      handshake = Handshake(session: session, mine: mine)
      note("connected to \(settings.peerName) over \(link)", rule: "R7")
      out.append(.sendPeer(session, .hello(mine)))
    default:
      // A role in another session: that one must end first, by its own loss.
      note("a connection came up in the wrong moment and is dropped", .warning, rule: "R1")
      endSession()
    }
  }

  mutating func peerSaid(_ message: PeerMessage, in session: SessionID) {
    // R1: what does not belong to the current session is dropped.
    guard session == self.session else { return }
    switch message {
    case .hello(let theirs): met(theirs, session)
    case .targetReady(let claim): targetReady(claim, session)
    case .adopt(let generation, let history, let pairing): adopt(generation, history, pairing, session)
    case .adopted: adopted(session)
    case .gaveUp: if phase == .second(session) { changeLimits { [now] in $0.peerGaveUpAt = now } }
    case .token: token(session)
    case .giveUp(let branch, let kept): peerGivesUp(branch, kept: kept, in: session)
    case .goOn(let kept): peerGoesOn(kept)
    case .adoptWitness(let mark): adoptWitness(mark, session)
    case .witnessAdopted(let mark): witnessAdopted(mark, session)
    }
  }

  /// R1: a session in which something was not understood cannot go on. The core ends it itself, so that whatever the engine still says of
  /// it is not taken for the next one.
  mutating func peerUnreadable(_ session: SessionID, _ why: String) {
    guard session == self.session else { return }
    let what =
      "a message of \(settings.peerName) was not understood (\(why)); do both nodes run versions that go together?"
    guard phase == .waiting else {
      engine(.endSession)
      return sessionLost(session, what)
    }
    // Not again at once: the next one will say the same.
    endSession()
    arm(.reconnect, after: MirrorSettings.engineRestartPause)
    say(what, .alarm, rule: "R1")
  }

  private mutating func met(_ theirs: Hello, _ session: SessionID) {
    guard var shake = handshake, shake.session == session, shake.theirs == nil, theirs.node == settings.node.peer else {
      return
    }
    shake.theirs = theirs
    handshake = shake
    hasPeerLostRecord = theirs.recordLost == true
    switch Lineage.decide(shake.mine, theirs) {
    case .split: split(theirs)
    case .awaitsProof(settings.node):
      splitWith = nil
      note("\(peerLostRecordText); nothing is overwritten before that is known", .alarm, rule: "R7")
    case .awaitsProof, .noSource:
      say(withoutSource(theirs, mine: shake.mine), .alarm, rule: "R7")
      endFrozenRole()
    case .source(settings.node, let why):
      noteResolved(theirs)
      announceOverwriting()
      splitWith = nil
      handshake?.awaitsTarget = true
      // R3: maps say what differs since these two copies were last the same; of any other two they say nothing.
      comparesEverything = shake.mine.pairing == nil || shake.mine.pairing != theirs.pairing
      note("this node is the source of the resync: \(why)", .notice, rule: "R7")
    case .source(_, let why):
      splitWith = nil
      note("\(settings.peerName) is the source of the resync: \(why)", .notice, rule: "R7")
      yield(to: session)
    }
  }

  /// R7: a role that cannot stand ends. Without a record that counts this node can never go on with its suspended guest, and as long as
  /// it is the primary no other copy may be forced.
  mutating func endFrozenRole() {
    guard phase == .frozen, record?.standing != .uptodate else { return }
    destroyWithoutDisks()
    phase = .waiting
    if isMounted { engine(.unmount(force: true)) }
  }

  /// R12: nothing is written, both copies stay.
  private mutating func split(_ theirs: Hello) {
    splitWith = theirs
    note(
      "SPLIT: both nodes wrote without the other: here \(record?.generation.description ?? "-"), on "
        + "\(settings.peerName) \(theirs.generation); both copies are kept", .alarm, rule: "R12")
    resolveByPolicy(theirs)
  }

  // MARK: target

  private mutating func yield(to session: SessionID) {
    handshake = nil
    phase = .yielding(session)
    openAsk = nil
    dropArbitration()
    bringUp = nil
    offers = false
    startByOperator = false
    for timer in [
      TimerKind.bootWait, .ask, .offer, .quiet, .holdGuest, .guestRetry, .takeover, .force, .stable, .lostRecord,
    ] {
      timers[timer] = nil
    }
    if guest.isLive {
      guest = .stopping
      say("the guest here is destroyed: \(settings.peerName) has the copy that goes on", .warning, rule: "R7")
      out.append(.destroyGuest)
    }
    // A guest that waits for its frozen disk dies only when the mount goes.
    if isMounted { engine(.unmount(force: true)) }
    continueYielding()
  }

  mutating func continueYielding() {
    guard case .yielding(let session) = phase, !guest.isLive, !isMounted else { return }
    // R7: durable inconsistent IS the consent; only then may the source hear of it.
    persist { record in
      record.standing = .inconsistent
      record.peerOutdated = nil
      record.wroteLast = false
      // R0: from here on it is overwritten by one that is newer: it can be the newest no more.
      record.recordLost = nil
    }
    phase = .target(session)
    engine(.acceptReplication(session))
    out.append(.sendPeer(session, .targetReady(claim: record?.claim)))
    say("being resynchronised from \(settings.peerName)", .notice, rule: "R7")
  }

  private mutating func adopt(
    _ generation: Generation, _ history: [BranchID], _ pairing: UInt64?, _ session: SessionID
  ) {
    switch phase {
    case .second(session):
      // A source whose vmhad was restarted asks again.
      guard record?.generation == generation else { return }
      if record?.pairing != pairing { persist { $0.pairing = pairing } }
    case .target(session):
      // R8.4, only in that session; durable, then the answer.
      let (boot, arbiter) = (settings.bootID, settings.arbiter.rawValue)
      persist { record in
        record.generation = generation
        record.history = []
        record.appendHistory(history)
        record.pairing = pairing
        record.standing = .uptodate
        record.peerOutdated = nil
        record.claim = nil
        record.consentedTo = nil
        record.bootAtLastSync = boot
        record.arbiterAtLastSync = arbiter
        record.wroteLast = false
      }
      timers[.quiet] = nil
      phase = .second(session)
      forgetStop()
      say("in sync with \(settings.peerName), ready to take over", .notice, rule: "R8")
    default: return
    }
    engine(.clearIntents(session))
    out.append(.sendPeer(session, .adopted))
  }

  // MARK: source

  private mutating func targetReady(_ claim: BranchID?, _ session: SessionID) {
    guard let shake = handshake, shake.session == session, shake.awaitsTarget else { return }
    handshake = nil
    hasPeerLostRecord = false
    let claims = [claim].compactMap { $0 }
    switch phase {
    case .alone:
      if !claims.isEmpty { persist { $0.appendHistory(claims) } }
      if bringUp != nil { bringUp?.resync = session } else { beginResync(session) }
    case .waiting, .frozen:
      goAlone(.consent, "it is the target of a resync from here", absorbing: claims, keeping: session)
    default: break
    }
  }

  mutating func beginResync(_ session: SessionID) {
    resyncSession = session
    engine(.startResync(session, comparesEverything: comparesEverything))
    say("resynchronising \(settings.peerName)", .notice, rule: "R8")
  }

  /// R8.2
  mutating func resyncCopied(_ session: SessionID) {
    guard phase == .alone, resyncSession == session else { return }
    engine(.flushBarrier(session))
  }

  mutating func barrierDone(_ session: SessionID) {
    if case .closing(let closing) = phase { return closingBarrierDone(closing, session) }
    guard phase == .alone, resyncSession == session else { return }
    // R8.3: from the policy on, losing the target freezes; the record follows before ADOPT can leave.
    engine(.setPolicy(.both(session)))
    withdrawMark()
    sendAdopt(session)
  }

  /// R8.3
  mutating func withdrawMark() {
    let (boot, arbiter) = (settings.bootID, settings.arbiter.rawValue)
    // Once for each resync: a source whose vmhad was restarted behind this step comes here again.
    let pairing = record?.peerOutdated == nil ? record?.pairing ?? random() : random()
    persist { record in
      record.pairing = pairing
      record.peerOutdated = nil
      record.bootAtLastSync = boot
      record.arbiterAtLastSync = arbiter
      record.wroteLast = true
    }
  }

  /// R8.4. Repeated until it is answered: the target's vmhad may have been away.
  mutating func sendAdopt(_ session: SessionID) {
    guard let record else { return }
    resyncSession = nil
    resync = nil
    phase = .adopting(session)
    arm(.adopt, after: MirrorSettings.adoptRetry)
    out.append(.sendPeer(session, .adopt(record.generation, history: record.history, pairing: record.pairing)))
  }

  private mutating func adopted(_ session: SessionID) {
    guard phase == .adopting(session) else { return }
    phase = .prim(session)
    timers[.ask] = nil
    timers[.adopt] = nil
    timers[.guestRetry] = nil
    say("in sync with \(settings.peerName)", .notice, rule: "R8")
    watchStability()
    if handsOver(session) { return }
    placeGuest()
  }

  // MARK: token

  private mutating func token(_ session: SessionID) {
    guard phase == .second(session) else { return }
    // R10: nothing durable is needed; wroteLast only breaks ties of R7.
    persist { $0.wroteLast = true }
    phase = .prim(session)
    say("took the module over from \(settings.peerName) in order", .notice, rule: "R10")
    bringUpFresh(policy: .both(session), resync: nil)
  }

  mutating func giveToken(_ session: SessionID) {
    engine(.acceptReplication(session))
    persist { $0.wroteLast = false }
    timers[.quiet] = nil
    timers[.stable] = nil
    phase = .second(session)
    forgetStop()
    if areRestartsUsedUp { out.append(.sendPeer(session, .gaveUp)) }
    out.append(.sendPeer(session, .token))
    say("handed the module over to \(settings.peerName)", .notice, rule: "R10")
  }

  // MARK: loss

  mutating func sessionLost(_ session: SessionID, _ why: String, policy: AcknowledgePolicy = .frozen) {
    guard session == self.session else { return }
    let lost = "the session with \(settings.peerName) is lost: \(why)"
    switch phase {
    case .adopting where policy == .alone:
      // R8.5: the engine had refused the policy `both` because the session was over, so ADOPT never left.
      dropSession()
      timers[.adopt] = nil
      persist { $0.peerOutdated = .consent }
      phase = .alone
      say("\(lost); goes on alone, the resync begins again when it is back", .warning, rule: "R8")
      placeGuest()
    case .prim, .adopting:
      countLoss()
      dropSession()
      timers[.adopt] = nil
      phase = .frozen
      bringUp = nil
      timers[.ask] = nil
      say("\(lost); writes wait", .warning, rule: "R9")
    case .second:
      dropSession()
      phase = .waiting
      timers[.quiet] = nil
      say(lost, .warning, rule: "R9")
      engine(.connect)
    case .yielding, .target:
      dropSession()
      phase = .waiting
      say("\(lost); this copy is \(record?.standing.rawValue ?? "unknown")", .warning, rule: "R8")
      engine(.connect)
    case .closing(var closing):
      dropSession()
      closing.session = nil
      closingLostSession(closing, lost)
    case .alone, .waiting, .frozen:
      let wasResync = resyncSession != nil
      if wasResync { countLoss() }
      dropSession()
      if wasResync { say("\(lost); goes on alone, the resync begins again when it is back", .warning, rule: "R8") }
      reconnect()
    case .stopped, .failed: dropSession()
    }
  }

  mutating func nodeAlive() {
    peerAlive = true
    isOverruled = false
    for timer in [TimerKind.peerUnknown, .ask, .takeover, .force] { timers[timer] = nil }
    // Consent first, whenever the peer can be asked.
    dropArbitration()
  }

  mutating func nodeLost() {
    peerAlive = false
    forgetLostRecord()
    peerBeat = nil
    timers[.peerUnknown] = nil
    timers[.quiet] = nil
    timers[.patience] = nil
    switch phase {
    case .prim, .second, .adopting:
      // R1, R2: the session itself is the evidence that the peer's engine lives; vmhad may be the only thing that died.
      note("\(settings.peerName)'s heartbeats stopped; its replication session is still there", .warning)
    case .waiting where offers: endOffer()
    default: break
    }
    if openAsk != nil, isStopping, let ask = openAsk { consentFailed(ask.nonce, "it is lost") }
  }

  mutating func nodeRestarted() {
    note("\(settings.peerName) was restarted", .notice)
    forgetLostRecord()
    peerBeat = nil
    timers[.quiet] = nil
    // Its engine died with it: do not wait for the connection to find out. A session younger than the detection time is
    // one with the engine of the new boot.
    if let session, connectedAt.map({ now - $0 > settings.detection }) ?? true {
      engine(.endSession)
      sessionLost(session, "the node was restarted")
    }
  }
}
