/// What the file of a write-intent map says.
public struct IntentReading: Sendable, Hashable {
  public let snapshot: IntentSnapshot
  /// Damage found, one sentence each; nil = none. With damage that two copies could not make good, `snapshot` is
  /// `.everything`.
  public let note: String?
}

extension IntentLog {
  /// Reads a whole file, whatever it holds. Memory and time are bounded by its size, which is to be at most
  /// `fileBytesMax`.
  public static func read(_ bytes: UnsafeRawBufferPointer) -> IntentReading {
    var reader = IntentReader(bytes)
    do throws(IntentDamage) {
      let snapshot = try reader.read()
      return IntentReading(snapshot: snapshot, note: reader.notes.isEmpty ? nil : reader.notes.joined(separator: " "))
    } catch {
      let note = "Everything is taken as different: \(error.reason)."
      return IntentReading(snapshot: .everything, note: (reader.notes + [note]).joined(separator: " "))
    }
  }
}

private struct IntentDamage: Error {
  let reason: String
}

private struct IntentReader {
  struct Header: Equatable {
    let isIncomplete: Bool
    let nonce: UInt64
    let snapshotBytes: Int
    let snapshotChecksum: UInt32
    let logBytes: Int
  }

  struct Block {
    let sequence: UInt64
    /// Sequence of the first block of its batch.
    let first: UInt64
    let count: UInt32
    let payload: UnsafeRawBufferPointer
  }

  static let notesMax = 4

  let bytes: UnsafeRawBufferPointer
  var notes: [String] = []
  private var nonce: UInt64 = 0
  private var logStart = 0

  init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  mutating func read() throws(IntentDamage) -> IntentSnapshot {
    let header = try readHeader()
    let snapshotStart = 2 * IntentLog.blockBytes
    let snapshotRoom = IntentLog.padded(header.snapshotBytes)
    nonce = header.nonce
    logStart = snapshotStart + 2 * snapshotRoom
    guard bytes.count == logStart + header.logBytes else {
      throw IntentDamage(reason: "the file has \(bytes.count) bytes, its header says \(logStart + header.logBytes)")
    }
    let first = part(snapshotStart, header.snapshotBytes)
    let second = part(snapshotStart + snapshotRoom, header.snapshotBytes)
    let isFirstGood = CRC32C.checksum(first) == header.snapshotChecksum
    let isSecondGood = CRC32C.checksum(second) == header.snapshotChecksum
    guard isFirstGood || isSecondGood else { throw IntentDamage(reason: "both copies of the snapshot are damaged") }
    if !(isFirstGood && isSecondGood) { note("One copy of the snapshot is damaged, the other one is used.") }
    var snapshot = try decodeSnapshot(isFirstGood ? first : second)
    try replay(into: &snapshot, pairs: header.logBytes / (2 * IntentLog.blockBytes))
    if header.isIncomplete {
      throw IntentDamage(reason: "more than \(IntentSnapshot.filesMax) files had marks, not all of them fitted")
    }
    return snapshot
  }

  private mutating func note(_ text: String) {
    if notes.count < IntentReader.notesMax { notes.append(text) }
  }

  private func part(_ offset: Int, _ count: Int) -> UnsafeRawBufferPointer {
    UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count])
  }

  // MARK: - header and snapshot

  private mutating func readHeader() throws(IntentDamage) -> Header {
    guard bytes.count >= 2 * IntentLog.blockBytes else {
      throw IntentDamage(reason: "the file is shorter than its header (\(bytes.count) bytes)")
    }
    guard bytes.count <= IntentLog.fileBytesMax else {
      throw IntentDamage(reason: "the file is larger than it can be (\(bytes.count) bytes)")
    }
    let copies = [header(at: 0), header(at: IntentLog.blockBytes)]
    switch (copies[0], copies[1]) {
    case (.success(let one), .success(let other)):
      guard one == other else { throw IntentDamage(reason: "the two copies of the header contradict each other") }
      return one
    case (.success(let good), .failure(let damage)), (.failure(let damage), .success(let good)):
      note("One copy of the header is not usable (\(damage.reason)), the other one is used.")
      return good
    case (.failure(let damage), .failure): throw damage
    }
  }

  private func header(at offset: Int) -> Result<Header, IntentDamage> {
    let block = part(offset, IntentLog.blockBytes)
    var fields = ByteReader(block)
    guard fields.take(UInt64.self) == IntentLog.headerMagic else {
      return .failure(IntentDamage(reason: "it is not the header of a write-intent map"))
    }
    let version = fields.take(UInt32.self) ?? 0
    guard version == IntentLog.version else {
      return .failure(
        IntentDamage(reason: "the file has version \(version), this program reads version \(IntentLog.version)"))
    }
    guard isSound(block, checksumOffset: IntentLog.headerChecksumOffset) else {
      return .failure(IntentDamage(reason: "the header fails its checksum"))
    }
    guard let flags = fields.take(UInt32.self), let nonce = fields.take(UInt64.self),
      let snapshotBytes = fields.take(UInt32.self), let snapshotChecksum = fields.take(UInt32.self),
      let logBytes = fields.take(UInt32.self), flags <= 1, snapshotBytes <= UInt32(IntentLog.snapshotBytesMax),
      logBytes <= UInt32(IntentLog.logBytesMax), Int(logBytes) % (2 * IntentLog.blockBytes) == 0
    else { return .failure(IntentDamage(reason: "the header holds impossible values")) }
    return .success(
      Header(
        isIncomplete: flags == 1, nonce: nonce, snapshotBytes: Int(snapshotBytes), snapshotChecksum: snapshotChecksum,
        logBytes: Int(logBytes)))
  }

  /// The checksum of a block, taken with zeros in its own place.
  private func isSound(_ block: UnsafeRawBufferPointer, checksumOffset: Int) -> Bool {
    var sum = CRC32C()
    sum.update(UnsafeRawBufferPointer(rebasing: block[..<checksumOffset]))
    withUnsafeBytes(of: UInt32(0)) { sum.update($0) }
    sum.update(UnsafeRawBufferPointer(rebasing: block[(checksumOffset + 4)...]))
    let stored = UInt32(littleEndian: block.loadUnaligned(fromByteOffset: checksumOffset, as: UInt32.self))
    return sum.value == stored
  }

  private func decodeSnapshot(_ body: UnsafeRawBufferPointer) throws(IntentDamage) -> IntentSnapshot {
    let bad = IntentDamage(reason: "the snapshot holds impossible values")
    var fields = ByteReader(body)
    guard let everything = fields.take(UInt8.self), everything <= 1, let count = fields.take(UInt32.self),
      count <= UInt32(IntentSnapshot.filesMax), Int(count) * IntentLog.fileHeadBytes <= fields.left
    else { throw bad }
    var snapshot = IntentSnapshot(isEverything: everything == 1)
    for _ in 0..<count {
      guard let identity = fields.takeIdentity(), let whole = fields.take(UInt8.self), whole <= 1,
        let ranges = fields.take(UInt32.self), ranges <= UInt32(IntentSnapshot.rangesPerFileMax),
        Int(ranges) <= fields.left / IntentLog.rangeBytes,
        snapshot.files[identity] == nil
      else { throw bad }
      var file = IntentSnapshot.File()
      file.isWhole = whole == 1
      for _ in 0..<ranges {
        guard let range = fields.takeZones(), file.zones.ranges.last.map({ $0.upperBound < range.lowerBound }) ?? true
        else { throw bad }
        file.zones.append(range)
      }
      snapshot.files[identity] = file
    }
    guard fields.left == 0 else { throw bad }
    return snapshot
  }

  // MARK: - log

  private mutating func replay(into snapshot: inout IntentSnapshot, pairs: Int) throws(IntentDamage) {
    var position = 0
    while position < pairs, let head = block(position) {
      let count = Int(head.count)
      guard head.first == head.sequence, (1...IntentLog.batchBlocksMax).contains(count), count <= pairs - position
      else { throw IntentDamage(reason: "log block \(position) is not where it belongs") }
      var body = [UInt8](head.payload)
      for next in position + 1..<position + count {
        // The first block was written after the others were durable: they were all there once.
        guard let block = block(next), block.first == head.first, block.count == head.count else {
          throw IntentDamage(reason: "both copies of log block \(next) are damaged")
        }
        body += block.payload
      }
      try apply(body, to: &snapshot, position)
      position += count
    }
    try checkEnd(at: position, pairs: pairs)
  }

  /// Behind the last block there may be the rest of one batch that was being written, and never was durable. Anything
  /// else was written after a block that is not readable now.
  private func checkEnd(at end: Int, pairs: Int) throws(IntentDamage) {
    for position in end..<pairs {
      for copy in 0...1 {
        guard let block = block(position, copy: copy) else { continue }
        guard block.first == UInt64(end + 1), block.sequence == UInt64(position + 1) else {
          throw IntentDamage(reason: "both copies of log block \(end) are damaged, and later ones are there")
        }
      }
    }
  }

  private mutating func block(_ position: Int) -> Block? {
    let copies = [block(position, copy: 0), block(position, copy: 1)].compactMap { $0 }
      .filter { $0.sequence == UInt64(position + 1) }
    if copies.count == 1 { note("One copy of log block \(position) is damaged or missing, the other one is used.") }
    return copies.first
  }

  /// nil unless it is a whole block of this file.
  private func block(_ position: Int, copy: Int) -> Block? {
    let block = part(logStart + (2 * position + copy) * IntentLog.blockBytes, IntentLog.blockBytes)
    var fields = ByteReader(block)
    guard fields.take(UInt64.self) == IntentLog.blockMagic, fields.take(UInt64.self) == nonce,
      isSound(block, checksumOffset: IntentLog.blockChecksumOffset), let sequence = fields.take(UInt64.self),
      let first = fields.take(UInt64.self), let count = fields.take(UInt32.self), let length = fields.take(UInt32.self),
      length <= UInt32(IntentLog.payloadBytesMax)
    else { return nil }
    let start = IntentLog.blockHeadBytes
    let payload = UnsafeRawBufferPointer(rebasing: block[start..<start + Int(length)])
    return Block(sequence: sequence, first: first, count: count, payload: payload)
  }

  private func apply(
    _ body: [UInt8], to snapshot: inout IntentSnapshot, _ position: Int
  ) throws(IntentDamage) {
    let isGood = body.withUnsafeBytes { buffer in
      var fields = ByteReader(buffer)
      while fields.left > 0 {
        guard let change = fields.takeChange() else { return false }
        snapshot.apply(change)
      }
      return true
    }
    guard isGood else { throw IntentDamage(reason: "log block \(position) holds impossible values") }
  }
}

/// Integers from bytes that may be anything: nil when there are not enough.
private struct ByteReader {
  private let bytes: UnsafeRawBufferPointer
  private var position = 0

  init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

  var left: Int { bytes.count - position }

  mutating func take<Value: FixedWidthInteger>(_ type: Value.Type) -> Value? {
    guard left >= MemoryLayout<Value>.size else { return nil }
    defer { position += MemoryLayout<Value>.size }
    return Value(littleEndian: bytes.loadUnaligned(fromByteOffset: position, as: Value.self))
  }

  mutating func takeIdentity() -> FileIdentity? {
    guard let high = take(UInt64.self), let low = take(UInt64.self) else { return nil }
    return FileIdentity(high: high.byteSwapped, low: low.byteSwapped)
  }

  mutating func takeZones() -> Range<UInt32>? {
    guard let lower = take(UInt32.self), let upper = take(UInt32.self), lower < upper,
      upper <= UInt32(IntentMap.zonesMax)
    else { return nil }
    return lower..<upper
  }

  mutating func takeChange() -> IntentChange? {
    guard let tag = take(UInt8.self) else { return nil }
    switch tag {
    case 5: return .everything(true)
    case 6: return .everything(false)
    case 7: return .reset
    case 1...4: break
    default: return nil
    }
    guard let file = takeIdentity() else { return nil }
    switch tag {
    case 1: return takeZones().map { .set(file, $0) }
    case 2: return takeZones().map { .clear(file, $0) }
    case 3: return .whole(file, true)
    default: return .whole(file, false)
    }
  }
}
