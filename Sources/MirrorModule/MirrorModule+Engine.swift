import Model

extension MirrorModule {
  mutating func engineSaid(_ event: EngineEvent) {
    // What a running engine says before it has reported itself is in its report too.
    if !engineReady {
      if case .ready(let report) = event { engineIsReady(report) }
      return
    }
    switch event {
    case .ready: break  // the answer to a later question
    case .connected(let session, let link): connected(session, link: link)
    case .sessionLost(let session, let policy, let why): sessionLost(session, why, policy: policy)
    case .sessionEnded: endsPending = max(0, endsPending - 1)
    case .message: break
    case .mounted:
      isMounted = true
      bringUp?.mounted = true
      continueBringUp()
    case .filesSynced(let request):
      // An earlier one may have begun before what this one has to make durable.
      guard request == lastSync else { return }
      if case .closing(let closing) = phase, closing.step == .barrier, closing.session == nil {
        return closeMount(closing)
      }
      bringUp?.synced = true
      continueBringUp()
    case .unmounted: unmounted()
    case .drained: drained()
    case .resyncProgress(let session, let progress): if session == resyncSession { resync = progress }
    case .resyncCopied(let session): resyncCopied(session)
    case .barrierDone(let session): barrierDone(session)
    case .sessionConfirmed(let session): sessionConfirmed(session)
    case .failed(let command, let why): commandFailed(command, why)
    case .diskError(let operation, let path, let errno): diskError(operation, path, errno)
    case .diskHangs(let milliseconds): diskHangs(milliseconds)
    case .diskAnswers: diskAnswers()
    case .readsHeld: areReadsHeld = true
    case .readsReleased: areReadsHeld = false
    }
  }

  mutating func engineIsReady(_ report: EngineReport) {
    engineReady = true
    engineStarting = false
    isEngineKnown = true
    isMounted = report.isMounted
    areReadsHeld = report.areReadsHeld ?? false
    switch phase {
    case .waiting: takeOver(report)
    case .alone:
      // A fresh engine under a right that still holds.
      bringUpFresh(policy: .alone, resync: nil)
      engine(.connect)
    case .stopped:
      // It was started before the stop was decided.
      engine(.exit)
      forgetEngine()
    default: break
    }
  }

  /// An engine that outlived an earlier vmhad is taken over as it is; a fresh one is idle.
  private mutating func takeOver(_ report: EngineReport) {
    guard let record else { return }
    switch (report.role, report.policy) {
    case (.primary, .both(let session)) where session == report.session && record.standing == .uptodate:
      takeOverInSession(session)
    case (.primary, let policy) where startsAlone(record, serving: policy): takeOverAlone(report)
    case (.primary, _):
      phase = .frozen
      say("took over the running engine: it is frozen without its peer", .warning, rule: "R9")
      endSession()
      // R2: whatever it was allowed under another vmhad, no right is on record.
      engine(.setPolicy(.frozen))
      if !guest.isLive {
        phase = .waiting
        engine(.unmount(force: true))
      }
    case (.replica, _):
      guard let session = report.session, record.standing != .outdated, !hasLostRecord else {
        // R5: a node that consented has ended its session; it never adopts in it. R0: one that has lost its record may have adopted, and
        // its peer, in sync, would never ask again: they meet anew.
        return endSession()
      }
      phase = record.standing == .uptodate ? .second(session) : .target(session)
      // An earlier vmhad may have gone before it could say so.
      if record.standing == .inconsistent { out.append(.sendPeer(session, .targetReady(claim: record.claim))) }
      say("took over the running engine: applying \(settings.peerName)'s writes", .notice)
    case (.idle, _):
      // A session whose first messages went to an earlier vmhad would never get any further.
      if report.session != nil { endSession() }
    }
  }

  /// R4 was done: the record says so. Only a thaw that did not happen any more is missing.
  private func startsAlone(_ record: DurableRecord, serving policy: AcknowledgePolicy) -> Bool {
    guard record.standing == .uptodate, let right = record.peerOutdated else { return false }
    switch policy {
    case .alone, .resyncing, .settling: return true
    case .frozen, .both: return right.isProven
    }
  }

  private mutating func takeOverAlone(_ report: EngineReport) {
    phase = .alone
    say("took over the running engine: alone", .notice)
    switch report.policy {
    case .resyncing(let session) where session == report.session:
      resyncSession = session
    case .settling(let session) where session == report.session:
      // Its `resyncCopied` may have gone to an earlier vmhad.
      resyncSession = session
      engine(.flushBarrier(session))
    default:
      endSession()
      if guest.isLive { engine(.setPolicy(.alone)) } else { return bringUpFresh(policy: .alone, resync: nil) }
    }
    if !guest.isLive { placeGuest() }
  }

  /// R8.3 to R8.5, or in sync: the target may or may not have adopted when vmhad went away. ADOPT is repeatable.
  private mutating func takeOverInSession(_ session: SessionID) {
    // The barrier is done, but the record may not have followed the policy (R8.3 before R8.4).
    withdrawMark()
    sendAdopt(session)
    say("took over the running engine: in a session with \(settings.peerName)", .notice)
  }

  /// R4 and R10: mount, make the files durable, then the policy, then the guest.
  mutating func bringUpFresh(policy: AcknowledgePolicy, resync: SessionID?) {
    bringUp = BringUp(policy: policy, resync: resync)
    if case .both = policy { bringUp?.synced = true }  // R10: joint flush done before the token
    guard engineReady else { return startEngine() }
    engine(.mount)
    if bringUp?.synced == false { syncFiles() }
  }

  /// Its answer counts only if nothing was asked after it.
  mutating func syncFiles() {
    lastSync &+= 1
    engine(.syncFiles(lastSync))
  }

  private mutating func continueBringUp() {
    guard let steps = bringUp, steps.mounted, steps.synced else { return }
    bringUp = nil
    engine(.setPolicy(steps.policy))
    if let session = steps.resync { beginResync(session) }
    if case .closing = phase { return }
    placeGuest()
  }

  private mutating func unmounted() {
    isMounted = false
    areReadsHeld = false
    switch phase {
    case .closing(let closing) where closing.step == .unmount: closingUnmounted(closing)
    case .yielding: continueYielding()
    case .prim, .adopting, .frozen, .alone: lostMount()
    default: break
    }
  }

  /// The mount went under the guest: somebody aborted it, or it had to be taken away from a guest that hung.
  private mutating func lostMount() {
    note("the guest's disks were taken away here", .alarm)
    let hadGuest = guest.isPresent
    switch phase {
    case .alone:
      destroyWithoutDisks()
      if hadGuest, mayRestart("its disks were gone") { say("mounting its disks and starting the guest again here") }
      // What a resync had sent and not finished belongs to the mount that is gone.
      endSession()
      bringUpFresh(policy: .alone, resync: nil)
      engine(.connect)
    case .frozen:
      destroyWithoutDisks()
      phase = .waiting
    default:
      if hadGuest { countDeath() }
      endSession()
      offer()
    }
  }

  mutating func destroyWithoutDisks() {
    guard guest.isLive, guest != .stopping else { return }
    guest = .stopping
    out.append(.destroyGuest)
  }

  private mutating func commandFailed(_ command: String, _ why: String) {
    note("the engine could not do '\(command)': \(why)", .warning)
    switch command {
    case "mount", "syncFiles":
      if case .closing(let closing) = phase, closing.step == .barrier {
        // Said by its disk error. Another try would only succeed because the kernel forgets what it has lost.
        return closeMount(closing)
      }
      guard bringUp != nil else { return }
      fail("the disks cannot be brought up here: \(why)", kill: false)
    case "unmount":
      if case .closing(let closing) = phase, closing.step == .unmount { engine(.unmount(force: true)) }
    case "setPolicy": policyRefused(why)
    case "confirmSession": startCheck = nil  // the guest's retry asks again
    case "startResync", "flushBarrier", "acceptReplication": retrySession()
    default: break
    }
  }

  /// R2, R10: in sync, and the engine will acknowledge nothing in this session, for instance after it was given the token. Nobody else
  /// would ever end it: R9 has ways on. While the peer adopts, the engine's own word about the session says more.
  private mutating func policyRefused(_ why: String) {
    guard case .prim(let session) = phase else { return }
    engine(.endSession)
    sessionLost(session, "the own engine does not take writes in it: \(why)")
  }

  /// The engine would not do its part in a session that may still be there: a new one, after a pause.
  private mutating func retrySession() {
    switch phase {
    case .alone where resyncSession != nil: break
    case .target, .second: phase = .waiting
    default: return
    }
    endSession()
    arm(.reconnect, after: MirrorSettings.engineRestartPause)
  }

  /// R11
  private mutating func diskError(_ operation: String, _ path: String, _ code: Int32) {
    let what = "\(operation) of \(path) failed here (errno \(code))"
    let noSpace: [Int32] = [28, 122]  // ENOSPC, EDQUOT
    switch phase {
    case .second, .target:
      // Durable first; the peer then gets the consent it asks for.
      endSession()
      persist { if $0.standing == .uptodate { $0.standing = .outdated } }
      fail("\(what); this copy is given up, \(settings.peerName) goes on alone", kill: false)
    case .prim, .adopting, .frozen:
      // Written, and then lost by a failed fsync: that is a lost disk, whatever the reason (R3).
      if noSpace.contains(code), operation != "fsync" {
        // The guest got the error and libvirt pauses it; the module stays where it is (DESIGN section 3).
        return note("\(what): the guest sees the full disk", .alarm, rule: "R11")
      }
      giveUpDisk(what)
    case .closing(let closing) where !closing.wasAlone && (operation == "fsync" || !noSpace.contains(code)):
      if case .handOver = closing.goal { return giveUpDisk(what) }
      loseDiskInStop(closing, what)
    default: note(what, .alarm, rule: "R11")
    }
  }

  /// The guest goes off anyway. The next start is the peer's, so it must not become outdated by a consent now.
  private mutating func loseDiskInStop(_ closing: Closing, _ what: String) {
    note("\(what); \(settings.peerName) has everything", .alarm, rule: "R11")
    var next = closing
    next.hasLostDisk = true
    phase = .closing(next)
    distrustCopy(peerHasAll: closing.wasInSync)
  }

  /// Acknowledged writes may be missing here from now on: R7 must not pick this copy before one that kept all, and no fence may (R5).
  /// In R8.4 the peer may not have adopted: then this one is all there is.
  mutating func distrustCopy(peerHasAll: Bool) {
    persist { record in
      record.bootAtLastSync = nil
      record.wroteLast = false
      if peerHasAll, record.standing == .uptodate { record.standing = .outdated }
    }
  }

  mutating func engineGone(_ why: String) {
    forgetEngine()
    isEngineKnown = true
    let before = phase
    bringUp = nil
    dropSession()
    if before == .stopped { return }
    note("the engine is gone: \(why)", .warning)
    switch before {
    case .stopped: return
    case .failed: return
    case .closing(let closing):
      if guest.isLive {
        guest = .stopping
        out.append(.destroyGuest)
      }
      if closing.step == .archive { return restartEngine() }  // nobody else may come to write to the copy
      if closing.goal == .stop, !guest.isLive { return finishStop(consented: false, claim: nil) }
      phase = .waiting
    case .prim, .adopting:
      if guest.isPresent { countDeath() }
      return offer()
    case .alone:
      let hadGuest = guest.isPresent
      if guest.isLive {
        guest = .stopping
        out.append(.destroyGuest)
      }
      if hadGuest, mayRestart("its engine died") { say("starting the engine and the guest again here") }
    case .frozen:
      // A right may come before the next engine does: it must not find a guest that has lost its disks.
      destroyWithoutDisks()
      phase = .waiting
    case .waiting, .yielding, .target, .second: phase = .waiting
    }
    restartEngine()
  }

  /// Deaths remembered: enough for the longest pause.
  private static let engineDeathsMax = 8

  mutating func restartEngine() {
    engineDeaths = engineDeaths.filter { isWithin(MirrorSettings.engineDeathWindow, $0) } + [now]
    if engineDeaths.count > Self.engineDeathsMax { engineDeaths.removeFirst() }
    if engineDeaths.count == 1 { return startEngine() }
    let pause = MirrorSettings.engineRestartPause * (1 << (engineDeaths.count - 2))
    arm(.engineStart, after: min(pause, MirrorSettings.engineRestartPauseMax))
  }

  /// This node was the primary, in sync, and cannot go on: the peer should take the module.
  /// `isLeaving`: the guest and its mount are going already.
  mutating func offer(isLeaving: Bool = false) {
    if guest.isLive, !isLeaving {
      guest = .stopping
      out.append(.destroyGuest)
    }
    phase = .waiting
    bringUp = nil
    // What was asked for was the right to go on here.
    openAsk = nil
    timers[.askAnswer] = nil
    dropArbitration()
    offers = true
    arm(.offer, after: MirrorSettings.offerTime)
    say("cannot go on here; offers the module to \(settings.peerName)", .alarm, rule: "R11")
    if isMounted, !isLeaving { engine(.unmount(force: true)) }
    if !engineReady { restartEngine() }
    timers[.guestRetry] = nil
    if peerAlive != true { endOffer() }
  }

  mutating func endOffer() {
    offers = false
    timers[.offer] = nil
    engine(.connect)
    if areRestartsUsedUp { stopRestarting("it died with what is under it, and \(settings.peerName) did not take it") }
  }

  mutating func closeEngine() {
    guard engineReady, !guest.isLive else { return }
    dropSession()
    becomeStopped()
  }
}
