import HostSystem
import Synchronization

/// The reads that this node's disk has, and since when. Every read of the guest passes here: no lock, and nothing is allocated.
struct ReadSlots: ~Copyable, Sendable {
  /// Reads that the disk may have at a time. They come from the threads of one mount, and from one more for each time that held reads
  /// were let go; one too many waits before it goes to the disk, so that none is there unseen.
  static var count: Int { Slots.count }
  /// From one look for a free slot to the next.
  static let pause: Duration = .milliseconds(1)

  /// A power of two.
  private typealias Slots = InlineArray<64, Atomic<Int64>>
  /// Nanoseconds; 0 = free.
  private let since = Slots { _ in Atomic(0) }

  /// Answers the slot to give back with `end`. `unique`: the kernel's number of the request, which grows in steps of two. `clock`:
  /// nanoseconds, not 0.
  func begin(_ unique: UInt64, _ clock: borrowing Atomic<Int64>) -> Int {
    let first = Int(truncatingIfNeeded: unique >> 1)
    while true {
      for offset in 0..<Self.count {
        let slot = (first &+ offset) & (Self.count - 1)
        let now = clock.load(ordering: .relaxed)
        if since[slot].compareExchange(expected: 0, desired: now, ordering: .acquiring).exchanged { return slot }
      }
      HostThread.sleep(for: Self.pause)
    }
  }

  func end(_ slot: Int) { since[slot].store(0, ordering: .releasing) }

  /// Since when the disk has had the read that it has had longest, nanoseconds; nil = it has none.
  var oldest: Int64? {
    var oldest: Int64?
    for slot in 0..<Self.count {
      let time = since[slot].load(ordering: .relaxed)
      if time != 0 { oldest = min(time, oldest ?? time) }
    }
    return oldest
  }
}
