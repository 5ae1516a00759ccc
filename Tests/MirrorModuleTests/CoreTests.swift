import MirrorModule
import Model
import Testing

@testable import Simulation

extension World {
  /// Of a node of a fresh world in its first boot, which it names "a1" or "b1".
  static func settings(_ arbiter: ArbiterPolicy, of node: NodeID = .first) -> MirrorSettings {
    var options = Options()
    options.arbiter = arbiter
    let world = World(options)
    return withExtendedLifetime(world) { world.node(node).settings }
  }

  /// The core of a node of a fresh world that has this record (nil = none that can be read) and is to run, after `events`, all at
  /// the time 0; with what it did at the last of these.
  static func core(
    _ record: DurableRecord?, _ arbiter: ArbiterPolicy = .wait, of node: NodeID = .first, guest: GuestState = .off,
    then events: Event...
  ) -> (MirrorModule, [Directive]) {
    var core = MirrorModule(settings: settings(arbiter, of: node))
    let loaded = Event.loaded(record: record, wish: Wish(started: true, version: 1), guest: guest)
    var directives: [Directive] = []
    for event in [loaded] + events { directives = core.handle(event, at: Instant(nanoseconds: 0)) }
    return (core, directives)
  }
}

extension Event {
  /// The engine says what it is; `session`: the one it is in, unless its policy names it.
  static func ready(_ role: EngineRole, _ policy: AcknowledgePolicy = .frozen, in session: SessionID? = nil) -> Event {
    var report = EngineReport(processID: 1, role: role, policy: policy)
    report.isMounted = role == .primary
    report.session = if case .both(let session) = policy { session } else { session }
    return .engine(.ready(report))
  }
}

/// The answer to the last `syncFiles`.
func synced(_ directives: [Directive]) -> EngineEvent? {
  let requests = directives.compactMap { if case .engine(.syncFiles(let request)) = $0 { request } else { nil } }
  return requests.last.map { .filesSynced($0) }
}

/// The last thing that was made durable.
func persisted(_ directives: [Directive]) -> DurableRecord? {
  directives.compactMap { if case .persist(let record) = $0 { record } else { nil } }.last
}

/// The question that goes to the witness.
func reads(_ directives: [Directive]) -> UInt64? {
  directives.compactMap { if case .readWitness(let id) = $0 { id } else { nil } }.first
}

/// Single steps that a world meets seldom.
@Suite struct CoreTests {
  private let session = SessionID(rawValue: 9)
  private let start = Instant(nanoseconds: 0)

  /// The first node of a fresh world, with a record and a wish of its own.
  private func core(
    _ record: DurableRecord, arbiter: ArbiterPolicy = .wait, guest: GuestState = .off, report: EngineReport? = nil
  ) -> (MirrorModule, [Directive]) {
    World.core(record, arbiter, guest: guest, then: report.map { .engine(.ready($0)) } ?? .ready(.idle))
  }

  private var record: DurableRecord {
    DurableRecord(generation: Generation(number: 4, branch: BranchID(rawValue: 44)), standing: .uptodate)
  }

  private func request(_ nonce: UInt64, _ record: DurableRecord) -> ConsentRequest {
    ConsentRequest(
      nonce: nonce, node: .second, generation: record.generation, history: record.history, guestRunning: true,
      stopping: false)
  }

  private func grants(_ directives: [Directive]) -> Bool {
    directives.contains { if case .replyConsent(_, .granted) = $0 { true } else { false } }
  }

  @Test func consentThatCannotBeMadeDurableIsNeverGiven() {
    var (core, _) = core(record)
    #expect(grants(core.handle(.consentRequested(request(1, record), token: 1), at: start)))
    _ = core.handle(.persistFailed(why: "No space left on device"), at: start)
    #expect(!grants(core.handle(.consentRequested(request(2, record), token: 2), at: start)))
    #expect(core.durableRecord == nil)
  }

  @Test func aRightThatArrivesAfterTheStopIsDropped() {
    var (core, _) = core(record)
    _ = core.handle(.nodeAlive, at: start)
    let beat = PeerBeat(
      state: .wait, readiness: .transient, standing: .uptodate, generation: record.generation, guestRunning: false,
      offers: true)
    let asked = core.handle(.peerBeat(beat), at: start)
    guard case .askConsent(let ask)? = asked.first(where: { if case .askConsent = $0 { true } else { false } }) else {
      Issue.record("it does not ask")
      return
    }
    _ = core.handle(.command(Command(id: 1, verb: .stop, wishVersion: 2)), at: start)
    let late = core.handle(
      .consentReplied(.granted(nonce: ask.nonce, generation: ask.generation, claim: nil)), at: start)
    #expect(!late.contains { if case .persist = $0 { true } else { false } })
    #expect(core.status.state == .stop)
  }

  /// vmhad went away between the policy `both` and the record of R8.3.
  @Test func theMarkIsWithdrawnBeforeAdoptIsSentAgain() {
    var marked = record
    marked.peerOutdated = .consent
    var report = EngineReport(processID: 1, role: .primary, policy: .both(session))
    report.session = session
    report.isMounted = true
    let (_, directives) = core(marked, guest: .running, report: report)
    let persisted = directives.firstIndex { if case .persist(let r) = $0 { r.peerOutdated == nil } else { false } }
    let sent = directives.firstIndex { if case .sendPeer(_, .adopt) = $0 { true } else { false } }
    #expect(persisted != nil && sent != nil && (persisted ?? 9) < (sent ?? 0))
  }

  /// vmhad went away between the record of R4 and the thaw.
  @Test func aRightOnRecordThawsAfterARestart() {
    var marked = record
    marked.peerOutdated = .consent
    var report = EngineReport(processID: 1, role: .primary, policy: .frozen)
    report.isMounted = true
    let (core, directives) = core(marked, guest: .running, report: report)
    #expect(directives.contains(.engine(.setPolicy(.alone))))
    #expect(core.status.state == .alone)
  }

  /// An engine may not go on acknowledging under a right that is not on record.
  @Test func anEngineWithoutARightOnRecordIsFrozen() {
    var report = EngineReport(processID: 1, role: .primary, policy: .alone)
    report.isMounted = true
    let (core, directives) = core(record, guest: .running, report: report)
    #expect(directives.contains(.engine(.setPolicy(.frozen))))
    #expect(core.status.state == .prim && core.status.readiness == .transient)
  }

  /// R5: a node that consented never adopts in the session that was there then.
  @Test func aReplicaThatConsentedEndsItsSession() {
    var outdated = record
    outdated.standing = .outdated
    var report = EngineReport(processID: 1, role: .replica, policy: .frozen)
    report.session = session
    var (core, directives) = core(outdated, report: report)
    #expect(directives.contains(.engine(.endSession)))
    let adopted = core.handle(
      .peerMessage(session, .adopt(record.generation, history: record.history, pairing: 7)), at: start)
    #expect(!adopted.contains { if case .persist = $0 { true } else { false } })
  }

  /// The engine dies, and the next one too; in the pause before the third the peer takes the module: it is started all the same.
  @Test func aConsentInThePauseBeforeAnEngineStopsNothing() {
    var report = EngineReport(processID: 1, role: .primary, policy: .both(session))
    report.isMounted = true
    report.session = session
    var (core, _) = core(record, guest: .off, report: report)
    _ = core.handle(.engineGone(why: "killed"), at: start)
    _ = core.handle(.engineGone(why: "reset"), at: start + .milliseconds(3))
    #expect(grants(core.handle(.consentRequested(request(1, record), token: 1), at: start + .milliseconds(200))))
    #expect(core.status.state != .stop)
    let later = core.handle(.timer, at: start + .seconds(3))
    #expect(later.contains(.startEngine))
  }

  /// R3: a target of another pairing (a restored backup, a lost record) is compared as a whole.
  @Test(
    arguments: [(nil, nil, true), (3, nil, true), (nil, 3, true), (3, 4, true), (3, 3, false)]
      as [(UInt64?, UInt64?, Bool)])
  func mapsCountOnlyWithinAPairing(_ mine: UInt64?, _ theirs: UInt64?, _ comparesEverything: Bool) {
    var alone = record
    alone.peerOutdated = .consent
    alone.pairing = mine
    var report = EngineReport(processID: 1, role: .primary, policy: .alone)
    report.isMounted = true
    var (core, _) = core(alone, guest: .running, report: report)
    _ = core.handle(.engine(.sessionEnded), at: start)
    _ = core.handle(.engine(.connected(session, link: "storage")), at: start)
    var old = record
    old.standing = .outdated
    old.pairing = theirs
    let hello = Hello(node: .second, record: old, isAlone: false, guestRunning: false, continuous: false)
    _ = core.handle(.peerMessage(session, .hello(hello)), at: start)
    let begun = core.handle(.peerMessage(session, .targetReady(claim: nil)), at: start)
    #expect(begun.contains(.engine(.startResync(session, comparesEverything: comparesEverything))))
  }

  @Test func aConnectionSaidBeforeTheEndWasReadIsIgnored() {
    var (core, _) = core(record, arbiter: .none)
    _ = core.handle(.nodeLost, at: start)
    // Not continuous: it waits for the boot time, then goes alone and ends the session first.
    let later = start + World.bootWait + .seconds(1)
    _ = core.handle(.timer, at: later)
    #expect(core.status.state == .alone)
    let stale = core.handle(.engine(.connected(session, link: "storage")), at: later)
    #expect(!stale.contains { if case .sendPeer = $0 { true } else { false } })
    _ = core.handle(.engine(.sessionEnded), at: later)
    let fresh = core.handle(.engine(.connected(SessionID(rawValue: 10), link: "storage")), at: later)
    #expect(fresh.contains { if case .sendPeer(_, .hello) = $0 { true } else { false } })
  }

  /// A timer that ran out fires with whatever event comes first.
  @Test func aTimerIsNotLostWhenAnotherEventComesFirst() {
    var (core, _) = core(record, arbiter: .none)
    let late = start + World.detection + .seconds(1)
    _ = core.handle(.engine(.sessionEnded), at: late)
    #expect(core.status.sentence.contains("does not answer"))
  }

  /// The peer's heartbeat said SECOND before its token arrived here; the wait begun then must not outlive the token.
  @Test func aWaitForTheTokenEndsWithTheToken() {
    var report = EngineReport(processID: 1, role: .replica, policy: .frozen)
    report.session = session
    var (core, _) = core(record, report: report)
    #expect(core.status.state == .second)
    let beat = PeerBeat(
      state: .second, readiness: .ready, standing: .uptodate, generation: record.generation, guestRunning: false,
      offers: false)
    _ = core.handle(.nodeAlive, at: start)
    _ = core.handle(.peerBeat(beat), at: start)
    _ = core.handle(.peerMessage(session, .token), at: start)
    _ = core.handle(.engine(.mounted(fuseConnection: nil)), at: start)
    _ = core.handle(.engine(.sessionConfirmed(session)), at: start)
    _ = core.handle(.guestStarted, at: start)
    #expect(core.status.state == .prim)
    let later = start + .seconds(60)
    _ = core.handle(.command(Command(id: 1, verb: .swap, wishVersion: 1)), at: later)
    var directives: [Directive] = []
    for event in [Event.guestOff(.shutdown), .engine(.drained), .engine(.barrierDone(session)), .engine(.unmounted)] {
      directives += core.handle(event, at: later)
    }
    #expect(directives.contains(.sendPeer(session, .token)))
    #expect(!directives.contains(.engine(.endSession)))
    #expect(core.status.state == .second)
  }

  /// PRIM in `session`, taken over with its guest running.
  private func primary() -> MirrorModule {
    let (core, _) = World.core(
      record, guest: .running, then: .ready(.primary, .both(session)), .nodeAlive, .peerMessage(session, .adopted))
    #expect(core.status.state == .prim)
    return core
  }

  @Test func aSuspensionThatFailedIsTriedAgain() {
    var core = primary()
    #expect(core.handle(.engine(.readsHeld), at: start).contains(.suspendGuest))
    let failed = core.handle(.guestSuspendFailed(why: "libvirt is busy"), at: start)
    #expect(!failed.contains(.suspendGuest))
    #expect(core.handle(.timer, at: start + MirrorSettings.suspensionRetry).contains(.suspendGuest))
  }

  /// libvirt carries a suspension out that an earlier vmhad asked for, after this one has begun (simulation, seed 20134 of `wait`).
  @Test func aSuspensionThatComesLateIsTakenBack() {
    var core = primary()
    #expect(core.handle(.guestSuspended, at: start).contains(.resumeGuest))
    _ = core.handle(.guestReleased, at: start)
    #expect(core.status.guest == .running)
  }

  /// A host that stood still finds its guest dead before it finds out that the peer went on alone (simulation, seed 794).
  @Test func aGuestStartsInASessionOnlyOnTheEnginesWord() {
    var core = primary()
    let question = Directive.engine(.confirmSession(session))
    let thawed = start + .seconds(13)
    let directives = core.handle(.guestOff(.failed), at: thawed)
    #expect(directives.contains(question) && !directives.contains(.startGuest))
    #expect(core.handle(.engine(.sessionConfirmed(session)), at: thawed + .milliseconds(5)).contains(.startGuest))
  }

  @Test func anOldWordStartsNoGuest() {
    var core = primary()
    _ = core.handle(.guestOff(.failed), at: start)
    let late = start + MirrorSettings.startConfirmMax + .milliseconds(1)
    let directives = core.handle(.engine(.sessionConfirmed(session)), at: late)
    #expect(directives.contains(.engine(.confirmSession(session))) && !directives.contains(.startGuest))
    #expect(core.handle(.engine(.sessionConfirmed(session)), at: late + .milliseconds(5)).contains(.startGuest))
  }

  @Test func aDoubtedSessionIsAskedForAgain() {
    var core = primary()
    _ = core.handle(.guestOff(.failed), at: start)
    let refusal = Event.engine(.failed(command: "confirmSession", why: "the peer was not heard for 2000 ms"))
    #expect(!core.handle(refusal, at: start).contains(.startGuest))
    // Its word about a question it has refused counts for nothing.
    #expect(!core.handle(.engine(.sessionConfirmed(session)), at: start).contains(.startGuest))
    let later = start + MirrorSettings.guestRetryPause
    #expect(core.handle(.timer, at: later).contains(.engine(.confirmSession(session))))
    #expect(core.handle(.engine(.sessionConfirmed(session)), at: later).contains(.startGuest))
  }

  @Test func aSessionLostWhileTheEngineIsAskedStartsNoGuest() {
    var core = primary()
    _ = core.handle(.guestOff(.failed), at: start)
    let lost = EngineEvent.sessionLost(session, policy: .frozen, why: "nothing heard for 2 s")
    #expect(!core.handle(.engine(lost), at: start).contains(.startGuest))
    #expect(!core.handle(.engine(.sessionConfirmed(session)), at: start).contains(.startGuest))
  }

  /// R8.4: only the target of this session's resync adopts: not who was just met in it, nor who has still to stop its guest for it.
  @Test(arguments: [GuestState.off, .running]) func onlyATargetAdopts(guest: GuestState) {
    var report = EngineReport(processID: 1, role: guest == .off ? .idle : .primary, policy: .frozen)
    report.isMounted = guest == .running
    var (core, _) = core(record, guest: guest, report: report)
    _ = core.handle(.engine(.sessionEnded), at: start)
    _ = core.handle(.engine(.connected(session, link: "storage")), at: start)
    var newer = DurableRecord(generation: Generation(number: 5, branch: BranchID(rawValue: 55)), standing: .uptodate)
    newer.history = record.history + [newer.generation.branch]
    newer.peerOutdated = .consent
    let adopt = PeerMessage.adopt(newer.generation, history: newer.history, pairing: 7)
    let adopts = { (directives: [Directive]) in
      directives.contains { directive in
        switch directive {
        case .persist(let next): next.standing == .uptodate
        case .engine(.clearIntents), .sendPeer(_, .adopted): true
        default: false
        }
      }
    }
    #expect(!adopts(core.handle(.peerMessage(session, adopt), at: start)))
    let hello = Hello(node: .second, record: newer, isAlone: true, guestRunning: true, continuous: true)
    let met = core.handle(.peerMessage(session, .hello(hello)), at: start)
    #expect(met.contains(.destroyGuest) == (guest == .running))
    if guest == .running {
      #expect(!adopts(core.handle(.peerMessage(session, adopt), at: start)))
      _ = core.handle(.guestOff(.destroyed), at: start)
      _ = core.handle(.engine(.unmounted), at: start)
    }
    #expect(core.durableRecord?.standing == .inconsistent)
    #expect(adopts(core.handle(.peerMessage(session, adopt), at: start)))
    #expect(core.status.state == .second && core.durableRecord?.generation == newer.generation)
  }

  /// R1, R12: what the peer agreed to in an earlier session gives no branch up in this one.
  @Test func anAgreementOfAnotherSessionGivesNothingUp() {
    var (core, _) = core(record)
    _ = core.handle(.engine(.connected(session, link: "storage")), at: start)
    let theirs = DurableRecord(
      generation: Generation(number: 4, branch: BranchID(rawValue: 55)), standing: .uptodate)
    let hello = Hello(node: .second, record: theirs, isAlone: false, guestRunning: false, continuous: false)
    _ = core.handle(.peerMessage(session, .hello(hello)), at: start)
    let verb = Command.Verb.resolve(mine: record.generation, theirs: theirs.generation)
    let asked = core.handle(.command(Command(id: 1, verb: verb, wishVersion: 1)), at: start)
    #expect(asked.contains(.sendPeer(session, .giveUp(record.generation, kept: theirs.generation))))
    let archive = Directive.archiveBranch(record.generation, kept: theirs.generation)
    let agreed = PeerMessage.goOn(theirs.generation)
    #expect(!core.handle(.peerMessage(SessionID(rawValue: 8), agreed), at: start).contains(archive))
    #expect(core.status.readiness == .blocked)
    #expect(core.handle(.peerMessage(session, agreed), at: start).contains(archive))
    // A command that waits for the end of the split must not take a long archive for a failure.
    #expect(core.status.isSplit && core.status.readiness == .transient)
  }
}
