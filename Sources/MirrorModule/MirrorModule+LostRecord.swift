import Model

// R0, R5, R7: a node whose record was lost may have gone on alone, and nobody can tell any more. It gives and gets nothing by itself, and
// the other node overwrites its copy only when it can show that its own is the newest, as if this one were not there.
extension MirrorModule {
  var hasLostRecord: Bool { record?.recordLost == true }

  /// The peer is there, has lost its record and serves nobody: no consent of it counts, and what it says of its copy proves nothing.
  var facesLostRecord: Bool {
    hasPeerLostRecord && peerAlive == true
      && peerBeat.map { $0.standing == .inconsistent && !$0.isPrimary } ?? true
  }

  /// Beside a handshake that leads to nothing before there is a right.
  var maySeekRight: Bool {
    guard let handshake, peerAlive != false else { return true }
    return facesLostRecord && handshake.theirs != nil && !handshake.awaitsTarget
  }

  /// R1: the session stays away while the arbiter decides, and after it refused: the peer has nothing to say that would change it. Its
  /// heartbeat tells when the operator has forced it, its loss or restart ends this too.
  var asksDespitePeer: Bool { facesLostRecord && (arbitration != nil || arbiterRefusal != nil) }

  /// Nothing that this node does by itself ends the wait.
  var isStuckBesideLostRecord: Bool {
    facesLostRecord && handshake?.awaitsTarget != true
      && (!settings.arbiter.overrulesLivePeer || arbiterRefusal != nil)
  }

  /// Whatever the peer's record said, nobody has gone on without this copy: this node has standing by a proven right; or it was in sync
  /// in this boot, never gave its consent since, and the peer could have gone on only by powering it off (R5 fence).
  func provesNewest(_ record: DurableRecord) -> Bool {
    guard record.standing == .uptodate else { return false }
    if let right = record.peerOutdated, right.isProven { return true }
    return isContinuous && settings.arbiter.fences
  }

  /// R5, R7: the peer is there without its record, and this copy is not known to be the newest.
  mutating func considerLostRecord(_ record: DurableRecord) {
    // Else it was said when both met: only the operator can choose.
    guard record.standing == .uptodate, !offers else { return }
    // R5: a fence proves nothing behind an own restart, and a node that answers is not powered off.
    guard settings.arbiter.overrulesLivePeer else {
      return say("\(peerLostRecordText)\(wayOut)", .alarm, rule: "R7")
    }
    let wait = isContinuous ? settings.detection : settings.bootWait
    armOnce(.lostRecord, after: wait)
    guard let due = timers[.lostRecord], due <= now else {
      return say(
        "\(peerLostRecordText); asking for the right to go on without it in \(wait.milliseconds / 1000) s", .warning,
        rule: "R7")
    }
    if phase == .waiting, leavesItThere(record) { return }
    askArbiter("\(settings.peerName) lost its record of the module")
  }

  /// R7: this node is the source beside a peer that lost its record. What its right does not prove is said.
  mutating func announceOverwriting() {
    guard hasPeerLostRecord, let record, !provesNewest(record) else { return }
    note(
      "\(settings.peerName) lost its record, and this node goes on by an unproven right: what only \(settings.peerName) may have "
        + "written is overwritten now", .alarm, rule: "R7")
  }

  /// R7 has found nobody who goes on by himself: nobody overwrites anything before the operator has chosen.
  func withoutSource(_ theirs: Hello, mine: Hello) -> String {
    if hasLostRecord {
      let both = hasPeerLostRecord ? "; \(settings.peerName) lost its record too" : ""
      return "\(lostRecordText)\(both)\(wayOut)"
    }
    if hasPeerLostRecord { return "\(peerLostRecordText), which is \(mine.standing.rawValue)\(wayOut)" }
    return "neither copy is usable as it is: this one is \(mine.standing.rawValue), \(settings.peerName)'s is "
      + "\(theirs.standing.rawValue); an outdated one goes on only by 'vmha start \(settings.module) --force' there"
  }

  /// The peer went away, or may be another one: unless the present session has said so.
  mutating func forgetLostRecord() {
    hasPeerLostRecord = handshake?.theirs?.recordLost == true
    timers[.lostRecord] = nil
  }

  var peerLostRecordText: String {
    "\(settings.peerName) lost its record of this module: it may have gone on alone, and hold newer data than this copy"
  }

  var lostRecordText: String {
    "this node lost its record of this module: its copy may be the newest or worth nothing, and is kept until "
      + "\(settings.peerName)'s is known to be newer"
  }
}
