import Model

// The operator's start, stop and swap, and the orderly way off.
extension MirrorModule {
  mutating func obey(_ command: Command) {
    switch command.verb {
    case .start(let force): start(command, force: force)
    case .stop: stop(command)
    case .swap: swap(command)
    case .resolve(let mine, let theirs): resolve(command, mine: mine, theirs: theirs)
    }
  }

  mutating func answer(_ command: Command, _ answer: Answer) {
    out.append(.answer(commandID: command.id, answer))
  }

  private mutating func setWish(_ started: Bool, _ version: UInt64) {
    let next = Wish(started: started, version: max(version, wish.version))
    if next != wish {
      wish = next
      out.append(.persistWish(next))
    }
  }

  mutating func follow(_ newer: Wish) {
    guard newer.version > wish.version else { return }
    let before = wish.started
    setWish(newer.started, newer.version)
    // The operator's start, given to the other node.
    let wasBlocked = limits.stopped != nil
    if newer.started { clearLimits() }
    if newer.started, before, wasBlocked { placeGuest() }
    guard before != newer.started else { return }
    note(
      "follows \(settings.peerName): the operator wants the module \(newer.started ? "started" : "stopped")", .notice)
    guard newer.started else { return beginStop() }
    // A stop under way runs to its end and then follows.
    if phase == .stopped || phase == .failed, record != nil { begin(byOperator: true) }
  }

  private mutating func start(_ command: Command, force: Bool) {
    guard record != nil else {
      return answer(
        command,
        .refused(
          what: "\(settings.module) cannot start on \(settings.nodeName)",
          why: "its durable record here could not be written (\(blockedBy ?? "no record"))",
          next: "repair the disk of /var/lib/vmha and restart vmhad here; until then start it on \(settings.peerName)"))
    }
    if case .closing = phase {
      return answer(
        command,
        .refused(
          what: "\(settings.module) cannot start now", why: "it is being stopped or swapped",
          next: "wait for the end: vmha status --watch"))
    }
    if force, let refusal = forceRefusal { return answer(command, refusal) }
    setWish(true, command.wishVersion)
    let wasBlocked = blockedBy != nil
    clearLimits()
    blockedBy = nil
    if force { return startByForce(command) }
    switch phase {
    case .stopped, .failed: begin(byOperator: true)
    case .alone, .prim: if wasBlocked || guest == .off { placeGuest() }
    default: break
    }
    answer(command, .accepted("starting"))
  }

  /// nil = it may be forced here now, or runs already. Asked before anything is changed.
  private var forceRefusal: Answer? {
    switch phase {
    case .stopped, .failed, .waiting, .frozen: break
    default: return nil
    }
    guard record?.standing != .inconsistent || hasLostRecord else {
      return .refused(
        what: "\(settings.module) cannot be forced on \(settings.nodeName)",
        why: "this copy is in the middle of a resync: it may be half of one and half of another",
        next:
          "bring \(settings.peerName) back; if it never comes back, the files in the folder .vmha-\(settings.module) "
          + "beside the disks are plain files: copy them away and look what they are worth")
    }
    // In a split both copies are kept: one of them may serve, as long as the other does not. Where none is usable, only this ends it.
    // What the peer said before a stop proves nothing: a start begins with a question.
    let facesLost = facesLostRecord && (phase == .waiting || phase == .frozen)
    let isStalemate = splitWith != nil || hasNoSource || hasLostRecord || facesLost
    let isPeerPassive = isStalemate && peerBeat.map { !$0.isPrimary } ?? false
    guard peerAlive == false || isPeerPassive else {
      return .refused(
        what: "\(settings.module) is not forced", why: "\(settings.peerName) answers, or was not given the time to",
        next: "let both meet, or make sure that \(settings.peerName) is off and repeat")
    }
    return nil
  }

  /// R5, R6: only the operator may start a copy that is not known to be the newest.
  private mutating func startByForce(_ command: Command) {
    switch phase {
    case .stopped, .failed: begin(byOperator: false)
    case .waiting, .frozen: break
    default: return answer(command, .accepted("it runs already"))
    }
    var costs = splitWith == nil ? "" : "; it is SPLIT: this copy has writes of its own, and both copies stay"
    if hasLostRecord {
      costs =
        "; nobody knows what this copy is worth: if it was being resynchronised, it is half of one and half of another"
    } else if hasPeerLostRecord {
      costs = "; \(settings.peerName) lost its record, and its copy is overwritten by this one"
    }
    answer(command, .accepted("forced: writes that only \(settings.peerName) has are not in this copy\(costs)"))
    goAlone(.force, "the operator forced the start")
  }

  /// R7 has found no copy that can be the source.
  var hasNoSource: Bool {
    handshake.flatMap { shake in shake.theirs.map { Lineage.decide(shake.mine, $0) == .noSource } } ?? false
  }

  mutating func begin(byOperator: Bool) {
    startByOperator = byOperator
    blockedBy = nil
    engineDeaths = []
    timers[.bootWait] = nil
    forgetLostRecord()
    phase = .waiting
    say("starting: looking for \(settings.peerName)", .notice)
    engineReady ? engine(.connect) : startEngine()
  }

  private mutating func stop(_ command: Command) {
    setWish(false, command.wishVersion)
    if case .closing(let closing) = phase, case .giveUp = closing.goal {
      return answer(command, .accepted("stopping, as soon as this copy's branch is archived"))
    }
    if case .closing(var closing) = phase {
      // A stop overtakes a swap: the guest goes off all the same.
      closing.goal = .stop
      phase = .closing(closing)
      return answer(command, .accepted("stopping"))
    }
    answer(command, .accepted("stopping"))
    beginStop()
  }

  mutating func beginStop() {
    startByOperator = false
    openAsk = nil
    dropArbitration()
    timers[.guestRetry] = nil
    timers[.holdGuest] = nil
    switch phase {
    case .stopped: return
    case .alone: close(for: .stop, session: nil, wasAlone: true)
    case .prim(let session), .adopting(let session): close(for: .stop, session: session, wasAlone: false)
    case .frozen: close(for: .stop, session: nil, wasAlone: false)
    case .second: say("stopping: \(settings.peerName) stops its guest first", .notice)
    case .target, .yielding, .waiting:
      if guest.isLive { return }
      endSession()
      phase = .waiting
      engineReady ? closeEngine() : becomeStopped()
    case .failed: becomeStopped()
    case .closing: break
    }
  }

  mutating func becomeStopped() {
    engine(.exit)
    forgetEngine()
    openAsk = nil
    dropArbitration()
    offers = false
    bringUp = nil
    for timer in TimerKind.allCases where timer != .peerUnknown { timers[timer] = nil }
    phase = .stopped
    say("stopped", .notice)
  }

  private mutating func swap(_ command: Command) {
    func refuse(_ why: String, _ next: String) {
      answer(command, .refused(what: "\(settings.module) is not swapped", why: why, next: next))
    }
    guard case .prim(let session) = phase else {
      if case .second = phase { return refuse("the guest runs on \(settings.peerName)", "send the swap there") }
      return refuse(
        "\(settings.peerName)'s copy is not in sync (\(sentence))",
        "wait until 'vmha status' shows PRIM and SECOND ready")
    }
    guard guest == .running else {
      return refuse("the guest is \(guest.rawValue)", "wait until it runs, or see 'vmha log \(settings.module)'")
    }
    answer(command, .accepted("swapping: the guest shuts down here and starts on \(settings.peerName)"))
    close(for: .handOver(session), session: session, wasAlone: false)
  }

  // MARK: the orderly way off: guest, drain, joint flush, unmount, then stop or token

  mutating func close(for goal: Goal, session: SessionID?, wasAlone: Bool) {
    // R1: what is not in sync ends here; a resync would be left half done all the same.
    if session == nil, self.session != nil { endSession() }
    let isBroughtUp = bringUp == nil
    bringUp = nil
    openAsk = nil
    for timer in [TimerKind.ask, .askAnswer, .adopt, .patience] { timers[timer] = nil }
    var wasInSync = false
    if case .prim = phase { wasInSync = true }
    let closing = Closing(goal: goal, step: .guest, session: session, wasAlone: wasAlone, wasInSync: wasInSync)
    phase = .closing(closing)
    switch goal {
    case .stop: say("stopping: the guest is asked to shut down", .notice)
    case .handOver: say("handing over to \(settings.peerName): the guest is asked to shut down", .notice, rule: "R10")
    case .giveUp:
      say(
        "\(settings.peerName)'s copy is kept: the guest here is shut down, then this branch is archived",
        .warning, rule: "R12")
    }
    if guest.isLive {
      guest = .stopping
      out.append(.stopGuest)
    } else {
      closingGuestOff(closing, isBroughtUp: isBroughtUp)
    }
  }

  /// `isBroughtUp`: an engine that may go on alone has been told so (R4).
  mutating func closingGuestOff(_ closing: Closing, isBroughtUp: Bool = true) {
    // R10: not mounted any more in a session: its disks were taken away from a guest that hung. What they got before has to be
    // acknowledged and durable on both all the same.
    guard isMounted || closing.session != nil else { return closeMount(closing) }
    guard closing.session != nil || closing.wasAlone && isBroughtUp else {
      // Frozen: what waits will not be acknowledged any more, so nothing drains.
      advance(closing, to: .barrier)
      return syncFiles()
    }
    advance(closing, to: .drain)
    engine(.drain)
  }

  mutating func drained() {
    guard case .closing(let closing) = phase, closing.step == .drain else { return }
    advance(closing, to: .barrier)
    if let session = closing.session { engine(.flushBarrier(session)) } else { syncFiles() }
  }

  mutating func closingBarrierDone(_ closing: Closing, _ session: SessionID) {
    guard closing.step == .barrier, closing.session == session else { return }
    closeMount(closing)
  }

  mutating func closeMount(_ closing: Closing) {
    guard isMounted else { return closingUnmounted(closing) }
    advance(closing, to: .unmount)
    engine(.unmount(force: false))
  }

  mutating func closingUnmounted(_ closing: Closing) {
    switch closing.goal {
    case .handOver(let session):
      guard closing.session == session else { return resumeAfterLoss() }
      giveToken(session)
    case .giveUp(let kept):
      advance(closing, to: .archive)
      beginArchive(kept)
    case .stop:
      // Clean stop: the node that stops last holds the mark, so that it starts alone next time.
      if closing.wasAlone || closing.hasLostDisk || closing.session == nil && peerAlive != true {
        return finishStop(consented: false, claim: nil)
      }
      advance(closing, to: .consent, session: nil)
      ask("it stops last")
    }
  }

  private mutating func advance(_ closing: Closing, to step: ClosingStep) {
    advance(closing, to: step, session: closing.session)
  }

  private mutating func advance(_ closing: Closing, to step: ClosingStep, session: SessionID?) {
    var next = closing
    next.step = step
    next.session = session
    phase = .closing(next)
  }

  mutating func closingLostSession(_ closing: Closing, _ lost: String) {
    phase = .closing(closing)
    note(lost, .warning, rule: "R9")
    if case .handOver = closing.goal {
      // The peer is no longer known to be in sync: the guest stays, or starts again, here.
      return resumeAfterLoss()
    }
    if closing.step == .drain || closing.step == .barrier {
      // Frozen now: nothing drains any more, no joint flush comes.
      advance(closing, to: .barrier)
      syncFiles()
    }
  }

  /// A swap whose session is gone: R9 decides who goes on.
  private mutating func resumeAfterLoss() {
    phase = isMounted ? .frozen : .waiting
    say("the swap is off: the session was lost before the token was given", .warning, rule: "R10")
    engine(.connect)
  }

  mutating func finishStop(consented: Bool, claim: BranchID?) {
    guard case .closing(let closing) = phase else { return }
    if consented, !closing.wasAlone, let old = record {
      let branch = BranchID(rawValue: random())
      // R4, as one record.
      persist { record in
        record.generation = Generation(number: old.generation.number &+ 1, branch: branch)
        record.appendHistory([old.claim, claim, branch].compactMap { $0 })
        record.standing = .uptodate
        record.peerOutdated = .consent
        record.claim = nil
        record.consentedTo = nil
        record.wroteLast = true
      }
    }
    becomeStopped()
    if wish.started, record != nil { begin(byOperator: true) }
  }
}
