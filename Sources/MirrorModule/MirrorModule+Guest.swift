import Model

extension MirrorModule {
  /// Starts the guest, unless it should rather begin on its preferred node and that one is about to be in sync.
  mutating func placeGuest() {
    guard wish.started, blockedBy == nil, bringUp == nil, isMounted, !guest.isLive || guest == .unknown else { return }
    switch phase {
    case .prim(let session):
      if startByOperator, settings.preferred != settings.node {
        startByOperator = false
        timers[.holdGuest] = nil
        note("handing the module to its preferred node \(settings.peerName) before the guest starts", .notice)
        return close(for: .handOver(session), session: session, wasAlone: false)
      }
      return confirmStart(in: session)
    case .alone:
      if startByOperator, settings.preferred != settings.node, peerAlive == true {
        armOnce(.holdGuest, after: MirrorSettings.preferredWait)
        return say("waiting for \(settings.peerName), the preferred node, to be in sync before the guest starts there")
      }
    default: return
    }
    startGuest()
  }

  /// What this core knows of the session may be older than the peer's right to go on without this node: a host that stood still
  /// finds its guest dead before it finds out about the session.
  private mutating func confirmStart(in session: SessionID) {
    // Whatever becomes of the question: the guest is still to be started.
    arm(.guestRetry, after: MirrorSettings.guestRetryPause)
    guard startCheck?.session != session else { return }
    startCheck = StartCheck(session: session, askedAt: now)
    engine(.confirmSession(session))
  }

  mutating func sessionConfirmed(_ session: SessionID) {
    guard let check = startCheck, check.session == session else { return }
    startCheck = nil
    guard phase == .prim(session), wish.started, blockedBy == nil, isMounted, !guest.isLive || guest == .unknown
    else { return }
    // An answer that lay about for long says nothing of now.
    if now - check.askedAt > MirrorSettings.startConfirmMax { return confirmStart(in: session) }
    startGuest()
  }

  mutating func considerAlone() {
    // The preferred node went away while the guest was held for it.
    if timers[.holdGuest] != nil, peerAlive == false, bringUp == nil, isMounted {
      timers[.holdGuest] = nil
      startByOperator = false
      startGuest()
    }
  }

  mutating func startGuest() {
    startByOperator = false
    timers[.holdGuest] = nil
    timers[.guestRetry] = nil
    guest = .starting
    guestNote = nil
    isSuspensionWanted = false
    isCutShort = false
    timers[.suspension] = nil
    out.append(.startGuest)
  }

  mutating func guestSaid(_ event: Event) {
    switch event {
    case .guestStarted:
      guest = .running
      guestNote = nil
      forgetStop()
      guestIsUp()
    case .guestResumed:
      if guest == .paused { guest = .running }
      if guest == .suspended { resumedByOthers() }
      guestNote = nil
    case .guestPaused(let why):
      guest = .paused
      guestNote = why
      note("the guest is paused: \(why)", .alarm)
    case .guestStartFailed(let why):
      guest = .off
      note("the guest did not start: \(why)", .alarm)
      guestEnded(.failed, "it did not start: \(why)")
    case .guestOff(let end):
      let expected = guest == .stopping
      guest = .off
      isSuspensionWanted = false
      isCutShort = false
      guestNote = nil
      expected ? guestWentOff() : guestEnded(end, "it ended by itself (\(end.rawValue))")
    case .guestStuck(let why):
      note("the guest does not go off: \(why); its disks are taken away", .alarm)
      // facts: a guest in an uninterruptible wait on its mount goes as soon as the FUSE connection is aborted.
      engine(.unmount(force: true))
      out.append(.destroyGuest)
    default: break
    }
  }

  private mutating func guestIsUp() {
    switch phase {
    case .alone: say("the guest runs here, without a second copy in sync", .warning)
    case .prim: say("the guest runs here, in sync with \(settings.peerName)", .notice)
    case .frozen, .adopting: break
    case .second, .target, .yielding, .stopped, .failed, .waiting:
      // Somebody started it by hand on the wrong node; it has no writable disk here.
      note("the guest was started here outside vmha and is destroyed", .alarm)
      guest = .stopping
      out.append(.destroyGuest)
    case .closing:
      guest = .stopping
      out.append(.stopGuest)
    }
  }

  /// The guest is off because this core wanted it.
  private mutating func guestWentOff() {
    switch phase {
    case .closing(let closing) where closing.step == .guest: closingGuestOff(closing)
    case .yielding: continueYielding()
    case .alone where bringUp == nil && isMounted: placeGuest()
    case .waiting: endHungEngine()
    default: break
    }
  }

  private mutating func guestEnded(_ end: GuestEnd, _ why: String) {
    switch phase {
    case .closing(let closing) where closing.step == .guest: return closingGuestOff(closing)
    case .yielding: return continueYielding()
    case .alone, .prim, .adopting, .frozen: break
    default: return
    }
    guard wish.started else { return }
    guard mayRestart(why) else { return }
    arm(.guestRetry, after: limits.restarts.count == 1 ? .zero : MirrorSettings.guestRetryPause)
  }

  mutating func fireTimers() {
    guard timers.values.contains(where: { $0 <= now }) else { return }
    for kind in TimerKind.allCases {
      guard let at = timers[kind], at <= now else { continue }
      fire(kind)
    }
  }

  private mutating func fire(_ kind: TimerKind) {
    // bootWait, quiet, patience, takeover, force and lostRecord stay set: `consider` reads that they have passed. They are moved out of
    // the wake-ups.
    switch kind {
    case .peerUnknown:
      timers[kind] = nil
      if peerAlive == nil { peerAlive = false }
    case .ask, .suspension: timers[kind] = nil
    case .surrender: abandonSurrender("\(settings.peerName) did not answer")
    case .offer:
      note("\(settings.peerName) did not take the module; starting again here", .warning)
      endOffer()
    case .engineStart:
      timers[kind] = nil
      startEngine()
    case .guestRetry:
      timers[kind] = nil
      switch phase {
      case .alone, .prim: placeGuest()
      case .frozen, .adopting: arm(.guestRetry, after: MirrorSettings.guestRetryPause)
      default: break
      }
    case .holdGuest:
      timers[kind] = nil
      startByOperator = false
      if phase == .alone, !guest.isLive, bringUp == nil, isMounted {
        note("\(settings.peerName) is not in sync yet; the guest starts where its data is", .notice)
        startGuest()
      }
    case .askAnswer:
      timers[kind] = nil
      if let ask = openAsk { consentFailed(ask.nonce, "no answer in time") }
    case .adopt:
      timers[kind] = nil
      if case .adopting(let session) = phase { sendAdopt(session) }
    case .reconnect: timers[kind] = nil  // `listen` connects
    case .arbiter: timers[kind] = nil
    case .arbiterAnswer:
      timers[kind] = nil
      if let open = arbitration { arbiterFailed(open.id, "it gave no answer in time") }
    case .witness: lookAtWitness()
    case .witnessAnswer:
      timers[kind] = nil
      if let id = watch.openRead ?? watch.openSwap { arbiterFailed(id, "it gave no answer in time") }
    case .stable: becameStable()
    case .bootWait, .quiet, .patience, .fenceStagger, .takeover, .force, .lostRecord: break
    }
  }
}
