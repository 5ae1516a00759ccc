import Model

/// A frame in the receive buffer. Valid until the buffer is written again.
public struct FrameView {
  public let header: FrameHeader
  public let fields: UnsafeRawBufferPointer
  public let data: UnsafeRawBufferPointer

  public enum Found {
    case frame(FrameView)
    /// Not complete: this many bytes are needed from the start of the buffer before it is worth looking again.
    case needs(byteCount: Int)
  }

  /// Looks for one frame at the start of `buffer`. Every length is checked before it is believed, the header's
  /// checksum before anything it says beyond the lengths' limits is used.
  public static func first(in buffer: UnsafeRawBufferPointer) throws(FrameError) -> Found {
    guard buffer.count >= FrameLimits.headerBytes else { return .needs(byteCount: FrameLimits.headerBytes) }
    let header = try FrameHeader(UnsafeRawBufferPointer(rebasing: buffer[..<FrameLimits.headerBytes]))
    guard buffer.count >= header.frameBytes else { return .needs(byteCount: header.frameBytes) }
    let fieldsEnd = FrameLimits.headerBytes + header.fieldsLength
    let fields = UnsafeRawBufferPointer(rebasing: buffer[FrameLimits.headerBytes..<fieldsEnd])
    let data = UnsafeRawBufferPointer(rebasing: buffer[fieldsEnd..<header.frameBytes])
    guard CRC32C.checksum(fields) == header.fieldsChecksum else {
      throw FrameError(.fieldsChecksum, "the fields of a \(header.kind) frame from the peer fail their checksum")
    }
    if header.flags.contains(.dataChecksum), CRC32C.checksum(data) != header.dataChecksum {
      throw FrameError(
        .dataChecksum, "the \(data.count) bytes of data of a \(header.kind) frame from the peer fail their checksum")
    }
    return .frame(FrameView(header: header, fields: fields, data: data))
  }

  /// What the frame says. Does not allocate for writes, resync pieces, flushes and keepalives; for acknowledgements
  /// see `forEachRange`.
  public func body() throws(FrameError) -> FrameBody {
    var reader = FieldReader(fields, of: header.kind)
    let body = try reader.body(header)
    try reader.end()
    return body
  }

  /// The ranges of an `acknowledge` or `resyncAcknowledge` frame, without allocating.
  public func forEachRange(_ use: (SequenceRange) throws -> Void) throws {
    var reader = FieldReader(fields, of: header.kind)
    guard header.kind == .acknowledge || header.kind == .resyncAcknowledge else {
      throw FrameError(.badValue, "a \(header.kind) frame has no ranges")
    }
    for _ in 0..<(try reader.rangeCount()) { try use(reader.sequenceRange()) }
    try reader.end()
  }
}

extension FrameHeader {
  fileprivate init(_ bytes: UnsafeRawBufferPointer) throws(FrameError) {
    func load<Value: FixedWidthInteger>(_ offset: Int, as type: Value.Type) -> Value {
      Value(littleEndian: bytes.loadUnaligned(fromByteOffset: offset, as: type))
    }
    guard load(0, as: UInt32.self) == FrameHeader.magic else {
      throw FrameError(
        .notAFrame, "the peer sent bytes that are not a vmha frame (start \(hexadecimal(load(0, as: UInt64.self))))")
    }
    let layout = load(4, as: UInt8.self)
    guard layout == FrameHeader.layout else {
      throw FrameError(
        .unknownLayout, "the peer sent a frame of layout \(layout); this node knows layout \(FrameHeader.layout)")
    }
    guard CRC32C.checksum(UnsafeRawBufferPointer(rebasing: bytes[..<40])) == load(40, as: UInt32.self) else {
      throw FrameError(.headerChecksum, "the header of a frame from the peer fails its checksum")
    }
    let rawKind = load(5, as: UInt8.self)
    guard let kind = FrameKind(rawValue: rawKind) else {
      throw FrameError(.unknownKind, "the peer sent a frame of unknown kind \(rawKind)")
    }
    self.kind = kind
    flags = FrameFlags(rawValue: load(6, as: UInt16.self))
    session = SessionID(rawValue: load(8, as: UInt64.self))
    sequence = load(16, as: UInt64.self)
    let fieldsCount = load(24, as: UInt32.self)
    let dataCount = load(28, as: UInt32.self)
    fieldsChecksum = load(32, as: UInt32.self)
    dataChecksum = load(36, as: UInt32.self)
    guard fieldsCount <= UInt32(FrameLimits.fieldsBytesMax), dataCount <= UInt32(FrameLimits.dataBytesMax) else {
      throw FrameError(.tooLong, "a \(kind) frame from the peer announces \(fieldsCount) + \(dataCount) bytes")
    }
    fieldsLength = Int(fieldsCount)
    dataLength = Int(dataCount)
    try check()
  }

  private func check() throws(FrameError) {
    guard flags.isSubset(of: .known), flags.contains(.dataChecksum) || dataChecksum == 0 else {
      throw FrameError(.unknownFlags, "a \(kind) frame from the peer has unknown flags \(flags.rawValue)")
    }
    guard dataLength == 0 || kind.mayCarryData else {
      throw FrameError(.badLength, "a \(kind) frame from the peer carries \(dataLength) bytes of data")
    }
    guard kind.isAtAnyTime || kind.isBeforeSession == (session.rawValue == 0) else {
      throw FrameError(.badSession, "a \(kind) frame from the peer names session \(session)")
    }
    guard kind.isNumbered == (sequence != 0) else {
      throw FrameError(.badSequence, "a \(kind) frame from the peer has sequence number \(sequence)")
    }
  }
}

extension FieldReader {
  fileprivate mutating func rangeCount() throws(FrameError) -> Int {
    let count = Int(try take(UInt16.self))
    guard (1...FrameLimits.rangesCountMax).contains(count) else { throw bad("\(count) ranges") }
    return count
  }

  fileprivate mutating func sequenceRange() throws(FrameError) -> SequenceRange {
    let first = try take(UInt64.self)
    let count = UInt64(try take(UInt32.self))
    guard first > 0, count > 0, count - 1 <= UInt64.max - first else { throw bad("range \(first) + \(count)") }
    return SequenceRange(first, through: first + (count - 1))
  }

  private mutating func sequenceRanges() throws(FrameError) -> [SequenceRange] {
    var ranges: [SequenceRange] = []
    for _ in 0..<(try rangeCount()) { ranges.append(try sequenceRange()) }
    return ranges
  }

  private mutating func hello() throws(FrameError) -> Hello {
    let versionMin = try take(UInt16.self)
    let versionMax = try take(UInt16.self)
    guard versionMin <= versionMax else { throw bad("versions \(versionMin) to \(versionMax)") }
    let number = try take(UInt8.self)
    guard let node = NodeID(rawValue: Int(number)) else { throw bad("node \(number)") }
    let nonce = try take(UInt64.self)
    guard nonce != 0 else { throw bad("nonce zero") }
    let moduleText = try text(bytesMax: ModuleName.lengthMax)
    guard let module = ModuleName(moduleText) else { throw bad("'\(moduleText)' as a module's name") }
    let cluster = try text(bytesMax: SessionHandshake.clusterBytesMax)
    guard !cluster.isEmpty else { throw bad("no cluster") }
    return Hello(
      versionMin: versionMin, versionMax: versionMax, node: node, nonce: nonce, module: module, cluster: cluster)
  }

  private mutating func manifestEntry() throws(FrameError) -> ManifestEntry {
    let id = try file()
    let parent = try take(UInt64.self)
    var place: ManifestPlace?
    if parent != 0 {
      place = ManifestPlace(parent: FileID(rawValue: parent), name: try name())
    } else {
      guard try take(UInt8.self) == 0 else { throw bad("a name without a parent") }
    }
    let mode = try mode()
    let owner = try take(UInt32.self)
    let group = try take(UInt32.self)
    let size = try take(UInt64.self)
    let device = try take(UInt64.self)
    let accessed = try time()
    let modified = try time()
    let type = FileType(mode: mode)
    guard size <= FrameLimits.fileBytesMax, size == 0 || type == .regular else {
      throw bad("size \(size), mode \(mode)")
    }
    guard place != nil || type == .directory else { throw bad("a root that is not a directory") }
    var target: LinkTarget?
    if type == .symlink {
      target = try linkTarget()
    } else {
      guard try take(UInt16.self) == 0 else { throw bad("a link target on something that is not a link") }
    }
    return ManifestEntry(
      id: id, place: place, mode: mode, owner: owner, group: group, size: size, device: device, accessed: accessed,
      modified: modified, target: target)
  }

  fileprivate mutating func body(_ header: FrameHeader) throws(FrameError) -> FrameBody {
    switch header.kind {
    case .hello: return .hello(try hello())
    case .agree: return .agree(version: try take())
    case .keepalive: return .keepalive
    case .failure:
      let raw = try take(UInt16.self)
      guard let code = FailureCode(rawValue: raw) else { throw bad("unknown failure \(raw)") }
      return .failure(
        code, errno: Int32(bitPattern: try take()), sentence: try text(bytesMax: FrameLimits.sentenceBytesMax))
    case .bye: return .bye(sentence: try text(bytesMax: FrameLimits.sentenceBytesMax))
    case .coreMessage: return .coreMessage
    case .operation: return .operation(try operation(dataLength: header.dataLength))
    case .acknowledge: return .acknowledge(try sequenceRanges())
    case .resyncAcknowledge: return .resyncAcknowledge(try sequenceRanges())
    case .flushRequest:
      let file = try take(UInt64.self)
      return .flushRequest(file == 0 ? nil : FileID(rawValue: file))
    case .dataFlushRequest: return .dataFlushRequest(try file())
    case .flushAnswer: return .flushAnswer(errno: Int32(bitPattern: try take()))
    case .manifestBegin:
      return .manifestBegin(identityOnly: try flag(), key: HashKey(try take(), try take()))
    case .manifestEntry: return .manifestEntry(try manifestEntry())
    case .manifestAttribute:
      return .manifestAttribute(try file(), name: try attributeName(), value: try attributeValue())
    case .manifestEnd: return .manifestEnd(entries: try take(), attributes: try take())
    case .resyncData:
      let file = try file()
      let offset = try take(UInt64.self)
      let count = UInt64(header.dataLength)
      guard count > 0, offset <= FrameLimits.fileBytesMax - count else {
        throw bad("a piece of \(count) bytes at offset \(offset)")
      }
      return .resyncData(file, offset: offset)
    case .resyncZero:
      let file = try file()
      let (offset, length) = try range()
      return .resyncZero(file, offset: offset, length: length)
    case .differing: return .differing(try file(), try content())
    case .differingEnd: return .differingEnd
    case .resyncCompare: return try compare()
    case .resyncCompared: return .resyncCompared(differing: try take())
    case .verifyBegin: return .verifyBegin(key: HashKey(try take(), try take()))
    case .verify: return .verify(try file(), try verifyQuestion())
    case .verified: return .verified(try verifyAnswer())
    }
  }

  private mutating func content() throws(FrameError) -> FileContent {
    let kind = try take(UInt8.self)
    switch kind {
    case 0: return .whole
    case 1: return .fresh
    case 2: return .zones(try zones())
    default: throw bad("contents of kind \(kind)")
    }
  }

  private mutating func zones() throws(FrameError) -> [Range<UInt32>] {
    let count = Int(try take(UInt16.self))
    guard count <= FrameLimits.differingRangesMax else { throw bad("\(count) ranges of zones") }
    var zones: [Range<UInt32>] = []
    for _ in 0..<count {
      let first = try take(UInt32.self)
      let end = try take(UInt32.self)
      guard first < end, zones.last.map({ $0.upperBound < first }) ?? true else {
        throw bad("zones \(first) to \(end)")
      }
      zones.append(first..<end)
    }
    return zones
  }

  private mutating func compare() throws(FrameError) -> FrameBody {
    let file = try file()
    let (offset, length, hashes) = try blockHashes(bytesMax: ResyncPlan.zoneBytes)
    return .resyncCompare(file, offset: offset, length: length, hashes: hashes)
  }
}
