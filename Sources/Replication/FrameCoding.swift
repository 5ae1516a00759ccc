import Model

/// The bytes of a frame that go ahead of its data. Data is never copied here: send head and data by one gathered write.
public enum FrameHead {
  /// Any frame. `dataLength` bytes of data follow (only where the kind may carry them); `dataChecksum` is their
  /// CRC-32C, or nil to leave them unchecked. Allocates; the hot kinds have functions of their own below.
  public static func bytes(
    _ body: FrameBody, session: SessionID, sequence: UInt64 = 0, dataLength: Int = 0, dataChecksum: UInt32? = nil
  ) -> [UInt8] {
    var fields = FieldWriter(reserving: 128)
    fields.put(body)
    let content = fields.bytes
    return [UInt8](unsafeUninitializedCapacity: FrameLimits.headerBytes + content.count) { buffer, count in
      let raw = UnsafeMutableRawBufferPointer(buffer)
      content.withUnsafeBytes {
        UnsafeMutableRawBufferPointer(rebasing: raw[FrameLimits.headerBytes...]).copyMemory(from: $0)
      }
      count = seal(
        raw, body.kind, session, sequence, fieldsLength: content.count, dataLength: dataLength,
        dataChecksum: dataChecksum)
    }
  }

  /// A core's message with its data in one piece. At most `FrameLimits.dataBytesMax` bytes.
  public static func coreMessage(_ message: [UInt8], session: SessionID) -> [UInt8] {
    let sum = message.withUnsafeBytes { CRC32C.checksum($0) }
    return bytes(.coreMessage, session: session, dataLength: message.count, dataChecksum: sum) + message
  }

  // The functions below fill `buffer` (at least `FrameLimits.smallHeadBytesMax` bytes) and return how many bytes of it
  // to send. They do not allocate.

  /// Head of `FileOperation.write`; `dataLength` bytes (1 to `FrameLimits.dataBytesMax`) of payload follow.
  public static func write(
    into buffer: UnsafeMutableRawBufferPointer, session: SessionID, sequence: UInt64, file: FileID, offset: UInt64,
    dataLength: Int, dataChecksum: UInt32? = nil
  ) -> Int {
    let start = FrameLimits.headerBytes
    buffer.storeBytes(of: OperationCode.write.rawValue, toByteOffset: start, as: UInt8.self)
    store(file.rawValue, buffer, start + 1)
    store(offset, buffer, start + 9)
    return seal(
      buffer, .operation, session, sequence, fieldsLength: 17, dataLength: dataLength, dataChecksum: dataChecksum)
  }

  /// Head of a resync piece; `dataLength` bytes (1 to `FrameLimits.dataBytesMax`) of file contents follow.
  public static func resyncData(
    into buffer: UnsafeMutableRawBufferPointer, session: SessionID, sequence: UInt64, file: FileID, offset: UInt64,
    dataLength: Int, dataChecksum: UInt32? = nil
  ) -> Int {
    store(file.rawValue, buffer, FrameLimits.headerBytes)
    store(offset, buffer, FrameLimits.headerBytes + 8)
    return seal(
      buffer, .resyncData, session, sequence, fieldsLength: 16, dataLength: dataLength, dataChecksum: dataChecksum)
  }

  public static func resyncZero(
    into buffer: UnsafeMutableRawBufferPointer, session: SessionID, sequence: UInt64, file: FileID, offset: UInt64,
    length: UInt64
  ) -> Int {
    store(file.rawValue, buffer, FrameLimits.headerBytes)
    store(offset, buffer, FrameLimits.headerBytes + 8)
    store(length, buffer, FrameLimits.headerBytes + 16)
    return seal(buffer, .resyncZero, session, sequence, fieldsLength: 24)
  }

  /// `dataOnly` counts for one file only: everything is always flushed as a whole.
  public static func flushRequest(
    into buffer: UnsafeMutableRawBufferPointer, session: SessionID, sequence: UInt64, file: FileID?,
    dataOnly: Bool = false
  ) -> Int {
    store(file?.rawValue ?? 0, buffer, FrameLimits.headerBytes)
    let kind: FrameKind = dataOnly && file != nil ? .dataFlushRequest : .flushRequest
    return seal(buffer, kind, session, sequence, fieldsLength: 8)
  }

  public static func flushAnswer(
    into buffer: UnsafeMutableRawBufferPointer, session: SessionID, sequence: UInt64, errno: Int32
  ) -> Int {
    store(UInt32(bitPattern: errno), buffer, FrameLimits.headerBytes)
    return seal(buffer, .flushAnswer, session, sequence, fieldsLength: 4)
  }

  public static func keepalive(into buffer: UnsafeMutableRawBufferPointer, session: SessionID) -> Int {
    seal(buffer, .keepalive, session, 0, fieldsLength: 0)
  }

  /// `kind` is `.acknowledge` or `.resyncAcknowledge`; at most `FrameLimits.rangesCountMax` ranges of at most 2^32 - 1
  /// numbers; `buffer` has room for `FrameLimits.acknowledgeHeadBytesMax` bytes.
  public static func acknowledge(
    into buffer: UnsafeMutableRawBufferPointer, kind: FrameKind, session: SessionID, ranges: ArraySlice<SequenceRange>
  ) -> Int {
    precondition(
      (kind == .acknowledge || kind == .resyncAcknowledge) && (1...FrameLimits.rangesCountMax).contains(ranges.count))
    store(UInt16(ranges.count), buffer, FrameLimits.headerBytes)
    var position = FrameLimits.headerBytes + 2
    for range in ranges {
      store(range.first, buffer, position)
      store(UInt32(range.last - range.first + 1), buffer, position + 8)
      position += 12
    }
    return seal(buffer, kind, session, 0, fieldsLength: position - FrameLimits.headerBytes)
  }

  private static func store<Value: FixedWidthInteger>(
    _ value: Value, _ buffer: UnsafeMutableRawBufferPointer, _ offset: Int
  ) {
    buffer.storeBytes(of: value.littleEndian, toByteOffset: offset, as: Value.self)
  }

  /// Writes the header over fields that are already in place behind it.
  private static func seal(
    _ buffer: UnsafeMutableRawBufferPointer, _ kind: FrameKind, _ session: SessionID, _ sequence: UInt64,
    fieldsLength: Int, dataLength: Int = 0, dataChecksum: UInt32? = nil
  ) -> Int {
    precondition(
      fieldsLength <= FrameLimits.fieldsBytesMax && dataLength <= FrameLimits.dataBytesMax
        && (dataLength == 0 || kind.mayCarryData) && kind.isNumbered == (sequence != 0),
      "a \(kind) frame of \(fieldsLength) + \(dataLength) bytes, sequence \(sequence), must not be sent")
    let total = FrameLimits.headerBytes + fieldsLength
    let fields = UnsafeRawBufferPointer(rebasing: buffer[FrameLimits.headerBytes..<total])
    store(FrameHeader.magic, buffer, 0)
    store(FrameHeader.layout, buffer, 4)
    store(kind.rawValue, buffer, 5)
    store(dataChecksum == nil ? 0 : FrameFlags.dataChecksum.rawValue, buffer, 6)
    store(session.rawValue, buffer, 8)
    store(sequence, buffer, 16)
    store(UInt32(fieldsLength), buffer, 24)
    store(UInt32(dataLength), buffer, 28)
    store(CRC32C.checksum(fields), buffer, 32)
    store(dataChecksum ?? 0, buffer, 36)
    store(CRC32C.checksum(UnsafeRawBufferPointer(rebasing: buffer[..<40])), buffer, 40)
    return total
  }
}

extension FieldWriter {
  fileprivate mutating func put(_ body: FrameBody) {
    switch body {
    case .hello(let hello):
      put(hello.versionMin)
      put(hello.versionMax)
      put(UInt8(hello.node.rawValue))
      put(hello.nonce)
      putMedium(hello.module.text.utf8)
      putMedium(hello.cluster.utf8)
    case .agree(let version): put(version)
    case .keepalive, .coreMessage: break
    case .failure(let code, let errno, let sentence):
      put(code.rawValue)
      put(UInt32(bitPattern: errno))
      putMedium(shortened(sentence))
    case .bye(let sentence): putMedium(shortened(sentence))
    case .operation(let operation): put(operation)
    case .acknowledge(let ranges), .resyncAcknowledge(let ranges):
      put(UInt16(ranges.count))
      for range in ranges {
        put(range.first)
        put(UInt32(range.last - range.first + 1))
      }
    case .flushRequest(let file): put(file?.rawValue ?? 0)
    case .dataFlushRequest(let file): put(file)
    case .flushAnswer(let errno): put(UInt32(bitPattern: errno))
    case .manifestBegin(let identityOnly, let key):
      put(UInt8(identityOnly ? 1 : 0))
      put(key.first)
      put(key.second)
    case .manifestEntry(let entry): put(entry)
    case .manifestAttribute(let file, let name, let value):
      put(file)
      putShort(name.bytes)
      putLong(value)
    case .manifestEnd(let entries, let attributes):
      put(entries)
      put(attributes)
    case .resyncData(let file, let offset):
      put(file)
      put(offset)
    case .resyncZero(let file, let offset, let length):
      put(file)
      put(offset)
      put(length)
    case .differing(let file, let content):
      put(file)
      put(content)
    case .differingEnd: break
    case .resyncCompare(let file, let offset, let length, let hashes):
      put(file)
      put(offset)
      put(length)
      for hash in hashes {
        put(hash.first)
        put(hash.second)
      }
    case .resyncCompared(let differing): put(differing)
    case .verifyBegin(let key):
      put(key.first)
      put(key.second)
    case .verify(let file, let question):
      put(file)
      put(question)
    case .verified(let answer): put(answer)
    }
  }

  private mutating func put(_ content: FileContent) {
    switch content {
    case .whole: put(UInt8(0))
    case .fresh: put(UInt8(1))
    case .zones(let zones):
      put(UInt8(2))
      put(UInt16(zones.count))
      for zone in zones {
        put(zone.lowerBound)
        put(zone.upperBound)
      }
    }
  }

  private mutating func put(_ entry: ManifestEntry) {
    put(entry.id)
    put(entry.place?.parent.rawValue ?? 0)
    putShort(entry.place?.name.bytes ?? [])
    put(entry.mode)
    put(entry.owner)
    put(entry.group)
    put(entry.size)
    put(entry.device)
    put(entry.accessed)
    put(entry.modified)
    putMedium(entry.target?.bytes ?? [])
  }

  /// Cuts between characters, so that it stays UTF-8.
  private func shortened(_ sentence: String) -> [UInt8] {
    var bytes: [UInt8] = []
    for character in sentence {
      let more = Array(character.utf8)
      if bytes.count + more.count > FrameLimits.sentenceBytesMax { break }
      bytes += more
    }
    return bytes
  }
}
