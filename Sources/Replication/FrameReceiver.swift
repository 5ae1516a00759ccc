/// The receive buffer of one connection: read into `space`, `commit`, then take frames until there is none. Reserves
/// its memory once. Used by one thread.
public final class FrameReceiver {
  /// Room for two of the largest frames, so that a read seldom has to move bytes.
  public static let capacityBytes = 2 * FrameLimits.frameBytesMax
  private let buffer: UnsafeMutableRawBufferPointer
  private var start = 0
  private var end = 0
  private var wanted = FrameLimits.headerBytes

  public init() {
    buffer = .allocate(byteCount: FrameReceiver.capacityBytes, alignment: 64)
  }
  deinit { buffer.deallocate() }

  /// Where the next bytes go; never empty once `next` has said nil. Frames taken before are invalid from here on.
  public func space() -> UnsafeMutableRawBufferPointer {
    if start == end {
      start = 0
      end = 0
    } else if buffer.count - start < FrameLimits.frameBytesMax {
      buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[start..<end]))
      end -= start
      start = 0
    }
    return UnsafeMutableRawBufferPointer(rebasing: buffer[end...])
  }

  /// `count` bytes were read into `space()`.
  public func commit(_ count: Int) {
    precondition(count >= 0 && count <= buffer.count - end)
    end += count
  }

  /// The next whole frame, or nil = read more. The view is valid until `space()` is called. After an error the session
  /// must end.
  public func next() throws(FrameError) -> FrameView? {
    guard end - start >= wanted else { return nil }
    switch try FrameView.first(in: UnsafeRawBufferPointer(rebasing: buffer[start..<end])) {
    case .needs(let byteCount):
      wanted = byteCount
      return nil
    case .frame(let view):
      start += view.header.frameBytes
      wanted = FrameLimits.headerBytes
      return view
    }
  }
}
