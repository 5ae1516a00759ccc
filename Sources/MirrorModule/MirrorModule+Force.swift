import Model

// What a site may order beforehand, both off unless configured: to force a copy that waits too long, and to choose a side of a split.
extension MirrorModule {
  /// What it takes, the time apart. A blackout: this node lost its power too. One that has run all the while since it was in sync
  /// may only be cut off from a peer that serves, and one that the witness has told so is.
  private var forceAfter: Duration? {
    guard let patience = settings.forceAfter, let record, wish.started, record.standing != .inconsistent,
      // Without one it was distrusted (a disk error, a change of arbiter), not cut off from its power.
      let boot = record.bootAtLastSync, boot != settings.bootID, splitWith == nil, !isOverruled
    else { return nil }
    return patience
  }

  /// Both nodes lost their power and the other one does not return: the same R4, mark and consequences as `vmha start --force`.
  mutating func forces(_ record: DurableRecord) -> Bool {
    guard let patience = forceAfter else {
      timers[.force] = nil
      return false
    }
    // Its heartbeats are gone and it connects: it is there.
    guard handshake == nil else { return false }
    armOnce(.force, after: patience)
    guard let due = timers[.force], due <= now else { return false }
    // It may know that the peer went on: it is asked first, and has refused or not answered.
    if settings.arbiter == .witness, record.standing == .uptodate, arbiterRefusal == nil { return false }
    let lost = "\(settings.peerName) stayed lost for \(spoken(patience)) (force-after)"
    note(
      "\(lost): started by force on a copy that is \(record.standing.rawValue). Writes that only \(settings.peerName) has are "
        + "not in it; if \(settings.peerName) still runs, the module splits", .alarm, rule: "R5")
    goAlone(.force, lost)
    return true
  }

  /// What ends a wait for the other node, apart from that node.
  var wayOut: String {
    // By name: the other node shows this sentence too.
    let byHand = "vmha start \(settings.module) --force, on \(settings.nodeName)"
    if hasLostRecord { return ". To take this copy as it is, whatever it is worth: \(byHand)" }
    if hasPeerLostRecord, peerAlive == true {
      let there = "vmha start \(settings.module) --force, on \(settings.peerName)"
      return record?.standing == .inconsistent
        ? ". To take \(settings.peerName)'s copy as it is: \(there)"
        : ". To choose this copy: \(byHand); or \(settings.peerName)'s as it is: \(there)"
    }
    if record?.standing == .inconsistent { return "" }
    guard let patience = forceAfter else { return ". If it never comes back: \(byHand)" }
    return ". If it stays lost for \(spoken(patience)) this copy is forced (force-after); at once: \(byHand)"
  }

  /// R12: the node whose copy is given up does what the operator would do there.
  mutating func resolveByPolicy(_ theirs: Hello) {
    guard settings.splitPolicy == .keepPreferred, settings.preferred != settings.node, wish.started,
      theirs.standing != .inconsistent, let mine = record?.generation, mine.branch != unarchivable
    else { return }
    note(
      "split-policy=keep-preferred: \(settings.peerName)'s copy goes on, this one is archived and given up", .alarm,
      rule: "R12")
    out.append(.resolveSplit(mine: mine, theirs: theirs.generation))
  }
}
