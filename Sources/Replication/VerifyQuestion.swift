/// What the primary asks of its replica at one place of the stream: there the replica has applied exactly what the primary had.
public enum VerifyQuestion: Hashable, Sendable {
  /// Hashes of consecutive blocks of `ResyncPlan.blockBytes` from `offset` on; the last block may be shorter.
  case data(offset: UInt64, length: UInt32, hashes: [BlockHash])
  /// Nothing but zeros, or a hole, or the end of the file.
  case zeros(offset: UInt64, length: UInt64)
  /// The length of the file.
  case size
  /// Hash of `FolderListing` of a directory.
  case folder(BlockHash)
}

public enum VerifyAnswer: Hashable, Sendable {
  /// There is no such file or directory.
  case missing
  /// Looked at from the question's offset up to `end`; everything before `start` is the same. Bit n of `differing` = the block that
  /// begins n * `ResyncPlan.blockBytes` after `start` differs, and of `unreadable`: it cannot be read.
  case compared(start: UInt64, end: UInt64, differing: UInt32, unreadable: UInt32)
  case size(UInt64)
  case folder(isSame: Bool)
}

extension FieldWriter {
  mutating func put(_ question: VerifyQuestion) {
    switch question {
    case .data(let offset, let length, let hashes):
      put(UInt8(0))
      put(offset)
      put(length)
      for hash in hashes {
        put(hash.first)
        put(hash.second)
      }
    case .zeros(let offset, let length):
      put(UInt8(1))
      put(offset)
      put(length)
    case .size: put(UInt8(2))
    case .folder(let hash):
      put(UInt8(3))
      put(hash.first)
      put(hash.second)
    }
  }

  mutating func put(_ answer: VerifyAnswer) {
    switch answer {
    case .missing: put(UInt8(0))
    case .compared(let start, let end, let differing, let unreadable):
      put(UInt8(1))
      put(start)
      put(end)
      put(differing)
      put(unreadable)
    case .size(let bytes):
      put(UInt8(2))
      put(bytes)
    case .folder(let isSame):
      put(UInt8(3))
      put(UInt8(isSame ? 1 : 0))
    }
  }
}

extension FieldReader {
  mutating func verifyQuestion() throws(FrameError) -> VerifyQuestion {
    let kind = try take(UInt8.self)
    switch kind {
    case 0:
      let (offset, length, hashes) = try blockHashes(bytesMax: VerifyRun.pieceBytes)
      return .data(offset: offset, length: length, hashes: hashes)
    case 1:
      let (offset, length) = try range()
      return .zeros(offset: offset, length: length)
    case 2: return .size
    case 3: return .folder(BlockHash(try take(), try take()))
    default: throw bad("a question of kind \(kind)")
    }
  }

  mutating func verifyAnswer() throws(FrameError) -> VerifyAnswer {
    let kind = try take(UInt8.self)
    switch kind {
    case 0: return .missing
    case 1:
      let start = try take(UInt64.self)
      let end = try take(UInt64.self)
      guard start <= end, end <= FrameLimits.fileBytesMax else { throw bad("a comparison of \(start) to \(end)") }
      return .compared(start: start, end: end, differing: try take(), unreadable: try take())
    case 2:
      let bytes = try take(UInt64.self)
      guard bytes <= FrameLimits.fileBytesMax else { throw bad("a file of \(bytes) bytes") }
      return .size(bytes)
    case 3: return .folder(isSame: try flag())
    default: throw bad("an answer of kind \(kind)")
    }
  }

  /// An offset, a length of 1 to `bytesMax`, and a hash for each block of it.
  mutating func blockHashes(
    bytesMax: UInt64
  ) throws(FrameError) -> (offset: UInt64, length: UInt32, hashes: [BlockHash]) {
    let offset = try take(UInt64.self)
    let length = try take(UInt32.self)
    guard length > 0, UInt64(length) <= bytesMax, offset <= FrameLimits.fileBytesMax - UInt64(length) else {
      throw bad("a comparison of \(length) bytes at offset \(offset)")
    }
    let count = (UInt64(length) + ResyncPlan.blockBytes - 1) / ResyncPlan.blockBytes
    var hashes: [BlockHash] = []
    for _ in 0..<count { hashes.append(BlockHash(try take(), try take())) }
    return (offset, length, hashes)
  }
}

/// A directory in bytes, the same on both nodes when its names and what they name look the same: types, modes, owners, devices,
/// link targets and extended attributes, the identity of a file among them. Not sizes, which are asked for by themselves, and not
/// times: those that change by themselves are each node's own.
public enum FolderListing {
  public static func bytes(of folder: TreeEntry, children: [TreeEntry]) -> [UInt8] {
    var writer = FieldWriter(reserving: 64 * (children.count + 1))
    put(folder, named: [], into: &writer)
    let named = children.compactMap { child in child.path.names.last.map { ($0.bytes, child) } }
    for (name, child) in named.sorted(by: { $0.0.lexicographicallyPrecedes($1.0) }) {
      put(child, named: name, into: &writer)
    }
    return writer.bytes
  }

  private static func put(_ entry: TreeEntry, named name: [UInt8], into writer: inout FieldWriter) {
    writer.putShort(name)
    writer.put(entry.mode)
    writer.put(entry.owner)
    writer.put(entry.group)
    writer.put(entry.device)
    writer.putMedium(entry.target?.bytes ?? [])
    writer.put(UInt32(entry.attributes.count))
    for (name, value) in entry.attributes.sorted(by: { $0.key < $1.key }) {
      writer.putShort(name.bytes)
      writer.putLong(value)
    }
  }
}
