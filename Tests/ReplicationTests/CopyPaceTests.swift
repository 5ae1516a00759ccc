import Model
import Replication
import Testing

/// A link that carries so much, takes so long, and queues what comes too fast.
private struct SimulatedLink {
  var bytesPerSecond: Double
  var delay: Double
  var now = 1.0
  var freeAt = 1.0
  /// Queue of each piece when it came, seconds.
  var waits: [(at: Double, wait: Double)] = []
  var carried = 0
  private var acks: [(at: Double, sequence: UInt64)] = []
  private var next: UInt64 = 1
  private var onTheWay = 0

  init(megabitsPerSecond: Double, delayMilliseconds: Double) {
    bytesPerSecond = megabitsPerSecond * 125_000
    delay = delayMilliseconds / 1000
  }

  private func instant(_ seconds: Double) -> Instant { Instant(nanoseconds: Int64(seconds * 1e9)) }
  var pace = CopyPace(now: Instant(nanoseconds: 1_000_000_000))
  private var sizes: [UInt64: Int] = [:]

  /// A copy that always has more to send.
  mutating func run(seconds: Double) {
    let end = now + seconds
    while now < end {
      while onTheWay == 0 || onTheWay + Int(pace.pieceBytesMax) <= pace.windowBytes {
        let bytes = Int(pace.pieceBytesMax)
        waits.append((now, max(0, freeAt - now)))
        freeAt = max(freeAt, now) + Double(bytes) / bytesPerSecond
        acks.append((freeAt + delay, next))
        pace.sent(next, bytes: bytes, now: instant(now))
        sizes[next] = bytes
        onTheWay += bytes
        next += 1
      }
      let ack = acks.removeFirst()
      now = ack.at
      let bytes = sizes.removeValue(forKey: ack.sequence) ?? 0
      onTheWay -= bytes
      carried += bytes
      pace.acknowledged(SequenceRange(ack.sequence), now: instant(now))
    }
  }
}

/// Whatever the link: it is used wholly, and what else comes to it waits little.
@Test(arguments: [(10.0, 1.0), (100, 0.2), (100, 40), (1000, 0.1), (1000, 100), (10_000, 0.1)])
func theCopyFillsTheLinkAndNotItsQueue(_ megabits: Double, _ delay: Double) {
  var link = SimulatedLink(megabitsPerSecond: megabits, delayMilliseconds: delay)
  link.run(seconds: 5)
  (link.carried, link.waits) = (0, [])
  let began = link.now
  link.run(seconds: 12)
  let used = Double(link.carried) / (link.now - began) / link.bytesPerSecond
  let waits = link.waits.map(\.wait).sorted()
  let most = waits[waits.count * 99 / 100]
  let window = Double(CopyPace.windowBytesMax) / link.bytesPerSecond
  #expect(used > 0.85, "\(Int(used * 100)) % used")
  // One block takes 52 ms at 10 Mbit/s; it cannot be less.
  let block = Double(CopyPace.windowBytesMin) / link.bytesPerSecond
  #expect(most < max(0.030, block) * 1.05, "\(most * 1000) ms in the queue; a full window would be \(window * 1000) ms")
}

/// A link that becomes slow is not flooded for long, one that becomes fast is used soon.
@Test func theCopyFollowsTheLink() {
  var link = SimulatedLink(megabitsPerSecond: 1000, delayMilliseconds: 0.2)
  link.run(seconds: 3)
  link.bytesPerSecond = 100 * 125_000
  link.run(seconds: 2)
  link.waits = []
  link.run(seconds: 2)
  #expect((link.waits.map(\.wait).max() ?? 1) < 0.06)
  link.bytesPerSecond = 1000 * 125_000
  link.run(seconds: 2)
  link.carried = 0
  let began = link.now
  link.run(seconds: 2)
  #expect(Double(link.carried) / (link.now - began) > 0.85 * link.bytesPerSecond)
}

/// A path that became longer does not starve the copy.
@Test func aLongerPathIsMeasuredAnew() {
  var link = SimulatedLink(megabitsPerSecond: 100, delayMilliseconds: 0.2)
  link.run(seconds: 5)
  link.delay = 0.1
  link.run(seconds: 15)
  link.carried = 0
  let began = link.now
  link.run(seconds: 20)
  #expect(Double(link.carried) / (link.now - began) > 0.8 * link.bytesPerSecond)
}

/// Acknowledgements of what was not sent, or of other rows, change nothing.
@Test func foreignAcknowledgementsAreNothing() {
  var pace = CopyPace(now: Instant(nanoseconds: 0))
  pace.acknowledged(SequenceRange(7), now: Instant(nanoseconds: 1_000_000_000))
  #expect(pace.windowBytes == CopyPace.windowBytesFirst)
}
