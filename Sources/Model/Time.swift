/// A reading of a monotonic clock that goes on while the host sleeps (CLOCK_BOOTTIME), in nanoseconds. Meaningful on one node, in one boot only.
public struct Instant: Hashable, Sendable, Codable, Comparable {
  public let nanoseconds: Int64
  public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }
  public static func < (a: Instant, b: Instant) -> Bool { a.nanoseconds < b.nanoseconds }
  public static func + (a: Instant, b: Duration) -> Instant { Instant(nanoseconds: a.nanoseconds + b.nanoseconds) }
  public static func - (a: Instant, b: Instant) -> Duration { .nanoseconds(a.nanoseconds - b.nanoseconds) }
}

extension Duration {
  /// Whole nanoseconds, truncated; durations here are seconds to days, so this cannot overflow.
  public var nanoseconds: Int64 {
    Int64(attoseconds / 1_000_000_000)
  }
  public var milliseconds: Int64 { nanoseconds / 1_000_000 }
}
