import CHostShims
import Glibc

/// Wakes a thread that polls descriptors.
public final class WakePipe: Sendable {
  /// To be polled for POLLIN along with the others.
  public let descriptor: Int32
  private let writer: Int32

  public init() throws {
    var ends: [Int32] = [-1, -1]
    try HostCalls.perform("wake.pipe") { vmha_pipe(&ends) }
    for end in ends { _ = fcntl(end, F_SETFL, O_NONBLOCK) }
    (descriptor, writer) = (ends[0], ends[1])
  }

  deinit {
    close(descriptor)
    close(writer)
  }

  /// From any thread; never waits.
  public func signal() {
    var byte: UInt8 = 0
    // A full pipe wakes as well.
    _ = write(writer, &byte, 1)
  }

  /// By the polling thread, before it looks at what it was woken for.
  public func drain() {
    withUnsafeTemporaryAllocation(byteCount: 64, alignment: 1) { buffer in
      while read(descriptor, buffer.baseAddress, buffer.count) == buffer.count {}
    }
  }
}
