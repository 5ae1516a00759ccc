import FoundationEssentials
import MirrorModule
import Model
import Testing

@testable import Simulation

/// R0, R5, R7: what a node whose record was lost may do, and what the other one may do beside it.
@Suite struct LostRecordTests {
  private let session = SessionID(rawValue: 9)
  private let start = Instant(nanoseconds: 0)
  private let branch = BranchID(rawValue: 44)

  /// Up to date and without a right, as in sync; `boot`: its own boot is the one in which it was in sync.
  private func record(inThisBoot: Bool = false, _ change: (inout DurableRecord) -> Void = { _ in }) -> DurableRecord {
    var record = DurableRecord(generation: Generation(number: 4, branch: branch), standing: .uptodate)
    record.witness = WitnessMark(cluster: 7, revision: 20, modRevision: 12, createRevision: 2)
    record.bootAtLastSync = inThisBoot ? "a1" : "a0"
    change(&record)
    return record
  }

  private func hello(_ record: DurableRecord) -> Hello {
    Hello(node: .second, record: record, isAlone: false, guestRunning: false, continuous: false)
  }

  private var passive: PeerBeat {
    PeerBeat(
      state: .wait, readiness: .blocked, standing: .inconsistent, generation: DurableRecord.empty.generation,
      guestRunning: false, offers: false)
  }

  /// Node a with this record (nil = lost), and all it did until it knew the other one's.
  private func met(
    _ record: DurableRecord?, _ theirs: DurableRecord, _ arbiter: ArbiterPolicy, guest: Bool = false
  ) -> (core: MirrorModule, said: [Directive]) {
    var core = MirrorModule(settings: World.settings(arbiter))
    var said = core.handle(
      .loaded(record: record, wish: Wish(started: true, version: 1), guest: guest ? .running : .off), at: start)
    said += core.handle(.ready(guest ? .primary : .idle), at: start)
    if guest { said += core.handle(.engine(.sessionEnded), at: start) }
    said += core.handle(.nodeAlive, at: start)
    said += core.handle(.peerBeat(passive), at: start)
    if guest {
      // Frozen, it has asked at once; the other node refuses, and both meet.
      for case .askConsent(let request) in said {
        said += core.handle(.consentFailed(nonce: request.nonce, why: "it refused"), at: start)
        said += core.handle(.engine(.sessionEnded), at: start)
      }
    }
    said += core.handle(.engine(.connected(session, link: "storage")), at: start)
    said += core.handle(.peerMessage(session, .hello(hello(theirs))), at: start)
    return (core, said)
  }

  /// Nothing that takes, asks for or gives a right, and nothing that would begin a resync.
  private func isQuiet(_ directives: [Directive]) -> Bool {
    !directives.contains { directive in
      switch directive {
      case .askConsent, .readWitness, .swapWitness, .fencePeer, .ping, .startGuest, .replyConsent(_, .granted),
        .sendPeer(_, .targetReady), .engine(.mount), .engine(.startResync), .engine(.acceptReplication):
        true
      default: false
      }
    }
  }

  private func force(_ core: inout MirrorModule, at time: Instant) -> [Directive] {
    core.handle(.command(Command(id: 1, verb: .start(force: true), wishVersion: 2)), at: time)
  }

  private var late: Instant { start + .seconds(3600) }

  // MARK: the node whose record is lost

  /// It does nothing by itself, whoever it meets or misses, and consents to nothing; only the operator's force ends that.
  @Test(arguments: Campaign.arbiters) func aLostRecordGivesAndGetsNothing(arbiter: ArbiterPolicy) {
    for theirs in [record(), record { $0.standing = .outdated }, record { $0.standing = .inconsistent }, .empty, .lost]
    {
      var (core, said) = met(nil, theirs, arbiter)
      #expect(said.contains(.persist(.lost)))
      said += core.handle(.timer, at: start + .seconds(60))
      let request = ConsentRequest(
        nonce: 1, node: .second, generation: theirs.generation, history: [branch], guestRunning: true, stopping: false)
      said += core.handle(.consentRequested(request, token: 2), at: start + .seconds(61))
      #expect(core.status.recordLost == true && core.status.readiness == .blocked)
      #expect(core.status.sentence.contains("lost its record") && core.status.sentence.contains("--force"))
      said += core.handle(.nodeLost, at: start + .seconds(62))
      said += core.handle(.timer, at: late)
      #expect(isQuiet(said) && core.durableRecord == .lost, "\(arbiter) beside \(theirs)")

      let forced = force(&core, at: late)
      #expect(forced.contains { if case .answer(1, .accepted(let cost)) = $0 { cost.contains("half") } else { false } })
      let next = persisted(forced)
      #expect(next?.standing == .uptodate && next?.peerOutdated == .force && next?.recordLost == nil)
      #expect(core.status.state == .alone && core.status.recordLost == nil)
    }
  }

  /// As long as the other node serves, or may, it is not forced; and before it could be heard.
  @Test func aLostRecordIsNotForcedBesideAPrimary() {
    var (core, _) = met(nil, record(), .witness)
    var serving = passive
    (serving.state, serving.standing) = (.prim, .uptodate)
    _ = core.handle(.peerBeat(serving), at: start)
    #expect(persisted(force(&core, at: start)) == nil && core.durableRecord == .lost)
    _ = core.handle(.peerBeat(passive), at: start)
    #expect(persisted(force(&core, at: start))?.peerOutdated == .force)
  }

  /// R7: the mark ends, durably, before the source may overwrite anything: half a copy is never taken for one that may be the newest.
  @Test func theMarkEndsBeforeTheCopyIsOverwritten() throws {
    var (core, _) = met(.lost, .lost, .wait)
    _ = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "reset")), at: start)
    let again = SessionID(rawValue: 10)
    _ = core.handle(.engine(.connected(again, link: "storage")), at: start)
    var alone = hello(record { $0.peerOutdated = .witness })
    alone.isAlone = true
    let yielded = core.handle(.peerMessage(again, .hello(alone)), at: start)
    let ready = try #require(yielded.firstIndex(of: .sendPeer(again, .targetReady(claim: nil))))
    let durable = try #require(yielded.firstIndex(of: .persist(.empty)))
    let accepts = try #require(yielded.firstIndex(of: .engine(.acceptReplication(again))))
    #expect(durable < ready && durable < accepts)
    _ = core.handle(.engine(.sessionLost(again, policy: .frozen, why: "reset")), at: start)
    _ = core.handle(.nodeLost, at: start)
    #expect(persisted(force(&core, at: late)) == nil && core.durableRecord == .empty)
  }

  // MARK: the node beside it

  /// The register is asked as if the other node were away, and decides: its branch in this history, or not.
  @Test(arguments: [true, false]) func theWitnessDecides(isNewest: Bool) throws {
    var (core, said) = met(record(), .lost, .witness)
    #expect(isQuiet(said) && core.status.readiness == .transient)
    #expect(isQuiet(core.handle(.timer, at: start + (World.bootWait - Duration.milliseconds(1)))))
    let due = start + World.bootWait
    let asked = core.handle(.timer, at: due)
    let claim = try #require(persisted(asked)?.claim)
    let ended = try #require(asked.firstIndex(of: .engine(.endSession)))
    #expect(ended < (asked.firstIndex { if case .persist = $0 { true } else { false } } ?? 0))
    #expect(!asked.contains(.engine(.connect)), "a session would end the question")
    func answer(_ branch: BranchID, _ id: UInt64, _ revision: Int64, _ holder: NodeID) -> [Directive] {
      let register = WitnessRegister(branch: branch, number: 5, holder: holder, parent: .empty)
      let reading = WitnessReading(
        cluster: 7, revision: revision, modRevision: revision, createRevision: 2, register: register)
      return core.handle(.witnessRead(id: id, reading), at: due)
    }
    let first = try #require(reads(asked))
    guard isNewest else {
      let refused = answer(BranchID(rawValue: 55), first, 30, .second)
      #expect(isQuiet(refused) && !refused.contains(.engine(.connect)))
      #expect(core.status.state == .wait && core.status.readiness == .blocked)
      for words in ["b lost its record", "--force, on a", "--force, on b"] {
        #expect(core.status.sentence.contains(words), "\(core.status.sentence)")
      }
      // Asked again, and no sooner met than the other node was away, or is no more what it was.
      #expect(reads(core.handle(.timer, at: due + .seconds(3))) != nil)
      return
    }
    let swap = try #require(
      answer(branch, first, 20, .first).compactMap { if case .swapWitness(let id, _, _) = $0 { id } else { nil } }.first
    )
    let second = try #require(reads(core.handle(.witnessSwapped(id: swap), at: due)))
    let granted = answer(claim, second, 31, .first)
    #expect(persisted(granted)?.peerOutdated == .witness && core.status.state == .alone)
    #expect(granted.contains(.engine(.connect)))
  }

  /// The heartbeats tell of the new boot only after the session with it: what it said there still stands.
  @Test func aRestartThatIsHeardLateChangesNothing() {
    var (core, _) = met(record(), .lost, .witness)
    for event in [Event.nodeRestarted, .peerBeat(passive), .nodeLost, .nodeAlive, .peerBeat(passive)] {
      #expect(isQuiet(core.handle(event, at: start + .seconds(1))))
    }
    #expect(isQuiet(core.handle(.timer, at: start + .seconds(10))))
    #expect(reads(core.handle(.timer, at: start + .seconds(11))) != nil)
  }

  /// R5: who was in sync in this boot, and was never powered off, has not been left behind under an arbiter that fences; the peer, which
  /// answers, is not powered off either.
  @Test(arguments: [ArbiterPolicy.fence, .witnessAndFence], [true, false])
  func underAFenceThisBootIsTheProof(arbiter: ArbiterPolicy, guest: Bool) {
    var (core, said) = met(record(inThisBoot: true), .lost, arbiter, guest: guest)
    let mine = said.compactMap { if case .sendPeer(_, .hello(let hello)) = $0 { hello } else { nil } }.last
    #expect(mine?.provesNewest == true)
    #expect(!said.contains { if case .fencePeer = $0 { true } else { false } })
    let ready = core.handle(.peerMessage(session, .targetReady(claim: nil)), at: start)
    #expect(persisted(ready)?.peerOutdated == .consent && core.status.state == .alone)

    (core, said) = met(record(), .lost, arbiter, guest: guest)
    said = core.handle(.peerMessage(session, .targetReady(claim: nil)), at: start)
    said += core.handle(.timer, at: late)
    #expect(isQuiet(said) && persisted(said) == nil && core.status.readiness == .blocked)
  }

  /// R6: a primary whose record is lost under its running guest, and whose peer then falls silent before they have met, goes on by no
  /// policy (simulation, seed 142492).
  @Test func aFrozenPrimaryWithoutItsRecordGoesOnByNoPolicy() {
    for arbiter in [ArbiterPolicy.none, .ping, .wait] {
      var (core, _) = World.core(nil, arbiter, guest: .running, then: .nodeAlive, .ready(.primary))
      var said = core.handle(.nodeLost, at: start)
      for at in [late, late + .seconds(60)] { said += core.handle(.timer, at: at) }
      #expect(said.contains(.destroyGuest) && persisted(said) == nil, "\(said)")
      #expect(!said.contains(.engine(.setPolicy(.alone))))
      _ = core.handle(.guestOff(.destroyed), at: late + .seconds(61))
      #expect(core.status.state == .wait && !core.status.isAlone, "\(core.status)")
    }
  }

  /// Nobody else can know: it waits, and both commands are named. The operator's choice of this copy is told what it costs.
  @Test func withoutAnArbiterTheOperatorDecides() {
    for (mine, arbiter) in [(record(inThisBoot: true), ArbiterPolicy.wait), (record(), .wait), (record(), .fence)] {
      var (core, said) = met(mine, .lost, arbiter)
      said += core.handle(.timer, at: late)
      #expect(isQuiet(said) && persisted(said) == nil)
      #expect(core.status.state != .alone && core.status.sentence.contains("b lost its record"))
      #expect(core.status.sentence.contains("--force, on a") && core.status.sentence.contains("--force, on b"))
      let forced = force(&core, at: late)
      #expect(
        forced.contains {
          if case .answer(1, .accepted(let cost)) = $0 { cost.contains("its copy is overwritten") } else { false }
        })
      #expect(persisted(forced)?.peerOutdated == .force && core.status.state == .alone)
    }
  }

  /// The policy decides as it does at boot without the other node, after the same wait, and proves nothing.
  @Test(arguments: [true, false]) func aPolicyDecidesAfterItsWait(inThisBoot: Bool) {
    var (core, said) = met(record(inThisBoot: inThisBoot), .lost, .none)
    let wait = inThisBoot ? World.detection : World.bootWait
    said += core.handle(.timer, at: start + (wait - Duration.milliseconds(1)))
    #expect(isQuiet(said))
    let gone = core.handle(.timer, at: start + wait)
    #expect(persisted(gone)?.peerOutdated == .policy && core.status.state == .alone)
  }

  /// R5 standing: a proven one has started already; one by policy or force starts, because there is nothing to be learned from the peer.
  @Test func standingStartsBesideALostRecord() {
    let (_, said) = met(record { $0.peerOutdated = .policy }, .lost, .none)
    #expect(said.contains(.engine(.mount)))
    let other = met(record { $0.peerOutdated = .policy }, .lost, .wait)
    #expect(!other.said.contains(.engine(.mount)))
  }

  /// What it says behind its HELLO comes from another version, or late: it counts for nothing.
  @Test func theConsentOfALostPeerIsNotBelieved() throws {
    var (core, _) = met(record(inThisBoot: true), .lost, .wait, guest: true)
    let lost = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "reset")), at: start + .seconds(5))
    #expect(isQuiet(lost), "it is not asked")
    var serving = passive
    serving.guestRunning = true
    let asked = core.handle(.peerBeat(serving), at: start + .seconds(6))
    let request = try #require(
      asked.compactMap { if case .askConsent(let request) = $0 { request } else { nil } }.first)
    _ = core.handle(.engine(.sessionEnded), at: start + .seconds(6))
    let reply = ConsentReply.granted(nonce: request.nonce, generation: request.generation, claim: nil)
    #expect(persisted(core.handle(.consentReplied(reply), at: start + .seconds(6))) == nil)
    #expect(core.status.state == .prim)
  }

  /// A source whose target may have given its copy up, but could not say so, asks it again: the mark is gone there.
  @Test func aTargetThatYieldedMayConsent() {
    var (core, _) = met(record(inThisBoot: true), .lost, .fence, guest: true)
    let lost = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "reset")), at: start + .seconds(5))
    #expect(lost.contains { if case .askConsent = $0 { true } else { false } })
  }

  // MARK: versions

  /// Records and HELLOs of a version that knows nothing of the mark: it is not there, and alone is the only proof.
  @Test func versionsWithoutTheMarkAreUnderstood() throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = .sortedKeys
    let text = String(decoding: try encoder.encode(record()), as: UTF8.self)
    #expect(!text.contains("recordLost"))
    #expect(try JSONDecoder().decode(DurableRecord.self, from: Data(text.utf8)) == record())
    var old = hello(record())
    old.provesNewest = nil
    let said = String(decoding: try encoder.encode(old), as: UTF8.self)
    #expect(!said.contains("recordLost") && !said.contains("provesNewest"))
    #expect(try JSONDecoder().decode(Hello.self, from: Data(said.utf8)) == old)
    let lost = Hello(node: .first, record: .lost, isAlone: false, guestRunning: false, continuous: false)
    #expect(Lineage.decide(lost, old) == .awaitsProof(.second))
  }
}
