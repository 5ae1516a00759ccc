import HostSystem
import Model
import Replication
import Synchronization

/// Hands out the turns of the resyncs whose source is this node; `ResyncTurns` decides. Any thread.
final class ResyncOffice: Sendable {
  private let turns = Mutex(ResyncTurns())
  private let onTurn: @Sendable (ModuleName, SessionID) -> Void

  /// `onTurn` is called without a lock, on the thread of whoever's call made it the module's turn.
  init(onTurn: @escaping @Sendable (ModuleName, SessionID) -> Void) { self.onTurn = onTurn }

  func ask(_ module: ModuleName, _ session: SessionID, _ priority: ResyncPriority) {
    change { $0.ask(module, session, priority, now: $1) }
  }
  func goesOn(_ module: ModuleName, _ session: SessionID, _ priority: ResyncPriority) {
    change { $0.goesOn(module, session, priority, now: $1) }
  }
  func end(_ module: ModuleName) { change { turns, _ in turns.end(module) } }
  func moved(_ module: ModuleName) { turns.withLock { $0.moved(module, now: monotonicNow()) } }
  func prioritise(_ module: ModuleName, _ priority: ResyncPriority) {
    turns.withLock { $0.prioritise(module, priority) }
  }
  /// Now and then, for those that have stood still for too long.
  func look() { change { _, _ in } }

  func ahead(of module: ModuleName) -> ResyncTurns.Ahead? { turns.withLock { $0.ahead(of: module) } }

  private func change(_ body: (inout ResyncTurns, Instant) -> Void) {
    let now = monotonicNow()
    let begun = turns.withLock { turns in
      body(&turns, now)
      return turns.next(now: now)
    }
    for turn in begun { onTurn(turn.module, turn.session) }
  }
}

/// A module's side of it, under its runner's lock: the command to begin is kept until its turn has come.
struct ResyncTurn: Sendable {
  /// As the core had it last.
  private var session: SessionID?
  private var held: EngineCommand?
  private var granted: SessionID?

  enum Step: Sendable {
    case end
    case ask(SessionID)
    case goesOn(SessionID)
    case send(EngineCommand)
  }

  /// The core wants the resync to begin.
  mutating func hold(_ command: EngineCommand) { held = command }

  mutating func grant(_ session: SessionID) { granted = session }

  /// What follows from the core's session of now. A command whose session is over is forgotten.
  mutating func follow(_ now: SessionID?) -> [Step] {
    var steps: [Step] = []
    if now != session {
      if session != nil { steps.append(.end) }
      session = now
      granted = nil
      if held?.resyncSession != now { held = nil }
      if let now { steps.append(held == nil ? .goesOn(now) : .ask(now)) }
    }
    if let command = held, let now, granted == now {
      held = nil
      steps.append(.send(command))
    }
    return steps
  }
}

extension EngineCommand {
  fileprivate var resyncSession: SessionID? {
    if case .startResync(let session, _) = self { session } else { nil }
  }
}

extension ResyncProgress {
  /// Something has moved since.
  func isBeyond(_ earlier: ResyncProgress?) -> Bool {
    bytesDone != earlier?.bytesDone || bytesSent != earlier?.bytesSent
  }
}
