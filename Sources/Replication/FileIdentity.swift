import Model

/// The name of one replicated regular file's contents, for its whole life and on both nodes: 128 random bits, never
/// all zero, never used twice. Paths and inode numbers change; this does not.
public struct FileIdentity: Hashable, Sendable, Comparable, CustomStringConvertible {
  public static let bytesCount = 16
  /// The extended attribute in which a file keeps it, on both nodes.
  public static let attribute = "trusted.vmha.file"

  let high: UInt64
  let low: UInt64

  /// nil if both are zero.
  public init?(high: UInt64, low: UInt64) {
    guard high | low != 0 else { return nil }
    self.high = high
    self.low = low
  }

  /// nil unless there are exactly 16 bytes that are not all zero. From 16 random bytes it makes a new identity.
  public init?(bytes: [UInt8]) {
    guard bytes.count == FileIdentity.bytesCount else { return nil }
    self.init(high: FileIdentity.join(bytes[..<8]), low: FileIdentity.join(bytes[8...]))
  }

  /// 16 bytes, in the order in which `description` shows them.
  public var bytes: [UInt8] {
    [high, low].flatMap { half in (0..<8).map { UInt8(truncatingIfNeeded: half >> UInt64(56 - 8 * $0)) } }
  }

  /// 32 lower-case hexadecimal digits.
  public var description: String { hexadecimal(high) + hexadecimal(low) }

  /// The order of `bytes`.
  public static func < (a: FileIdentity, b: FileIdentity) -> Bool { (a.high, a.low) < (b.high, b.low) }

  private static func join(_ bytes: ArraySlice<UInt8>) -> UInt64 { bytes.reduce(0) { $0 << 8 | UInt64($1) } }
}
