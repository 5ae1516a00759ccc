import Model

/// Appends a frame's fields, little-endian, without padding.
struct FieldWriter {
  private(set) var bytes: [UInt8]
  init(reserving count: Int) {
    bytes = []
    bytes.reserveCapacity(count)
  }
  mutating func put<Value: FixedWidthInteger>(_ value: Value) {
    withUnsafeBytes(of: value.littleEndian) { bytes.append(contentsOf: $0) }
  }
  mutating func put(_ file: FileID) { put(file.rawValue) }
  mutating func put(_ time: FileTime) {
    put(time.seconds)
    put(time.nanoseconds)
  }
  /// 1-byte length, then the bytes.
  mutating func putShort(_ text: some Collection<UInt8>) {
    put(UInt8(text.count))
    bytes.append(contentsOf: text)
  }
  /// 2-byte length, then the bytes.
  mutating func putMedium(_ text: some Collection<UInt8>) {
    put(UInt16(text.count))
    bytes.append(contentsOf: text)
  }
  /// 4-byte length, then the bytes.
  mutating func putLong(_ text: some Collection<UInt8>) {
    put(UInt32(text.count))
    bytes.append(contentsOf: text)
  }
}

/// Takes a frame's fields apart; every read is checked against what is left, and every value against its limit.
struct FieldReader {
  private let bytes: UnsafeRawBufferPointer
  private let kind: FrameKind
  private var position = 0

  init(_ bytes: UnsafeRawBufferPointer, of kind: FrameKind) {
    self.bytes = bytes
    self.kind = kind
  }

  private func need(_ count: Int) throws(FrameError) {
    guard count <= bytes.count - position else {
      throw FrameError(
        .truncatedFields,
        "a \(kind) frame from the peer ends too early: \(count) bytes needed at field offset \(position) "
          + "of \(bytes.count)"
      )
    }
  }

  mutating func take<Value: FixedWidthInteger>(_ type: Value.Type = Value.self) throws(FrameError) -> Value {
    let count = MemoryLayout<Value>.size
    try need(count)
    let value = bytes.loadUnaligned(fromByteOffset: position, as: Value.self)
    position += count
    return Value(littleEndian: value)
  }

  private mutating func takeBytes(_ count: Int) throws(FrameError) -> [UInt8] {
    try need(count)
    defer { position += count }
    return [UInt8](bytes[position..<position + count])
  }

  func bad(_ what: String) -> FrameError {
    FrameError(.badValue, "a \(kind) frame from the peer holds \(what)")
  }

  mutating func file() throws(FrameError) -> FileID {
    let value = try take(UInt64.self)
    guard value != 0 else { throw bad("file id zero") }
    return FileID(rawValue: value)
  }

  mutating func time() throws(FrameError) -> FileTime {
    let seconds = try take(Int64.self)
    let nanoseconds = try take(UInt32.self)
    guard let time = FileTime(seconds: seconds, nanoseconds: nanoseconds) else {
      throw bad("\(nanoseconds) nanoseconds in a time")
    }
    return time
  }

  mutating func name() throws(FrameError) -> FileName {
    let bytes = try takeBytes(Int(take(UInt8.self)))
    guard let name = FileName(bytes) else { throw bad("something that cannot be a file name (\(bytes.count) bytes)") }
    return name
  }

  mutating func attributeName() throws(FrameError) -> AttributeName {
    let bytes = try takeBytes(Int(take(UInt8.self)))
    guard let name = AttributeName(bytes) else { throw bad("something that cannot be an attribute's name") }
    return name
  }

  mutating func attributeValue() throws(FrameError) -> [UInt8] {
    let count = try take(UInt32.self)
    guard count <= UInt32(FileOperation.attributeValueBytesMax) else {
      throw bad("an attribute of \(count) bytes; \(FileOperation.attributeValueBytesMax) is the limit")
    }
    return try takeBytes(Int(count))
  }

  mutating func linkTarget() throws(FrameError) -> LinkTarget {
    let bytes = try takeBytes(Int(take(UInt16.self)))
    guard let target = LinkTarget(bytes) else {
      throw bad("a symbolic link target of \(bytes.count) bytes or with NUL")
    }
    return target
  }

  mutating func text(bytesMax: Int) throws(FrameError) -> String {
    let count = Int(try take(UInt16.self))
    guard count <= bytesMax else { throw bad("a text of \(count) bytes; \(bytesMax) is the limit") }
    guard let text = String(validating: try takeBytes(count), as: UTF8.self) else {
      throw bad("a text that is not UTF-8")
    }
    return text
  }

  mutating func flag() throws(FrameError) -> Bool {
    let value = try take(UInt8.self)
    guard value <= 1 else { throw bad("\(value) where 0 or 1 belongs") }
    return value == 1
  }

  /// An offset and a length whose sum stays below the largest file; the length is not zero.
  mutating func range() throws(FrameError) -> (offset: UInt64, length: UInt64) {
    let offset = try take(UInt64.self)
    let length = try take(UInt64.self)
    guard length > 0, offset <= FrameLimits.fileBytesMax, length <= FrameLimits.fileBytesMax - offset else {
      throw bad("an impossible range: offset \(offset), length \(length)")
    }
    return (offset, length)
  }

  mutating func mode() throws(FrameError) -> UInt32 {
    let mode = try take(UInt32.self)
    guard mode <= 0o177777, FileType(mode: mode) != nil else { throw bad("mode \(String(mode, radix: 8)) (octal)") }
    return mode
  }

  mutating func end() throws(FrameError) {
    guard position == bytes.count else {
      throw FrameError(
        .surplusFields, "a \(kind) frame from the peer has \(bytes.count - position) bytes after its last field")
    }
  }
}
