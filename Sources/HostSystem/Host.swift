import CHostShims
import Glibc
import Model

/// CLOCK_BOOTTIME: monotonic, goes on while the host sleeps.
public func monotonicNow() -> Instant {
  var time = timespec()
  let result = clock_gettime(CLOCK_BOOTTIME, &time)
  precondition(result == 0, "CLOCK_BOOTTIME exists on every kernel vmha runs on")
  return Instant(nanoseconds: Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec))
}

/// The kernel's id of this boot, 36 characters. Changes at every boot and never else.
public func bootID() throws -> String {
  let path = "/proc/sys/kernel/random/boot_id"
  let text = String(decoding: try DurableFile.read(path), as: UTF8.self)
  let identifier = text.prefix { !$0.isNewline }
  guard identifier.utf8.count == 36 else {
    throw HostError(.invalid, "boot id", path: path, "not 36 characters: '\(identifier)'")
  }
  return String(identifier)
}

/// From the kernel's generator (getrandom), fit for keys.
public func randomBytes(_ count: Int) -> [UInt8] {
  var bytes = [UInt8](repeating: 0, count: count)
  let chunkBytesMax = 256
  bytes.withUnsafeMutableBytes { buffer in
    var offset = 0
    while offset < buffer.count {
      let piece = UnsafeMutableRawBufferPointer(rebasing: buffer[offset..<min(offset + chunkBytesMax, buffer.count)])
      let length = vmha_random(piece.baseAddress, piece.count)
      precondition(length > 0 || errno == EINTR, "getrandom cannot fail for up to 256 bytes")
      offset += max(0, length)
    }
  }
  return bytes
}

public func randomUInt64() -> UInt64 {
  randomBytes(8).reduce(0) { $0 << 8 | UInt64($1) }
}

/// The host's short name (without the domain).
public func hostName() throws -> String {
  var bytes = [CChar](repeating: 0, count: 256)
  try HostCalls.perform("gethostname") { gethostname(&bytes, bytes.count - 1) }
  let full = String(decoding: bytes.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
  return String(full.prefix { $0 != "." })
}

extension Duration {
  /// For poll and other calls that take milliseconds: rounded up, 0...`Int32.max`.
  public var pollMilliseconds: Int32 {
    Int32(clamping: max(0, (nanoseconds + 999_999) / 1_000_000))
  }
}

/// Writing to a socket or pipe whose reader is gone must be an error (EPIPE), not the end of the process. Children get
/// the default back.
public func ignoreBrokenPipes() { _ = brokenPipesIgnored }

private let brokenPipesIgnored: Bool = {
  signal(SIGPIPE, SIG_IGN)
  return true
}()
