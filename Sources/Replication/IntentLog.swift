/// The bytes of a write-intent map's file: header, snapshot, log; each thing in two copies. Pure.
/// Layout in docs/on-disk-format.md. Little-endian, everything starts at a multiple of `blockBytes`.
///
/// Reading never fails: what cannot be relied on comes out as "everything may differ", with the reason.
public enum IntentLog {
  public static let version: UInt32 = 1
  /// A block is never written twice in a file, so a torn write cannot harm what was durable before it.
  public static let blockBytes = 4096
  /// Room for the log in a new file.
  public static let logBytes = 1 << 20
  /// The largest log that is read.
  public static let logBytesMax = 4 << 20
  /// Ranges of all files in one snapshot; above that, gaps between ranges are taken as different too.
  public static let rangesMax = 1 << 20
  public static let snapshotBytesMax = 5 + IntentSnapshot.filesMax * fileHeadBytes + rangesMax * rangeBytes
  /// Blocks of one copy of a batch.
  public static let batchBlocksMax = 32
  public static let fileBytesMax = 2 * blockBytes + 2 * padded(snapshotBytesMax) + logBytesMax

  static let headerMagic: UInt64 = 0x3154_4E49_4148_4D56  // "VMHAINT1"
  static let blockMagic: UInt64 = 0x3147_4F4C_4148_4D56  // "VMHALOG1"
  /// Fields before the checksum of a log block, and before its payload.
  static let blockChecksumOffset = 40
  static let blockHeadBytes = 44
  static let payloadBytesMax = blockBytes - blockHeadBytes
  static let headerChecksumOffset = 36
  static let fileHeadBytes = 21
  static let rangeBytes = 8

  static func padded(_ count: Int) -> Int { (count + blockBytes - 1) / blockBytes * blockBytes }

  // MARK: - writing

  /// Header and snapshots of a new file; `logBytes` of zeros follow it on the disk. `nonce` is random and never used
  /// before. A snapshot beyond its limits says more than it was given, never less.
  public static func start(_ snapshot: IntentSnapshot, nonce: UInt64, logBytes: Int = logBytes) -> [UInt8] {
    let (body, isIncomplete) = encode(snapshot)
    var header = FieldWriter(reserving: blockBytes)
    header.put(headerMagic)
    header.put(version)
    header.put(UInt32(isIncomplete ? 1 : 0))
    header.put(nonce)
    header.put(UInt32(body.count))
    header.put(checksum(body))
    header.put(UInt32(logBytes))
    let head = sealed(header.bytes, checksumOffset: headerChecksumOffset)
    let padding = [UInt8](repeating: 0, count: padded(body.count) - body.count)
    return head + head + body + padding + body + padding
  }

  private static func encode(_ snapshot: IntentSnapshot) -> (bytes: [UInt8], isIncomplete: Bool) {
    var files = snapshot.files.sorted { $0.key < $1.key }
    let isIncomplete = files.count > IntentSnapshot.filesMax
    if isIncomplete { files.removeLast(files.count - IntentSnapshot.filesMax) }
    var left = files.reduce(0) { $0 + $1.value.zones.ranges.count }
    // Many ranges in many files: each file gets fewer, down to one.
    var countMax = IntentSnapshot.rangesPerFileMax
    while left > rangesMax || files.contains(where: { $0.value.zones.ranges.count > countMax }) {
      if left > rangesMax { countMax /= 2 }
      for index in files.indices { files[index].value.zones.coarsen(countMax: countMax) }
      left = files.reduce(0) { $0 + $1.value.zones.ranges.count }
    }
    var writer = FieldWriter(reserving: 5 + files.count * fileHeadBytes + left * rangeBytes)
    writer.put(UInt8(snapshot.isEverything ? 1 : 0))
    writer.put(UInt32(files.count))
    for (identity, file) in files {
      writer.put(identity)
      writer.put(UInt8(file.isWhole ? 1 : 0))
      writer.put(UInt32(file.zones.ranges.count))
      for range in file.zones.ranges {
        writer.put(range.lowerBound)
        writer.put(range.upperBound)
      }
    }
    return (writer.bytes, isIncomplete)
  }

  /// Both copies of all blocks of a batch: the first block twice, the second twice, and so on. `sequence` is the
  /// number of its first block in the log, from 1. The first block must not be written before all others are durable:
  /// that it is there says that they are.
  static func blocks(_ batch: IntentBatch, nonce: UInt64, sequence: UInt64) -> [UInt8] {
    let body = encode(batch.changes)
    let count = max(1, (body.count + payloadBytesMax - 1) / payloadBytesMax)
    precondition(count <= batchBlocksMax, "a batch holds at most changesMax changes")
    var bytes: [UInt8] = []
    bytes.reserveCapacity(2 * count * blockBytes)
    for index in 0..<count {
      let payload = body[index * payloadBytesMax..<min((index + 1) * payloadBytesMax, body.count)]
      var writer = FieldWriter(reserving: blockBytes)
      writer.put(blockMagic)
      writer.put(nonce)
      writer.put(sequence + UInt64(index))
      writer.put(sequence)
      writer.put(UInt32(count))
      writer.put(UInt32(payload.count))
      writer.put(UInt32(0))
      let block = sealed(writer.bytes + payload, checksumOffset: blockChecksumOffset)
      bytes += block
      bytes += block
    }
    return bytes
  }

  private static func encode(_ changes: [IntentChange]) -> [UInt8] {
    var writer = FieldWriter(reserving: changes.count * 25)
    for change in changes {
      writer.put(UInt8(change.tag))
      switch change {
      case .set(let file, let zones), .clear(let file, let zones):
        writer.put(file)
        writer.put(zones.lowerBound)
        writer.put(zones.upperBound)
      case .whole(let file, _): writer.put(file)
      case .everything, .reset: break
      }
    }
    return writer.bytes
  }

  /// Filled up to a block, with the checksum of the whole block (taken with zeros in the checksum's place).
  private static func sealed(_ bytes: [UInt8], checksumOffset: Int) -> [UInt8] {
    var block = bytes + [UInt8](repeating: 0, count: blockBytes - bytes.count)
    withUnsafeBytes(of: checksum(block).littleEndian) {
      block.replaceSubrange(checksumOffset..<checksumOffset + 4, with: $0)
    }
    return block
  }

  private static func checksum(_ bytes: [UInt8]) -> UInt32 { bytes.withUnsafeBytes { CRC32C.checksum($0) } }
}

/// The log of one new file, from its first block on: where each batch goes.
public struct IntentAppender: Sendable {
  /// What to write, and where in the file.
  public struct Piece: Sendable {
    public let offset: Int
    /// Both copies of every block.
    public let bytes: [UInt8]
    /// The first so many of `bytes` must be written after the rest is durable.
    public static let lastBytes = 2 * IntentLog.blockBytes
  }

  private let nonce: UInt64
  private let start: Int
  private let pairs: Int
  private var used = 0

  /// `startBytes`: what `IntentLog.start` made, with the same nonce and log size.
  public init(startBytes: Int, nonce: UInt64, logBytes: Int = IntentLog.logBytes) {
    self.nonce = nonce
    start = startBytes
    pairs = logBytes / (2 * IntentLog.blockBytes)
  }

  /// nil = there is no room: a checkpoint has to come first.
  public mutating func append(_ batch: IntentBatch) -> Piece? {
    let bytes = IntentLog.blocks(batch, nonce: nonce, sequence: UInt64(used + 1))
    let count = bytes.count / (2 * IntentLog.blockBytes)
    guard count <= pairs - used else { return nil }
    let offset = start + used * 2 * IntentLog.blockBytes
    used += count
    return Piece(offset: offset, bytes: bytes)
  }

  /// Not even the smallest batch fits.
  public var isFull: Bool { used >= pairs }
}

extension IntentChange {
  var tag: Int {
    switch self {
    case .set: 1
    case .clear: 2
    case .whole(_, true): 3
    case .whole(_, false): 4
    case .everything(true): 5
    case .everything(false): 6
    case .reset: 7
    }
  }
}

extension FieldWriter {
  mutating func put(_ file: FileIdentity) {
    for byte in file.bytes { put(byte) }
  }
}
