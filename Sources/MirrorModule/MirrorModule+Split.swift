import Model

// R12: the operator chooses which of two branches goes on. Both nodes keep theirs until then; the one that is given up is
// archived as a whole before its record says that nothing of it counts any more.
extension MirrorModule {
  /// On the node whose copy is given up.
  mutating func resolve(_ command: Command, mine: Generation, theirs: Generation) {
    func refuse(_ why: String, _ next: String) {
      answer(command, .refused(what: "the split of \(settings.module) is not resolved", why: why, next: next))
    }
    if case .closing(let closing) = phase, case .giveUp(let kept) = closing.goal, kept == theirs {
      return answer(command, .accepted("it is being resolved already"))
    }
    guard splitWith != nil else { return refuse("it is not SPLIT", "see: vmha status \(settings.module)") }
    guard let record, let peer = handshake?.theirs, peer.generation == splitWith?.generation, peerAlive != false else {
      return refuse(
        "the nodes do not see each other", "bring \(settings.peerName) and the links back, and start the module on both"
      )
    }
    guard record.generation == mine, peer.generation == theirs else {
      return refuse(
        "the branches are no longer those that were chosen from", "look again: vmha status \(settings.module)")
    }
    // R6: one that is outdated would not be taken for the source afterwards.
    guard peer.standing == .uptodate else {
      return refuse(
        "\(settings.peerName)'s copy is \(peer.standing.rawValue) and not usable as it is",
        "keep \(settings.nodeName)'s copy, or bring the other one into order first")
    }
    switch phase {
    case .alone, .frozen, .waiting: break
    default: return refuse("it is changing its role just now (\(sentence))", "repeat in a moment")
    }
    guard surrender == nil else { return refuse("it is being asked for already", "repeat in a moment") }
    // Both nodes could be told to give up at the same time: the other one agrees first, in the session.
    surrender = command
    arm(.surrender, after: MirrorSettings.surrenderAnswerMax)
    if let session { out.append(.sendPeer(session, .giveUp(mine, kept: theirs))) }
  }

  /// The other node wants to give its branch up for this one's.
  mutating func peerGivesUp(_ branch: Generation, kept: Generation, in session: SessionID) {
    guard splitWith?.generation == branch, record?.generation == kept else { return }
    // Crossing wishes: the lower node's goes first; the other one's is refused.
    if surrender != nil {
      if settings.node < settings.node.peer { return }
      abandonSurrender("\(settings.peerName) was told to give up its branch at the same time")
    }
    out.append(.sendPeer(session, .goOn(kept)))
    note("\(settings.peerName) gives its branch \(branch) up for the one here", .notice, rule: "R12")
  }

  /// The other node keeps its branch: it has no such wish of its own, and gets none while the session that ends here is gone.
  mutating func peerGoesOn(_ kept: Generation) {
    guard let command = surrender, case .resolve(_, let theirs) = command.verb, theirs == kept else { return }
    surrender = nil
    timers[.surrender] = nil
    answer(
      command,
      .accepted(
        "\(settings.peerName)'s copy goes on; the guest on \(settings.nodeName) is shut down and its branch is archived"
      ))
    endSession()
    openAsk = nil
    offers = false
    startByOperator = false
    for timer in [TimerKind.bootWait, .offer, .quiet, .holdGuest, .guestRetry, .reconnect] { timers[timer] = nil }
    close(for: .giveUp(kept), session: nil, wasAlone: isAlone)
  }

  mutating func abandonSurrender(_ why: String) {
    guard let command = surrender else { return }
    surrender = nil
    timers[.surrender] = nil
    answer(
      command,
      .refused(
        what: "the split of \(settings.module) is not resolved", why: why, next: "see: vmha status \(settings.module)"))
  }

  /// The guest is off, all it wrote is on the disk, and nothing is mounted.
  mutating func beginArchive(_ kept: Generation) {
    guard let record else { return }
    say("the guest is off; this branch is being archived", .notice, rule: "R12")
    out.append(.archiveBranch(record.generation, kept: kept))
  }

  /// The branch is durable in the archive.
  mutating func archived(_ branch: BranchID) {
    guard case .closing(let closing) = phase, closing.step == .archive, record?.generation.branch == branch else {
      return
    }
    // R12, R8: from here on this copy is only ever the target of a resync. What both maps say still holds: the two copies were
    // the same when this pairing began.
    // An open claim stays open: the reconnect absorbs it (R5).
    persist { record in
      record.generation = DurableRecord.empty.generation
      record.history = []
      record.standing = .inconsistent
      record.peerOutdated = nil
      record.consentedTo = nil
      record.bootAtLastSync = nil
      record.wroteLast = false
    }
    splitWith = nil
    phase = .waiting
    say("the branch is archived; this copy is rebuilt from \(settings.peerName)", .notice, rule: "R12")
  }

  mutating func archiveFailed(_ branch: BranchID, _ why: String) {
    guard case .closing(let closing) = phase, closing.step == .archive, record?.generation.branch == branch else {
      return
    }
    phase = .waiting
    unarchivable = branch
    say(
      "the branch could not be archived (\(why)); both copies stay. Repeat 'vmha resolve', or go on with 'vmha start "
        + "\(settings.module) --force' on \(settings.nodeName)", .alarm, rule: "R12")
  }

  /// On the node whose copy goes on.
  mutating func noteResolved(_ theirs: Hello) {
    guard splitWith != nil, theirs.recordLost != true else { return }
    note("the split is resolved: \(settings.peerName) has given its branch up", .notice, rule: "R12")
  }
}
