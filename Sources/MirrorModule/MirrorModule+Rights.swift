import Model

// R4, R5, R6, R9: when this node may go on without its peer, and when it lets the peer go on without it.
extension MirrorModule {
  /// Runs after every event: what a module that waits or is frozen should try next.
  mutating func consider() {
    if !wish.started, ownsGuest, !isClosing {
      // The writer token, or a right, came after the operator's stop.
      beginStop()
    }
    switch phase {
    case .waiting: considerWaiting()
    case .frozen: considerFrozen()
    case .alone: considerAlone()
    case .second: considerSecond()
    default: break
    }
    considerSuspension()
    considerWitness()
    listen()
  }

  private var isClosing: Bool {
    if case .closing = phase { return true }
    return false
  }

  /// Whoever has no session and asks nobody can be met.
  private mutating func listen() {
    switch phase {
    case .waiting, .frozen, .alone: break
    default: return
    }
    guard wish.started, !offers, openAsk == nil, timers[.reconnect] == nil, !asksDespitePeer else { return }
    engine(.connect)
  }

  /// Two secondaries in one session: the token was given to a vmhad that is no more. R7 picks in the next session.
  private mutating func considerSecond() {
    guard peerAlive == true, let beat = peerBeat, beat.state == .second, beat.readiness == .ready else {
      return timers[.quiet] = nil
    }
    armOnce(.quiet, after: settings.detection)
    guard let quiet = timers[.quiet], quiet <= now else { return }
    timers[.quiet] = nil
    endSession()
    phase = .waiting
    say("neither node has the writer token; meeting \(settings.peerName) again", .warning, rule: "R10")
  }

  mutating func considerWaiting() {
    guard engineReady, let record, maySeekRight, splitWith == nil || handshake == nil else { return }
    if !wish.started, guest == .off { return closeEngine() }
    if guest.isLive {
      // A guest from before this process: without its engine its disks are gone, it cannot go on.
      if guest != .stopping {
        guest = .stopping
        note("a guest is running that has no disks any more; it is destroyed", .warning)
        out.append(.destroyGuest)
      }
      return
    }
    if startsByStanding(record) { return startByStanding(record) }
    switch peerAlive {
    case nil: return
    case .some(false): considerPeerLost(record)
    case .some(true): facesLostRecord ? considerLostRecord(record) : considerPeerAlive(record)
    }
  }

  /// R5 standing: obtained by a proven right, or by policy while that policy is still configured.
  private func startsByStanding(_ record: DurableRecord) -> Bool {
    guard record.standing == .uptodate, let right = record.peerOutdated else { return false }
    if right.isProven { return true }
    guard right == .force || settings.arbiter.isUnproven else { return false }
    // An unproven mark proves nothing about a peer that is there: meet it first.
    if peerAlive == false || facesLostRecord { return true }
    guard peerAlive == true, let beat = peerBeat else { return false }
    if beat.state == .stop { return true }
    // No session comes up: this copy descends from the peer's, and the peer serves nobody.
    return timers[.quiet].map { $0 <= now } ?? false && splitWith == nil && !beat.isPrimary
      && record.history.contains(beat.generation.branch)
  }

  private mutating func startByStanding(_ record: DurableRecord) {
    phase = .alone
    openAsk = nil
    timers[.quiet] = nil
    timers[.bootWait] = nil
    say(
      "this copy is up to date and \(settings.peerName)'s is known to be outdated; starting here", .notice, rule: "R5")
    endSession()
    bringUpFresh(policy: .alone, resync: nil)
    engine(.connect)
  }

  private mutating func considerPeerLost(_ record: DurableRecord) {
    if forces(record) { return }
    if hasLostRecord { return say("\(lostRecordText)\(wayOut)", .alarm, rule: "R0") }
    guard record.standing == .uptodate else {
      let copy =
        record.standing == .inconsistent
        ? "this copy is in the middle of a resync and not usable; waiting for \(settings.peerName), which has the whole one"
        : "this copy is outdated; waiting for \(settings.peerName), which has the newer one"
      return say("\(copy)\(wayOut)", .warning, rule: "R6")
    }
    guard settings.arbiter != .wait else {
      return say(
        "\(settings.peerName) is lost and nobody else can give the right to go on; waiting for it\(wayOut)",
        .warning, rule: "R5")
    }
    guard isContinuous || !settings.arbiter.fences else {
      // R5: a fence proves that the peer is off, not that this copy is the newest.
      return say(
        "\(settings.peerName) is lost and this node was not in sync since its boot: powering \(settings.peerName) off "
          + "would prove nothing about this copy; waiting for it\(wayOut)", .warning, rule: "R5")
    }
    if isContinuous || timers[.bootWait].map({ $0 <= now }) ?? false {
      if leavesItThere(record) { return }
      return askArbiter("\(settings.peerName) does not answer on any link")
    }
    // R9: this node may lack writes that were acknowledged and never flushed; the peer may have them.
    armOnce(.bootWait, after: settings.bootWait)
    say(
      "\(settings.peerName) does not answer; waiting \(settings.bootWait.milliseconds / 1000) s for it before starting",
      .notice, rule: "R9")
  }

  private mutating func considerPeerAlive(_ record: DurableRecord) {
    if !offers, timers[.bootWait] != nil, !isContinuous { timers[.bootWait] = nil }
    guard record.standing == .uptodate, !offers, let beat = peerBeat else { return }
    if settings.arbiter.overrulesLivePeer, beat.state == .wait, beat.readiness == .blocked, !beat.isPrimary {
      armOnce(
        .patience, after: (isContinuous ? settings.detection : settings.bootWait) + MirrorSettings.consentPatience)
      if let patience = timers[.patience], patience <= now { return askArbiterPatienceLost() }
    } else {
      timers[.patience] = nil
    }
    guard openAsk == nil, timers[.ask] == nil else { return }
    if beat.offers {
      // Where it would die as well: whoever offers it starts it again, or says that it stays off.
      return areRestartsUsedUp ? () : ask("\(settings.peerName) cannot go on and offers the module")
    }
    guard !beat.isPrimary, beat.state != .stop else {
      timers[.quiet] = nil
      return
    }
    // Both are secondaries, for instance after a swap whose token was lost, and no session comes up.
    armOnce(.quiet, after: isContinuous ? settings.detection : settings.bootWait)
    if let quiet = timers[.quiet], quiet <= now { ask("no session comes up and neither node is primary") }
  }

  private mutating func considerFrozen() {
    guard engineReady, let record, maySeekRight else { return }
    switch peerAlive {
    case .some(true) where facesLostRecord: considerLostRecord(record)
    case .some(true):
      if settings.arbiter.overrulesLivePeer, record.standing == .uptodate {
        armOnce(.patience, after: settings.detection + MirrorSettings.frozenPatience)
      }
      if let patience = timers[.patience], patience <= now, let beat = peerBeat, !beat.isPrimary {
        return askArbiterPatienceLost()
      }
      if openAsk == nil, timers[.ask] == nil { ask("the session is lost") }
    // R6: one whose record was lost under its guest; no policy gives it a right.
    case .some(false) where record.standing != .uptodate: endFrozenRole()
    case .some(false):
      guard settings.arbiter != .wait else {
        return say(
          "frozen: \(settings.peerName) is lost and nobody else can give the right to go on\(wayOut)", .alarm,
          rule: "R2")
      }
      askArbiter("\(settings.peerName) does not answer on any link")
    case nil: break
    }
  }

  /// R11: a peer that is there but cannot consent, for instance because it cannot write its record.
  private mutating func askArbiterPatienceLost() {
    askArbiter("\(settings.peerName) is there but gives no consent")
  }

  // MARK: R4

  /// R4, for a right just obtained: one durable record, then thaw or start.
  mutating func goAlone(
    _ right: RightKind, _ why: String, absorbing claims: [BranchID] = [], keeping session: SessionID? = nil,
    witness reading: WitnessReading? = nil
  ) {
    guard let old = record else { preconditionFailure("no record") }
    // R1, R4: the session is over before the right is used; R7's own session carries nothing yet and is kept.
    if session == nil { endSession() }
    // A right of the witness is the claim itself: the register names the branch that goes on.
    if !old.wroteLast, session == nil, right != .force { countTakeover() }
    let claim = right == .witness ? old.claim : nil
    let branch = claim ?? BranchID(rawValue: random())
    persist { record in
      record.generation = Generation(number: old.generation.number &+ 1, branch: branch)
      record.appendHistory([old.claim].compactMap { $0 } + claims + [branch])
      record.standing = .uptodate
      record.peerOutdated = right
      if let reading { record.witness = reading.mark }
      record.claim = nil
      record.consentedTo = nil
      record.wroteLast = true
      record.recordLost = nil
    }
    openAsk = nil
    isOverruled = false
    dropArbitration()
    offers = false
    for timer in [
      TimerKind.ask, .askAnswer, .patience, .quiet, .bootWait, .offer, .reconnect, .takeover, .force, .stable,
      .lostRecord,
    ] { timers[timer] = nil }
    phase = .alone
    say(Self.aloneSentence(right, why, peer: settings.peerName), right.isProven ? .notice : .warning, rule: "R4")
    if isMounted && guest.isPresent {
      engine(.setPolicy(.alone))
      if let session { beginResync(session) }
    } else {
      bringUpFresh(policy: .alone, resync: session)
    }
    if session == nil { reconnect() }
  }

  private static func aloneSentence(_ right: RightKind, _ why: String, peer: String) -> String {
    switch right {
    case .consent: "goes on alone with \(peer)'s consent: \(why)"
    case .policy: "goes on alone by policy: \(why); if \(peer) still runs, the module can split"
    case .force: "goes on alone by force: \(why); writes that only \(peer) has are not in this copy"
    case .witness, .fence: "goes on alone by \(right.rawValue): \(why)"
    }
  }

  // MARK: R5 consent, asking

  mutating func ask(_ why: String) {
    guard let record, record.standing == .uptodate else {
      if isStopping { finishStop(consented: false, claim: nil) }
      return
    }
    endSession()
    let request = ConsentRequest(
      nonce: random(), node: settings.node, generation: record.generation, history: record.history,
      guestRunning: guest.isPresent, stopping: isStopping)
    openAsk = request
    arm(.askAnswer, after: MirrorSettings.consentAnswerMax)
    timers[.quiet] = nil
    say("asking \(settings.peerName) for its consent to go on alone: \(why)", rule: "R5")
    out.append(.askConsent(request))
  }

  var isStopping: Bool {
    if case .closing(let closing) = phase, closing.goal == .stop { return true }
    return false
  }

  mutating func consentReplied(_ reply: ConsentReply) {
    switch reply {
    case .granted(let nonce, let generation, let claim):
      // R4, R5: a right that arrives after standing, session or generation changed is dropped.
      guard let ask = openAsk, ask.nonce == nonce, let record, record.generation == generation,
        record.standing == .uptodate, session == nil, isStopping || phase == .waiting || phase == .frozen,
        !hasPeerLostRecord
      else { return note("a consent that is not asked for any more was dropped", rule: "R4") }
      openAsk = nil
      timers[.askAnswer] = nil
      if isStopping { return finishStop(consented: true, claim: claim) }
      goAlone(.consent, "it holds an outdated copy from here on", absorbing: [claim].compactMap { $0 })
    case .refused(let nonce, let why): consentFailed(nonce, "it refused: \(why)")
    }
  }

  mutating func consentFailed(_ nonce: UInt64, _ why: String) {
    guard let ask = openAsk, ask.nonce == nonce else { return }
    openAsk = nil
    timers[.askAnswer] = nil
    if isStopping {
      note(
        "stops without \(settings.peerName)'s consent (\(why)): the next start needs both nodes, or its right", .warning
      )
      return finishStop(consented: false, claim: nil)
    }
    note("no consent of \(settings.peerName): \(why)", .warning, rule: "R5")
    // Until the next try the nodes may also just meet again.
    engine(.connect)
    arm(.ask, after: MirrorSettings.consentRetry)
  }

  // MARK: R5 consent, giving

  mutating func consent(to request: ConsentRequest) -> ConsentReply {
    func refuse(_ why: String) -> ConsentReply { .refused(nonce: request.nonce, why: why) }
    guard let record else { return refuse("this node has no usable record of the module") }
    // R0: it may have gone on alone.
    if hasLostRecord { return refuse("this node lost its record of the module, its copy may be the newer one") }
    if isAlone { return refuse("alone") }
    // It may hold a mount, or a session whose end could not be told to it.
    guard isEngineKnown else { return refuse("this node does not know yet what its engine does") }
    switch phase {
    case .frozen, .prim, .adopting: return refuse("this node is the primary")
    case .closing: return refuse("this node is the primary and is stopping its guest")
    default: break
    }
    // Without a mount a guest of unknown state cannot write; one that is known to be there is waited for.
    if isMounted || (guest.isLive && guest != .unknown) { return refuse("the guest is \(guest.rawValue) on this node") }
    if record.standing == .uptodate, record.peerOutdated != nil { return refuse("this node holds a right itself") }
    let sameGeneration = record.generation == request.generation
    let isAncestor = record.generation.branch == .empty || request.history.contains(record.generation.branch)
    let unusable = record.standing == .inconsistent && isAncestor
    guard sameGeneration || unusable else {
      return refuse("the generations differ: this node is at \(record.generation)")
    }
    if let mine = openAsk, mine.generation == request.generation {
      // R5: crossing requests: the running guest first, then the lower node id; the other yields.
      let mineFirst =
        mine.guestRunning != request.guestRunning ? mine.guestRunning : settings.node < request.node
      if mineFirst { return refuse("this node asks itself and goes first") }
    }
    // R5, in this order: end the session, drop the own request, durable, reply.
    endSession()
    openAsk = nil
    dropArbitration()
    offers = false
    for timer in [TimerKind.askAnswer, .offer, .quiet, .reconnect] { timers[timer] = nil }
    let claim = record.claim
    persist { record in
      if record.standing == .uptodate { record.standing = .outdated }
      record.peerOutdated = nil
      record.consentedTo = request.generation
    }
    // An engine that died twice is started again after a pause: the module is not stopped meanwhile.
    let hasEngine = engineReady || engineStarting || timers[.engineStart] != nil
    if phase != .failed { phase = hasEngine ? .waiting : .stopped }
    if phase == .failed {
      // What this node needs stays its sentence.
      note("consented: \(settings.peerName) goes on alone", .notice, rule: "R5")
    } else if request.stopping {
      say("\(settings.peerName) stops the module last; this copy is outdated from here on", rule: "R5")
    } else {
      say(
        "consented: \(settings.peerName) goes on alone, this copy is outdated until it is resynchronised", .notice,
        rule: "R5")
    }
    return .granted(nonce: request.nonce, generation: request.generation, claim: claim)
  }
}
