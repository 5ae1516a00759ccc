import Glibc
import HostSystem
import Model
import SecureLinks

/// Both ends of one link, for the heartbeat.
public struct HeartbeatLink: Sendable, Hashable {
  public var name: String
  /// Numeric addresses of one family.
  public var localAddress: String
  public var peerAddress: String
  public init(name: String, localAddress: String, peerAddress: String) {
    self.name = name
    self.localAddress = localAddress
    self.peerAddress = peerAddress
  }
}

/// One UDP socket per link, bound to the link's own address. A link that cannot be opened now is tried again each
/// second. Used by the heartbeat thread only.
struct HeartbeatSockets {
  static let retryInterval: Duration = .seconds(1)
  /// Datagrams taken from one socket before the others have their turn.
  static let receiveBurstMax = 64

  struct Socket {
    let link: HeartbeatLink
    let identifier: UInt32
    var handle: Int32 = -1
    var peer: SocketAddress?
    var retryAt: Instant
    /// Why it is not open or the last beat could not leave; nil = all is well.
    var problem: String?
  }

  /// What changed with a link's socket.
  enum Change: Equatable { case ready(String), problem(String, why: String) }

  private(set) var sockets: [Socket] = []
  private var buffer = [UInt8](repeating: 0, count: HeartbeatSeal.datagramBytesMax + 1)
  let port: Int

  init(port: Int) { self.port = port }

  mutating func use(_ links: [HeartbeatLink], now: Instant) {
    var old = sockets
    sockets = links.map { link in
      if let index = old.firstIndex(where: { $0.link == link }) { return old.remove(at: index) }
      return Socket(link: link, identifier: HeartbeatFrame.linkID(link.name), retryAt: now)
    }
    for socket in old where socket.handle >= 0 { close(socket.handle) }
  }

  mutating func closeAll() { use([], now: monotonicNow()) }

  var descriptors: [Int32] { sockets.map(\.handle) }

  var nextRetry: Instant? { sockets.filter { $0.handle < 0 }.map(\.retryAt).min() }

  /// Opens what is not open and due.
  mutating func open(now: Instant) -> [Change] {
    var changes: [Change] = []
    for index in sockets.indices where sockets[index].handle < 0 && sockets[index].retryAt <= now {
      let link = sockets[index].link
      do {
        sockets[index].peer = try SocketAddress(link.peerAddress, port: port)
        sockets[index].handle = try SocketAddress(link.localAddress, port: port).boundSocket(
          type: SOCK_DGRAM, reuse: false)
        sockets[index].problem = nil
        changes.append(.ready(link.name))
      } catch {
        sockets[index].retryAt = now + Self.retryInterval
        changes += note("\(error)", index)
      }
    }
    return changes
  }

  private mutating func note(_ why: String?, _ index: Int) -> [Change] {
    guard sockets[index].problem != why else { return [] }
    sockets[index].problem = why
    let name = sockets[index].link.name
    return [why.map { .problem(name, why: $0) } ?? .ready(name)]
  }

  mutating func send(_ datagram: [UInt8], on index: Int) -> [Change] {
    guard let peer = sockets[index].peer, sockets[index].handle >= 0 else { return [] }
    let handle = sockets[index].handle
    let result = peer.withSocketAddress { address, length in
      sendto(handle, datagram, datagram.count, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL), address, length)
    }
    guard result < 0 else { return note(nil, index) }
    let number = errno
    // ECONNREFUSED tells of an earlier beat: nobody listens there, which is the peer's affair and seen as silence.
    if [EAGAIN, EINTR, ENOBUFS, ECONNREFUSED].contains(number) { return [] }
    return note("beat to \(peer) cannot leave: \(errnoText(number)) (errno \(number))", index)
  }

  /// At most `receiveBurstMax` datagrams waiting on this socket.
  mutating func receive(_ index: Int) -> [[UInt8]] {
    var datagrams: [[UInt8]] = []
    while datagrams.count < Self.receiveBurstMax {
      let count = recv(sockets[index].handle, &buffer, buffer.count, Int32(MSG_DONTWAIT))
      if count >= 0 {
        datagrams.append(Array(buffer[..<count]))
      } else if errno != EINTR, errno != ECONNREFUSED {
        break
      }
    }
    return datagrams
  }
}
