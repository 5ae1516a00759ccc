import FoundationEssentials
import HostSystem
import Model
import SecureLinks
import Synchronization

/// Answers the peer's daemon, and a host that wants to join, on the control port of every link. A link's address that
/// does not exist yet is tried again each second.
public final class PeerListener: Sendable {
  /// Connections served at the same time; above that they are closed.
  public static let connectionsMax = 32
  /// A connection on which nothing is asked for so long is closed.
  public static let idleTimeout: Duration = .seconds(60)
  /// A joining host, not known yet, gets less patience.
  static let joinTimeout: Duration = .seconds(10)
  /// A peer that does not take its answer.
  static let answerTimeout: Duration = .seconds(10)
  static let retryInterval: Duration = .seconds(1)
  private static let acceptPoll: Duration = .milliseconds(500)

  /// Runs on the connection's own thread; may take its time.
  public typealias Handler = @Sendable (_ request: Data, _ peerName: String) -> Data
  /// One request of a host without certificate; nothing it says is proven but what its token proves.
  public typealias JoinHandler = @Sendable (_ request: Data, _ peerAddress: String) -> Data

  public enum Event: Sendable, Hashable {
    case listening(address: String, port: Int)
    case cannotListen(address: String, why: String)
    /// A connection was turned away.
    case refused(peerAddress: String, why: SecureError)
  }

  private struct State {
    var context: SecureContext
    var addresses: [String]
    var listeners: [String: SecureListener] = [:]
    var connections: [ObjectIdentifier: SecureStream] = [:]
    var problems: [String: String] = [:]
    var isClosed = false
    var threads = 0
  }

  private let state: Monitor<State>
  private let port: Int
  private let handler: Handler
  private let joinHandler: JoinHandler
  private let allowsJoin: @Sendable () -> Bool
  private let report: @Sendable (Event) -> Void

  public init(
    context: SecureContext, addresses: [String], port: Int, handler: @escaping Handler,
    allowsJoin: @escaping @Sendable () -> Bool = { false }, joinHandler: @escaping JoinHandler = { _, _ in Data() },
    report: @escaping @Sendable (Event) -> Void = { _ in }
  ) throws {
    state = Monitor(State(context: context, addresses: addresses, threads: 1))
    self.port = port
    self.handler = handler
    self.allowsJoin = allowsJoin
    self.joinHandler = joinHandler
    self.report = report
    try HostThread.start(name: "peer-listen") { [self] in
      supervise()
      state.withLock { $0.threads -= 1 }
    }
  }

  /// Ports in use by address (they differ from the one asked for only if that was 0).
  public var ports: [String: Int] { state.withLock { $0.listeners.mapValues(\.port) } }

  /// New addresses and identity; connections that exist go on.
  public func use(context: SecureContext, addresses: [String]) {
    state.withLock { state in
      state.context = context
      state.addresses = addresses
      state.listeners.values.forEach { $0.use(context) }
    }
  }

  /// Ends everything; returns when no handler runs any more, or after 5 s.
  public func close() {
    let (listeners, connections) = state.withLock { state in
      state.isClosed = true
      return (Array(state.listeners.values), Array(state.connections.values))
    }
    listeners.forEach { $0.close() }
    connections.forEach { $0.shutdown() }
    _ = state.wait(timeout: .seconds(5)) { $0.threads == 0 ? true : nil }
  }

  /// Keeps one listener per address.
  private func supervise() {
    while true {
      let (isClosed, context, wanted, present) = state.withLock {
        ($0.isClosed, $0.context, $0.addresses, $0.listeners)
      }
      if isClosed { return }
      for (address, listener) in present where !wanted.contains(address) {
        state.withLock { $0.listeners[address] = nil }
        listener.close()
      }
      for address in wanted where present[address] == nil { open(address, context) }
      let addresses = Set(wanted)
      // Woken by a change of the addresses, or to try again.
      _ = state.wait(timeout: Self.retryInterval) { $0.isClosed || Set($0.addresses) != addresses ? true : nil }
    }
  }

  private func open(_ address: String, _ context: SecureContext) {
    do {
      let listener = try SecureListener(
        address: address, port: port, context: context, allowsJoin: allowsJoin,
        refused: { [report] in report(.refused(peerAddress: $0, why: $1)) })
      let isTaken = state.withLock { state in
        guard !state.isClosed else { return false }
        state.listeners[address] = listener
        state.problems[address] = nil
        state.threads += 1
        return true
      }
      guard isTaken else { return listener.close() }
      do {
        try HostThread.start(name: "peer-accept") { [self] in
          acceptLoop(listener)
          state.withLock { $0.threads -= 1 }
        }
      } catch {
        state.withLock { state in
          state.threads -= 1
          state.listeners[address] = nil
        }
        listener.close()
        throw error
      }
      report(.listening(address: address, port: listener.port))
    } catch {
      let why = "\(error)"
      let isNew = state.withLock { $0.problems.updateValue(why, forKey: address) != why }
      if isNew { report(.cannotListen(address: address, why: why)) }
    }
  }

  private func acceptLoop(_ listener: SecureListener) {
    while true {
      do {
        // The time limit is only there to notice the end if a wake-up is ever missed.
        guard let stream = try listener.accept(timeout: Self.acceptPoll) else { continue }
        serve(stream)
      } catch {
        return
      }
    }
  }

  private func serve(_ stream: SecureStream) {
    let isTaken = state.withLock { state in
      guard !state.isClosed, state.connections.count < Self.connectionsMax else { return false }
      state.connections[ObjectIdentifier(stream)] = stream
      state.threads += 1
      return true
    }
    guard isTaken else {
      stream.shutdown()
      return report(
        .refused(
          peerAddress: stream.peerAddress, why: SecureError(.limit, "\(Self.connectionsMax) connections are served")))
    }
    do {
      try HostThread.start(name: "peer-serve") { [self] in
        if stream.isJoin { answerJoin(stream) } else { answerAll(stream) }
        leave(stream)
      }
    } catch {
      leave(stream)
      report(.refused(peerAddress: stream.peerAddress, why: SecureError(.system, "\(error)")))
    }
  }

  private func leave(_ stream: SecureStream) {
    stream.shutdown()
    state.withLock { state in
      state.connections[ObjectIdentifier(stream)] = nil
      state.threads -= 1
    }
  }

  private func answerAll(_ stream: SecureStream) {
    stream.writeTimeout = Self.answerTimeout
    // Every end of the conversation is an ordinary one here: the asker is the one who reports what it means.
    while let request = try? PeerFrames.read(from: stream, timeout: Self.idleTimeout) {
      let answer = handler(Data(request), stream.peerName)
      guard (try? PeerFrames.write(Array(answer), to: stream)) != nil else { return }
    }
  }

  private func answerJoin(_ stream: SecureStream) {
    stream.writeTimeout = Self.answerTimeout
    do {
      guard let request = try PeerFrames.read(from: stream, timeout: Self.joinTimeout) else { return }
      try PeerFrames.write(Array(joinHandler(Data(request), stream.peerAddress)), to: stream)
      // The host reads its answer and closes; ending first could cut it off.
      _ = try PeerFrames.read(from: stream, timeout: Self.joinTimeout)
    } catch {
      report(.refused(peerAddress: stream.peerAddress, why: SecureError(.closed, "join not completed: \(error)")))
    }
  }
}
