import HostSystem
import Model
import Synchronization

/// Notices this node's own disk hanging under a guest: it has a request and neither carries it out nor refuses it.
struct DiskWatch {
  enum News: Equatable {
    case hangs(Duration)
    case answers
  }

  static let lookEvery: Duration = .seconds(1)
  /// Longer than the worst of a disk that works, shorter than the 30 s after which a guest's own disk driver gives up.
  static let stallMax: Duration = .seconds(25)
  /// Said again as long as it goes on: a vmhad that began meanwhile has to learn it.
  static let sayEvery: Duration = .seconds(10)
  /// A tick that comes so late: this process did not run, whatever its disk did.
  static let ownStallMax: Duration = .seconds(10)

  private let stallMax: Duration
  private var lookedAt: Instant?
  private var notBefore = Instant(nanoseconds: 0)
  private var saidAt: Instant?

  init(stallMax: Duration = DiskWatch.stallMax) { self.stallMax = stallMax }

  /// `gap`: since the tick before. `oldest`: since when the disk has had the request that it has had longest; nil = it has none.
  mutating func look(_ now: Instant, gap: Duration, oldest: () -> Instant?) -> News? {
    if gap > Self.ownStallMax { notBefore = now }
    if let lookedAt, now - lookedAt < Self.lookEvery { return nil }
    lookedAt = now
    let stall = oldest().map { now - max($0, notBefore) } ?? .zero
    guard stall > stallMax else {
      defer { saidAt = nil }
      return saidAt == nil ? nil : .answers
    }
    if let saidAt, now - saidAt < Self.sayEvery { return nil }
    saidAt = now
    return .hangs(stall)
  }
}

extension Engine {
  func watchDisk(_ now: Instant, gap: Duration) {
    switch diskWatch.withLock({ $0.look(now, gap: gap) { mirror.oldestOnDisk } }) {
    case nil: break
    case .hangs(let stall):
      Log.note("the disk has not answered a request of the guest for \(stall.milliseconds) ms")
      emit(.diskHangs(milliseconds: stall.milliseconds))
    case .answers:
      Log.note("the disk answers again")
      emit(.diskAnswers)
    }
  }
}

extension Mirror {
  func isOnDisk(_ request: GuestRequest) {
    request.onDiskSince.store(clock.load(ordering: .relaxed), ordering: .relaxed)
  }

  /// Of what a guest waits for. A flush of our own may rightly take long, after a resync.
  var oldestOnDisk: Instant? {
    let change = state.withLock { state -> Int64? in
      var oldest: Int64?
      for key in state.live {
        let request = GuestRequest.borrow(UInt64(key))
        let since = request.onDiskSince.load(ordering: .relaxed)
        guard since != 0, request.kernel != nil, !request.isAbandoned else { continue }
        oldest = min(since, oldest ?? since)
      }
      return oldest
    }
    return [change, reads.oldest].compactMap { $0 }.min().map { Instant(nanoseconds: $0) }
  }

  func readBegan(_ unique: UInt64) -> Int { reads.begin(unique, clock) }
  func readEnded(_ slot: Int) { reads.end(slot) }
}
