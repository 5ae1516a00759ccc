import Glibc
import Synchronization

/// A small payload kept in two copies, `path.a` and `path.b`, each with magic, version, sequence, length and CRC-32C. A
/// write replaces the older copy, so one good copy is there at any moment, whatever fails (R0). Where the file system is full it is
/// written over in place: the record says who may write, and must not depend on room. One writer process at a time.
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
    /// At least one copy exists, and what could be read is not valid.
    case damaged(String)
  }

  enum Copy {
    case valid([UInt8], UInt64)
    case absent
    case damaged(String)
    /// Of a version that this program does not know.
    case foreign(HostError)
    /// The host did not let it be read: it may hold anything.
    case unknown(HostError)
  }

  public let path: String
  private let mode: mode_t
  /// Held over a whole read-decide-write, so that two threads never choose the same copy.
  private let lock = Mutex(())

  public init(path: String, mode: mode_t = 0o600) {
    self.path = path
    self.mode = mode
  }

  /// Durable when it returns. When it throws, `read` gives the previous or this payload. Throws `HostError`, also when the
  /// copies there cannot be read, or are of a version that this program does not know: nothing is written over those.
  public func write(_ payload: [UInt8]) throws {
    guard payload.count <= Self.payloadBytesMax else {
      throw HostError(.limit, "pair.write", path: path, "\(payload.count) bytes; the limit is \(Self.payloadBytesMax)")
    }
    try lock.withLock { _ in
      let (a, b) = (load(".a"), load(".b"))
      if let error = Self.obstacle(a, b) { throw error }
      let sequence = max(Self.sequence(a), Self.sequence(b)) + 1
      // A copy that is not valid is the older one.
      let older = Self.sequence(a) <= Self.sequence(b) ? ".a" : ".b"
      let bytes = Self.encode(payload, sequence: sequence)
      do {
        try DurableFile.write(bytes, to: path + older, mode: mode)
      } catch let full as HostError where full.isNoSpace {
        // The other copy is the newer one, and durable: it stays.
        do { try DurableFile.overwrite(bytes, at: path + older) } catch { throw full }
      }
    }
  }

  /// What it answers survives a power cut, whoever wrote it and ended in the middle of that (R0). Throws `HostError`: the host did
  /// not let it be read or made durable (with the errno; the contents are not known, and may be there the next time), or it is of a
  /// version that this program does not know. Labels: durable.folder, .reopen, .sync, file.open,
  /// file.read.
  public func read() throws -> Contents {
    try lock.withLock { _ in
      // Each copy was synced before it was renamed; its name may not have been, nor one that was written over in place.
      try DurableFile.confirmNames(in: DurableFile.parent(of: path))
      let (a, b) = (load(".a", afterSync: true), load(".b", afterSync: true))
      if let error = Self.obstacle(a, b) { throw error }
      return switch (a, b) {
      case (.valid(let a, let first), .valid(let b, let second)):
        first > second ? .value(a, sequence: first, damaged: nil) : .value(b, sequence: second, damaged: nil)
      case (.valid(let payload, let sequence), .damaged(let why)),
        (.damaged(let why), .valid(let payload, let sequence)):
        .value(payload, sequence: sequence, damaged: why)
      case (.valid(let payload, let sequence), .absent), (.absent, .valid(let payload, let sequence)):
        .value(payload, sequence: sequence, damaged: nil)
      case (.valid(let payload, let sequence), .unknown(let error)),
        (.unknown(let error), .valid(let payload, let sequence)):
        .value(payload, sequence: sequence, damaged: "\(error)")
      case (.absent, .absent): .absent
      case (.damaged(let a), .damaged(let b)): .damaged("\(a); \(b)")
      case (.damaged(let why), .absent), (.absent, .damaged(let why)): .damaged(why)
      case (.foreign, _), (_, .foreign), (.unknown, _), (_, .unknown):
        preconditionFailure("an obstacle was not seen")
      }
    }
  }

  /// What forbids both to believe these copies and to write over one of them. One bad copy beside a valid one is what there are two
  /// for; a copy that only could not be read this time is not bad.
  private static func obstacle(_ a: Copy, _ b: Copy) -> HostError? {
    switch (a, b) {
    case (.foreign(let error), _), (_, .foreign(let error)): error
    case (.valid, .unknown(let error)), (.unknown(let error), .valid): error.errno == EIO ? nil : error
    case (.unknown(let error), _), (_, .unknown(let error)): error
    default: nil
    }
  }

  /// Neither copy can be used: moves both out of the way, durably, so that they can be looked at; the next `read` says `absent`.
  /// At most `DurableFile.keptAsideMax` of each are kept, the newest. Throws `HostError`: repeat it.
  public func setAside(stamp: String) throws {
    try lock.withLock { _ in
      try DurableFile.setAside(path + ".a", stamp: stamp)
      try DurableFile.setAside(path + ".b", stamp: stamp)
    }
  }

  /// Both copies are valid and hold the same. Throws as `read`.
  public func isWhole() throws -> Bool {
    try lock.withLock { _ in
      let (a, b) = (load(".a"), load(".b"))
      if let error = Self.obstacle(a, b) { throw error }
      guard case .valid(let first, _) = a, case .valid(let second, _) = b else { return false }
      return first == second
    }
  }

  /// Removes both copies, and what was set aside of them.
  public func remove() throws {
    try lock.withLock { _ in
      try DurableFile.remove(path + ".a")
      try DurableFile.remove(path + ".b")
      for copy in [".a", ".b"] { try DurableFile.removeAside(path + copy) }
    }
  }

  private static func sequence(_ copy: Copy) -> UInt64 {
    if case .valid(_, let sequence) = copy { sequence } else { 0 }
  }

  private func load(_ suffix: String, afterSync: Bool = false) -> Copy {
    let file = path + suffix
    do {
      if afterSync { try DurableFile.confirmContents(of: file) }
      guard let bytes = try DurableFile.readIfPresent(file, bytesMax: Self.headerBytes + Self.payloadBytesMax) else {
        return .absent
      }
      return Self.decode(bytes, file: file)
    } catch let error as HostError where error.code == .system {
      return .unknown(error)
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
    let payload = Array(bytes[headerBytes...])
    guard integer(bytes[12..<16]) == UInt64(payload.count) else { return .damaged("\(file): torn") }
    let checksum = Checksum.crc32c(payload, continuing: Checksum.crc32c(bytes[..<24]))
    guard integer(bytes[24..<28]) == UInt64(checksum) else { return .damaged("\(file): wrong checksum") }
    guard found == version else {
      // Whole, so it was written so.
      return .foreign(
        HostError(
          .invalid, "pair.version", path: file,
          "it has format version \(found) and this vmha knows \(version): install the vmha that wrote it again"))
    }
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
