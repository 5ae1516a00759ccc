import Model

/// A regular file to copy, as it is when the manifest is read.
public struct ResyncFile: Hashable, Sendable {
  public var file: FileID
  /// Bytes, holes included.
  public var size: UInt64
  /// Bytes that occupy space (`st_blocks` * 512), for the estimate of the time left.
  public var allocated: UInt64
  /// What has to be looked at, by the maps of both nodes.
  public var content: FileContent
  public init(file: FileID, size: UInt64, allocated: UInt64, content: FileContent) {
    self.file = file
    self.size = size
    self.allocated = min(allocated, size)
    self.content = content
  }
}

/// A piece of one file to copy. It was looked at without a lock: do it under `RangeOrder` for its range, look again
/// there, and return it with `stale` if it is not as it was (data in a hole). A data piece whose file became shorter
/// sends what is left of it.
public struct ResyncPiece: Hashable, Sendable {
  public let file: FileID
  public let offset: UInt64
  public let length: UInt64
  public let kind: Kind
  /// Data that a comparison has found to differ: its bytes were read from this node's disk a moment ago.
  public var wasCompared = false
  public enum Kind: Hashable, Sendable {
    /// Punched at the target; no contents go.
    case hole
    /// Sent.
    case data
    /// Hashes are sent; what differs comes again as data. At most one zone.
    case compare
  }
  public var isHole: Bool { kind == .hole }
  public var range: Range<UInt64> { offset..<offset + length }
}

/// Walks what may differ in the files of a resync in order, zone by zone. Pure: the user reads extents and bytes, sends, and passes
/// the clock in. Only the sizes at the time of the manifest are walked; whatever is written later is mirrored anyway.
public struct ResyncPlan: Sendable {
  /// Largest data piece; pieces end at multiples of it.
  public static let zoneBytes: UInt64 = 1024 * 1024
  /// What is compared, and sent if it differs.
  public static let blockBytes: UInt64 = 64 * 1024
  /// Largest hole piece.
  public static let holeBytesMax: UInt64 = 1024 * 1024 * 1024
  /// Pieces handed out and not acknowledged, holes included.
  public static let piecesOutstandingMax = 256
  public static let windowBytesDefault = 16 * 1024 * 1024

  public enum Step: Hashable, Sendable {
    /// Find the first data at or after `from` (SEEK_DATA, SEEK_HOLE) and tell `scanned`, then ask again.
    case scan(FileID, from: UInt64)
    case copy(ResyncPiece)
    /// Every piece of the file was sent; a good moment to send its times.
    case fileSent(FileID)
    /// Nothing to do until an acknowledgement or a `stale` comes.
    case wait
    /// Everything was acknowledged (R8.1).
    case done
  }

  /// Data bytes handed out and not acknowledged; may be changed at any time to give way to the guest. At least one
  /// piece goes.
  public var windowBytes = ResyncPlan.windowBytesDefault
  /// The same of contents alone, which is what fills the link, and the largest piece of them; see `CopyPace`.
  public var contentsWindowBytes = ResyncPlan.windowBytesDefault
  public var contentsPieceBytesMax = ResyncPlan.zoneBytes

  private struct Walk: Sendable {
    let file: ResyncFile
    /// What has to be looked at, ascending and apart.
    let ranges: [Range<UInt64>]
    var nextRange = 0
    var position: UInt64
    /// Known to hold data; empty = scan at `position`.
    var dataEnd: UInt64 = 0
    /// Known to be a hole up to here.
    var holeEnd: UInt64 = 0
    /// Handed out, not yet sent.
    var unsent = 0
    /// Comparisons that are not answered: data may follow.
    var comparing = 0
    var dataDone: UInt64 = 0
    var isRemoved = false
    var isWalked: Bool { isRemoved || nextRange >= ranges.count }
    var isFresh: Bool { file.content == .fresh }

    init(_ file: ResyncFile) {
      self.file = file
      ranges = file.content.byteRanges(size: file.size)
      position = ranges.first?.lowerBound ?? 0
    }

    /// Bytes of `ranges` from `position` on.
    var bytesAhead: UInt64 {
      guard nextRange < ranges.count else { return 0 }
      return ranges[(nextRange + 1)...].reduce(ranges[nextRange].upperBound - position) { $0 + UInt64($1.count) }
    }

    mutating func advance(_ bytes: UInt64) {
      position += bytes
      guard position >= ranges[nextRange].upperBound else { return }
      nextRange += 1
      if nextRange < ranges.count { position = ranges[nextRange].lowerBound }
    }
  }

  private var files: [ResyncFile]
  private var nextFile = 0
  /// Files that are not finished; the last one is being walked, the earlier ones have unsent pieces.
  private var walks: [Walk] = []
  private var again: [ResyncPiece] = []
  private var sent: [UInt64: ResyncPiece] = [:]
  private var nextSequence: UInt64 = 1
  private var removed: Set<FileID> = []
  private var piecesOutstanding = 0
  private var dataOutstanding: UInt64 = 0
  private var contentsOutstanding: UInt64 = 0

  private var bytesTotal: UInt64
  private var bytesDone: UInt64 = 0
  private var bytesSent: UInt64 = 0
  private var dataDone: UInt64 = 0
  private var allocatedAhead: UInt64
  private var rate: RateMeter
  private var movedAt: Instant

  public init(files: [ResyncFile], now: Instant) {
    self.files = files
    bytesTotal = files.reduce(0) { $0 + $1.bytesToLookAt }
    allocatedAhead = files.reduce(0) { $0 + $1.dataToLookAt }
    rate = RateMeter(now: now)
    movedAt = now
  }

  // MARK: - what to do

  public mutating func next() -> Step {
    if let index = walks.firstIndex(where: { $0.isWalked && $0.unsent + $0.comparing == 0 && !isAgain($0.file.file) }) {
      let walk = walks.remove(at: index)
      if !walk.isRemoved { return .fileSent(walk.file.file) }
      return next()
    }
    if piecesOutstanding >= ResyncPlan.piecesOutstandingMax { return .wait }
    if let piece = again.popLast() { return restart(piece) }
    if walks.last.map(\.isWalked) ?? true {
      guard openNextFile() else { return piecesOutstanding == 0 && walks.isEmpty ? .done : .wait }
      return next()
    }
    return walkOn()
  }

  private func walk(of file: FileID) -> Int? { walks.firstIndex { $0.file.file == file } }

  private func isAgain(_ file: FileID) -> Bool { again.contains { $0.file == file } }

  private mutating func openNextFile() -> Bool {
    while nextFile < files.count {
      let file = files[nextFile]
      nextFile += 1
      if removed.contains(file.file) { continue }
      allocatedAhead -= file.dataToLookAt
      walks.append(Walk(file))
      return true
    }
    return false
  }

  private mutating func walkOn() -> Step {
    let index = walks.count - 1
    let walk = walks[index]
    let limit = walk.ranges[walk.nextRange].upperBound
    if walk.holeEnd > walk.position {
      // Of a fresh file too: a write that is left to the copy may be on its way into the hole, and is seen under the range's order.
      let length = min(min(walk.holeEnd, limit) - walk.position, ResyncPlan.holeBytesMax)
      return hand(out: ResyncPiece(file: walk.file.file, offset: walk.position, length: length, kind: .hole), index)
    }
    guard walk.dataEnd > walk.position else { return .scan(walk.file.file, from: walk.position) }
    let zoneEnd = (walk.position / ResyncPlan.zoneBytes + 1) * ResyncPlan.zoneBytes
    let kind = walk.isFresh ? ResyncPiece.Kind.data : .compare
    var length = min(min(zoneEnd, walk.dataEnd), limit) - walk.position
    if kind == .data { length = min(length, contentsPieceBytesMax) }
    guard hasRoom(kind, length) else { return .wait }
    return hand(
      out: ResyncPiece(file: walk.file.file, offset: walk.position, length: length, kind: kind), index)
  }

  private func hasRoom(_ kind: ResyncPiece.Kind, _ length: UInt64) -> Bool {
    if kind == .data, contentsOutstanding > 0, contentsOutstanding + length > UInt64(max(contentsWindowBytes, 0)) {
      return false
    }
    return dataOutstanding == 0 || dataOutstanding + length <= UInt64(max(windowBytes, 0))
  }

  private mutating func hand(out piece: ResyncPiece, _ index: Int) -> Step {
    walks[index].advance(piece.length)
    account(piece, index)
    return .copy(piece)
  }

  private mutating func account(_ piece: ResyncPiece, _ index: Int) {
    walks[index].unsent += 1
    piecesOutstanding += 1
    if !piece.isHole {
      dataOutstanding += piece.length
      if piece.kind == .data { contentsOutstanding += piece.length }
      walks[index].dataDone += piece.length
    }
  }

  /// What differs; and a hole in which data appeared is copied as data, zone by zone: reading a hole gives zeros, so that
  /// is always right.
  private mutating func restart(_ piece: ResyncPiece) -> Step {
    guard let index = walk(of: piece.file) else { return next() }
    let zoneEnd = (piece.offset / ResyncPlan.zoneBytes + 1) * ResyncPlan.zoneBytes
    let length = min(min(zoneEnd - piece.offset, piece.length), contentsPieceBytesMax)
    guard hasRoom(.data, length) else {
      again.append(piece)
      return .wait
    }
    if length < piece.length {
      again.append(
        ResyncPiece(
          file: piece.file, offset: piece.offset + length, length: piece.length - length, kind: piece.kind,
          wasCompared: piece.wasCompared))
    }
    let part = ResyncPiece(
      file: piece.file, offset: piece.offset, length: length, kind: .data, wasCompared: piece.wasCompared)
    account(part, index)
    return .copy(part)
  }

  // MARK: - what was found and done

  /// Answer to `scan`: the first stretch of data at or after `from`, nil = none up to the end; `size` is the file's
  /// size now.
  public mutating func scanned(_ file: FileID, from: UInt64, data: Range<UInt64>?, size: UInt64) {
    guard let index = walks.indices.last, walks[index].file.file == file, walks[index].position == from,
      !walks[index].isWalked
    else { return }
    let end = walks[index].file.size
    if size <= from {  // became shorter: nothing is left to copy
      bytesDone += walks[index].bytesAhead
      walks[index].nextRange = walks[index].ranges.count
      return
    }
    // Beyond the size of now there is nothing; as a hole it still makes the target the same.
    let dataStart = min(data.map { max($0.lowerBound, from) } ?? end, end)
    walks[index].holeEnd = dataStart
    walks[index].dataEnd = data.map { min(max($0.upperBound, dataStart), end) } ?? dataStart
  }

  /// The piece is queued, with this sequence number (of the resync row), while its range is still held; `bytes` of
  /// contents were sent, 0 for a hole or zeros.
  public mutating func send(_ piece: ResyncPiece, bytes: UInt64) -> UInt64 {
    let kind = piece.kind == .compare ? .data : piece.kind
    if piece.kind == .compare { contentsOutstanding += piece.length }
    return queue(ResyncPiece(file: piece.file, offset: piece.offset, length: piece.length, kind: kind), bytes)
  }

  /// As `send`, for the hashes of a piece to compare.
  public mutating func sendHashes(_ piece: ResyncPiece) -> UInt64 {
    if let index = walk(of: piece.file) { walks[index].comparing += 1 }
    return queue(piece, 0)
  }

  private mutating func queue(_ piece: ResyncPiece, _ bytes: UInt64) -> UInt64 {
    let sequence = nextSequence
    nextSequence += 1
    sent[sequence] = piece
    bytesSent += bytes
    markSent(piece)
    return sequence
  }

  /// The piece is not as it was: a hole got data. It comes again as data.
  public mutating func stale(_ piece: ResyncPiece) {
    settle(piece)
    if !piece.isHole, let index = walk(of: piece.file) {
      walks[index].dataDone -= piece.length
    }
    markSent(piece)
    if removed.contains(piece.file) { bytesTotal -= piece.length } else { again.append(piece) }
  }

  /// The piece needs no sending: its file is gone or ends before it.
  public mutating func skip(_ piece: ResyncPiece) {
    settle(piece)
    markSent(piece)
    bytesDone += piece.length
  }

  private mutating func markSent(_ piece: ResyncPiece) {
    if let index = walk(of: piece.file) { walks[index].unsent -= 1 }
  }

  private mutating func settle(_ piece: ResyncPiece) {
    piecesOutstanding -= 1
    if !piece.isHole { dataOutstanding -= piece.length }
    if piece.kind == .data { contentsOutstanding -= piece.length }
  }

  /// The file has no name and no handle any more (its `forget` is in the stream): no piece of it may be sent after
  /// that. Pieces already handed out are given back with `skip`.
  public mutating func remove(_ file: FileID) {
    guard removed.insert(file).inserted else { return }
    if let index = walk(of: file) {
      let walk = walks[index]
      bytesTotal -= walk.bytesAhead
      walks[index].isRemoved = true
      for piece in again where piece.file == file { bytesTotal -= piece.length }
      again.removeAll { $0.file == file }
    } else if let index = files[nextFile...].firstIndex(where: { $0.file == file }) {
      bytesTotal -= files[index].bytesToLookAt
      allocatedAhead -= files[index].dataToLookAt
    }
  }

  /// The target applied these pieces. A number never sent, or twice, is the peer's error: end the session.
  public mutating func acknowledged(_ range: SequenceRange, now: Instant) throws(AcknowledgeError) {
    guard range.first <= range.last, range.first > 0, range.last < nextSequence,
      range.last - range.first < UInt64(ResyncPlan.piecesOutstandingMax)
    else {
      throw AcknowledgeError(
        .unknownSequence,
        "the peer acknowledged resync pieces \(range.first) to \(range.last); sent were \(nextSequence - 1)")
    }
    for sequence in range.first...range.last {
      guard let piece = sent[sequence], piece.kind != .compare else {
        throw AcknowledgeError(.unknownSequence, "the peer acknowledged resync piece \(sequence) twice, or wrongly")
      }
      sent[sequence] = nil
      settle(piece)
      bytesDone += piece.length
      if !piece.isHole { dataDone += piece.length }
    }
    movedAt = now
    rate.note(dataDone, now)
  }

  /// The target has compared: bit n of `differing` = block n of the piece differs there, and comes
  /// again as data.
  public mutating func compared(_ sequence: UInt64, differing: UInt32, now: Instant) throws(AcknowledgeError) {
    guard let piece = sent[sequence], piece.kind == .compare else {
      throw AcknowledgeError(.unknownSequence, "the peer answered a comparison \(sequence) that was not asked")
    }
    let blocks = (piece.length + ResyncPlan.blockBytes - 1) / ResyncPlan.blockBytes
    guard blocks >= 32 || UInt64(differing) >> blocks == 0 else {
      throw AcknowledgeError(.unknownSequence, "the peer found differences behind the end of piece \(sequence)")
    }
    sent[sequence] = nil
    settle(piece)
    guard let index = walk(of: piece.file) else { return }
    walks[index].comparing -= 1
    var block: UInt64 = 0
    var differs: UInt64 = 0
    while block < blocks {
      let first = block
      while block < blocks, differing >> UInt32(block) & 1 == 1 { block += 1 }
      if block > first {
        let offset = piece.offset + first * ResyncPlan.blockBytes
        let length = min(piece.offset + piece.length, piece.offset + block * ResyncPlan.blockBytes) - offset
        differs += length
        walks[index].dataDone -= length
        if walks[index].isRemoved {
          bytesTotal -= length
        } else {
          again.append(
            ResyncPiece(file: piece.file, offset: offset, length: length, kind: .data, wasCompared: true))
        }
      }
      block += 1
    }
    bytesDone += piece.length - differs
    dataDone += piece.length - differs
    movedAt = now
    rate.note(dataDone, now)
  }

  /// Pieces are sent and not acknowledged.
  public var isAwaiting: Bool { !sent.isEmpty }

  // MARK: - how far

  /// Rate and time left count bytes of data, over the last ten seconds; holes cost next to nothing. The time is nil
  /// until data has moved for `RateMeter.observedMin`, and when nothing moved for ten seconds: an honest "unknown", which is then also
  /// said to be a stall.
  public mutating func progress(now: Instant) -> ResyncProgress {
    rate.note(dataDone, now)
    let perSecond = rate.bytesPerSecond(now)
    let walking = walks.last.map { $0.file.dataToLookAt - min($0.dataDone, $0.file.dataToLookAt) } ?? 0
    let dataLeft = bytesDone >= bytesTotal ? 0 : min(allocatedAhead + walking + dataOutstanding, bytesTotal - bytesDone)
    var left: Int?
    if bytesDone >= bytesTotal {
      left = 0
    } else if let perSecond, perSecond > 0 {
      left = Int((dataLeft + perSecond - 1) / perSecond)
    }
    let still = now - movedAt
    return ResyncProgress(
      bytesTotal: bytesTotal, bytesDone: bytesDone, bytesSent: bytesSent, bytesPerSecond: perSecond ?? 0,
      secondsLeft: left,
      stalledSeconds: still >= RateMeter.window && bytesDone < bytesTotal ? Int(still.milliseconds / 1000) : nil)
  }
}

extension ResyncFile {
  var bytesToLookAt: UInt64 { content.byteRanges(size: size).reduce(0) { $0 + UInt64($1.count) } }
  /// Without the holes, as far as that can be told.
  var dataToLookAt: UInt64 { min(allocated, bytesToLookAt) }
}

/// Bytes a second over the last ten seconds, from readings of a counter.
public struct RateMeter: Sendable {
  public static let window = Duration.seconds(10)
  public static let sampleEvery = Duration.milliseconds(250)
  /// No rate is told before so much time was watched.
  public static let observedMin = Duration.seconds(1)
  /// Oldest first; the first one is at or before the start of the window.
  private var samples: [(at: Instant, count: UInt64)]
  private var newest: UInt64 = 0

  public init(now: Instant) { samples = [(now, 0)] }

  public mutating func note(_ count: UInt64, _ now: Instant) {
    newest = count
    guard let last = samples.last, now - last.at >= RateMeter.sampleEvery else { return }
    samples.append((now, count))
    while samples.count > 2, now - samples[1].at >= RateMeter.window { samples.removeFirst() }
  }

  /// nil = not known yet.
  public func bytesPerSecond(_ now: Instant) -> UInt64? {
    guard let first = samples.first, now - first.at >= RateMeter.observedMin else { return nil }
    let nanoseconds = Double((now - first.at).nanoseconds)
    return UInt64(Double(newest - first.count) * 1e9 / nanoseconds)
  }
}
