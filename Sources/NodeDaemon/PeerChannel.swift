import FoundationEssentials
import HostSystem
import Model
import SecureLinks
import Synchronization

/// Asks the peer's daemon, over the control port. Any thread may call; calls run side by side, each on a connection of
/// its own, which is kept for the next one.
public final class PeerChannel: Sendable {
  /// One link that fails to connect must not use up the time of the others.
  public static let connectTimeout: Duration = .seconds(2)
  static let idleConnectionsMax = 4
  /// The peer closes an idle connection after `PeerListener.idleTimeout`; ours are not used any more well before that.
  static let idleMax: Duration = .seconds(20)

  public struct Configuration: Sendable {
    public var context: SecureContext
    /// Node name the certificate must carry.
    public var peerName: String
    /// Best first.
    public var links: [HeartbeatLink]
    public init(context: SecureContext, peerName: String, links: [HeartbeatLink]) {
      self.context = context
      self.peerName = peerName
      self.links = links
    }
  }

  private struct Idle {
    let stream: SecureStream
    let since: Instant
  }

  private struct State {
    var configuration: Configuration?
    /// Raised with every new configuration; connections of older ones are not kept.
    var epoch = 0
    var idle: [Idle] = []
    var inUse: [ObjectIdentifier: SecureStream] = [:]
    var isClosed = false
  }

  private let state: Mutex<State>
  private let port: Int
  private let isLinkUp: @Sendable (String) -> Bool

  /// nil = there is no peer yet. `isLinkUp` (by link name) only orders the attempts: links that are not up come last.
  public init(
    _ configuration: Configuration?, port: Int, isLinkUp: @escaping @Sendable (String) -> Bool = { _ in true }
  ) {
    state = Mutex(State(configuration: configuration))
    self.port = port
    self.isLinkUp = isLinkUp
  }

  /// Takes effect for the next call; idle connections are dropped.
  public func use(_ configuration: Configuration?) {
    let old = state.withLock { state in
      state.configuration = configuration
      state.epoch += 1
      defer { state.idle = [] }
      return state.idle
    }
    old.forEach { $0.stream.shutdown() }
  }

  /// The peer is gone (heartbeat): calls in progress end at once instead of at their time limit.
  public func dropConnections() {
    let all = state.withLock { state in
      defer { state.idle = [] }
      return state.idle.map(\.stream) + Array(state.inUse.values)
    }
    all.forEach { $0.shutdown() }
  }

  /// Every call fails from now on.
  public func close() {
    state.withLock { $0.isClosed = true }
    dropConnections()
  }

  /// The peer's answer, within `timeout` in all. Throws `PeerError`: `.unreachable` = nothing was done there,
  /// `.outcomeUnknown` = it may have been.
  public func call(_ request: Data, timeout: Duration) throws -> Data {
    let deadline = monotonicNow() + timeout
    guard request.count <= PeerFrames.frameBytesMax else {
      throw PeerError(.limit, "a request of \(request.count) bytes; the limit is \(PeerFrames.frameBytesMax)")
    }
    let (configuration, epoch, kept) = state.withLock { state in
      state.idle.removeAll { monotonicNow() - $0.since > Self.idleMax }
      return (state.isClosed ? nil : state.configuration, state.epoch, state.idle.popLast()?.stream)
    }
    guard let configuration else { throw PeerError(.closed, "there is no peer to ask: the other host has not joined") }
    // A kept connection that has ended meanwhile has taken nothing of this request.
    let stream =
      if let kept, kept.isAlive { kept } else { try connect(configuration, deadline: deadline, timeout: timeout) }
    state.withLock { $0.inUse[ObjectIdentifier(stream)] = stream }
    defer { state.withLock { $0.inUse[ObjectIdentifier(stream)] = nil } }
    do {
      stream.writeTimeout = max(.milliseconds(1), deadline - monotonicNow())
      try PeerFrames.write(Array(request), to: stream)
      guard let answer = try PeerFrames.read(from: stream, timeout: deadline - monotonicNow()) else {
        throw SecureError(.closed, "\(configuration.peerName) ended the connection without an answer")
      }
      keep(stream, epoch)
      return Data(answer)
    } catch {
      stream.shutdown()
      throw PeerError(.outcomeUnknown, "\(configuration.peerName) was asked, but did not answer: \(error)")
    }
  }

  private func keep(_ stream: SecureStream, _ epoch: Int) {
    let isKept = state.withLock { state in
      guard !state.isClosed, state.epoch == epoch, state.idle.count < Self.idleConnectionsMax else { return false }
      state.idle.append(Idle(stream: stream, since: monotonicNow()))
      return true
    }
    if !isKept { stream.shutdown() }
  }

  private func connect(_ configuration: Configuration, deadline: Instant, timeout: Duration) throws -> SecureStream {
    var failures: [String] = []
    let links = configuration.links.filter { isLinkUp($0.name) } + configuration.links.filter { !isLinkUp($0.name) }
    for link in links {
      let left = deadline - monotonicNow()
      guard left > .zero else {
        failures.append("not more within \(timeout)")
        break
      }
      do {
        return try SecureStream.connect(
          from: link.localAddress, to: link.peerAddress, port: port, context: configuration.context,
          expectedPeer: configuration.peerName, timeout: min(left, Self.connectTimeout))
      } catch {
        failures.append("\(link.name): \(error)")
      }
    }
    throw PeerError(
      .unreachable, "\(configuration.peerName) cannot be reached: \(failures.joined(separator: "; "))")
  }
}
