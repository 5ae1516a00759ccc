import ControlAPI
import FoundationEssentials
import HostSystem
import MirrorModule
import Model

/// `ModuleLimits` on disk: the core counts by the host's monotonic clock, which means nothing in the next boot, so the file has dates.
/// A step of the wall clock makes entries look older or newer; one of the future counts as of now.
struct StoredLimits: Codable, Equatable {
  /// All times: milliseconds since 1970.
  var restarts: [Int64]
  var gaveUpAt: Int64?
  var peerGaveUpAt: Int64?
  var takeovers: [Int64]
  var stopped: String?

  init(_ limits: ModuleLimits, at now: Instant, wall: WallTime) {
    func date(_ time: Instant) -> Int64 { wall.milliseconds - (now - time).milliseconds }
    restarts = limits.restarts.map(date)
    gaveUpAt = limits.gaveUpAt.map(date)
    peerGaveUpAt = limits.peerGaveUpAt.map(date)
    takeovers = limits.takeovers.map(date)
    stopped = limits.stopped
  }

  func limits(at now: Instant, wall: WallTime) -> ModuleLimits {
    // No window is longer than a year, and a year does not overflow.
    let ageMax: Int64 = 366 * 86_400_000
    func instant(_ date: Int64) -> Instant {
      let age = wall.milliseconds.subtractingReportingOverflow(date)
      return now + .milliseconds(-min(max(0, age.overflow ? ageMax : age.partialValue), ageMax))
    }
    var limits = ModuleLimits()
    limits.restarts = restarts.map(instant)
    limits.gaveUpAt = gaveUpAt.map(instant)
    limits.peerGaveUpAt = peerGaveUpAt.map(instant)
    limits.takeovers = takeovers.map(instant)
    limits.stopped = stopped
    return limits
  }
}

extension ModuleStore {
  /// Absent: nothing is counted yet. Throws `HostError` if the host did not let it be read.
  func readLimits() throws -> Stored<StoredLimits> { try Stored.reading(limitsFile) }

  func write(_ limits: StoredLimits) throws {
    try makeFolder()
    try DurableFile.write([UInt8](JSONEncoder().encode(limits)), to: limitsFile)
  }
}

extension ModuleRunner {
  /// A file that cannot be written costs a count at the next restart of vmhad; it stops nothing.
  func keep(_ limits: ModuleLimits) {
    do {
      try store.write(StoredLimits(limits, at: monotonicNow(), wall: WallTime.now()))
    } catch {
      surroundings.journal(
        .warning, Reason("restarts and takeovers are not remembered over a restart of vmhad: \(error)"), module: module)
    }
  }
}
