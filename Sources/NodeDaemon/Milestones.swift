import ControlAPI
import MirrorModule
import Model

/// What changed in a module's account of itself, as journal events: hooks, drills and people read these.
struct Milestone: Sendable, Hashable {
  var kind: EventKind
  var severity: ControlAPI.Severity
  var sentence: String
  var details: [String: String] = [:]
}

enum Milestones {
  static func between(_ old: CoreStatus?, _ new: CoreStatus) -> [Milestone] {
    var found: [Milestone] = []
    let was = old?.state ?? .stop
    if was != new.state, new.state == .alone || new.state == .prim, was != .alone, was != .prim {
      found.append(Milestone(kind: .promoted, severity: .notice, sentence: "promoted: \(new.sentence)"))
    }
    if old?.state != new.state || old?.readiness != new.readiness {
      let words = "\(new.state.rawValue) \(new.readiness.rawValue)"
      found.append(
        Milestone(
          kind: .state, severity: new.readiness == .blocked ? .error : .info, sentence: "\(words): \(new.sentence)",
          details: ["state": new.state.rawValue, "readiness": new.readiness.rawValue]))
    }
    let before = old?.guest ?? .unknown
    if new.guest == .starting, before == .running || before == .paused || before == .suspended,
      let died = guest(before, .off)
    {
      // It died and is being started again within one decision.
      found.append(died)
    }
    if let guest = guest(before, new.guest) { found.append(guest) }
    if old?.resync == nil, new.resync != nil {
      found.append(Milestone(kind: .resyncStarted, severity: .info, sentence: "resync started"))
    }
    // PRIM: both are required from here on (R8.3). A copy that was given up leaves ALONE.
    if let done = old?.resync, new.resync == nil, new.state == .prim {
      found.append(
        Milestone(
          kind: .resyncDone, severity: .notice,
          sentence: "resync done: \(byteText(done.bytesTotal)) could differ, \(byteText(done.bytesSent)) were sent",
          details: ["bytes_compared": "\(done.bytesTotal)", "bytes_sent": "\(done.bytesSent)"]))
    }
    if old?.isSplit != true, new.isSplit {
      found.append(Milestone(kind: .split, severity: .error, sentence: new.sentence))
    }
    return found
  }

  private static func guest(_ old: CoreGuest, _ new: CoreGuest) -> Milestone? {
    if old == new { return nil }
    return switch (old, new) {
    case (_, .starting): Milestone(kind: .guestStarting, severity: .info, sentence: "the guest is being started")
    case (.paused, .running), (.suspended, .running):
      Milestone(kind: .guestResumed, severity: .notice, sentence: "the guest runs again")
    case (_, .running): Milestone(kind: .guestStarted, severity: .notice, sentence: "the guest runs")
    case (_, .suspended):
      Milestone(kind: .guestPaused, severity: .warning, sentence: "the guest is suspended")
    case (_, .paused): Milestone(kind: .guestPaused, severity: .error, sentence: "the guest is paused")
    case (.stopping, .off): Milestone(kind: .guestStopped, severity: .notice, sentence: "the guest is off")
    case (.unknown, .off), (_, .stopping), (_, .unknown): nil
    case (_, .off): Milestone(kind: .guestDied, severity: .error, sentence: "the guest went off by itself")
    }
  }
}
