import Glibc
import Synchronization

/// A small payload kept in two copies, `path.a` and `path.b`, each with magic, version, sequence, length and CRC-32C. A
/// write replaces the older copy, so one good copy is there at any moment, whatever fails (R0). One writer process at a
/// time.
///
/// Layout, little-endian: magic 8 B, version 4 B, payload length 4 B, sequence 8 B, CRC-32C 4 B of all before it and
/// the payload, payload.
public final class DurablePair: Sendable {
  public static let payloadBytesMax = 1 << 20
  static let magic: [UInt8] = Array("VMHAPAIR".utf8)
  static let version: UInt32 = 1
  static let headerBytes = 28

  public enum Contents: Sendable, Hashable {
    /// The newest valid copy. `damaged` tells of a second copy that is there but not valid: it may have been the newer
    /// one.
    case value([UInt8], sequence: UInt64, damaged: String?)
    /// Neither copy exists.
    case absent
    /// At least one copy exists and none is valid.
    case unreadable(String)
  }

  enum Copy {
    case valid([UInt8], UInt64)
    case absent
    case damaged(String)
  }

  public let path: String
  private let mode: mode_t
  /// Held over a whole read-decide-write, so that two threads never choose the same copy.
  private let lock = Mutex(())

  public init(path: String, mode: mode_t = 0o600) {
    self.path = path
    self.mode = mode
  }

  /// Durable when it returns. When it throws, `read` gives the previous or this payload. Throws `HostError`.
  public func write(_ payload: [UInt8]) throws {
    guard payload.count <= Self.payloadBytesMax else {
      throw HostError(.limit, "pair.write", path: path, "\(payload.count) bytes; the limit is \(Self.payloadBytesMax)")
    }
    try lock.withLock { _ in
      let (a, b) = (load(".a"), load(".b"))
      let sequence = max(Self.sequence(a), Self.sequence(b)) + 1
      // A copy that is not valid is the older one.
      let older = Self.sequence(a) <= Self.sequence(b) ? ".a" : ".b"
      try DurableFile.write(Self.encode(payload, sequence: sequence), to: path + older, mode: mode)
    }
  }

  public func read() -> Contents {
    lock.withLock { _ in
      switch (load(".a"), load(".b")) {
      case (.valid(let a, let first), .valid(let b, let second)):
        first > second ? .value(a, sequence: first, damaged: nil) : .value(b, sequence: second, damaged: nil)
      case (.valid(let payload, let sequence), .damaged(let why)),
        (.damaged(let why), .valid(let payload, let sequence)):
        .value(payload, sequence: sequence, damaged: why)
      case (.valid(let payload, let sequence), .absent), (.absent, .valid(let payload, let sequence)):
        .value(payload, sequence: sequence, damaged: nil)
      case (.absent, .absent): .absent
      case (.damaged(let a), .damaged(let b)): .unreadable("\(a); \(b)")
      case (.damaged(let why), .absent), (.absent, .damaged(let why)): .unreadable(why)
      }
    }
  }

  /// Removes both copies.
  public func remove() throws {
    try lock.withLock { _ in
      try DurableFile.remove(path + ".a")
      try DurableFile.remove(path + ".b")
    }
  }

  private static func sequence(_ copy: Copy) -> UInt64 {
    if case .valid(_, let sequence) = copy { sequence } else { 0 }
  }

  private func load(_ suffix: String) -> Copy {
    let file = path + suffix
    do {
      guard let bytes = try DurableFile.readIfPresent(file, bytesMax: Self.headerBytes + Self.payloadBytesMax) else {
        return .absent
      }
      return Self.decode(bytes, file: file)
    } catch {
      return .damaged("\(error)")
    }
  }

  static func encode(_ payload: [UInt8], sequence: UInt64) -> [UInt8] {
    var bytes = magic
    appendInteger(version, to: &bytes)
    appendInteger(UInt32(payload.count), to: &bytes)
    appendInteger(sequence, to: &bytes)
    appendInteger(Checksum.crc32c(payload, continuing: Checksum.crc32c(bytes)), to: &bytes)
    return bytes + payload
  }

  static func decode(_ bytes: [UInt8], file: String) -> Copy {
    guard bytes.count >= headerBytes, Array(bytes[..<8]) == magic else { return .damaged("\(file): not a record") }
    let found = UInt32(integer(bytes[8..<12]))
    guard found == version else { return .damaged("\(file): version \(found), this vmha reads \(version)") }
    let payload = Array(bytes[headerBytes...])
    guard integer(bytes[12..<16]) == UInt64(payload.count) else { return .damaged("\(file): torn") }
    let checksum = Checksum.crc32c(payload, continuing: Checksum.crc32c(bytes[..<24]))
    guard integer(bytes[24..<28]) == UInt64(checksum) else { return .damaged("\(file): wrong checksum") }
    let sequence = integer(bytes[16..<24])
    guard sequence > 0, sequence < UInt64.max else { return .damaged("\(file): sequence \(sequence)") }
    return .valid(payload, sequence)
  }

  private static func appendInteger(_ value: some FixedWidthInteger, to bytes: inout [UInt8]) {
    withUnsafeBytes(of: value.littleEndian) { bytes += $0 }
  }

  private static func integer(_ bytes: ArraySlice<UInt8>) -> UInt64 {
    bytes.reversed().reduce(0) { $0 << 8 | UInt64($1) }
  }
}
