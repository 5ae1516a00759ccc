import HostSystem
import Model
import SecureLinks

/// Requests and answers between the two daemons: length (4 B, little-endian), then as many bytes.
enum PeerFrames {
  static let frameBytesMax = 4 << 20
  private static let headerBytes = 4

  static func write(_ payload: [UInt8], to stream: SecureStream) throws {
    guard payload.count <= frameBytesMax else {
      throw PeerError(.limit, "a message of \(payload.count) bytes; the limit is \(frameBytesMax)")
    }
    let header = (0..<headerBytes).map { UInt8(truncatingIfNeeded: payload.count >> (8 * $0)) }
    try header.withUnsafeBytes { header in
      try payload.withUnsafeBytes { try stream.write(header, $0) }
    }
  }

  /// nil if the connection ended between two frames. The whole frame must come within `timeout` of its call.
  static func read(from stream: SecureStream, timeout: Duration) throws -> [UInt8]? {
    let deadline = monotonicNow() + timeout
    guard let header = try read(headerBytes, from: stream, until: deadline) else { return nil }
    let count = header.reversed().reduce(0) { $0 << 8 | Int($1) }
    guard count <= frameBytesMax else {
      throw PeerError(
        .limit, "\(stream.peerAddress) announces a message of \(count) bytes; the limit is \(frameBytesMax)")
    }
    guard let payload = try read(count, from: stream, until: deadline) else {
      throw SecureError(.closed, "\(stream.peerAddress) ended the connection in the middle of a message")
    }
    return payload
  }

  private static func read(_ count: Int, from stream: SecureStream, until deadline: Instant) throws -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var offset = 0
    while offset < count {
      let left = deadline - monotonicNow()
      guard left > .zero else { throw SecureError(.timedOut, "no complete message from \(stream.peerAddress) in time") }
      stream.readTimeout = left
      let length = try bytes.withUnsafeMutableBytes { buffer in
        try stream.read(into: UnsafeMutableRawBufferPointer(rebasing: buffer[offset...]))
      }
      if length == 0 {
        guard offset > 0 else { return nil }
        throw SecureError(.closed, "\(stream.peerAddress) ended the connection in the middle of a message")
      }
      offset += length
    }
    return bytes
  }
}
