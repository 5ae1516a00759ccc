import Model

// R2, last line, and the timing relations: a guest that is cut off stands still before the other side may start its own. The
// engine tells by its own clock when (`readsHeld`); this core alone lets the guest go on.
extension MirrorModule {
  /// Runs after every event.
  mutating func considerSuspension() {
    guard timers[.suspension] == nil else { return }
    switch phase {
    case .prim, .adopting, .frozen:
      if areReadsHeld, !isSuspensionWanted, guest == .running { return suspend() }
      // In sync again in the same session; what is frozen waits for its right.
      if phase == .frozen { cutShort() } else if !areReadsHeld { release() }
    case .alone: release()
    case .closing(let closing):
      if closing.wasAlone || closing.session != nil && !areReadsHeld { return release() }
      if closing.session == nil { cutShort() }
    case .stopped, .waiting, .yielding, .target, .second, .failed: break
    }
  }

  private mutating func suspend() {
    isSuspensionWanted = true
    hasSuspended = true
    out.append(.suspendGuest)
  }

  private mutating func release() {
    guard isSuspensionWanted else { return }
    isSuspensionWanted = false
    guard guest.isPresent || guest == .stopping else { return }
    suspensionTrouble = nil
    if guest == .suspended { note("the guest goes on", .notice, rule: "R2") }
    out.append(.resumeGuest)
  }

  /// A stop or swap whose session was lost: what the guest still writes is not acknowledged, so it cannot shut down, and the
  /// other side may start its own.
  private mutating func cutShort() {
    guard areReadsHeld, guest == .stopping, !isCutShort else { return }
    isCutShort = true
    note(
      "the guest is destroyed: \(settings.peerName) is not heard, so that its shutdown cannot end", .warning, rule: "R2"
    )
    out.append(.destroyGuest)
  }

  mutating func suspensionSaid(_ event: Event) {
    switch event {
    case .guestSuspended:
      // Asked for by an earlier vmhad, and not to be seen when this one began.
      if guest == .unknown || !hasSuspended { isSuspensionWanted = true }
      guard guest == .running || guest == .unknown else { return }
      guest = .suspended
      suspensionTrouble = nil
      note(
        "the guest is suspended: \(settings.peerName) is not heard and nothing it writes is acknowledged", .warning,
        rule: "R2")
    case .guestReleased: if guest == .suspended { guest = .running }
    case .guestSuspendFailed(let why):
      guard isSuspensionWanted else { return }
      isSuspensionWanted = false
      suspensionFails("the guest cannot be suspended: \(why); its reads and writes wait")
      arm(.suspension, after: MirrorSettings.suspensionRetry)
    case .guestReleaseFailed(let why):
      guard !isSuspensionWanted, guest == .suspended else { return }
      isSuspensionWanted = true
      suspensionFails("the suspended guest cannot be resumed: \(why); trying again")
      arm(.suspension, after: MirrorSettings.suspensionRetry)
    default: break
    }
  }

  /// Tried again every second: said once.
  private mutating func suspensionFails(_ trouble: String) {
    if suspensionTrouble != trouble { note(trouble, .alarm, rule: "R2") }
    suspensionTrouble = trouble
  }

  /// `virsh resume` while this core wants it suspended: the guest can neither write nor read, and is suspended again.
  mutating func resumedByOthers() {
    guest = .running
    guard isSuspensionWanted else { return }
    isSuspensionWanted = false
    note("the suspended guest was resumed outside vmha", .warning, rule: "R2")
  }
}
