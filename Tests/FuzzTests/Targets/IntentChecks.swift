@testable import Replication

/// The file of the write-intent map (R3). The input is a list of changes, from which a file is written as the engine would, and a list of
/// damages to it. What is read must never say less than what was relied on.
enum IntentChecks {
  private static let block = IntentLog.blockBytes
  private static let nonce: UInt64 = 0x0102_0304_0506_0708

  static func check(_ input: [UInt8]) throws {
    guard let mode = input.first else { return }
    if mode & 1 == 1 {
      // As it stands, whatever it is.
      _ = Array(input[1...]).withUnsafeBytes { IntentLog.read($0) }
      return
    }
    var reader = Bytes(input[1...])
    let written = Written(&reader)
    guard read(written.bytes) == IntentReading(snapshot: written.final, note: nil) else {
      throw Finding("\(read(written.bytes)) was read where \(written.final) was written")
    }
    var damaged = written.bytes
    // Where there is something; header, snapshot and log blocks each lie there twice, one copy behind the other.
    let used = (written.batches.last?.upperBound ?? 4) * block
    while let at = reader.next(), let high = reader.next(), let kind = reader.next(), let value = reader.next() {
      let index = (Int(at) | Int(high) << 8) * 7 % used
      switch kind % 5 {
      case 0: damaged[index] ^= value | 1
      case 1: for i in index..<min(index + Int(value) * 16, damaged.count) { damaged[i] = 0 }
      case 2:
        // A block is lost: never written, or swallowed by the disk.
        let start = index / block * block
        for i in start..<min(start + block, damaged.count) { damaged[i] = value }
      case 3:
        let start = index / (2 * block) * 2 * block
        for i in start..<min(start + 2 * block, damaged.count) { damaged[i] = value }
      default: damaged[index] = value
      }
    }
    try judge(read(damaged).snapshot, written, damaged)
  }

  private static func read(_ bytes: [UInt8]) -> IntentReading { bytes.withUnsafeBytes { IntentLog.read($0) } }

  /// Of bytes that may be used up.
  private struct Bytes {
    private var rest: ArraySlice<UInt8>
    init(_ bytes: ArraySlice<UInt8>) { rest = bytes }
    mutating func next() -> UInt8? { rest.popFirst() }
  }

  private struct Written {
    static let logBytes = 32 * block
    var bytes: [UInt8]
    /// What the file says after its start and after each batch.
    var states: [IntentSnapshot] = []
    /// For each batch the blocks (of both copies) it took.
    var batches: [Range<Int>] = []
    var final: IntentSnapshot { states.last ?? IntentSnapshot() }

    /// First byte: changes in the snapshot; then, for each batch, its number of changes and they themselves.
    init(_ reader: inout Bytes) {
      var snapshot = IntentSnapshot()
      for _ in 0..<(reader.next() ?? 0) % 16 { snapshot.apply(Self.change(&reader)) }
      let start = IntentLog.start(snapshot, nonce: nonce, logBytes: Self.logBytes)
      bytes = start + [UInt8](repeating: 0, count: Self.logBytes)
      states = [snapshot]
      var appender = IntentAppender(startBytes: start.count, nonce: nonce, logBytes: Self.logBytes)
      for number in 0..<UInt64((reader.next() ?? 0) % 8) {
        // The last kind is a batch of several blocks.
        let count = Int((reader.next() ?? 0) % 6)
        var changes = (0..<max(count, 1)).map { _ in Self.change(&reader) }
        if count == 5 { changes += (0..<UInt32(400)).map { .set(Self.identity(9), $0 * 2..<$0 * 2 + 1) } }
        guard let piece = appender.append(IntentBatch(number: number + 1, changes: changes)) else { return }
        bytes.replaceSubrange(piece.offset..<piece.offset + piece.bytes.count, with: piece.bytes)
        for change in changes { snapshot.apply(change) }
        states.append(snapshot)
        batches.append(piece.offset / block..<(piece.offset + piece.bytes.count) / block)
      }
    }

    private static func identity(_ number: UInt8) -> FileIdentity {
      guard let identity = FileIdentity(high: 7, low: UInt64(number)) else { preconditionFailure("seven is not zero") }
      return identity
    }

    private static func change(_ reader: inout Bytes) -> IntentChange {
      let file = identity((reader.next() ?? 0) % 4)
      let first = UInt32(reader.next() ?? 0)
      let zones = first..<first + 1 + UInt32((reader.next() ?? 0) % 32)
      switch (reader.next() ?? 0) % 12 {
      case 0: return .whole(file, true)
      case 1: return .whole(file, false)
      case 2: return .everything(true)
      case 3: return .everything(false)
      case 4: return .reset
      case 5, 6, 7: return .clear(file, zones)
      default: return .set(file, zones)
      }
    }
  }

  private static func judge(_ found: IntentSnapshot, _ written: Written, _ damaged: [UInt8]) throws {
    func isHit(_ number: Int) -> Bool {
      damaged[number * block..<(number + 1) * block] != written.bytes[number * block..<(number + 1) * block]
    }
    // Documented: a last batch of which no block's first copy is left cannot be told from one that was never completed; and so on,
    // backwards.
    var lost = written.batches.count
    while lost > 0 {
      let batch = written.batches[lost - 1]
      guard isHit(batch.lowerBound), isHit(batch.lowerBound + 1),
        written.batches[lost...].allSatisfy({ $0.allSatisfy(isHit) })
      else { break }
      lost -= 1
    }
    guard written.states[lost...].contains(where: { covers(found, $0) }) else {
      throw Finding("\(found) was read after damage to what said \(written.final)")
    }
  }

  /// `large` says at least what `small` says.
  private static func covers(_ large: IntentSnapshot, _ small: IntentSnapshot) -> Bool {
    if large.isEverything { return true }
    return !small.isEverything
      && small.files.allSatisfy { file, marks in
        guard let found = large.files[file] else { return false }
        if marks.isWhole, !found.isWhole { return false }
        return marks.zones.ranges.allSatisfy { $0.allSatisfy(found.zones.contains) }
      }
  }

  // MARK: seeds

  static func seeds() -> [[UInt8]] {
    let usual: [UInt8] = [
      0, 3, 1, 3, 5, 9, 1, 12, 0, 9, 2, 0, 0, 0, 3, 2, 3, 5, 0, 9, 1, 4, 1, 5, 5, 1, 40, 3, 8, 1, 0, 8, 4, 11,
    ]
    let everything: [UInt8] = [0, 0, 2, 1, 0, 0, 0, 2, 1, 0, 0, 0, 3]
    return [
      usual, usual + [100, 30, 0, 1, 0, 100, 2, 0], usual + [54, 9, 3, 1], everything, [1] + Array("VMHAINT1".utf8),
    ]
  }
}
