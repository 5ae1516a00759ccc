import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// R3 in the write path: nothing is applied or sent before the intent for it is durable on this node.
extension Mirror {
  func use(_ intents: Intents) { state.withLock { $0.intents = intents } }

  /// Under the lock. Anything but `durable`: it may not be applied or sent.
  func cover(_ request: GuestRequest, _ state: inout State) -> Intents.Cover {
    guard let intents = state.intents, let bytes = request.intent else { return .durable }
    let server = state.server
    return intents.covers(request.file, bytes) { () throws(Errno) in
      // The kernel need not know the file.
      if case .repair(_, let object, _, _) = request.action { return object.number }
      guard let server else { throw Errno(ESTALE) }
      return try server.nodes.node(request.file.rawValue).descriptor
    }
  }

  /// Without locks: answers what could not be marked.
  func failUnmarkable() {
    var effects = Effects()
    var failure: Errno?
    state.withLock { state in
      for (request, error) in state.unmarkable { fail(request, error, &state, &effects) }
      failure = state.unmarkable.first?.1
      state.unmarkable = []
      conclude(&state, &effects)
    }
    settle(effects)
    if let failure, failure.isDiskFailure { observer.diskError("read", "the identity of a file", failure) }
  }

  /// Under the lock: a request that was not carried out.
  private func fail(_ request: GuestRequest, _ error: Errno, _ state: inout State, _ effects: inout Effects) {
    state.running -= 1
    request.onDiskSince.store(0, ordering: .relaxed)
    guard let token = request.token else { return }
    if let done = state.machine.localDone(token, result: error.code) { effects.completions.append(done) }
  }

  /// Without locks: makes durable what waits, and starts what waited for it. One thread does it for all.
  func storeIntents() {
    guard let intents = state.withLock({ $0.intents }) else { return }
    while true {
      // Looked at after the turn was given back: whoever finds something left sees to it.
      switch intents.store({ failure in self.intentsStored(failure) }) {
      case .elsewhere: return
      case .all: guard intents.hasPending else { return }
      case .failed: guard state.withLock({ !$0.unintended.isEmpty }) else { return }
      }
    }
  }

  private func intentsStored(_ failure: Errno?) {
    var effects = Effects()
    var ready: [GuestRequest] = []
    state.withLock { state in
      let waiting = state.unintended
      state.unintended = []
      for request in waiting {
        switch cover(request, &state) {
        case .durable:
          // Counted as running since it began to wait; one that waits for its turn is counted again when that comes.
          request.onDiskSince.store(0, ordering: .relaxed)
          if order(request, &state) { ready.append(request) } else { state.running -= 1 }
        case .failed(let error): fail(request, error, &state, &effects)
        case .pending:
          if let failure { fail(request, failure, &state, &effects) } else { state.unintended.append(request) }
        }
      }
      conclude(&state, &effects)
    }
    settle(effects)
    if let failure { observer.diskError("write", "the write-intent map", failure) }
    // `run` takes the last one first.
    if !ready.isEmpty { run(ready.reversed(), effects.session) }
  }

  // MARK: clearing

  /// R3: forgets zones that are the same on both nodes for certain: a flush of both that was issued after their last write was
  /// acknowledged. Runs on a thread of its own; does nothing unless in sync and something could be cleared.
  func clearIntents(root: Int32) {
    storeIntents()
    let begun = state.withLock { state -> (SessionID, Intents, IntentRound)? in
      // Not once a drain has begun: a swap follows, which counts its frames anew.
      guard case .both(let session) = state.machine.policy, state.session?.id == session, !state.machine.isDraining,
        let intents = state.intents
      else { return nil }
      let busy = state.live.compactMap { key -> (FileID, Range<UInt64>)? in
        let request = GuestRequest.borrow(UInt64(key))
        return request.intent.map { (request.file, $0) }
      }
      return intents.beginRound(busy: busy).map { (session, intents, $0) }
    }
    guard let (session, intents, round) = begun else { return }
    // A drain may have begun since.
    _ = barrier(
      session, unlessDraining: true, syncHere: { () throws(Errno) in try self.syncTree(root) }
    ) { [weak self] code in
      guard code == 0, let self else { return }
      state.withLock { state in
        // The same session all the while: a lost one would have failed the barrier.
        guard state.machine.policy == .both(session), state.session?.id == session else { return }
        // Stored with the next batch: a zone that is cleared too late is only compared once more.
        intents.endRound(round)
      }
    }
  }
}
