import Glibc
import HostSystem
import Model
import Synchronization
import Testing

/// A slow, long, stubborn or broken cable: takes connections on 127.0.0.2 and hands them on to the same port of 127.0.0.1.
final class Relay: Sendable {
  struct Direction: Sendable {
    /// From the arrival of a byte to its departure.
    var delay: Duration = .zero
    /// nil = as fast as it goes.
    var bytesPerSecond: Int?
    /// Nothing is taken and nothing given.
    var isStalled = false
    /// The connection is cut when so many more bytes have passed, wherever in a frame that is.
    var cutAfter: Int?
  }
  /// From the dialling end (node 1) to the listening one, and back.
  struct Cable: Sendable {
    var there = Direction()
    var back = Direction()
    var isRemoved = false
  }

  private static let chunkBytes = 16 << 10
  private static let heldBytesMax = 1 << 20
  private static let sendFlags = Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)
  private let cable = Mutex(Cable())
  private let listener: Int32
  private let port: Int

  init(port: Int) throws {
    self.port = port
    listener = try Self.socket { try Self.address($0, "127.0.0.2", port, bind) }
    guard listen(listener, 4) == 0 else { throw TestFailure("relay: listen: \(errno)") }
    try HostThread.start(name: "relay") { [self] in
      while !state.isRemoved {
        var entry = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
        guard poll(&entry, 1, 100) > 0 else { continue }
        let client = accept(listener, nil, nil)
        do {
          let server = try Self.socket { try Self.address($0, "127.0.0.1", port, connect) }
          try pass(client, server)
        } catch {
          close(client)
        }
      }
      close(listener)
    }
  }

  private var state: Cable { cable.withLock { $0 } }
  func change(_ body: (inout Cable) -> Void) { cable.withLock { body(&$0) } }
  func remove() { change { $0.isRemoved = true } }

  private static func socket(_ use: (Int32) throws -> Void) throws -> Int32 {
    let new = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var (on, bytes): (Int32, Int32) = (1, 256 << 10)
    setsockopt(new, SOL_SOCKET, SO_REUSEADDR, &on, 4)
    for option in [SO_RCVBUF, SO_SNDBUF] { setsockopt(new, SOL_SOCKET, option, &bytes, 4) }
    setsockopt(new, Int32(IPPROTO_TCP), TCP_NODELAY, &on, 4)
    do { try use(new) } catch {
      close(new)
      throw error
    }
    return new
  }

  private static func address(
    _ socket: Int32, _ text: String, _ port: Int, _ use: (Int32, UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) throws {
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = in_port_t(port).bigEndian
    inet_pton(AF_INET, text, &address.sin_addr)
    let result = withUnsafePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { use(socket, $0, socklen_t(16)) }
    }
    guard result == 0 else { throw TestFailure("relay: \(text):\(port): errno \(errno)") }
  }

  /// Both directions end together; the sockets are closed by the second.
  private func pass(_ client: Int32, _ server: Int32) throws {
    let ended = Ended()
    for (from, to, side) in [(client, server, \Cable.there), (server, client, \Cable.back)] {
      let path = UncheckedPath(side)
      try HostThread.start(name: "relay-pass") { [self] in
        pump(from, to, path.path, ended)
        shutdown(client, Int32(SHUT_RDWR))
        shutdown(server, Int32(SHUT_RDWR))
        if ended.count.add(1, ordering: .acquiringAndReleasing).newValue == 2 {
          close(client)
          close(server)
        }
      }
    }
  }

  private final class Ended: Sendable { let count = Atomic<Int>(0) }
  private struct UncheckedPath: @unchecked Sendable {
    let path: WritableKeyPath<Cable, Direction>
    init(_ path: WritableKeyPath<Cable, Direction>) { self.path = path }
  }

  private func pump(_ from: Int32, _ to: Int32, _ side: WritableKeyPath<Cable, Direction>, _ ended: Ended) {
    var held: [(due: Instant, bytes: ArraySlice<UInt8>)] = []
    var (heldBytes, isOver) = (0, false)
    var free = monotonicNow()
    while ended.count.load(ordering: .acquiring) == 0, !(isOver && held.isEmpty) {
      let whole = state
      let direction = whole[keyPath: side]
      if whole.isRemoved { return }
      var isIdle = true
      if !direction.isStalled, !isOver, heldBytes < Self.heldBytesMax {
        var buffer = [UInt8](repeating: 0, count: Self.chunkBytes)
        let count = recv(from, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        if count > 0 {
          held.append((monotonicNow() + direction.delay, buffer[..<count]))
          heldBytes += count
          isIdle = false
        } else if count == 0 || errno != EAGAIN {
          isOver = true
        }
      }
      let now = monotonicNow()
      if !direction.isStalled, let first = held.first, first.due <= now, free <= now {
        var count = first.bytes.count
        if let left = direction.cutAfter { count = min(count, left) }
        count = first.bytes.withUnsafeBytes { send(to, $0.baseAddress, count, Self.sendFlags) }
        if count > 0 {
          held[0].bytes = first.bytes.dropFirst(count)
          if held[0].bytes.isEmpty { held.removeFirst() }
          heldBytes -= count
          isIdle = false
          if let rate = direction.bytesPerSecond {
            let time = Duration.nanoseconds(Int64(count) * 1_000_000_000 / Int64(rate))
            // A connection that was idle does not save up.
            free = (now - free > .milliseconds(20) ? now : free) + time
          }
        } else if count < 0, errno != EAGAIN {
          return
        }
        if let left = direction.cutAfter {
          cable.withLock { cable in
            if cable[keyPath: side].cutAfter != nil { cable[keyPath: side].cutAfter = max(0, left - max(0, count)) }
          }
          if left <= max(0, count) { return }
        }
      }
      if isIdle { usleep(500) }
    }
  }
}
