import HostSystem
import Model
import Synchronization
import Testing

@testable import ReplicatedFiles

/// The engine's word before a guest starts in a session. Needs root and /dev/fuse.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct SessionWordTests {
  /// The next answer to `confirmSession`: nil = confirmed, else why not.
  private func answer(_ side: Side, _ session: SessionID) throws -> String? {
    side.tell(.confirmSession(session))
    return try side.expect("word about the session") { event -> String?? in
      switch event {
      case .sessionConfirmed(session): .some(nil)
      case .failed("confirmSession", let why): .some(why)
      default: nil
      }
    }
  }

  /// R2: a process that stood still reads its peer's old words first, and then the peer has "just" been heard: it must have looked at its
  /// clock since (`LateWordTests` is the same in the simulation).
  @Test func anEngineThatHasNotLookedAtItsClockConfirmsNoSession() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("printf A > $1/disk", [pair.one.backing])
    let session = try pair.settled()
    #expect(try answer(pair.one, session) == nil)
    // The tick may come in between and look: rarely, and not five times.
    var refusal: String?
    for _ in 0..<5 where refusal == nil {
      let before = monotonicNow().nanoseconds - Duration.seconds(4).nanoseconds
      pair.one.engine.mirror.clock.store(before, ordering: .releasing)
      refusal = try answer(pair.one, session)
    }
    #expect(refusal?.contains("did not run") == true)
    #expect(pair.one.engine.report().policy == .both(session), "the session is as it was: only the word is refused")
    pair.two.tell(.endSession)
    _ = try pair.one.lost()
    #expect(try answer(pair.one, session) != nil)
  }
}
