import ControlAPI
import Model

/// When a module's copies are to be compared without being asked. Pure; wall clock, because the interval is longer than a boot. A clock
/// that was set only makes a scrub come early or late.
struct ScrubSchedule: Sendable, Hashable {
  /// In sync for so long before a scrub begins, but at most a quarter of the interval.
  static let settledMax: Duration = .seconds(3600)
  /// After one that was interrupted or refused, but at most a quarter of the interval.
  static let retryMax: Duration = .seconds(3600)
  /// Modules that became due at one time drift apart by up to this part of the interval.
  static let jitterDivisor: Int64 = 10

  /// Zero = never.
  var interval: Duration
  /// Any number that differs from module to module and stays.
  var seed: UInt64

  /// nil = never. `completedFrom`: the beginning of the last comparison that was completed; `attemptedAt`: when the last one ended, however
  /// it ended, as far as this vmhad knows.
  func dueAt(completedFrom: WallTime?, inSyncSince: WallTime, attemptedAt: WallTime?, now: WallTime) -> WallTime? {
    guard interval > .zero else { return nil }
    let milliseconds = interval.milliseconds
    let quarter = Duration.milliseconds(milliseconds / 4)
    let spread = max(milliseconds / Self.jitterDivisor, 1)
    let jitter = Duration.milliseconds(Int64(seed % UInt64(spread)))
    let settled = inSyncSince + min(Self.settledMax, quarter)
    // One that lies ahead of now comes from a clock that was wrong.
    var due = completedFrom.flatMap { $0 <= now ? $0 + interval + jitter : nil } ?? settled
    due = max(due, settled)
    if let attemptedAt, attemptedAt <= now { due = max(due, attemptedAt + min(Self.retryMax, quarter)) }
    return due
  }
}

/// What a node keeps of the comparisons of a module: beside its durable record, the same on both nodes.
struct VerificationRecord: Codable, Sendable, Hashable {
  /// Of the newest comparison that is told of here, or that came to nothing.
  var id: UInt64 = 0
  /// See `VerificationStatus`.
  var identicalUpTo: WallTime?
  var last: VerificationResult?

  /// With a comparison that has ended. One that was interrupted before it found anything proves nothing, and takes nothing back.
  func with(_ result: VerificationResult, id: UInt64) -> VerificationRecord {
    var new = self
    new.id = id
    guard result.complete || result.differingCount > 0 else { return new }
    new.last = result
    if result.complete, result.differingCount == 0 { new.identicalUpTo = result.startedAt }
    return new
  }

  /// Of two nodes' records the one that knows the newer result.
  func isOlder(than other: VerificationRecord) -> Bool {
    guard let theirs = other.last else { return false }
    guard let own = last else { return true }
    return own.endedAt < theirs.endedAt
  }
}
