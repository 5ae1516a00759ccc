import Model

// R5: the register while nobody needs it: looked at, kept at this module's generation, made and mended while both nodes are in sync.
extension MirrorModule {
  struct WitnessWatch: Sendable, Codable, Hashable {
    /// What the primary read, until the secondary has agreed to it.
    struct Adoption: Sendable, Codable, Hashable {
      var session: SessionID
      var reading: WitnessReading
    }
    var openRead: UInt64?
    var openSwap: UInt64?
    var adoption: Adoption?
    /// The session in which both nodes agreed on the witness they know.
    var agreedIn: SessionID?
    var offeredIn: SessionID?
    /// Looks in a row that found a register which gives this node no right.
    var objections = 0
    var trouble: String?
  }

  /// Looks in a row before a register that gives no right is reported: the primary mends most of that by itself.
  private static let objectionsBeforeTrouble = 2

  mutating func considerWitness() {
    guard settings.arbiter.asksWitness else { return }
    switch phase {
    case .prim, .second, .alone:
      if watch.openRead == nil { armOnce(.witness, after: MirrorSettings.witnessFirstLook) }
    default:
      timers[.witness] = nil
      watch.adoption = nil
      // Nobody looks: what was wrong is not known to be.
      if phase == .stopped { watch.trouble = nil }
    }
  }

  mutating func lookAtWitness() {
    timers[.witness] = nil
    let id = random()
    watch.openRead = id
    watch.openSwap = nil
    watch.adoption = nil
    arm(.witnessAnswer, after: MirrorSettings.arbiterAnswerMax)
    out.append(.readWitness(id: id))
  }

  private mutating func lookAgainLater() {
    let jitter = Int64(random() % UInt64(MirrorSettings.witnessLook.nanoseconds / 4))
    arm(.witness, after: MirrorSettings.witnessLook + .nanoseconds(jitter))
  }

  /// True if this was the answer to a look, not to the arbitration.
  mutating func watchFailed(_ id: UInt64, _ why: String) -> Bool {
    guard watch.openRead == id || watch.openSwap == id else { return false }
    watch.openRead = nil
    watch.openSwap = nil
    timers[.witnessAnswer] = nil
    lookAgainLater()
    trouble("the witness does not answer: \(why)")
    return true
  }

  private mutating func trouble(_ why: String?) {
    if watch.trouble == why { return }
    if let why {
      note("DEGRADED: \(why)", .warning, rule: "R5")
    } else {
      note("the witness is ready to decide", .notice, rule: "R5")
    }
    watch.trouble = why
  }

  /// Why this register gives no right to a copy of this history; nil = its branch is an ancestor, or is the open claim.
  func objection(to reading: WitnessReading, _ record: DurableRecord) -> String? {
    guard let mark = record.witness else {
      return "the register was never seen by this node while both were in sync"
    }
    guard reading.cluster == mark.cluster else {
      return "another etcd cluster answers (\(hexadecimal(reading.cluster))) than the one both nodes know "
        + "(\(hexadecimal(mark.cluster)))"
    }
    guard reading.revision >= mark.revision else {
      return "the witness was set back: it is at revision \(reading.revision), and was at \(mark.revision)"
    }
    guard reading.modRevision > 0 else { return "the module's register is missing" }
    guard reading.modRevision >= mark.modRevision else {
      return "the register was set back: its last change is \(reading.modRevision), and was \(mark.modRevision)"
    }
    guard let register = reading.register else { return "the module's register cannot be read" }
    // A request to make it that comes after it was deleted would bring an old branch back, under claims that were granted since.
    guard let made = mark.createRevision, reading.createRevision == made else {
      return "the register was made anew since both nodes agreed on it"
    }
    if record.history.contains(register.branch) { return nil }
    if let claim = record.claim, claim == register.branch, register.holder == settings.node { return nil }
    let holder = register.holder == settings.node ? settings.nodeName : settings.peerName
    return "the register holds g\(register.number) (\(register.branch)) of \(holder), "
      + "which this copy does not descend from"
  }

  /// R5: what a look found. Only compare-and-swap follows from it, and never over a claim that may have been granted.
  mutating func looked(_ reading: WitnessReading) {
    watch.openRead = nil
    timers[.witnessAnswer] = nil
    guard let record else { return }
    let objection = objection(to: reading, record)
    switch phase {
    case .prim(let session):
      lookAgainLater()
      if objection != nil || watch.agreedIn != session {
        // The peer may have ended this session and claimed, unseen from here: that it still stands in it is asked after the read.
        watch.adoption = WitnessWatch.Adoption(session: session, reading: reading)
        // What is mended by this is no trouble; if it is still there at the next look, it is.
        if watch.offeredIn != session { watch.objections = -1 }
        watch.offeredIn = session
        out.append(.sendPeer(session, .adoptWitness(reading.mark)))
      } else {
        follow(reading, record)
      }
    case .alone:
      lookAgainLater()
      if objection == nil { follow(reading, record) }
    case .second:
      lookAgainLater()
      if objection == nil { raise(reading) }
    default: return
    }
    watch.objections = objection == nil ? 0 : watch.objections + 1
    if objection == nil || watch.objections >= Self.objectionsBeforeTrouble { trouble(objection) }
  }

  /// The register is an ancestor, or this generation.
  private mutating func follow(_ reading: WitnessReading, _ record: DurableRecord) {
    raise(reading)
    if reading.register?.branch != record.generation.branch { writeRegister(expect: reading.modRevision) }
  }

  /// One write of the record for each change of the register, not for each look.
  private mutating func raise(_ reading: WitnessReading) {
    guard let mark = record?.witness, reading.modRevision > mark.modRevision else { return }
    persist { $0.witness = reading.mark }
  }

  private mutating func writeRegister(expect: Int64) {
    guard let record, watch.openSwap == nil else { return }
    let id = random()
    watch.openSwap = id
    arm(.witnessAnswer, after: MirrorSettings.arbiterAnswerMax)
    let parent = record.history.last { $0 != record.generation.branch } ?? .empty
    out.append(
      .swapWitness(
        id: id, expect: expect,
        WitnessRegister(
          branch: record.generation.branch, number: record.generation.number, holder: settings.node, parent: parent)))
  }

  // MARK: both agree

  /// At the secondary: in sync in this session, so it has claimed nothing since.
  mutating func adoptWitness(_ mark: WitnessMark, _ session: SessionID) {
    guard phase == .second(session) else { return }
    persist { $0.witness = mark }
    out.append(.sendPeer(session, .witnessAdopted(mark)))
  }

  mutating func witnessAdopted(_ mark: WitnessMark, _ session: SessionID) {
    guard phase == .prim(session), let adoption = watch.adoption, adoption.session == session,
      adoption.reading.mark == mark
    else { return }
    watch.adoption = nil
    watch.agreedIn = session
    persist { $0.witness = mark }
    guard let record, adoption.reading.register?.branch != record.generation.branch else { return }
    note("both nodes are in sync: the witness's register is written for this generation", .notice, rule: "R5")
    writeRegister(expect: adoption.reading.modRevision)
  }
}
