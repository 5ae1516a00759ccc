import HostSystem
import Synchronization
import Testing

@testable import ReplicatedFiles

/// The reads that the disk has, counted without a lock.
@Suite(.timeLimit(.minutes(2))) struct ReadSlotsTests {
  private final class Rig: Sendable {
    let slots = ReadSlots()
    let clock = Atomic<Int64>(1)
    let owners = InlineArray<64, Atomic<Int>> { _ in Atomic(0) }
    let shared = Atomic<Int>(0)

    func begin(_ unique: UInt64, at time: Int64) -> Int {
      clock.store(time, ordering: .relaxed)
      return slots.begin(unique, clock)
    }
  }

  @Test func theOldestIsTheOneThatBeganFirst() {
    let rig = Rig()
    #expect(rig.slots.oldest == nil)
    let times: [Int64] = [30, 10, 20]
    // The numbers of requests whose first choice is the same slot, and of one that the kernel hands out again.
    let held = zip([UInt64(6), 6 + 128, 1 << 63 | 6], times).map { rig.begin($0, at: $1) }
    #expect(Set(held).count == 3)
    #expect(rig.slots.oldest == 10)
    rig.slots.end(held[1])
    #expect(rig.slots.oldest == 20)
    rig.slots.end(held[2])
    rig.slots.end(held[0])
    #expect(rig.slots.oldest == nil)
  }

  @Test func noSlotIsEverTwoReads() throws {
    let rig = Rig()
    let threads = try (0..<8).map { number in
      try HostThread.start(name: "reads-\(number)", detached: false) {
        // As often as it takes to meet a slot that is taken without compare-and-swap: 200 000 did four times in five.
        for _ in 0..<500_000 {
          let slot = rig.slots.begin(0, rig.clock)
          if rig.owners[slot].exchange(1, ordering: .sequentiallyConsistent) != 0 {
            rig.shared.store(1, ordering: .relaxed)
          }
          rig.owners[slot].store(0, ordering: .sequentiallyConsistent)
          rig.slots.end(slot)
        }
      }
    }
    for thread in threads { thread.join() }
    #expect(rig.shared.load(ordering: .relaxed) == 0)
    #expect(rig.slots.oldest == nil)
  }

  /// None goes to the disk unseen: one too many waits for the first slot that gets free.
  @Test func oneTooManyWaitsForASlot() throws {
    let rig = Rig()
    let held = (0..<ReadSlots.count).map { rig.begin(UInt64($0) * 2, at: 5) }
    #expect(held == Array(0..<ReadSlots.count))
    let got = Monitor<Int?>(nil)
    try HostThread.start(name: "late") {
      let slot = rig.slots.begin(0, rig.clock)
      got.withLock { $0 = slot }
    }
    rig.slots.end(17)
    #expect(got.wait(timeout: .seconds(30)) { $0 } == 17)
    for slot in held where slot != 17 { rig.slots.end(slot) }
    #expect(rig.slots.oldest != nil)
  }
}
