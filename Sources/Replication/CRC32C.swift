/// CRC-32C (Castagnoli polynomial, reflected, initial value and final exclusive-or of all ones), eight bytes a step.
public struct CRC32C: Sendable {
  /// The register, not yet inverted.
  private var register: UInt32 = 0xFFFF_FFFF

  public init() {}

  /// Checksum of everything given to `update` so far.
  public var value: UInt32 { ~register }

  public static func checksum(_ bytes: UnsafeRawBufferPointer) -> UInt32 {
    var sum = CRC32C()
    sum.update(bytes)
    return sum.value
  }

  public mutating func update(_ bytes: UnsafeRawBufferPointer) {
    var crc = register
    CRC32C.tables.withUnsafeBufferPointer { table in
      var index = 0
      let wholeEnd = bytes.count & ~7
      while index < wholeEnd {
        let word = UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: index, as: UInt64.self)) ^ UInt64(crc)
        crc =
          table[Int(7 &* 256 &+ (word & 0xFF))] ^ table[Int(6 &* 256 &+ (word >> 8 & 0xFF))]
          ^ table[Int(5 &* 256 &+ (word >> 16 & 0xFF))] ^ table[Int(4 &* 256 &+ (word >> 24 & 0xFF))]
          ^ table[Int(3 &* 256 &+ (word >> 32 & 0xFF))] ^ table[Int(2 &* 256 &+ (word >> 40 & 0xFF))]
          ^ table[Int(256 &+ (word >> 48 & 0xFF))] ^ table[Int(word >> 56)]
        index &+= 8
      }
      while index < bytes.count {
        crc = table[Int((crc ^ UInt32(bytes[index])) & 0xFF)] ^ (crc >> 8)
        index &+= 1
      }
    }
    register = crc
  }

  /// Eight tables of 256 entries in a row; table k advances a byte by k further bytes.
  private static let tables: [UInt32] = {
    var table = [UInt32](repeating: 0, count: 8 * 256)
    for byte in 0..<256 {
      var crc = UInt32(byte)
      for _ in 0..<8 { crc = crc & 1 == 1 ? (crc >> 1) ^ 0x82F6_3B78 : crc >> 1 }
      table[byte] = crc
    }
    for step in 1..<8 {
      for byte in 0..<256 {
        let before = table[(step - 1) * 256 + byte]
        table[step * 256 + byte] = (before >> 8) ^ table[Int(before & 0xFF)]
      }
    }
    return table
  }()
}
