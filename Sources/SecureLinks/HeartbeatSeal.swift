import COpenSSL
import HostSystem

/// Authenticates heartbeat datagrams with HMAC-SHA-256. Freshness (sequence numbers) is the receiver's business.
///
/// Layout: "VMHB", version 1 B, 3 zero bytes, body, HMAC of all before it 32 B.
public struct HeartbeatSeal: Sendable {
  public static let keyBytes = 32
  public static let datagramBytesMax = 1200
  static let header: [UInt8] = Array("VMHB".utf8) + [1, 0, 0, 0]
  static let macBytes = 32
  public static let bodyBytesMax = datagramBytesMax - header.count - macBytes

  private let key: [UInt8]

  /// nil unless the key has 32 bytes.
  public init?(key: [UInt8]) {
    guard key.count == Self.keyBytes else { return nil }
    self.key = key
  }

  public static func makeKey() -> [UInt8] { randomBytes(keyBytes) }

  /// `body` has at most `bodyBytesMax` bytes.
  public func seal(_ body: [UInt8]) -> [UInt8] {
    precondition(body.count <= Self.bodyBytesMax, "the caller's own frame keeps its size limit")
    let message = Self.header + body
    return message + mac(message[...])
  }

  /// The body, or nil for anything that this key did not seal.
  public func open(_ datagram: some Collection<UInt8>) -> [UInt8]? {
    let bytes = Array(datagram)
    guard (Self.header.count + Self.macBytes...Self.datagramBytesMax).contains(bytes.count),
      bytes.starts(with: Self.header)
    else { return nil }
    let end = bytes.count - Self.macBytes
    guard isEqualConstantTime(mac(bytes[..<end]), Array(bytes[end...])) else { return nil }
    return Array(bytes[Self.header.count..<end])
  }

  private func mac(_ message: ArraySlice<UInt8>) -> [UInt8] {
    var code = [UInt8](repeating: 0, count: Self.macBytes)
    var length: UInt32 = 0
    let done = message.withUnsafeBytes { buffer in
      HMAC(
        EVP_sha256(), key, Int32(key.count), buffer.bindMemory(to: UInt8.self).baseAddress, buffer.count, &code, &length
      )
    }
    precondition(done != nil && length == 32, "HMAC-SHA-256 is part of every libcrypto")
    return code
  }
}
