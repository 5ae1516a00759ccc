import Model

// R5: the arbiter of a node that cannot have its peer's consent: witness, fence, both, ping.
extension MirrorModule {
  /// The one question to the arbiter that is open.
  struct Arbitration: Sendable, Codable, Hashable {
    enum Step: Sendable, Codable, Hashable { case reading, swapping, fencing, pinging }
    var id: UInt64
    var step: Step
    /// R4: a right that arrives after the generation changed is dropped.
    var generation: Generation
    var why: String
    /// The read that granted, for `witness+fence`.
    var grant: WitnessReading?
  }

  /// The arbiter decides; called again with every event until it gave a right.
  mutating func askArbiter(_ why: String) {
    // R0, R6: a copy that is not known to be up to date gets no right, of no arbiter and by no policy.
    guard let record, record.standing == .uptodate else { return }
    switch settings.arbiter {
    case .wait: return
    case .none: return goAlone(.policy, why)
    case .ping, .witness, .fence, .witnessAndFence: break
    }
    guard arbitration == nil, timers[.arbiter] == nil else { return }
    // R5: never after an own restart; the caller has said so.
    guard isContinuous || !settings.arbiter.fences else { return }
    if settings.arbiter == .fence {
      let turns = (guest.isLive ? 0 : 2) + (settings.node == .first ? 0 : 1)
      armOnce(.fenceStagger, after: MirrorSettings.fenceStagger * turns)
      guard let turn = timers[.fenceStagger], turn <= now else { return }
    }
    // R1: before the claim, and before the peer's power goes.
    endSession()
    arbitration = Arbitration(id: 0, step: .reading, generation: record.generation, why: why)
    switch settings.arbiter {
    case .ping: open(.pinging)
    case .fence: openFence()
    default: openClaim(record)
    }
  }

  /// The next step of the open arbitration, under a fresh id: an answer to an earlier step is not taken for one to this.
  private mutating func open(_ step: Arbitration.Step, swap: (expect: Int64, WitnessRegister)? = nil) {
    let id = random()
    arbitration?.id = id
    arbitration?.step = step
    arm(
      .arbiterAnswer, after: step == .fencing ? MirrorSettings.fenceAnswerMax : MirrorSettings.arbiterAnswerMax)
    switch step {
    case .reading: out.append(.readWitness(id: id))
    case .swapping: if let (expect, register) = swap { out.append(.swapWitness(id: id, expect: expect, register)) }
    case .fencing: out.append(.fencePeer(id: id))
    case .pinging: out.append(.ping(id: id))
    }
  }

  /// Whatever is still under way is void: its answer finds no open question. A claim stays open on record (R5).
  mutating func dropArbitration() {
    arbitration = nil
    arbiterRefusal = nil
    for timer in [TimerKind.arbiter, .arbiterAnswer, .fenceStagger] { timers[timer] = nil }
  }

  /// Another arbiter is configured.
  mutating func forgetArbiter() {
    dropArbitration()
    watch = WitnessWatch()
    for timer in [TimerKind.witness, .witnessAnswer, .patience] { timers[timer] = nil }
  }

  /// R5: a fence tells nothing of what the peer was allowed by another arbiter since the copies were in sync. While they are, nobody
  /// has a right of the one before.
  mutating func noteArbiter(_ next: ArbiterPolicy) {
    switch phase {
    case .prim, .second: persist { $0.arbiterAtLastSync = next.rawValue }
    default: if next.fences, record != nil { persist { $0.bootAtLastSync = nil } }
    }
  }

  private mutating func refused(_ why: String) {
    dropArbitration()
    arbiterRefusal = why
    // Consent first, as soon as the peer can be asked again.
    timers[.patience] = nil
    arm(.arbiter, after: MirrorSettings.arbiterRetry)
    let stands = phase == .frozen ? "frozen" : "cannot go on"
    let refusal =
      facesLostRecord
      ? "\(peerLostRecordText); no right to go on: \(why)" : "\(stands): no consent of \(settings.peerName), and \(why)"
    say(
      "\(refusal); asking again every \(MirrorSettings.arbiterRetry.milliseconds / 1000) s\(wayOut)", .alarm,
      rule: "R5")
  }

  /// The open arbitration, if this is an answer to its present step and its right could still be used (R4).
  private mutating func answered(_ id: UInt64, _ step: Arbitration.Step) -> Arbitration? {
    guard let open = arbitration, open.id == id, open.step == step else { return nil }
    timers[.arbiterAnswer] = nil
    guard let record, record.generation == open.generation, record.standing == .uptodate, session == nil,
      phase == .waiting || phase == .frozen, isContinuous || !settings.arbiter.fences
    else {
      // This node's disk may have failed since it asked: then the peer's power must stay on.
      dropArbitration()
      note("a right that is not asked for any more was dropped", rule: "R4")
      return nil
    }
    return open
  }

  mutating func arbiterFailed(_ id: UInt64, _ why: String) {
    if watchFailed(id, why) { return }
    guard let open = arbitration, open.id == id else { return }
    timers[.arbiterAnswer] = nil
    switch open.step {
    // It may have happened all the same: a read tells.
    case .swapping: self.open(.reading)
    case .reading: refused("the witness does not answer: \(why)")
    case .fencing: refused("\(settings.peerName) could not be powered off: \(why)")
    case .pinging: refused("none of the ping addresses answers: \(why)")
    }
  }

  // MARK: witness

  private mutating func openClaim(_ record: DurableRecord) {
    // R5: durable before anybody can see it; the same one until it is used or absorbed.
    if record.claim == nil {
      let claim = BranchID(rawValue: random())
      persist { $0.claim = claim }
    }
    if arbiterRefusal == nil { say("asking the witness for the right to go on: \(arbitration?.why ?? "")", rule: "R5") }
    open(.reading)
  }

  mutating func witnessRead(_ id: UInt64, _ reading: WitnessReading) {
    if watch.openRead == id { return looked(reading) }
    guard let open = answered(id, .reading), let record, let claim = record.claim else { return }
    let trouble = objection(to: reading, record)
    isOverruled = trouble != nil && reading.register.map { !record.history.contains($0.branch) } ?? false
    if let trouble { return refused(trouble) }
    guard let register = reading.register else { return }
    if register.branch == claim, register.holder == settings.node { return granted(reading, open) }
    // A swap that was answered and did not take: somebody else was faster, the next read says who.
    let next = WitnessRegister(
      branch: claim, number: register.number &+ 1, holder: settings.node, parent: record.generation.branch)
    self.open(.swapping, swap: (reading.modRevision, next))
  }

  mutating func witnessSwapped(_ id: UInt64) {
    if watch.openSwap == id {
      watch.openSwap = nil
      timers[.witnessAnswer] = nil
      return arm(.witness, after: MirrorSettings.witnessFirstLook)
    }
    // R5: the grant is never the reply.
    if answered(id, .swapping) != nil { open(.reading) }
  }

  private mutating func granted(_ reading: WitnessReading, _ open: Arbitration) {
    guard settings.arbiter == .witnessAndFence else { return goAlone(.witness, open.why, witness: reading) }
    arbitration?.grant = reading
    openFence()
  }

  // MARK: fence, ping

  private mutating func openFence() {
    if arbiterRefusal == nil { say("powering \(settings.peerName) off: \(arbitration?.why ?? "")", .alarm, rule: "R5") }
    open(.fencing)
  }

  mutating func peerFenced(_ id: UInt64) {
    guard let open = answered(id, .fencing) else { return }
    guard isContinuous else { return refused("this node was not in sync since its boot") }
    goAlone(
      open.grant == nil ? .fence : .witness, "\(settings.peerName) is powered off (\(open.why))", witness: open.grant)
  }

  mutating func pingAnswered(_ id: UInt64) {
    guard let open = answered(id, .pinging) else { return }
    goAlone(.policy, "\(open.why), and a ping address answers")
  }
}
