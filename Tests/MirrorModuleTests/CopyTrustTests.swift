import MirrorModule
import Model
import Testing

@testable import Simulation

/// What a copy is worth, and who may rely on it, where something of it was lost: an engine that is not known yet, a record, a disk, a mount.
@Suite struct CopyTrustTests {
  private let session = SessionID(rawValue: 9)
  private let start = Instant(nanoseconds: 0)
  private let record = DurableRecord(
    generation: Generation(number: 4, branch: BranchID(rawValue: 44)), standing: .uptodate)

  private func loaded(_ record: DurableRecord, _ arbiter: ArbiterPolicy = .wait, guest: GuestState = .off)
    -> MirrorModule
  { World.core(record, arbiter, guest: guest).0 }

  private func report(_ role: EngineRole, _ policy: AcknowledgePolicy, mounted: Bool = true) -> EngineReport {
    var report = EngineReport(processID: 1, role: role, policy: policy)
    report.isMounted = mounted
    if case .both(let session) = policy { report.session = session }
    return report
  }

  /// PRIM with a running guest; or not yet: the peer has not said that it has adopted.
  private func primary(isAdopted: Bool = true) -> MirrorModule {
    var (core, _) = World.core(record, guest: .running, then: .ready(.primary, .both(session)))
    if isAdopted { _ = core.handle(.peerMessage(session, .adopted), at: start) }
    _ = core.handle(.nodeAlive, at: start)
    #expect(core.status.state == .prim && core.status.inSync == isAdopted)
    return core
  }

  /// ALONE with a running guest.
  private func alone() -> MirrorModule {
    var marked = record
    marked.peerOutdated = .consent
    let (core, _) = World.core(marked, guest: .running, then: .ready(.primary, .alone))
    #expect(core.status.state == .alone)
    return core
  }

  private func request(_ record: DurableRecord) -> ConsentRequest {
    ConsentRequest(
      nonce: 1, node: .second, generation: record.generation, history: record.history, guestRunning: true,
      stopping: false)
  }

  private func grants(_ directives: [Directive]) -> Bool {
    directives.contains { if case .replyConsent(_, .granted) = $0 { true } else { false } }
  }

  private func asks(_ directives: [Directive]) -> ConsentRequest? {
    for case .askConsent(let request) in directives { return request }
    return nil
  }

  private func hello(_ directives: [Directive]) -> Hello? {
    for case .sendPeer(_, .hello(let hello)) in directives { return hello }
    return nil
  }

  // MARK: R11, a disk that hangs

  /// In sync: nothing that needs the disk comes before what stops the guest, and then the peer gets the module.
  @Test func aHungDiskUnderTheGuestMovesTheModule() throws {
    var core = primary()
    let directives = core.handle(.engine(.diskHangs(milliseconds: 26_000)), at: start)
    let persist = try #require(directives.firstIndex { if case .persist = $0 { true } else { false } })
    for early: Directive in [.engine(.endSession), .engine(.unmount(force: true)), .destroyGuest] {
      #expect(directives[..<persist].contains(early), "\(early)")
    }
    #expect(!directives[..<persist].contains { if case .keepLimits = $0 { true } else { false } })
    #expect(directives.filter { $0 == .destroyGuest }.count == 1)
    #expect(!core.status.offers, "the guest is still there")
    // Its mount does not end, as the disk does not.
    let off = core.handle(.guestOff(.destroyed), at: start + .seconds(1))
    #expect(off.contains(.killEngine) && core.status.offers)
    #expect(core.durableRecord?.standing == .uptodate)
    #expect(grants(core.handle(.consentRequested(request(record), token: 3), at: start + .seconds(2))))
    #expect(core.durableRecord?.standing == .outdated)
  }

  /// A mount that did end is no reason to kill anybody.
  @Test func aHungDiskThatLetsGoOfItsMountKeepsTheEngine() {
    var core = primary()
    _ = core.handle(.engine(.diskHangs(milliseconds: 26_000)), at: start)
    _ = core.handle(.engine(.unmounted), at: start)
    #expect(!core.handle(.guestOff(.destroyed), at: start).contains(.killEngine) && core.status.offers)
  }

  /// Nobody else has the data, or nobody is there to take it: it is said, once, and stays in the status until it is over.
  @Test func aHungDiskWithoutACopyInSyncIsOnlyTold() {
    var lonely = alone()
    var deaf = primary()
    _ = deaf.handle(.nodeLost, at: start)
    for core in [lonely, deaf, primary(isAdopted: false)] {
      var core = core
      let first = core.handle(.engine(.diskHangs(milliseconds: 26_000)), at: start)
      #expect(!first.contains(.destroyGuest) && !first.contains { if case .persist = $0 { true } else { false } })
      #expect(first.contains { if case .journal(.alarm, _) = $0 { true } else { false } })
      #expect(core.status.sentence.contains("26 s") && core.status.guest == .running)
    }
    _ = lonely.handle(.engine(.diskHangs(milliseconds: 26_000)), at: start)
    let second = lonely.handle(.engine(.diskHangs(milliseconds: 36_000)), at: start)
    #expect(!second.contains { if case .journal = $0 { true } else { false } })
    #expect(lonely.status.sentence.contains("36 s"))
    _ = lonely.handle(.engine(.diskAnswers), at: start)
    #expect(!lonely.status.sentence.contains("disk"))
  }

  // MARK: R5, consent

  /// vmhad is new, and its engine still the target of a session whose source has lost it: a consent now could not end that session,
  /// and an ADOPT that is on its way would make this copy up to date behind the consent.
  @Test func noConsentBeforeTheEngineIsKnown() {
    var target = record
    target.standing = .inconsistent
    var core = loaded(target)
    #expect(!grants(core.handle(.consentRequested(request(record), token: 1), at: start)))
    var replica = report(.replica, .frozen, mounted: false)
    replica.session = session
    _ = core.handle(.engine(.ready(replica)), at: start)
    let granted = core.handle(.consentRequested(request(record), token: 2), at: start)
    #expect(grants(granted) && granted.contains(.engine(.endSession)))
    let late = core.handle(
      .peerMessage(session, .adopt(record.generation, history: record.history, pairing: 7)), at: start)
    #expect(!late.contains { if case .persist = $0 { true } else { false } })
  }

  /// The same on a primary whose guest libvirt does not tell of: it may hold a mount.
  @Test func noConsentWhileAMountMayBeThere() {
    var core = loaded(record, guest: .unknown)
    #expect(!grants(core.handle(.consentRequested(request(record), token: 1), at: start)))
    _ = core.handle(.engineGone(why: "exit status 1"), at: start)
    #expect(grants(core.handle(.consentRequested(request(record), token: 2), at: start)))
  }

  // MARK: R0, R6: a record that was lost

  /// The peer's record cannot be read any more, and this copy is known to be older than what the peer had: nothing is overwritten
  /// before the operator has said so.
  @Test(arguments: [DurableRecord.lost, .empty]) func anOutdatedCopyIsNoSourceOverALostRecord(lost: DurableRecord) {
    var outdated = record
    outdated.standing = .outdated
    var core = loaded(outdated)
    _ = core.handle(.engine(.ready(report(.idle, .frozen, mounted: false))), at: start)
    _ = core.handle(.nodeAlive, at: start)
    _ = core.handle(.engine(.connected(session, link: "storage")), at: start)
    let theirs = Hello(node: .second, record: lost, isAlone: false, guestRunning: false, continuous: false)
    _ = core.handle(.peerMessage(session, .hello(theirs)), at: start)
    let ready = core.handle(.peerMessage(session, .targetReady(claim: nil)), at: start)
    #expect(!ready.contains { if case .persist = $0 { true } else { false } })
    #expect(core.status.state == .wait && core.status.sentence.contains("--force"))
    let beat = PeerBeat(
      state: .wait, readiness: .transient, standing: .inconsistent, generation: DurableRecord.empty.generation,
      guestRunning: false, offers: false)
    _ = core.handle(.peerBeat(beat), at: start)
    let forced = core.handle(.command(Command(id: 1, verb: .start(force: true), wishVersion: 2)), at: start)
    #expect(core.status.state == .alone && core.status.peerOutdated == .force)
    #expect(forced.contains(.engine(.endSession)))
  }

  /// The same seen from the other node, which was the primary: its record is lost, its engine and its guest are still there, frozen. It
  /// can never go on, and as long as it is the primary nobody lets the outdated copy go on.
  @Test func aPrimaryThatLostItsRecordLetsGoWhenNoCopyIsUsable() {
    var (core, _) = World.core(nil, guest: .running, then: .ready(.primary, .alone))
    #expect(core.status.state == .prim)
    _ = core.handle(.nodeAlive, at: start)
    _ = core.handle(.engine(.sessionEnded), at: start)
    _ = core.handle(.engine(.connected(session, link: "storage")), at: start)
    var outdated = record
    outdated.standing = .outdated
    let theirs = Hello(node: .second, record: outdated, isAlone: false, guestRunning: false, continuous: false)
    let met = core.handle(.peerMessage(session, .hello(theirs)), at: start)
    #expect(met.contains(.destroyGuest) && met.contains(.engine(.unmount(force: true))))
    #expect(!met.contains { if case .persist = $0 { true } else { false } })
    _ = core.handle(.engine(.unmounted), at: start)
    _ = core.handle(.guestOff(.destroyed), at: start)
    #expect(core.status.state == .wait && core.status.guest == .off)
    #expect(core.status.sentence.contains("this node lost its record"))
  }

  /// The record of a secondary is lost while its vmhad is away and its engine goes on: the primary is in sync and would never ask it
  /// anything again. They meet anew.
  @Test func aReplicaWhoseRecordIsLostMeetsItsPeerAnew() {
    // The third: vmhad died once more before it could end that session.
    for (record, ends) in [(nil, true), (DurableRecord.empty, false), (.lost, true)] {
      let (_, taken) = World.core(record, then: .ready(.replica, in: session))
      #expect(taken.contains(.engine(.endSession)) == ends)
      // What is in the middle of its first resync goes on with it.
      #expect(taken.contains(.sendPeer(session, .targetReady(claim: nil))) == !ends)
    }
  }

  // MARK: R11: a disk that failed under the guest

  /// Nobody takes the offered module in time: when both meet, the copy that kept every acknowledged write is the source.
  @Test func aDiskThatFailedIsNotTheSource() {
    var core = primary()
    #expect(core.durableRecord?.wroteLast == true)
    let failed = core.handle(.engine(.diskError(operation: "fsync", path: "disk", errno: 5)), at: start)
    let persisted = failed.firstIndex { if case .persist(let r) = $0 { r.bootAtLastSync == nil } else { false } }
    let left = failed.firstIndex(of: .engine(.unmount(force: true)))
    #expect(persisted != nil && left != nil && (persisted ?? 9) < (left ?? 0))
    for event in [Event.engine(.sessionEnded), .guestOff(.destroyed), .engine(.unmounted)] {
      _ = core.handle(event, at: start)
    }
    let later = start + .seconds(6)
    _ = core.handle(.timer, at: later)
    let met = core.handle(.engine(.connected(SessionID(rawValue: 10), link: "storage")), at: later)
    let theirs = Hello(node: .second, record: record, isAlone: false, guestRunning: false, continuous: true)
    let mine = hello(met)
    #expect(mine != nil)
    if let mine, case .source(let node, _) = Lineage.decide(mine, theirs) { #expect(node == .second) }
  }

  /// A flush that fails at the end of a stop: it ends all the same.
  @Test func aStopEndsAlsoWhenTheLastFlushFails() {
    var core = alone()
    _ = core.handle(.command(Command(id: 1, verb: .stop, wishVersion: 2)), at: start)
    _ = core.handle(.guestOff(.shutdown), at: start)
    #expect(synced(core.handle(.engine(.drained), at: start)) != nil)
    _ = core.handle(.engine(.diskError(operation: "fsync", path: "disk", errno: 5)), at: start)
    let failed = core.handle(.engine(.failed(command: "syncFiles", why: "fsync failed")), at: start)
    #expect(failed.contains(.engine(.unmount(force: false))))
    #expect(core.handle(.engine(.unmounted), at: start).contains(.engine(.exit)))
    #expect(core.status.state == .stop)
  }

  /// In sync until its own disk failed in the stop: the peer's copy is the one to start from, so no consent makes it outdated. If it may
  /// not have adopted, this one is all there is.
  @Test(arguments: [true, false]) func aDiskThatFailsInAStopDoesNotOutdateThePeer(isAdopted: Bool) {
    var core = primary(isAdopted: isAdopted)
    _ = core.handle(.command(Command(id: 1, verb: .stop, wishVersion: 2)), at: start)
    _ = core.handle(.guestOff(.shutdown), at: start)
    #expect(core.handle(.engine(.drained), at: start).contains(.engine(.flushBarrier(session))))
    var all = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "fsync failed on this node")), at: start)
    all += core.handle(.engine(.diskError(operation: "fsync", path: "disk", errno: 5)), at: start)
    if let done = synced(all) { all += core.handle(.engine(done), at: start) }
    all += core.handle(.engine(.unmounted), at: start)
    #expect(asks(all) == nil)
    #expect(core.durableRecord?.standing == (isAdopted ? .outdated : .uptodate))
    #expect(core.durableRecord?.generation == record.generation && core.durableRecord?.peerOutdated == nil)
    #expect(core.status.state == .stop)
  }

  // MARK: a mount that goes under its guest

  /// For instance a guest that hung and lost its mount for that: the module does not stay ALONE without disks.
  @Test func aloneTheMountIsMadeAnew() throws {
    var core = alone()
    let lost = core.handle(.engine(.unmounted), at: start)
    #expect(lost.contains(.destroyGuest) && lost.contains(.engine(.mount)))
    _ = core.handle(.engine(.mounted(fuseConnection: 1)), at: start)
    let done = try #require(synced(lost))
    #expect(core.handle(.engine(done), at: start).contains(.engine(.setPolicy(.alone))))
    #expect(core.handle(.guestOff(.destroyed), at: start).contains(.startGuest))
  }

  /// R4, each time the mount is made anew: a flush that began before the last guest's last writes says nothing of them
  /// (simulation, seed 143563).
  @Test func onlyTheLastFlushLetsAGuestStart() throws {
    var core = alone()
    let first = try #require(synced(core.handle(.engine(.unmounted), at: start)))
    let lost = core.handle(.engine(.unmounted), at: start)
    let second = try #require(synced(lost))
    #expect(first != second)
    _ = core.handle(.engine(.mounted(fuseConnection: 1)), at: start)
    #expect(!core.handle(.engine(first), at: start).contains(.engine(.setPolicy(.alone))))
    #expect(core.handle(.engine(second), at: start).contains(.engine(.setPolicy(.alone))))
  }

  /// R4: asked for while it could go on, and not used once its disk has failed; the peer has everything (simulation, seed 127168).
  @Test func aConsentComesTooLateForAFailedDisk() throws {
    var core = primary()
    let lost = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "reset")), at: start)
    let ask = try #require(asks(lost))
    _ = core.handle(.engine(.diskError(operation: "fsync", path: "disk", errno: 5)), at: start)
    let granted = ConsentReply.granted(nonce: ask.nonce, generation: ask.generation, claim: nil)
    #expect(persisted(core.handle(.consentReplied(granted), at: start)) == nil)
    #expect(!core.status.isAlone)
  }

  @Test func inSyncTheModuleIsOffered() {
    var core = primary()
    let lost = core.handle(.engine(.unmounted), at: start)
    #expect(lost.contains(.destroyGuest) && lost.contains(.engine(.endSession)))
    _ = core.handle(.guestOff(.destroyed), at: start)
    #expect(core.status.offers)
  }

  /// The right comes while there is no engine: the guest whose disks went with the old one is not taken for one that runs.
  @Test func aRightDoesNotFindAGuestWithoutDisks() throws {
    var core = primary()
    let lost = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "reset")), at: start)
    guard let ask = asks(lost) else {
      Issue.record("it does not ask")
      return
    }
    #expect(core.handle(.engineGone(why: "killed"), at: start).contains(.destroyGuest))
    _ = core.handle(.consentReplied(.granted(nonce: ask.nonce, generation: ask.generation, claim: nil)), at: start)
    #expect(core.status.state == .alone)
    let up = core.handle(.engine(.ready(report(.idle, .frozen, mounted: false))), at: start)
    let done = try #require(synced(up))
    for event in [EngineEvent.mounted(fuseConnection: 1), done] { _ = core.handle(.engine(event), at: start) }
    #expect(core.handle(.guestOff(.destroyed), at: start).contains(.startGuest))
  }

  // MARK: R5, fence

  /// Under the arbiter before, the peer may have gone alone while this node knew nothing of it; powered off, it proves nothing.
  @Test func aFenceThatIsNewDoesNotCountBeforeTheNextSync() {
    var old = record
    old.bootAtLastSync = World.settings(.wait).bootID
    var core = loaded(old)
    _ = core.handle(.engine(.ready(report(.idle, .frozen, mounted: false))), at: start)
    _ = core.handle(.settings(World.settings(.fence)), at: start)
    #expect(core.durableRecord?.bootAtLastSync == nil)
    var late = core.handle(.nodeLost, at: start)
    late += core.handle(.timer, at: start + World.bootWait + .seconds(60))
    #expect(!late.contains { if case .fencePeer = $0 { true } else { false } })
    // In sync it stays what it is.
    var running = primary()
    _ = running.handle(.settings(World.settings(.fence)), at: start)
    #expect(running.durableRecord?.bootAtLastSync != nil)
  }
}
