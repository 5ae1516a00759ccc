import MirrorModule
import Model
import Testing

@testable import Simulation

/// R5, step by step: what the arbiter's answers may lead to.
@Suite struct ArbiterTests {
  private let start = Instant(nanoseconds: 0)
  private let old = BranchID(rawValue: 44)
  private let mark = WitnessMark(cluster: 7, revision: 20, modRevision: 12, createRevision: 2)

  private func record(_ change: (inout DurableRecord) -> Void = { _ in }) -> DurableRecord {
    var record = DurableRecord(generation: Generation(number: 4, branch: old), standing: .uptodate)
    record.witness = mark
    // As World names the first boot of the first node.
    record.bootAtLastSync = "a1"
    change(&record)
    return record
  }

  private func reading(
    _ branch: BranchID?, cluster: UInt64 = 7, revision: Int64 = 20, mod: Int64 = 12, holder: NodeID = .second,
    made: Int64? = 2
  ) -> WitnessReading {
    WitnessReading(
      cluster: cluster, revision: revision, modRevision: mod, createRevision: mod == 0 ? nil : made,
      register: branch.map { WitnessRegister(branch: $0, number: 4, holder: holder, parent: .empty) })
  }

  /// A second copy whose peer has just been lost, and what it did then.
  private func bereaved(_ record: DurableRecord, _ arbiter: ArbiterPolicy) -> (MirrorModule, [Directive]) {
    World.core(record, arbiter, then: .nodeAlive, .ready(.idle), .nodeLost)
  }

  private struct Swap {
    var id: UInt64
    var expect: Int64
    var register: WitnessRegister
  }
  private func swaps(_ directives: [Directive]) -> Swap? {
    directives.compactMap { directive -> Swap? in
      guard case .swapWitness(let id, let expect, let next) = directive else { return nil }
      return Swap(id: id, expect: expect, register: next)
    }.first
  }
  private func fences(_ directives: [Directive]) -> UInt64? {
    directives.compactMap { if case .fencePeer(let id) = $0 { id } else { nil } }.first
  }

  /// What it asks a peer that is lost to its guest, and offers the module.
  private func asksTheOffer(_ core: inout MirrorModule) -> ConsentRequest? {
    let offer = PeerBeat(
      state: .wait, readiness: .blocked, standing: .uptodate, generation: record().generation, guestRunning: false,
      offers: true)
    let asked = core.handle(.peerBeat(offer), at: start)
    return asked.compactMap { if case .askConsent(let request) = $0 { request } else { nil } }.first
  }

  @Test func aClaimIsDurableFirstAndOnlyALaterReadGrants() throws {
    var (core, asked) = bereaved(record(), .witness)
    let claim = try #require(persisted(asked)?.claim)
    let persist = try #require(asked.firstIndex { if case .persist = $0 { true } else { false } })
    let ended = try #require(asked.firstIndex(of: .engine(.endSession)))
    let read = try #require(asked.firstIndex { if case .readWitness = $0 { true } else { false } })
    #expect(ended < persist && persist < read)

    let swapped = core.handle(.witnessRead(id: try #require(reads(asked)), reading(old)), at: start)
    let swap = try #require(swaps(swapped))
    #expect(swap.expect == 12)
    #expect(swap.register == WitnessRegister(branch: claim, number: 5, holder: .first, parent: old))
    #expect(persisted(swapped) == nil)

    // The reply grants nothing, and neither does a reply that came twice.
    let again = core.handle(.witnessSwapped(id: swap.id), at: start)
    #expect(persisted(again) == nil && core.status.state != .alone)
    let second = try #require(reads(again))
    _ = core.handle(.witnessSwapped(id: swap.id), at: start)
    #expect(core.status.state != .alone)

    let granted = core.handle(
      .witnessRead(id: second, reading(claim, revision: 21, mod: 21, holder: .first)), at: start)
    let next = try #require(persisted(granted))
    #expect(next.generation == Generation(number: 5, branch: claim) && next.claim == nil)
    #expect(next.peerOutdated == .witness && next.history == [old, claim])
    #expect(next.witness == WitnessMark(cluster: 7, revision: 21, modRevision: 21, createRevision: 2))
    #expect(core.status.state == .alone)
  }

  /// The swap's reply was lost: the read tells all the same, after a restart of vmhad too (the claim is on record).
  @Test func aLostReplyAndARestartKeepTheClaim() throws {
    let claim = BranchID(rawValue: 99)
    var (core, asked) = bereaved(record { $0.claim = claim }, .witness)
    #expect(persisted(asked) == nil)
    let granted = core.handle(
      .witnessRead(id: try #require(reads(asked)), reading(claim, revision: 30, mod: 30, holder: .first)), at: start)
    #expect(persisted(granted)?.generation.branch == claim)

    (core, asked) = bereaved(record { $0.claim = claim }, .witness)
    let read = try #require(reads(asked))
    let swap = try #require(swaps(core.handle(.witnessRead(id: read, reading(old)), at: start)))
    let failed = core.handle(.arbiterFailed(id: swap.id, why: "no answer"), at: start)
    #expect(reads(failed) != nil)
  }

  @Test func whatDoesNotProveItselfGrantsNothing() throws {
    let claim = BranchID(rawValue: 99)
    let foreign = BranchID(rawValue: 5)
    let cases: [(DurableRecord, WitnessReading)] = [
      (record { $0.claim = claim }, reading(foreign)),
      // Deleted, and a late request made it anew; and one that was not there when both nodes agreed.
      (record { $0.claim = claim }, reading(old, revision: 30, mod: 25, made: 25)),
      (record { $0.witness?.createRevision = nil }, reading(old)),
      (record { $0.claim = claim }, reading(nil, mod: 0)), (record { $0.claim = claim }, reading(nil, mod: 15)),
      (record { $0.claim = claim }, reading(claim, cluster: 8, holder: .first)),
      (record { $0.claim = claim }, reading(old, cluster: 8)),
      (record { $0.claim = claim }, reading(old, revision: 19)),
      (record { $0.claim = claim }, reading(old, revision: 90, mod: 11)),
      (record { $0.claim = claim }, reading(claim, holder: .second)),
      (record { ($0.claim, $0.witness) = (claim, nil) }, reading(claim, holder: .first)),
      (record { ($0.claim, $0.witness) = (claim, nil) }, reading(old)),
    ]
    for (record, reading) in cases {
      var (core, asked) = bereaved(record, .witness)
      let answered = core.handle(.witnessRead(id: try #require(reads(asked)), reading), at: start)
      #expect(swaps(answered) == nil && persisted(answered) == nil, "\(reading)")
      #expect(core.status.state != .alone && core.status.readiness == .blocked, "\(core.status)")
      // It asks again by itself.
      #expect(reads(core.handle(.timer, at: start + MirrorSettings.arbiterRetry)) != nil)
    }
  }

  @Test func aGrantThatComesTooLateIsDropped() throws {
    let claim = BranchID(rawValue: 99)
    let grant = reading(claim, revision: 30, mod: 30, holder: .first)
    let session = SessionID(rawValue: 9)
    let request = ConsentRequest(
      nonce: 1, node: .second, generation: record().generation, history: [old], guestRunning: true, stopping: false)
    let meanwhile: [[Event]] = [
      [.command(Command(id: 1, verb: .stop, wishVersion: 2))], [.consentRequested(request, token: 1)],
      [.engine(.sessionEnded), .engine(.connected(session, link: "storage"))], [.nodeAlive],
      [.persistFailed(why: "No space left on device")],
    ]
    for events in meanwhile {
      var (core, asked) = bereaved(record { $0.claim = claim }, .witness)
      let id = try #require(reads(asked))
      for event in events { _ = core.handle(event, at: start) }
      let late = core.handle(.witnessRead(id: id, grant), at: start)
      #expect(persisted(late)?.generation.branch != claim && core.status.state != .alone, "\(events)")
    }
  }

  private func refuses(_ core: inout MirrorModule) -> Bool {
    // The asker goes first if this node asks as well: it is for its own sake that it refuses.
    let request = ConsentRequest(
      nonce: 1, node: .first, generation: record().generation, history: [old], guestRunning: true, stopping: false)
    let directives = core.handle(.consentRequested(request, token: 1), at: start)
    return persisted(directives) == nil
      && directives.contains { if case .replyConsent(1, .refused) = $0 { true } else { false } }
  }

  /// R5: whoever serves, is about to, or holds a right itself gives no consent, however the question came about.
  @Test func thoseWhoMayNotConsentRefuse() {
    let session = SessionID(rawValue: 9)
    func core(_ record: DurableRecord, guest: GuestState = .off, _ ready: Event = .ready(.idle)) -> MirrorModule {
      World.core(record, .none, of: .second, guest: guest, then: .nodeAlive, ready).0
    }
    var frozen = core(record(), guest: .running, .ready(.primary))
    #expect(refuses(&frozen), "frozen")

    var successor = core(record(), .ready(.replica, in: session))
    _ = successor.handle(.peerMessage(session, .token), at: start)
    #expect(refuses(&successor), "it has the token, and no mount yet")

    var holder = core(record { $0.peerOutdated = .policy })
    #expect(refuses(&holder), "it has a right, and meets its peer first")

    var other = core(record { $0.generation.branch = BranchID(rawValue: 45) })
    #expect(refuses(&other), "its copy is another one")
    var able = core(record())
    #expect(!refuses(&able))
  }

  /// R5: an answer to an earlier question, of the same generation, says nothing of what the peer did since.
  @Test func onlyTheOpenQuestionsConsentCounts() throws {
    var (core, _) = bereaved(record(), .wait)
    _ = core.handle(.nodeAlive, at: start)
    let request = try #require(asksTheOffer(&core))
    let late = ConsentReply.granted(nonce: request.nonce &+ 1, generation: request.generation, claim: nil)
    #expect(persisted(core.handle(.consentReplied(late), at: start)) == nil && core.status.state != .alone)
    let reply = ConsentReply.granted(nonce: request.nonce, generation: request.generation, claim: nil)
    #expect(persisted(core.handle(.consentReplied(reply), at: start))?.peerOutdated == .consent)
  }

  /// The claim stays open: whoever goes on takes it into the history.
  @Test func theConsentCarriesTheClaim() {
    let claim = BranchID(rawValue: 99)
    var (core, _) = bereaved(record { $0.claim = claim }, .witness)
    let request = ConsentRequest(
      nonce: 1, node: .second, generation: record().generation, history: [old], guestRunning: true, stopping: false)
    let given = core.handle(.consentRequested(request, token: 1), at: start)
    #expect(given.contains(.replyConsent(token: 1, .granted(nonce: 1, generation: record().generation, claim: claim))))
    #expect(core.durableRecord?.claim == claim)
  }

  /// R4, R8.3: before both count as in sync, a claim that may still land in the register is in the common history.
  @Test func openClaimsAreAbsorbed() {
    let (mine, theirs) = (BranchID(rawValue: 98), BranchID(rawValue: 99))
    let session = SessionID(rawValue: 9)
    var (core, _) = World.core(record { $0.claim = mine }, .witness, then: .nodeAlive, .ready(.idle))
    _ = core.handle(.engine(.connected(session, link: "storage")), at: start)
    let peer = record {
      $0.standing = .outdated
      $0.claim = theirs
    }
    let hello = Hello(node: .second, record: peer, isAlone: false, guestRunning: false, continuous: false)
    _ = core.handle(.peerMessage(session, .hello(hello)), at: start)
    let begun = core.handle(.peerMessage(session, .targetReady(claim: theirs)), at: start)
    let next = persisted(begun)
    #expect(next?.history.contains(mine) ?? false)
    #expect(next?.history.contains(theirs) ?? false)
    #expect(next?.claim == nil && next?.generation.branch != mine)
  }

  /// R5: a fence proves that the peer is off, not that this copy is the newest.
  @Test(arguments: [ArbiterPolicy.fence, .witnessAndFence])
  func aNodeThatWasRestartedNeverFences(_ arbiter: ArbiterPolicy) {
    var (core, asked) = bereaved(record { $0.bootAtLastSync = "a0" }, arbiter)
    for second in [0, 5, 30, 3600] {
      let directives = asked + core.handle(.timer, at: start + .seconds(second))
      #expect(fences(directives) == nil && reads(directives) == nil)
      asked = []
    }
    #expect(core.status.readiness == .blocked)
  }

  /// R5: nor does one that was last in sync under another arbiter, whose vmhad ended before it could note the change.
  @Test(arguments: [ArbiterPolicy.fence, .witnessAndFence])
  func whatWasInSyncUnderAnotherArbiterNeverFences(_ arbiter: ArbiterPolicy) {
    var (core, asked) = bereaved(record { $0.arbiterAtLastSync = ArbiterPolicy.ping.rawValue }, arbiter)
    asked += core.handle(.timer, at: start + .seconds(3600))
    #expect(fences(asked) == nil && reads(asked) == nil)
    (core, asked) = bereaved(record { $0.arbiterAtLastSync = arbiter.rawValue }, arbiter)
    asked += core.handle(.timer, at: start + .seconds(60))
    #expect(fences(asked) != nil || reads(asked) != nil)
  }

  /// The change of arbiter in sync is noted, so that the new one may give its rights.
  @Test func aChangeOfArbiterInSyncIsDurable() {
    let session = SessionID(rawValue: 9)
    var (core, _) = primary(record { $0.arbiterAtLastSync = ArbiterPolicy.wait.rawValue }, session)
    var settings = core.settings
    settings.arbiter = .fence
    let noted = persisted(core.handle(.settings(settings), at: start))
    #expect(noted?.arbiterAtLastSync == ArbiterPolicy.fence.rawValue && noted?.bootAtLastSync == "a1")
  }

  /// R0, R6: a frozen node whose record was lost gets no right, and least of all by a policy that asks nobody.
  @Test(arguments: [ArbiterPolicy.none, .ping, .witness, .fence])
  func aFrozenNodeWithoutItsRecordGoesOnByNoPolicy(_ arbiter: ArbiterPolicy) {
    var (core, did) = World.core(
      nil, arbiter, guest: .running, then: .ready(.primary), .engine(.sessionEnded), .nodeAlive)
    let beat = PeerBeat(
      state: .wait, readiness: .blocked, standing: .uptodate, generation: record().generation, guestRunning: false,
      offers: false)
    did += core.handle(.peerBeat(beat), at: start)
    for second in [5, 30, 120, 600] {
      did += core.handle(.peerBeat(beat), at: start + .seconds(second))
      did += core.handle(.timer, at: start + .seconds(second))
    }
    #expect(core.durableRecord?.peerOutdated == nil && core.status.state != .alone)
    #expect(!did.contains(.engine(.setPolicy(.alone))))
  }

  /// A node that booted asks the witness, but gives the peer its time first (R9).
  @Test func aNodeThatWasRestartedAsksTheWitnessAfterTheBootWait() {
    var (core, asked) = bereaved(record { $0.bootAtLastSync = "a0" }, .witness)
    #expect(reads(asked) == nil)
    #expect(reads(core.handle(.timer, at: start + (World.bootWait - Duration.seconds(1)))) == nil)
    #expect(reads(core.handle(.timer, at: start + World.bootWait)) != nil)
  }

  @Test func outdatedAndInconsistentCopiesAskNobody() {
    for standing in [Standing.outdated, .inconsistent] {
      for arbiter in [ArbiterPolicy.witness, .fence, .witnessAndFence, .ping] {
        var (core, asked) = bereaved(record { $0.standing = standing }, arbiter)
        asked += core.handle(.timer, at: start + .seconds(60))
        #expect(reads(asked) == nil && fences(asked) == nil)
        #expect(!asked.contains { if case .ping = $0 { true } else { false } })
      }
    }
  }

  @Test func witnessAndFenceNeedsBoth() throws {
    let claim = BranchID(rawValue: 99)
    var (core, asked) = bereaved(record { $0.claim = claim }, .witnessAndFence)
    let granted = core.handle(
      .witnessRead(id: try #require(reads(asked)), reading(claim, revision: 30, mod: 30, holder: .first)), at: start)
    let fence = try #require(fences(granted))
    #expect(persisted(granted) == nil && core.status.state != .alone)
    var refused = core
    #expect(persisted(refused.handle(.arbiterFailed(id: fence, why: "no route"), at: start)) == nil)
    #expect(refused.status.state != .alone)
    let off = core.handle(.peerFenced(id: fence), at: start)
    #expect(persisted(off)?.generation.branch == claim && persisted(off)?.peerOutdated == .witness)
  }

  /// Two nodes that lost sight of each other: the one with the guest goes first, then node 1.
  @Test func theFenceOfASecondaryWaitsItsTurn() throws {
    var (core, asked) = bereaved(record(), .fence)
    #expect(fences(asked) == nil)
    #expect(fences(core.handle(.timer, at: start + MirrorSettings.fenceStagger)) == nil)
    let turn = core.handle(.timer, at: start + MirrorSettings.fenceStagger * 2)
    let off = core.handle(.peerFenced(id: try #require(fences(turn))), at: start + .seconds(5))
    #expect(persisted(off)?.peerOutdated == .fence)
  }

  /// The register is made, and a strange one replaced, only when the secondary, in sync in this session, has agreed durably.
  @Test func aStrangeRegisterIsReplacedByBothOnly() throws {
    let session = SessionID(rawValue: 9)
    var (core, read) = primary(record { $0.witness = nil }, session)
    let strange = reading(BranchID(rawValue: 5), revision: 3, mod: 2)
    let offered = core.handle(.witnessRead(id: read, strange), at: start)
    #expect(offered.contains(.sendPeer(session, .adoptWitness(strange.mark))))
    #expect(swaps(offered) == nil && persisted(offered) == nil)
    // Another one's answer, an answer in another session.
    let other = WitnessMark(cluster: 7, revision: 4, modRevision: 2, createRevision: 2)
    #expect(swaps(core.handle(.peerMessage(session, .witnessAdopted(other)), at: start)) == nil)
    #expect(
      swaps(core.handle(.peerMessage(SessionID(rawValue: 8), .witnessAdopted(strange.mark)), at: start)) == nil)
    let agreed = core.handle(.peerMessage(session, .witnessAdopted(strange.mark)), at: start)
    #expect(persisted(agreed)?.witness == strange.mark)
    let swap = try #require(swaps(agreed))
    #expect(swap.expect == 2 && swap.register.branch == old)

    (core, read) = primary(record { $0.witness = nil }, session)
    _ = core.handle(.witnessRead(id: read, strange), at: start)
    _ = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "cut")), at: start)
    #expect(swaps(core.handle(.peerMessage(session, .witnessAdopted(strange.mark)), at: start)) == nil)
  }

  @Test func theSecondaryAgreesDurablyAndOnlyInItsSession() {
    let session = SessionID(rawValue: 9)
    let next = WitnessMark(cluster: 8, revision: 3, modRevision: 0, createRevision: nil)
    var (core, _) = World.core(record(), .witness, then: .ready(.replica, in: session))
    let elsewhere = core.handle(.peerMessage(SessionID(rawValue: 8), .adoptWitness(next)), at: start)
    #expect(persisted(elsewhere) == nil)
    let agreed = core.handle(.peerMessage(session, .adoptWitness(next)), at: start)
    #expect(agreed.first == .persist(record { $0.witness = next }))
    #expect(agreed.contains(.sendPeer(session, .witnessAdopted(next))))
  }

  private func primary(_ record: DurableRecord, _ session: SessionID) -> (MirrorModule, UInt64) {
    var (core, _) = World.core(
      record, .witness, guest: .running, then: .nodeAlive, .ready(.primary, .both(session)),
      .peerMessage(session, .adopted))
    let looked = core.handle(.timer, at: start + MirrorSettings.witnessFirstLook)
    return (core, reads(looked) ?? 0)
  }

  /// R5: another arbiter comes only when both are in sync; what the one before was asked is void.
  @Test func anotherArbiterDropsTheOpenQuestion() throws {
    let claim = BranchID(rawValue: 99)
    var (core, asked) = bereaved(record { $0.claim = claim }, .witness)
    var settings = core.settings
    settings.arbiter = .wait
    _ = core.handle(.settings(settings), at: start)
    let late = core.handle(
      .witnessRead(id: try #require(reads(asked)), reading(claim, revision: 30, mod: 30, holder: .first)), at: start)
    #expect(persisted(late) == nil && core.status.state != .alone)
  }

  /// The first question had no answer in time and the second is open: what the first one hears now grants nothing.
  @Test func theAnswerToAnEarlierQuestionGrantsNothing() throws {
    let claim = BranchID(rawValue: 99)
    let grant = reading(claim, revision: 30, mod: 30, holder: .first)
    var (core, asked) = bereaved(record { $0.claim = claim }, .witness)
    let first = try #require(reads(asked))
    _ = core.handle(.timer, at: start + MirrorSettings.arbiterAnswerMax)
    let later = start + MirrorSettings.arbiterAnswerMax + MirrorSettings.arbiterRetry
    let second = try #require(reads(core.handle(.timer, at: later)))
    #expect(first != second)
    #expect(persisted(core.handle(.witnessRead(id: first, grant), at: later)) == nil && core.status.state != .alone)
    #expect(persisted(core.handle(.witnessRead(id: second, grant), at: later))?.generation.branch == claim)
  }

  /// R4: it goes on by its standing while the question is open; the answer must not raise the generation under its guest.
  @Test func aRightThatComesAfterTheStartByStandingIsDropped() throws {
    // Under a policy the mark alone does not start it beside a peer that is there.
    let marked = record { ($0.peerOutdated, $0.wroteLast) = (.policy, true) }
    var (core, _) = World.core(marked, .ping, then: .ready(.idle), .nodeAlive)
    let blocked = PeerBeat(
      state: .wait, readiness: .blocked, standing: .outdated,
      generation: Generation(number: 9, branch: BranchID(rawValue: 5)), guestRunning: false, offers: false)
    var directives = core.handle(.peerBeat(blocked), at: start)
    let patience = start + World.detection + MirrorSettings.consentPatience
    directives += core.handle(.timer, at: patience)
    let ping = try #require(directives.compactMap { if case .ping(let id) = $0 { id } else { nil } }.first)
    let lost = core.handle(.nodeLost, at: patience)
    #expect(lost.contains(.engine(.mount)) && persisted(lost) == nil && core.status.state == .alone)
    let late = core.handle(.pingAnswered(id: ping), at: patience)
    #expect(persisted(late) == nil && core.durableRecord == marked && !late.contains(.engine(.mount)))
  }

  /// R5: of two nodes that ask each other one yields: the running guest goes first, then the lower node.
  @Test(arguments: [(NodeID.first, false, false), (.first, true, true), (.second, false, true), (.second, true, true)])
  func ofTwoCrossingRequestsOneIsGranted(_ node: NodeID, _ theirGuestRuns: Bool, _ isGranted: Bool) throws {
    var (core, _) = World.core(record(), of: node, then: .ready(.idle), .nodeAlive)
    let asked = try #require(asksTheOffer(&core))
    let theirs = ConsentRequest(
      nonce: 1, node: node.peer, generation: record().generation, history: [old], guestRunning: theirGuestRuns,
      stopping: false)
    let answer = core.handle(.consentRequested(theirs, token: 1), at: start)
    #expect(answer.contains { if case .replyConsent(1, .granted) = $0 { true } else { false } } == isGranted)
    #expect((persisted(answer)?.standing == .outdated) == isGranted)
    // Whoever yields has dropped its own question.
    let late = core.handle(
      .consentReplied(.granted(nonce: asked.nonce, generation: asked.generation, claim: nil)), at: start)
    #expect((persisted(late)?.peerOutdated == .consent) == !isGranted)
  }
}
