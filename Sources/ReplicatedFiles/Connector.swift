import Glibc
import HostSystem
import Model
import Replication
import SecureLinks

/// Gets connections with the peer's engine, one after the other: node 1 dials its links in order, node 2 listens on all of
/// them. A connection is handed on only after both ends agreed on its session.
final class Connector: Sendable {
  static let dialTimeout: Duration = .seconds(2)
  static let handshakeTimeout: Duration = .seconds(3)
  static let retryDelayMin: Duration = .milliseconds(200)
  static let retryDelayMax: Duration = .seconds(1)

  struct Settings: Sendable, Hashable {
    var configuration: EngineConfiguration
    /// Changes with `configure`, so that certificates are read again.
    var revision: Int
  }

  private struct State {
    var settings: Settings?
    var isWanted = false
    var hasSession = false
    /// Grows with every change a thread must notice.
    var turn = 0
    var lastComplaint = ""
  }

  private let state = Guarded(State())
  /// Takes a new connection over; false = not wanted any more.
  private let begin: @Sendable (PeerSession) -> Bool

  init(begin: @escaping @Sendable (PeerSession) -> Bool) throws {
    self.begin = begin
    try HostThread.start(name: "connector") { [weak self] in
      while let connector = self { connector.work() }
    }
  }

  func use(_ settings: Settings) { change { $0.settings = settings } }
  func want(_ isWanted: Bool) { change { $0.isWanted = isWanted } }
  func sessionChanged(_ exists: Bool) { change { $0.hasSession = exists } }

  private func change(_ body: (inout State) -> Void) {
    state.withLock {
      body(&$0)
      $0.turn += 1
    }
    state.wake()
  }

  /// One stretch of work with one configuration; returns when something changed.
  private func work() {
    let next = state.wait(timeout: .seconds(1)) { state -> (Settings, Int)? in
      guard state.isWanted, let settings = state.settings else { return nil }
      // Only the listening end takes a new connection while it believes in an old one: the dialler knows better.
      if state.hasSession, settings.configuration.node == .first { return nil }
      return (settings, state.turn)
    }
    guard let (settings, turn) = next else { return }
    do {
      let configuration = settings.configuration
      let context = try SecureContext(
        authorityFile: configuration.authorityFile, certificateFile: configuration.certificateFile,
        keyFile: configuration.keyFile)
      if configuration.node == .first {
        dial(configuration, context, turn)
      } else {
        listen(configuration, context, turn)
      }
    } catch {
      complain("cannot connect to the peer: \(error)")
      pause(Self.retryDelayMax, turn)
    }
  }

  private func isCurrent(_ turn: Int) -> Bool { state.withLock { $0.turn == turn } }

  private func pause(_ duration: Duration, _ turn: Int) {
    _ = state.wait(timeout: duration) { $0.turn == turn ? nil : true }
  }

  /// The same complaint is logged once, not at every try.
  private func complain(_ text: String) {
    let isNew = state.withLock { state -> Bool in
      defer { state.lastComplaint = text }
      return state.lastComplaint != text
    }
    if isNew { Log.note(text) }
  }

  // MARK: node 1

  private func dial(_ configuration: EngineConfiguration, _ context: SecureContext, _ turn: Int) {
    var delay = Self.retryDelayMin
    while isCurrent(turn) {
      for link in configuration.links where isCurrent(turn) {
        do {
          let stream = try SecureStream.connect(
            from: link.localAddress, to: link.peerAddress, port: configuration.port, context: context,
            expectedPeer: configuration.peerName, timeout: Self.dialTimeout)
          if try agree(stream, link.name, configuration, context) { return }
        } catch { complain("link \(link.name): \(error)") }
      }
      pause(delay, turn)
      delay = min(delay * 2, Self.retryDelayMax)
    }
  }

  // MARK: node 2

  private func listen(_ configuration: EngineConfiguration, _ context: SecureContext, _ turn: Int) {
    var listeners: [String: SecureListener] = [:]
    defer { for listener in listeners.values { listener.close() } }
    // A session coming or going does not stop the listening; a new configuration or the end of the wish does.
    while isListening(configuration) {
      for link in configuration.links where listeners[link.name] == nil {
        do {
          let listener = try SecureListener(
            address: link.localAddress, port: configuration.port, context: context,
            refused: { [weak self] peer, why in self?.complain("refused \(peer): \(why)") })
          try HostThread.start(name: "accept") { [weak self] in
            while let self, takeOne(from: listener, link, configuration, context) {}
          }
          listeners[link.name] = listener
        } catch { complain("link \(link.name): \(error)") }
      }
      _ = state.wait(timeout: Self.retryDelayMax) { state in
        state.isWanted && state.settings?.configuration == configuration ? nil : true
      }
    }
  }

  private func isListening(_ configuration: EngineConfiguration) -> Bool {
    state.withLock { $0.isWanted && $0.settings?.configuration == configuration }
  }

  /// False = the listener is closed.
  private func takeOne(
    from listener: SecureListener, _ link: EngineLink, _ configuration: EngineConfiguration, _ context: SecureContext
  ) -> Bool {
    let accepted: SecureStream?
    // Only its end can go wrong here; whoever closed it has another one if it still listens.
    do { accepted = try listener.accept(timeout: .seconds(1)) } catch { return false }
    guard let stream = accepted else { return true }
    do {
      guard stream.peerName == configuration.peerName else {
        stream.shutdown()
        complain("refused \(stream.peerAddress): it is \(stream.peerName), expected was \(configuration.peerName)")
        return true
      }
      _ = try agree(stream, link.name, configuration, context)
    } catch { complain("link \(link.name): \(error)") }
    return true
  }

  // MARK: agreement

  private func agree(
    _ stream: SecureStream, _ link: String, _ configuration: EngineConfiguration, _ context: SecureContext
  ) throws -> Bool {
    stream.readTimeout = Self.handshakeTimeout
    stream.writeTimeout = Self.handshakeTimeout
    let receiver = FrameReceiver()
    let session = try handshake(stream, receiver, configuration, context)
    stream.readTimeout = nil
    // A peer whose disk is slow takes nothing for a while; that it lives its keepalives tell.
    stream.writeTimeout = nil
    guard begin(PeerSession(id: session, link: link, stream: stream, receiver: receiver)) else {
      stream.shutdown()
      return false
    }
    state.withLock { $0.lastComplaint = "" }
    return true
  }

  private func handshake(
    _ stream: SecureStream, _ receiver: FrameReceiver, _ configuration: EngineConfiguration, _ context: SecureContext
  ) throws -> SessionID {
    let own = Hello(
      node: configuration.node, nonce: randomUInt64() | 1, module: configuration.module,
      cluster: context.cluster ?? "")
    var handshake = SessionHandshake(own: own)
    func send(_ body: FrameBody, _ session: SessionID) throws {
      try FrameHead.bytes(body, session: session).withUnsafeBytes { try stream.write($0) }
    }
    do {
      try send(handshake.hello, SessionID(rawValue: 0))
      while true {
        while let frame = try receiver.next() {
          switch try handshake.received(try frame.body(), session: frame.header.session) {
          case .answer(let agreement): try send(.agree(version: agreement.version), agreement.session)
          case .agreed(let agreement): return agreement.session
          }
        }
        let count = try stream.read(into: receiver.space())
        guard count > 0 else { throw EngineError(.link, "the peer's engine ended the connection in the handshake") }
        receiver.commit(count)
      }
    } catch {
      if let refusal = error as? SessionHandshake.Refusal, refusal.code != .refusedByPeer {
        // For the peer's log; whether it arrives changes nothing here.
        try? send(.failure(.refused, errno: 0, sentence: refusal.message), SessionID(rawValue: 0))
      }
      stream.shutdown()
      throw error
    }
  }
}
