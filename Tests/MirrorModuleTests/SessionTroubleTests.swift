import MirrorModule
import Model
import Testing

@testable import Simulation

/// A session that stands and is of no use must not stand for ever.
@Suite struct SessionTroubleTests {
  private let start = Instant(nanoseconds: 0)
  private let session = SessionID(rawValue: 9)
  private let record = DurableRecord(
    generation: Generation(number: 4, branch: BranchID(rawValue: 44)), standing: .uptodate)

  private func second() -> MirrorModule { World.core(record, then: .nodeAlive, .ready(.replica, in: session)).0 }

  private func core(_ report: EngineReport) -> MirrorModule {
    World.core(record, then: .nodeAlive, .engine(.ready(report))).0
  }

  private func asksConsent(_ directives: [Directive]) -> Bool {
    directives.contains { if case .askConsent = $0 { true } else { false } }
  }

  /// R10: one that is repeated takes nothing over once more.
  @Test func aSecondTokenChangesNothing() {
    var core = second()
    #expect(persisted(core.handle(.peerMessage(session, .token), at: start))?.wroteLast == true)
    let before = core
    let again = core.handle(.peerMessage(session, .token), at: start)
    #expect(!again.contains { if case .journal = $0 { false } else { true } })
    #expect(core.status == before.status && core.durableRecord == before.durableRecord)
  }

  /// R10: the guest hung, and its disks were taken away: what it wrote before must be durable on both nodes before the other one writes.
  @Test func aHandOverBehindATornMountIsFlushedToo() {
    var (core, _) = World.core(
      record, guest: .running, then: .ready(.primary, .both(session)), .nodeAlive, .peerMessage(session, .adopted))
    _ = core.handle(.command(Command(id: 1, verb: .swap, wishVersion: 1)), at: start)
    #expect(core.handle(.guestStuck(why: "it hangs"), at: start).contains(.engine(.unmount(force: true))))
    _ = core.handle(.engine(.unmounted), at: start)
    let off = core.handle(.guestOff(.destroyed), at: start)
    #expect(off.contains(.engine(.drain)) && !off.contains(.sendPeer(session, .token)))
    let drained = core.handle(.engine(.drained), at: start)
    #expect(drained.contains(.engine(.flushBarrier(session))) && !drained.contains(.sendPeer(session, .token)))
    #expect(core.handle(.engine(.barrierDone(session)), at: start).contains(.sendPeer(session, .token)))
  }

  /// R10: it has the token, and its engine refuses `both`: the session ends, and R9 goes on from there.
  @Test func anEngineThatRefusesTheTokensPolicyEndsTheSession() {
    var core = second()
    _ = core.handle(.peerMessage(session, .token), at: start)
    let up = core.handle(.engine(.mounted(fuseConnection: nil)), at: start)
    #expect(up.contains(.engine(.setPolicy(.both(session)))))
    let refused = core.handle(.engine(.failed(command: "setPolicy", why: "it needs a resync")), at: start)
    #expect(refused.contains(.engine(.endSession)) && asksConsent(refused), "\(refused)")
    #expect(!refused.contains(.startGuest) && core.status.inSync == false)
    // Nothing that was asked of the session starts a guest afterwards.
    #expect(!core.handle(.engine(.sessionConfirmed(session)), at: start).contains(.startGuest))
  }

  /// R4: what an earlier guest left in the mount waits until the engine may go on alone, and it never will: nothing drains. It stayed
  /// "stopping" for ever (simulation, seed 1458).
  @Test func aStopBeforeTheEngineGoesOnAloneWaitsForNoDrain() throws {
    let standing = {
      var record = record
      record.peerOutdated = .consent
      return record
    }()
    for isSynced in [false, true] {
      var (core, found) = World.core(standing, then: .nodeAlive, .ready(.primary))
      let done = try #require(synced(found))
      let up = core.handle(.engine(.mounted(fuseConnection: nil)), at: start)
      #expect(core.status.isAlone && !up.contains(.engine(.setPolicy(.alone))), "\(up)")
      if isSynced { #expect(core.handle(.engine(done), at: start).contains(.engine(.setPolicy(.alone)))) }
      let stop = Command(id: 1, verb: .stop, wishVersion: 2)
      var directives = core.handle(.command(stop), at: start)
      if isSynced {
        directives += core.handle(.guestOff(.shutdown), at: start)
      }
      #expect(directives.contains(.engine(.drain)) == isSynced, "\(directives)")
      #expect((synced(directives) == nil) == isSynced)
      guard !isSynced else { continue }
      let last = try #require(synced(directives))
      #expect(core.handle(.engine(last), at: start).contains(.engine(.unmount(force: false))))
      _ = core.handle(.engine(.unmounted), at: start)
      #expect(core.status.state == .stop)
    }
  }

  /// A refusal that comes when the session is over anyway changes nothing.
  @Test func aRefusalThatComesLateIsNoNews() {
    var core = second()
    _ = core.handle(.peerMessage(session, .token), at: start)
    _ = core.handle(.engine(.mounted(fuseConnection: nil)), at: start)
    _ = core.handle(.engine(.sessionLost(session, policy: .frozen, why: "cut")), at: start)
    let before = core.status
    let late = core.handle(.engine(.failed(command: "setPolicy", why: "the session is over")), at: start)
    #expect(!late.contains(.engine(.endSession)) && core.status == before)
  }

  /// R1: ended by the core, so that an older word of the engine is not taken for one about the next session.
  @Test func aMessageThatIsNotUnderstoodEndsTheSession() {
    var second = second()
    #expect(second.status.inSync)
    let elsewhere = second.handle(.peerMessageUnreadable(SessionID(rawValue: 8), why: "3 bytes"), at: start)
    #expect(!elsewhere.contains(.engine(.endSession)) && second.status.inSync)
    let ended = second.handle(.peerMessageUnreadable(session, why: "3 bytes"), at: start)
    #expect(ended.contains(.engine(.endSession)) && !second.status.inSync)
    let stale = second.handle(.engine(.connected(SessionID(rawValue: 10), link: "storage")), at: start)
    #expect(!stale.contains { if case .sendPeer = $0 { true } else { false } }, "said before the end was read")
    _ = second.handle(.engine(.sessionEnded), at: start)
    let fresh = second.handle(.engine(.connected(SessionID(rawValue: 11), link: "storage")), at: start)
    #expect(fresh.contains { if case .sendPeer(_, .hello) = $0 { true } else { false } })
  }

  /// A peer of a version that cannot be read is not asked again and again without a pause.
  @Test func aHelloThatIsNotUnderstoodIsAskedForAfterAPause() {
    var core = core(EngineReport(processID: 1, role: .idle, policy: .frozen))
    _ = core.handle(.engine(.connected(session, link: "storage")), at: start)
    let ended = core.handle(.peerMessageUnreadable(session, why: "3 bytes"), at: start)
    #expect(ended.contains(.engine(.endSession)) && !ended.contains(.engine(.connect)), "\(ended)")
    #expect(core.status.sentence.contains("not understood"))
    #expect(!core.handle(.engine(.sessionEnded), at: start).contains(.engine(.connect)))
    let later = core.handle(.timer, at: start + MirrorSettings.engineRestartPause)
    #expect(later.contains(.engine(.connect)))
  }
}
