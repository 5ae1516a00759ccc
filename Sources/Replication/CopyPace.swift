import Model

/// How much of a resync's contents may be on its way at once. Whatever else uses the link queues behind it, the writes of other modules'
/// guests above all; so it is what the link was seen to carry within `delayMax`, beyond the time that the path itself takes. An idle link
/// is used wholly all the same: more on its way would only wait. Pure: the user tells of what was sent and acknowledged.
///
/// What the path itself takes is the shortest time between sending and acknowledgement. It is measured anew every `probeEvery`, for
/// `probeTime` and with less on the way, since a path may change, and since the copy's own queue must not pass for the path.
public struct CopyPace: Sendable {
  /// Two resyncs share a link (`ResyncTurns.runningMax`): together they are good for twice this.
  public static let delayMax = Duration.milliseconds(25)
  public static let windowBytesMin = Int(ResyncPlan.blockBytes)
  public static let windowBytesFirst = 256 * 1024
  public static let windowBytesMax = ResyncPlan.windowBytesDefault
  /// What was carried is counted over so long, or over one way there and back if that takes longer.
  static let intervalMin = Duration.milliseconds(50)
  static let probeEvery = Duration.seconds(10)
  static let probeTime = Duration.milliseconds(200)

  /// Bytes; at least one piece goes, whatever its length.
  public private(set) var windowBytes = CopyPace.windowBytesFirst
  private var onTheWay: [UInt64: (bytes: Int, at: Instant)] = [:]
  private var bytesOnTheWay = 0
  /// Most of it in this interval.
  private var peak = 0
  private var shortest: Duration?
  private var latest = Duration.zero
  private var lastHeard: Instant
  private var intervalBegan: Instant
  private var carried = 0
  private var probeBegan: Instant
  /// Outside of a probe nil, else what it goes back to.
  private var windowBeforeProbe: Int?

  public init(now: Instant) {
    probeBegan = now
    lastHeard = now
    intervalBegan = now
  }

  /// Largest piece: many are on their way, so that the link does not wait for the next one. A multiple of a block.
  public var pieceBytesMax: UInt64 {
    let blocks = UInt64(windowBytes) / 8 / ResyncPlan.blockBytes
    return min(max(blocks, 1) * ResyncPlan.blockBytes, ResyncPlan.zoneBytes)
  }

  public mutating func sent(_ sequence: UInt64, bytes: Int, now: Instant) {
    // A pause says nothing about the link.
    if onTheWay.isEmpty { intervalBegan = intervalBegan + (now - lastHeard) }
    onTheWay[sequence] = (bytes, now)
    bytesOnTheWay += bytes
    peak = max(peak, bytesOnTheWay)
  }

  public mutating func acknowledged(_ range: SequenceRange, now: Instant) {
    guard range.first <= range.last, range.last - range.first < UInt64(ResyncPlan.piecesOutstandingMax) else { return }
    for sequence in range.first...range.last {
      guard let piece = onTheWay.removeValue(forKey: sequence) else { continue }
      carried += piece.bytes
      bytesOnTheWay -= piece.bytes
      latest = now - piece.at
      shortest = min(shortest ?? latest, latest)
      lastHeard = now
    }
    adjust(now)
  }

  private mutating func adjust(_ now: Instant) {
    guard let shortest else { return }
    let elapsed = now - intervalBegan
    if let before = windowBeforeProbe {
      guard now - probeBegan >= Self.probeTime, elapsed >= Self.intervalMin else { return }
      windowBeforeProbe = nil
      windowBytes = before
      return beginInterval(now)
    }
    guard elapsed >= max(Self.intervalMin, latest) else { return }
    var wanted = Double(carried) * (shortest + Self.delayMax).inSeconds / elapsed.inSeconds
    // It was used, and hardly anything had to queue: there may be room for more.
    if latest - shortest < Self.delayMax * 4 / 5, peak * 2 >= windowBytes {
      wanted = max(wanted, Double(windowBytes) * 1.25)
    }
    // One bad moment is no slow link.
    windowBytes = max(Int(min(wanted, Double(Self.windowBytesMax))), windowBytes / 2, Self.windowBytesMin)
    beginInterval(now)
    if now - probeBegan >= Self.probeEvery {
      windowBeforeProbe = windowBytes
      probeBegan = now
      self.shortest = nil
      windowBytes = max(windowBytes / 4, Self.windowBytesMin)
    }
  }

  private mutating func beginInterval(_ now: Instant) {
    intervalBegan = now
    carried = 0
    peak = bytesOnTheWay
  }
}

extension Duration {
  fileprivate var inSeconds: Double { Double(nanoseconds) / 1e9 }
}
