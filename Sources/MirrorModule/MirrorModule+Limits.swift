import Model

/// What is counted against storms: a guest that keeps dying, nodes that keep losing sight of each other. Beside the durable record
/// and worth less than it: its loss forgets a count, never a right, and none of it gives one.
public struct ModuleLimits: Sendable, Codable, Hashable {
  /// When this node started a guest again that had died under it, within `restartWindow`.
  public var restarts: [Instant] = []
  /// When this node's restarts were used up.
  public var gaveUpAt: Instant?
  /// When the other node handed the module over because its restarts were used up.
  public var peerGaveUpAt: Instant?
  /// When this node took the module over from the other one, the last `takeoversMax`.
  public var takeovers: [Instant] = []
  /// Why the guest is not started any more until the operator's start; nil = it is.
  public var stopped: String?
  public init() {}
}

// No rule rests on anything here: it only makes a node ask for a right later, or start a guest not again.
extension MirrorModule {
  mutating func changeLimits(_ change: (inout ModuleLimits) -> Void) {
    var next = limits
    change(&next)
    if next == limits { return }
    limits = next
    out.append(.keepLimits(next))
  }

  /// The operator's start: whatever was counted, it is his wish.
  mutating func clearLimits() {
    if limits.stopped != nil { blockedBy = nil }
    changeLimits { $0 = ModuleLimits() }
    flapEnds()
    timers[.takeover] = nil
    if phase == .alone { timers[.reconnect] = nil }
  }

  func isWithin(_ window: Duration, _ time: Instant?) -> Bool { time.map { now - $0 < window } ?? false }

  // MARK: restarts

  private var recentRestarts: [Instant] { limits.restarts.filter { isWithin(settings.restartWindow, $0) } }
  var areRestartsUsedUp: Bool { isWithin(settings.restartWindow, limits.gaveUpAt) }
  private var hasPeerGivenUp: Bool { isWithin(settings.restartWindow, limits.peerGaveUpAt) }
  private var allowed: String { "\(settings.restartsMax) in \(spoken(settings.restartWindow))" }

  /// The guest died here, by itself or with the engine under it; false: it is not started here again.
  mutating func mayRestart(_ why: String) -> Bool {
    let recent = recentRestarts
    guard recent.count < settings.restartsMax else {
      restartsUsedUp(why)
      return false
    }
    changeLimits { [now] in $0.restarts = recent + [now] }
    note("the guest is off: \(why); starting it again here (\(recent.count + 1) of \(allowed))", .alarm)
    return true
  }

  /// The module is offered to the other node: here it counts all the same.
  mutating func countDeath() {
    let recent = recentRestarts
    if recent.count < settings.restartsMax {
      changeLimits { [now] in $0.restarts = recent + [now] }
    } else {
      changeLimits { [now] in $0.gaveUpAt = now }
    }
  }

  /// Here, then on the other node, then nowhere: two nodes must not hand a broken guest to and fro for ever.
  private mutating func restartsUsedUp(_ why: String) {
    changeLimits { [now] in $0.gaveUpAt = now }
    if case .prim(let session) = phase, !hasPeerGivenUp {
      note(
        "the guest is off: \(why); the restarts here are used up (\(allowed)), \(settings.peerName) tries", .alarm)
      return close(for: .handOver(session), session: session, wasAlone: false)
    }
    stopRestarting(why)
  }

  mutating func stopRestarting(_ why: String) {
    let isOver = hasPeerGivenUp
    let onBoth = isOver ? "here and on \(settings.peerName)" : "here"
    let hope = isOver ? "" : "; \(settings.peerName) tries as soon as it is in sync"
    let text =
      "the guest stays off: \(why), and the restarts \(onBoth) are used up (\(allowed))\(hope). "
      + "Mend the guest, then: vmha start \(settings.module)"
    blockedBy = text
    changeLimits { limits in
      limits.stopped = text
      // So long ago that it may try again.
      if !isOver { limits.peerGaveUpAt = nil }
    }
    say(text, .alarm)
  }

  /// In sync again: the node that has not tried yet does.
  mutating func handsOver(_ session: SessionID) -> Bool {
    // However long ago: it stopped here because the other one had tried.
    guard limits.stopped != nil, wish.started, !guest.isLive, limits.peerGaveUpAt == nil else { return false }
    note("\(settings.peerName) is in sync and has not tried to run the guest yet: it does now", .notice)
    close(for: .handOver(session), session: session, wasAlone: false)
    return true
  }

  /// The other node has the module now; what stopped the guest here is history, what was counted is not.
  mutating func forgetStop() {
    guard limits.stopped != nil else { return }
    blockedBy = nil
    changeLimits { $0.stopped = nil }
  }

  // MARK: takeovers

  private var recentTakeovers: [Instant] { limits.takeovers.filter { isWithin(MirrorSettings.takeoverWindow, $0) } }

  /// R4 was done by a node that did not write last: the guest moved without anybody's wish.
  mutating func countTakeover() {
    let recent = recentTakeovers
    changeLimits { [now] in $0.takeovers = Array((recent + [now]).suffix(MirrorSettings.takeoversMax)) }
  }

  /// The module has moved too often: it stays where it is unless the other node stays lost. Nobody asks later than it would by
  /// another minute, and nobody earlier.
  mutating func leavesItThere(_ record: DurableRecord) -> Bool {
    let recent = recentTakeovers
    guard !record.wroteLast, recent.count >= MirrorSettings.takeoversMax else { return false }
    armOnce(.takeover, after: MirrorSettings.takeoverPause)
    if let due = timers[.takeover], due <= now { return false }
    say(
      "flapping: this node took the module over \(recent.count) times in \(spoken(MirrorSettings.takeoverWindow)), so it "
        + "leaves it to \(settings.peerName) now and goes on only if that stays lost for "
        + "\(spoken(MirrorSettings.takeoverPause)); at once: vmha start \(settings.module)", .alarm)
    return true
  }

  // MARK: sessions that come and go

  private var recentLosses: [Instant] { losses.filter { isWithin(MirrorSettings.flapWindow, $0) } }

  /// A session in which this node was the primary, or the source of a resync, was lost.
  mutating func countLoss() {
    timers[.stable] = nil
    losses = recentLosses + [now]
    if losses.count > MirrorSettings.flapCountMax { losses.removeFirst() }
  }

  /// Alone with its right: the copy may come back a little later. Whoever waits or is frozen always connects at once.
  mutating func reconnect() {
    let recent = recentLosses
    guard phase == .alone, recent.count >= MirrorSettings.flapsBeforePause else { return engine(.connect) }
    if isConnecting { engine(.endSession) }
    let doublings = recent.count - MirrorSettings.flapsBeforePause
    arm(.reconnect, after: min(MirrorSettings.flapPause * (1 << doublings), MirrorSettings.flapPauseMax))
    if !isFlapping {
      note(
        "flapping: the session with \(settings.peerName) was lost \(recent.count) times in "
          + "\(spoken(MirrorSettings.flapWindow)); the next tries come after pauses of up to "
          + "\(spoken(MirrorSettings.flapPauseMax)) each. Look at the link: vmha status", .alarm)
    }
    isFlapping = true
  }

  /// In sync: stable only when it stays so.
  mutating func watchStability() {
    if !losses.isEmpty { arm(.stable, after: MirrorSettings.flapWindow) }
  }

  mutating func becameStable() {
    if isFlapping { note("the session with \(settings.peerName) is stable again", .notice) }
    flapEnds()
  }

  private mutating func flapEnds() {
    timers[.stable] = nil
    losses = []
    isFlapping = false
  }

  /// "24 h", "5 min", "90 s".
  func spoken(_ time: Duration) -> String {
    let seconds = time.milliseconds / 1000
    if seconds >= 3600, seconds % 3600 == 0 { return "\(seconds / 3600) h" }
    if seconds >= 120, seconds % 60 == 0 { return "\(seconds / 60) min" }
    return "\(seconds) s"
  }
}
