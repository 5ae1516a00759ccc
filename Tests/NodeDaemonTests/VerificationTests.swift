import ControlAPI
import Model
import Testing

@testable import NodeDaemon

@Suite struct VerificationTests {
  private static let day: Int64 = 86_400_000
  private func at(_ milliseconds: Int64) -> WallTime { WallTime(milliseconds: 1_795_000_000_000 + milliseconds) }

  @Test func aScrubIsDueOnceAnInterval() {
    let week = ScrubSchedule(interval: .seconds(7 * 86_400), seed: 0)
    let synced = at(0)
    // Never compared: an hour after the copies are in sync.
    #expect(week.dueAt(completedFrom: nil, inSyncSince: synced, attemptedAt: nil, now: at(0)) == at(3_600_000))
    #expect(
      week.dueAt(completedFrom: at(1000), inSyncSince: synced, attemptedAt: nil, now: at(5000))
        == at(1000 + 7 * Self.day))
    // Due long ago, but the copies are in sync again only now.
    #expect(
      week.dueAt(completedFrom: at(-30 * Self.day), inSyncSince: at(0), attemptedAt: nil, now: at(60_000))
        == at(3_600_000))
    // One that was interrupted is not repeated at once.
    #expect(
      week.dueAt(completedFrom: nil, inSyncSince: synced, attemptedAt: at(9_000_000), now: at(9_000_001))
        == at(12_600_000))
    // Clocks that were wrong put nothing off for ever.
    #expect(
      week.dueAt(completedFrom: at(99 * Self.day), inSyncSince: synced, attemptedAt: at(99 * Self.day), now: at(1))
        == at(3_600_000))
  }

  @Test func modulesDriftApartAndOffIsNever() {
    let interval = Duration.seconds(7 * 86_400)
    let times = Set(
      (0..<50).compactMap { seed in
        ScrubSchedule(interval: interval, seed: UInt64(seed) &* 0x9e37_79b9_7f4a_7c15)
          .dueAt(completedFrom: at(0), inSyncSince: at(0), attemptedAt: nil, now: at(1))
      })
    #expect(times.count == 50)
    #expect(times.allSatisfy { $0 >= at(7 * Self.day) && $0 < at(7 * Self.day + 7 * Self.day / 10) })
    #expect(
      ScrubSchedule(interval: .zero, seed: 3)
        .dueAt(completedFrom: nil, inSyncSince: at(0), attemptedAt: nil, now: at(1)) == nil)
    // A short interval keeps its proportions.
    let minute = ScrubSchedule(interval: .seconds(60), seed: 0)
    #expect(minute.dueAt(completedFrom: nil, inSyncSince: at(0), attemptedAt: nil, now: at(1)) == at(15_000))
  }

  private func result(_ start: Int64, complete: Bool = true, found: Int = 0, repaired: Int = 0) -> VerificationResult {
    var result = VerificationResult(
      node: "node1", startedAt: at(start), endedAt: at(start + 500), complete: complete, bytes: 2048)
    result.findingsCount = found
    result.repairedCount = repaired
    return result
  }

  @Test func whatIsKeptOfAResult() {
    let clean = VerificationRecord().with(result(1000), id: 1)
    #expect(clean.identicalUpTo == at(1000) && clean.last?.differingCount == 0 && clean.id == 1)
    // Interrupted: proves nothing.
    let cut = clean.with(result(2000, complete: false), id: 2)
    #expect(cut.identicalUpTo == at(1000) && cut.last == clean.last && cut.id == 2)
    // A difference stays until all was compared again, or repaired; an interrupted repair does not take it back.
    let differing = cut.with(result(3000, complete: false, found: 3), id: 3)
    #expect(differing.last?.differingCount == 3 && differing.identicalUpTo == at(1000))
    #expect(differing.with(result(4000, complete: false, found: 2, repaired: 2), id: 4).last?.differingCount == 3)
    let repaired = differing.with(result(5000, found: 3, repaired: 3), id: 5)
    #expect(repaired.last?.differingCount == 0 && repaired.identicalUpTo == at(5000))
    #expect(repaired.with(result(6000, found: 1), id: 6).identicalUpTo == at(5000))
    // Both nodes end with the newer one.
    #expect(clean.isOlder(than: differing) && !differing.isOlder(than: clean) && !clean.isOlder(than: clean))
    #expect(VerificationRecord().isOlder(than: clean) && !clean.isOlder(than: VerificationRecord()))
  }

  @Test func theSentenceSaysWhat() {
    #expect(Daemon.sentence(result(0)) == "both copies are identical, 2.0 KiB compared")
    #expect(Daemon.sentence(result(0, found: 1)) == "the copies DIFFER in 1 place")
    #expect(
      Daemon.sentence(result(0, found: 3, repaired: 2))
        == "the copies DIFFER in 1 place; 2 places repaired from node1")
    #expect(
      Daemon.sentence(result(0, complete: false, found: 1))
        == "the copies DIFFER in 1 place; the comparison was interrupted")
    #expect(Daemon.sentence(result(0, complete: false)) == "the comparison was interrupted")
  }
}
