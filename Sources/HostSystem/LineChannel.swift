import FoundationEssentials
import Glibc
import Model
import Synchronization

/// Lines of text (one JSON object each) over a connected socket. One reader thread; any thread may write; `close` from
/// any thread ends both at once.
public final class LineChannel: Sendable {
  /// Longest line in bytes, without its newline.
  public static let lineBytesMax = 1 << 20
  /// A peer that takes nothing for this long has failed: `write` throws and the channel is closed.
  public static let writeTimeout: Duration = .seconds(10)

  private struct Input {
    var bytes: [UInt8] = []
    /// Bytes before this index hold no newline.
    var searched = 0
  }

  private let socket: Int32
  private let input = Mutex(Input())
  private let output = Mutex(())
  private let isClosed = Atomic<Bool>(false)

  /// Takes the descriptor over; it is closed when the last reference goes.
  public init(socket: Int32) {
    self.socket = socket
    let flags = fcntl(socket, F_GETFL)
    if flags & O_NONBLOCK == 0 { _ = fcntl(socket, F_SETFL, flags | O_NONBLOCK) }
  }

  deinit { Glibc.close(socket) }

  public static func connect(path: String) throws -> LineChannel {
    LineChannel(socket: try UnixSocket.connect(path: path))
  }

  public func peerCredentials() throws -> PeerCredentials { try UnixSocket.peerCredentials(socket) }

  /// The next line without its newline; nil when the other side closed after a whole line, or `close` was called.
  /// Throws `.timedOut` after `timeout` (nil = wait for ever), `.limit` for a longer line, `.closed` for an unfinished
  /// last line.
  public func readLine(timeout: Duration? = nil) throws -> [UInt8]? {
    let deadline = timeout.map { monotonicNow() + $0 }
    return try input.withLock { input in
      while true {
        if let line = try Self.takeLine(&input) { return line }
        guard try wait(POLLIN, until: deadline) else {
          throw HostError(.timedOut, "channel.read", "nothing received in time")
        }
        let (count, number) = withUnsafeTemporaryAllocation(byteCount: 64 << 10, alignment: 1) { buffer in
          let count = recv(socket, buffer.baseAddress, buffer.count, 0)
          let number = errno
          if count > 0 { input.bytes.append(contentsOf: UnsafeRawBufferPointer(rebasing: buffer[..<count])) }
          return (count, number)
        }
        if count == 0 || isClosed.load(ordering: .acquiring) {
          guard input.bytes.isEmpty || isClosed.load(ordering: .acquiring) else {
            throw HostError(.closed, "channel.read", "the other side ended in the middle of a line")
          }
          return nil
        }
        if count < 0, number != EAGAIN, number != EINTR {
          throw HostError.system("channel.read", path: "", errno: number)
        }
      }
    }
  }

  private static func takeLine(_ input: inout Input) throws -> [UInt8]? {
    guard let end = input.bytes[input.searched...].firstIndex(of: 0x0A) else {
      input.searched = input.bytes.count
      guard input.bytes.count <= lineBytesMax else {
        throw HostError(.limit, "channel.read", "a line longer than \(lineBytesMax) bytes")
      }
      return nil
    }
    guard end <= lineBytesMax else {
      throw HostError(.limit, "channel.read", "a line longer than \(lineBytesMax) bytes")
    }
    let line = Array(input.bytes[..<end])
    input.bytes.removeFirst(end + 1)
    input.searched = 0
    return line
  }

  /// Writes the line and its newline whole, or throws and closes the channel. `line` holds no newline.
  public func writeLine(_ line: [UInt8]) throws {
    guard line.count <= Self.lineBytesMax else {
      throw HostError(.limit, "channel.write", "\(line.count) bytes; the limit is \(Self.lineBytesMax)")
    }
    guard !line.contains(0x0A) else { throw HostError(.invalid, "channel.write", "a newline inside a line") }
    do {
      try output.withLock { _ in try sendAll(line + [0x0A]) }
    } catch {
      // Half a line may be out: the stream cannot go on.
      close()
      throw error
    }
  }

  private func sendAll(_ bytes: [UInt8]) throws {
    let deadline = monotonicNow() + Self.writeTimeout
    try bytes.withUnsafeBytes { buffer in
      var rest = buffer[...]
      while !rest.isEmpty {
        guard !isClosed.load(ordering: .acquiring) else { throw HostError(.closed, "channel.write", "already closed") }
        let piece = UnsafeRawBufferPointer(rebasing: rest)
        let count = Glibc.send(socket, piece.baseAddress, piece.count, Int32(MSG_NOSIGNAL))
        if count >= 0 {
          rest = rest.dropFirst(count)
        } else if errno == EAGAIN {
          guard try wait(POLLOUT, until: deadline) else {
            throw HostError(.timedOut, "channel.write", "the other side takes nothing")
          }
        } else if errno != EINTR {
          throw HostError.system("channel.write", path: "", errno: errno)
        }
      }
    }
  }

  /// false when the deadline has passed.
  private func wait(_ events: Int32, until deadline: Instant?) throws -> Bool {
    var entry = pollfd(fd: socket, events: Int16(events), revents: 0)
    let milliseconds = deadline.map { ($0 - monotonicNow()).pollMilliseconds } ?? -1
    return try HostCalls.perform("channel.poll") { poll(&entry, 1, milliseconds) } > 0
  }

  /// From any thread, at any time; readers and writers return at once.
  public func close() {
    isClosed.store(true, ordering: .releasing)
    shutdown(socket, Int32(SHUT_RDWR))
  }

  public func send(_ message: some Encodable) throws {
    try writeLine(Array(try JSONEncoder().encode(message)))
  }

  /// nil as `readLine`. Throws `.invalid` for a line that is not such a message; the channel can be read on.
  public func receive<Message: Decodable>(_ type: Message.Type, timeout: Duration? = nil) throws -> Message? {
    guard let line = try readLine(timeout: timeout) else { return nil }
    do {
      return try JSONDecoder().decode(type, from: Data(line))
    } catch {
      throw HostError(.invalid, "channel.decode", "not a \(type): \(error)")
    }
  }
}
