import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// Sessions: from the handshake to their end, and the frames in between.
extension Engine {
  /// A connection is agreed. False = nobody wants it any more.
  func begin(_ session: PeerSession) -> Bool {
    if let old = state.withLock({ $0.session }) {
      lose(old.id, "the peer has connected anew")
    }
    let isTaken = state.withLock { state -> Bool in
      guard state.isConnecting, state.session == nil else { return false }
      state.session = session
      mirror.begin(session)
      return true
    }
    guard isTaken else { return false }
    connector?.sessionChanged(true)
    Log.note("session \(session.id) over link \(session.link)")
    // The core hears of the session before anything that happens in it.
    emit(.connected(session.id, link: session.link))
    do {
      try session.start(
        handle: { [weak self] in try self?.handle($0, session) },
        idle: { [weak self] in self?.state.withLock { $0.replica }?.acknowledge() },
        ended: { [weak self] in self?.lose(session.id, $0) })
    } catch {
      lose(session.id, "\(error)")
    }
    return true
  }

  /// R1: the session is over, whoever noticed it first. The policy has fallen when the event goes out.
  func lose(_ id: SessionID, _ why: String) {
    guard let policy = end(id, saying: why) else { return }
    Log.note("session \(id) lost: \(why); policy \(policy)")
    emit(.sessionLost(id, policy: policy, why: why))
  }

  /// Answers the policy that is left, nil if it was not the current session.
  func end(_ id: SessionID, saying why: String) -> AcknowledgePolicy? {
    // Acknowledgements first, applying second: both are over before anyone can be told.
    if let session = state.withLock({ $0.session }), session.id == id { session.halt() }
    guard let policy = mirror.endSession(id) else { return nil }
    let (session, replica) = state.withLock { state in
      let session = state.session
      if session?.id == id {
        state.bytesSent += session?.bytesSent.load(ordering: .relaxed) ?? 0
        state.bytesReceived += session?.bytesReceived.load(ordering: .relaxed) ?? 0
        state.session = nil
      }
      return (session, state.replica)
    }
    if replica?.session == id { replica?.stop() }
    if let session, session.id == id {
      session.end(saying: FrameHead.bytes(.bye(sentence: why), session: id))
    }
    connector?.sessionChanged(false)
    return policy
  }

  // MARK: frames, on the receiver's thread

  private func handle(_ frame: FrameView, _ session: PeerSession) throws {
    switch frame.header.kind {
    case .acknowledge: try mirror.acknowledged(frame)
    case .resyncAcknowledge: try mirror.resyncAcknowledged(frame)
    default: try handle(frame, try frame.body(), session)
    }
  }

  private func handle(_ frame: FrameView, _ body: FrameBody, _ session: PeerSession) throws {
    switch body {
    case .keepalive: return
    case .coreMessage: emit(.message(session.id, Array(frame.data)))
    case .flushAnswer(let code):
      guard code == 0 else { throw EngineError(.link, "the peer could not fsync: \(Errno(code))") }
      try mirror.flushed(frame.header.sequence, session: session.id)
    case .failure(_, let code, let sentence):
      throw EngineError(.link, "the peer ended the session: \(sentence)\(code == 0 ? "" : ": \(Errno(code))")")
    case .bye(let sentence):
      throw EngineError(.link, "the peer ended the session: \(sentence)")
    case .differing(let file, let content): mirror.differing(file, content, session: session.id)
    case .differingEnd: mirror.differingEnd(session: session.id)
    case .resyncCompared(let differing):
      try mirror.resyncCompared(frame.header.sequence, differing: differing, session: session.id)
    case .verified(let answer):
      try mirror.verified(frame.header.sequence, answer, session: session.id)
    case .hello, .agree:
      throw EngineError(.link, "the peer sent a \(body.kind) frame in the middle of a session")
    default:
      do throws(PeerFailure) {
        guard let replica = state.withLock({ $0.replica }) else {
          throw PeerFailure(.wrongRole, 0, "this engine is not configured")
        }
        try replica.handle(frame, body)
      } catch {
        let sentence = error.sentence
        guard !session.hasEnded else { throw EngineError(.link, "ended here") }
        session.end(
          saying: FrameHead.bytes(.failure(error.code, errno: error.errno, sentence: sentence), session: session.id))
        throw EngineError(.link, "cannot follow the primary: \(sentence)")
      }
    }
  }
}
