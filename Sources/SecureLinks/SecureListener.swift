import Glibc
import HostSystem
import Model
import Synchronization

/// Accepts TLS connections on one address. Handshakes run on threads of their own, so that a silent or hostile peer
/// holds nobody up.
public final class SecureListener: Sendable {
  /// A handshake that takes longer is given up.
  public static let handshakeTimeout: Duration = .seconds(5)
  /// Handshakes at the same time; connections above that are closed at once.
  public static let handshakesMax = 16
  /// Finished connections nobody has accepted yet; above that they are closed.
  public static let waitingMax = 16
  private static let backlog: Int32 = 32

  /// Called from the listener's threads with the peer's address and why it was turned away.
  public typealias RefusedHandler = @Sendable (_ peerAddress: String, _ why: SecureError) -> Void

  private struct State {
    var waiting: [SecureStream] = []
    var handshakes = 0
    var isClosed = false
    /// The socket is closed and the port free.
    var isOver = false
  }

  private let socket: Int32
  private let state = Monitor(State())
  private let context: Mutex<SecureContext>
  private let allowsJoin: @Sendable () -> Bool
  private let refused: RefusedHandler
  /// The port in use (that chosen by the kernel if 0 was asked for).
  public let port: Int

  /// Throws `SecureError.localAddressMissing` if the address does not exist on this host now, `.system` with EADDRINUSE
  /// if taken. `allowsJoin` is asked for each host without certificate that wants to join.
  public init(
    address: String, port: Int, context: SecureContext, allowsJoin: @escaping @Sendable () -> Bool = { false },
    refused: @escaping RefusedHandler = { _, _ in }
  ) throws {
    let local = try SocketAddress(address, port: port)
    socket = try local.boundSocket(type: SOCK_STREAM)
    self.context = Mutex(context)
    self.allowsJoin = allowsJoin
    self.refused = refused
    do {
      guard listen(socket, Self.backlog) == 0 else { throw SecureError.system("listen on \(local)", errno) }
      self.port = try SocketAddress.localPort(socket)
      try HostThread.start(name: "tls-listen") { [self] in
        acceptLoop()
        Glibc.close(socket)
        state.withLock { $0.isOver = true }
      }
    } catch {
      Glibc.close(socket)
      throw error
    }
  }

  /// From now on new connections use this one.
  public func use(_ new: SecureContext) { context.withLock { $0 = new } }

  /// The next proven connection; nil after `timeout` (nil = wait). Throws `.closed` after `close`.
  public func accept(timeout: Duration? = nil) throws -> SecureStream? {
    let outcome: Result<SecureStream, SecureError>? = state.wait(timeout: timeout) { state in
      if state.isClosed { return .failure(SecureError(.closed, "the listener on port \(port) is closed")) }
      return state.waiting.isEmpty ? nil : .success(state.waiting.removeFirst())
    }
    return try outcome?.get()
  }

  /// Ends listening; the port is free when it returns. Connections handed out stay.
  public func close() {
    let isFirst = state.withLock { state in
      defer { state.isClosed = true }
      state.waiting.removeAll()
      return !state.isClosed
    }
    if isFirst { shutdown(socket, Int32(SHUT_RDWR)) }
    _ = state.wait(timeout: .seconds(5)) { $0.isOver ? true : nil }
  }

  private func acceptLoop() {
    while !state.withLock({ $0.isClosed }) {
      var entry = pollfd(fd: socket, events: Int16(POLLIN), revents: 0)
      _ = poll(&entry, 1, -1)
      let accepted = UnixSocket.acceptNow(socket)
      guard accepted >= 0 else {
        // Out of descriptors or memory: do not spin until some are free again.
        if [EMFILE, ENFILE, ENOBUFS, ENOMEM].contains(errno) { usleep(50_000) }
        continue
      }
      let isTaken = state.withLock { state in
        guard !state.isClosed, state.handshakes < Self.handshakesMax else { return false }
        state.handshakes += 1
        return true
      }
      if isTaken { startHandshake(accepted) } else { turnAway(accepted, "too many connections at once") }
    }
  }

  private func turnAway(_ accepted: Int32, _ why: String) {
    let address = SocketAddress.remoteText(accepted)
    Glibc.close(accepted)
    refused(address, SecureError(.limit, why))
  }

  private func startHandshake(_ accepted: Int32) {
    do {
      try HostThread.start(name: "tls-handshake") { [self] in
        shake(accepted)
      }
    } catch {
      state.withLock { $0.handshakes -= 1 }
      turnAway(accepted, "\(error)")
    }
  }

  private func shake(_ accepted: Int32) {
    let address = SocketAddress.remoteText(accepted)
    let outcome = Result {
      try SecureStream.accept(
        socket: accepted, context: context.withLock { $0 }, allowsJoin: allowsJoin(), timeout: Self.handshakeTimeout)
    }
    let isDropped = state.withLock { state in
      state.handshakes -= 1
      guard case .success(let stream) = outcome, !state.isClosed, state.waiting.count < Self.waitingMax else {
        return true
      }
      state.waiting.append(stream)
      return false
    }
    guard isDropped else { return }
    if case .failure(let error) = outcome {
      refused(address, error as? SecureError ?? SecureError(.tls, "\(error)"))
    } else {
      refused(address, SecureError(.limit, "connections are not being taken"))
    }
  }
}
