import Model
import Replication

/// What a copy says: one image, block by block the number of the write that is there, and what happened to names and
/// attributes, in order.
struct Contents: Hashable {
  /// Three zones of the write-intent map.
  static let blocksPerZone = 4
  static let blockCount = 12
  static let blockBytes = ResyncPlan.zoneBytes / UInt64(blocksPerZone)
  static let bytes = UInt64(blockCount) * blockBytes
  static func bytes(of blocks: Range<Int>) -> Range<UInt64> {
    UInt64(blocks.lowerBound) * blockBytes..<UInt64(blocks.upperBound) * blockBytes
  }

  static let untouched = Contents()

  /// 0 = never written to.
  var blocks = [Int](repeating: 0, count: blockCount)
  var names: [Int] = []
}

/// One copy of the module's data, as the running system shows it; what was not flushed can be lost with the power, in any
/// order, block by block. Names are lost from the end, as a journal loses them.
struct Copy {
  private(set) var contents = Contents()
  /// In the middle of a resync.
  var isMixed = false
  /// By block, what the disk may hold instead of what is shown: all values since the last flush, the oldest first.
  private var older = [[Int]](repeating: [], count: Contents.blockCount)
  /// By block, how many of its values are behind a flush or forgotten.
  private var settled = [Int](repeating: 0, count: Contents.blockCount)
  private var namesFlushed = 0

  /// What a flush that begins now will have made durable when it ends.
  struct Flush {
    fileprivate let settled: [Int]
    fileprivate let names: [Int]
  }

  mutating func write(_ block: Int, _ number: Int) {
    older[block].append(contents.blocks[block])
    contents.blocks[block] = number
  }

  mutating func append(name: Int) { contents.names.append(name) }

  mutating func replace(names: [Int]) {
    guard names != contents.names else { return }
    namesFlushed = min(namesFlushed, zip(names, contents.names).prefix { $0 == $1 }.count)
    contents.names = names
  }

  func beginFlush() -> Flush {
    Flush(settled: older.indices.map { settled[$0] + older[$0].count }, names: contents.names)
  }

  mutating func end(_ flush: Flush) {
    for block in older.indices where !older[block].isEmpty && flush.settled[block] > settled[block] {
      older[block].removeFirst(min(older[block].count, flush.settled[block] - settled[block]))
      settled[block] = flush.settled[block]
    }
    let kept = zip(flush.names, contents.names).prefix { $0 == $1 }.count
    namesFlushed = max(namesFlushed, kept)
  }

  /// A power cut would change nothing.
  var isDurable: Bool { older.allSatisfy(\.isEmpty) && namesFlushed == contents.names.count }

  mutating func flush() { end(beginFlush()) }

  mutating func losePower(_ random: inout Random) {
    for block in older.indices where !older[block].isEmpty {
      let choice = random.below(older[block].count + 1)
      if choice < older[block].count { contents.blocks[block] = older[block][choice] }
      settled[block] += older[block].count
      older[block] = []
    }
    contents.names.removeLast(random.below(contents.names.count - namesFlushed + 1))
    namesFlushed = contents.names.count
  }
}

/// The file of a write-intent map, in the bytes that `IntentLog` writes.
struct SimIntentFile {
  private struct Piece {
    let offset: Int
    let bytes: [UInt8]
    /// A sync of it failed: the page cache shows it, and counts it as clean.
    var isGivenUp = false

    func put(into file: inout [UInt8]?) { file?.replaceSubrange(offset..<offset + bytes.count, with: bytes) }
  }

  /// nil = there is none.
  private(set) var bytes: [UInt8]?
  /// Written and not synced.
  private var unsynced: [Piece] = []
  /// A rename that is not durable.
  private var replacement: [UInt8]?

  /// As a process finds it while the host runs.
  var contents: [UInt8]? {
    if let replacement { return replacement }
    var found = bytes
    for piece in unsynced { piece.put(into: &found) }
    return found
  }

  mutating func write(_ piece: ArraySlice<UInt8>, at offset: Int) {
    unsynced.append(Piece(offset: offset, bytes: Array(piece)))
  }
  mutating func replace(by bytes: [UInt8]) { replacement = bytes }

  mutating func sync() {
    // In place: the file is long, and a change of it short.
    if let replacement {
      bytes = replacement
      unsynced = []
    }
    replacement = nil
    for piece in unsynced where !piece.isGivenUp { piece.put(into: &bytes) }
    unsynced.removeAll { !$0.isGivenUp }
  }

  /// What was written stays to be seen, and no later sync writes it. A new file has its name, or is gone again.
  mutating func failSync(_ random: inout Random) {
    if replacement != nil {
      if random.chance(50) { replacement = nil }
    } else {
      for index in unsynced.indices { unsynced[index].isGivenUp = true }
    }
  }

  /// Each half of each block by itself: written, not written, or something in between.
  mutating func losePower(_ random: inout Random) {
    if let replacement, random.chance(50) {
      bytes = replacement
      unsynced = []
    }
    replacement = nil
    for piece in unsynced {
      let half = IntentLog.blockBytes / 2
      for start in stride(from: 0, to: piece.bytes.count, by: half) {
        let part = piece.bytes[start..<start + half]
        switch random.below(4) {
        case 0: break
        case 1: bytes?[piece.offset + start + random.below(half)] ^= 0x5a
        default: bytes?.replaceSubrange(piece.offset + start..<piece.offset + start + half, with: part)
        }
      }
    }
    unsynced = []
  }

  /// Somebody damages it, or it is gone. Both copies of the newest batch without anything behind them cannot be told from a batch
  /// that was torn before it counted: that damage is not done.
  mutating func damage(_ random: inout Random) {
    guard let whole = bytes, random.chance(60) else { return bytes = nil }
    var damaged = whole
    for _ in 0..<1 + random.below(40) { damaged[random.below(whole.count)] ^= UInt8(1 + random.below(255)) }
    let found = damaged.withUnsafeBytes { IntentLog.read($0) }.snapshot
    if found.isEverything || found == whole.withUnsafeBytes({ IntentLog.read($0) }).snapshot { bytes = damaged }
  }
}
