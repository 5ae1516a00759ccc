import MirrorModule
import Model
import Testing

@testable import Simulation

/// What a node may conclude from its durable record alone: rules that a world with one arbiter for its whole life cannot break.
@Suite struct RecordRuleTests {
  private let start = Instant(nanoseconds: 0)

  private func core(_ arbiter: ArbiterPolicy) -> MirrorModule { MirrorModule(settings: World.settings(arbiter)) }

  private func record(_ right: RightKind?) -> DurableRecord {
    var record = DurableRecord(generation: Generation(number: 4, branch: BranchID(rawValue: 44)), standing: .uptodate)
    record.peerOutdated = right
    return record
  }

  /// A node that boots with this record (nil = none that can be read) while its peer is gone: what it does at once, and once
  /// the boot wait is over.
  private func boots(_ record: DurableRecord?, _ arbiter: ArbiterPolicy) -> (atOnce: [Directive], later: [Directive]) {
    var (core, atOnce) = World.core(record, arbiter)
    atOnce += core.handle(.ready(.idle), at: start)
    atOnce += core.handle(.nodeLost, at: start)
    return (atOnce, core.handle(.timer, at: start + .seconds(60)))
  }

  private func mounts(_ directives: [Directive]) -> Bool { directives.contains(.engine(.mount)) }

  /// R0: a copy of which nothing is known is only ever rebuilt, and says so durably.
  @Test(arguments: [ArbiterPolicy.wait, .none, .witness, .fence]) func anUnreadableRecordIsNotUpToDate(
    arbiter: ArbiterPolicy
  ) {
    var core = core(arbiter)
    let loaded = core.handle(.loaded(record: nil, wish: Wish(started: true, version: 1), guest: .off), at: start)
    #expect(loaded.contains(.persist(.lost)) && core.durableRecord?.standing == .inconsistent)
    let (atOnce, later) = boots(nil, arbiter)
    #expect(!mounts(atOnce) && !mounts(later))
  }

  /// R0: as long as nothing is known nothing is decided, written or ended, whatever comes; what is heard of the peer is not lost.
  @Test func aRecordThatCannotBeReadIsWaitedFor() {
    var core = core(.none)
    let said = core.handle(.loadFailed(why: "record.a: Input/output error"), at: start)
    #expect(said.contains { if case .journal(.alarm, _) = $0 { true } else { false } })
    #expect(core.status.state == .wait && core.status.readiness == .blocked && core.status.standing == nil)
    #expect(core.status.sentence.contains("Input/output error"))
    let events: [Event] = [
      .nodeLost, .guestStarted, .guestOff(.failed), .guestPaused(why: "disk"), .timer,
      .wish(Wish(started: true, version: 9)), .engineGone(why: "died"), .persistFailed(why: "full"),
    ]
    for event in events { #expect(core.handle(event, at: start + .seconds(100)) == [], "\(event)") }
    for verb in [Command.Verb.start(force: true), .stop, .swap] {
      let answers = core.handle(.command(Command(id: 4, verb: verb, wishVersion: 10)), at: start + .seconds(101))
      #expect(answers.count == 1)
      guard case .answer(4, .refused) = answers.first else { return #expect(Bool(false), "\(answers)") }
    }
    let request = ConsentRequest(
      nonce: 1, node: .second, generation: record(nil).generation, history: [], guestRunning: true, stopping: false)
    let replies = core.handle(.consentRequested(request, token: 5), at: start + .seconds(102))
    guard case .replyConsent(5, .refused) = replies.first else { return #expect(Bool(false), "\(replies)") }
    #expect(replies.count == 1)
    // Readable at last: as if it had begun now, with the peer as it was heard.
    _ = core.handle(
      .loaded(record: record(.consent), wish: Wish(started: true, version: 1), guest: .off), at: start + .seconds(103))
    let begun = core.handle(
      .engine(.ready(EngineReport(processID: 1, role: .idle, policy: .frozen))), at: start + .seconds(103))
    #expect(mounts(begun) && core.status.state == .alone)
  }

  /// R5: a proven mark starts at once under any arbiter.
  @Test(arguments: [RightKind.consent, .witness, .fence], [ArbiterPolicy.wait, .witness, .fence, .none])
  func aProvenStandingStarts(right: RightKind, arbiter: ArbiterPolicy) {
    #expect(mounts(boots(record(right), arbiter).atOnce))
  }

  /// R5: a mark by policy counts only while the policy is still configured: both nodes may have one.
  @Test(arguments: [ArbiterPolicy.wait, .witness, .fence, .witnessAndFence])
  func aStandingByPolicyIsNoProofUnderAnotherArbiter(arbiter: ArbiterPolicy) {
    let (atOnce, later) = boots(record(.policy), arbiter)
    #expect(!mounts(atOnce) && !mounts(later))
  }

  @Test(arguments: [ArbiterPolicy.none, .ping]) func aStandingByPolicyCountsUnderThePolicies(arbiter: ArbiterPolicy) {
    #expect(mounts(boots(record(.policy), arbiter).atOnce))
  }

  /// R5, R6: without a mark, or out of date, nobody starts by itself.
  @Test func withoutAMarkOrOutdatedNothingStarts() {
    #expect(!mounts(boots(record(nil), .wait).later))
    for standing in [Standing.outdated, .inconsistent] {
      var old = record(nil)
      old.standing = standing
      for arbiter in [ArbiterPolicy.wait, .none, .ping, .witness, .fence] {
        let (atOnce, later) = boots(old, arbiter)
        #expect(!mounts(atOnce) && !mounts(later), "\(standing) with \(arbiter)")
      }
    }
  }

  /// A full history forgets its oldest branches: whoever is that far behind copies everything, nobody takes it for a descendant.
  @Test func aFullHistoryKeepsItsNewestBranches() {
    var record = record(nil)
    let branches = (100..<UInt64(100 + DurableRecord.historyCountMax)).map { BranchID(rawValue: $0) }
    record.appendHistory(branches)
    #expect(record.history == branches)
  }

  /// A node that was in sync in this boot, and has lost its peer before it could hear it.
  private func bereaved(_ arbiter: ArbiterPolicy) -> (core: MirrorModule, loaded: [Directive]) {
    var record = record(nil)
    record.bootAtLastSync = "a1"
    var (core, loaded) = World.core(record, arbiter)
    loaded += core.handle(.ready(.idle), at: start)
    return (core, loaded)
  }

  /// Only what lost its power waits for `force-after`: a copy that was distrusted for another reason is not forced by a date.
  @Test(arguments: [nil, "a0", "a1"]) func onlyABlackoutIsForcedByADate(_ boot: String?) {
    var settings = World.settings(.wait)
    settings.forceAfter = .seconds(30)
    var record = record(nil)
    record.bootAtLastSync = boot
    var core = MirrorModule(settings: settings)
    var did = core.handle(.loaded(record: record, wish: Wish(started: true, version: 1), guest: .off), at: start)
    for event in [Event.ready(.idle), .nodeLost] { did += core.handle(event, at: start) }
    for second in [1, 31, 62, 3600] { did += core.handle(.timer, at: start + .seconds(second)) }
    #expect(mounts(did) == (boot == "a0"))
  }

  /// R9: silence counts from the start of this node, not from before it.
  @Test func nothingStartsBeforeThePeerCouldBeHeard() {
    var (core, loaded) = bereaved(.none)
    loaded += core.handle(.timer, at: start + (World.detection - Duration.milliseconds(1)))
    #expect(!mounts(loaded))
    #expect(mounts(core.handle(.timer, at: start + World.detection)))
  }

  /// R5: a node whose own network is gone stays off.
  @Test func aPingWithoutAnAnswerGivesNoRight() throws {
    var (core, _) = bereaved(.ping)
    let asked = core.handle(.nodeLost, at: start)
    let id = try #require(asked.compactMap { if case .ping(let id) = $0 { id } else { nil } }.first)
    var other = core
    #expect(!mounts(core.handle(.arbiterFailed(id: id, why: "no route"), at: start)))
    #expect(core.durableRecord?.peerOutdated == nil)
    #expect(mounts(other.handle(.pingAnswered(id: id), at: start)))
    #expect(other.durableRecord?.peerOutdated == .policy)
  }

  /// Clean stop: whoever stops frozen and without consent is neither outdated nor the only one.
  @Test func aStopWhileFrozenLeavesTheRecordAsItIs() throws {
    var core = core(.wait)
    var report = EngineReport(processID: 1, role: .primary, policy: .frozen)
    report.isMounted = true
    _ = core.handle(.loaded(record: record(nil), wish: Wish(started: true, version: 1), guest: .running), at: start)
    _ = core.handle(.engine(.ready(report)), at: start)
    _ = core.handle(.nodeLost, at: start)
    #expect(core.status.state == .prim)
    _ = core.handle(.command(Command(id: 1, verb: .stop, wishVersion: 2)), at: start)
    let done = try #require(synced(core.handle(.guestOff(.shutdown), at: start)))
    for event in [done, .unmounted] { _ = core.handle(.engine(event), at: start) }
    #expect(core.status.state == .stop && core.durableRecord == record(nil))
  }
}
