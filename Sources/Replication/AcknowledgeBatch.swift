import Model

/// What the replica applied and has not told the primary yet, as few ranges as possible.
public struct AcknowledgeBatch: Sendable {
  /// Ascending, neither overlapping nor adjacent.
  private var ranges: [SequenceRange] = []

  public init() {}

  public var isEmpty: Bool { ranges.isEmpty }
  public var rangeCount: Int { ranges.count }

  /// Any order. False: it waits here already; a peer sends each number once in a session.
  @discardableResult public mutating func add(_ sequence: UInt64) -> Bool {
    var index = ranges.count
    while index > 0, ranges[index - 1].first > sequence { index -= 1 }
    guard index == 0 || ranges[index - 1].last < sequence else { return false }
    let joinsBefore = index > 0 && ranges[index - 1].last + 1 == sequence
    let joinsAfter = index < ranges.count && sequence + 1 == ranges[index].first
    switch (joinsBefore, joinsAfter) {
    case (true, true):
      ranges[index - 1].last = ranges[index].last
      ranges.remove(at: index)
    case (true, false): ranges[index - 1].last = sequence
    case (false, true): ranges[index].first = sequence
    case (false, false): ranges.insert(SequenceRange(sequence), at: index)
    }
    return true
  }

  /// Encodes the oldest ranges as one frame and forgets them; call again until `isEmpty`. `buffer` has room for
  /// `FrameLimits.acknowledgeHeadBytesMax` bytes; returns how many to send. `kind` is `.acknowledge` or
  /// `.resyncAcknowledge`.
  public mutating func take(
    into buffer: UnsafeMutableRawBufferPointer, kind: FrameKind, session: SessionID
  ) -> Int {
    let count = min(ranges.count, FrameLimits.rangesCountMax)
    let bytes = FrameHead.acknowledge(into: buffer, kind: kind, session: session, ranges: ranges[..<count])
    ranges.removeFirst(count)
    return bytes
  }

  /// The session is over: nothing of it is acknowledged any more (R1).
  public mutating func removeAll() { ranges.removeAll(keepingCapacity: true) }
}

/// Bytes that may wait for a connection. One frame is always let through when nothing waits, however large.
public struct SendWindow: Sendable {
  public let bytesMax: Int
  public private(set) var bytesWaiting = 0

  public init(bytesMax: Int) {
    precondition(bytesMax > 0)
    self.bytesMax = bytesMax
  }

  /// false = wait until `release` and ask again.
  public mutating func reserve(_ bytes: Int) -> Bool {
    guard bytesWaiting == 0 || bytes <= bytesMax - bytesWaiting else { return false }
    bytesWaiting += bytes
    return true
  }

  /// The bytes were handed to the connection.
  public mutating func release(_ bytes: Int) {
    precondition(bytes <= bytesWaiting)
    bytesWaiting -= bytes
  }

  /// The session is over and its queue thrown away.
  public mutating func reset() { bytesWaiting = 0 }
}
