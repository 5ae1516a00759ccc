import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// What the engine's control side and the peer's frames do to the mirror.
extension Mirror {
  var policy: AcknowledgePolicy { state.withLock { $0.machine.policy } }
  var requestsInFlight: Int { state.withLock { $0.machine.requestsInFlight + $0.parked.count } }

  /// What the peer has to acknowledge next, where that holds up a guest or a copy; it changes as long as the peer does anything.
  /// nil = nothing is held up.
  var oldestAwaited: (session: SessionID, sequence: UInt64?)? {
    state.withLock { state in
      switch state.machine.policy {
      case .settling(let session), .both(let session): return (session, state.machine.oldestOutstanding)
      case .resyncing(let session):
        guard let copy = state.copy, copy.isTargetKnown else { return nil }
        let change = state.machine.oldestOutstandingChange
        guard change != nil || copy.plan.isAwaiting else { return (session, nil) }
        return (session, copy.acknowledgements &+ (change ?? 0))
      case .frozen, .alone: return nil
      }
    }
  }

  func attach(_ server: FileServer) { state.withLock { $0.server = server } }

  /// Before the mount of another process is gone on with: the peer may lack what that one applied (R1, R2).
  func followOther() { state.withLock { $0.machine = AcknowledgeMachine(needsResync: true) } }

  // MARK: session

  func begin(_ session: PeerSession) {
    state.withLock {
      $0.machine.sessionBegan(session.id)
      $0.session = session
    }
  }

  /// R1: from here on no acknowledgement of this session counts. Answers the policy that is left, nil if it was not the
  /// current session.
  func endSession(_ id: SessionID) -> AcknowledgePolicy? {
    var effects = Effects()
    let policy = state.withLock { state -> AcknowledgePolicy? in
      guard state.session?.id == id else { return nil }
      state.machine.sessionLost(id, completions: &effects.completions)
      state.session = nil
      state.unmirrored = []
      conclude(&state, &effects)
      effects.wakes = true
      return state.machine.policy
    }
    settleAndRun(effects)
    // A fall to ALONE admits what a drain of the resync had held back.
    if policy != nil { resumeParked() }
    return policy
  }

  // MARK: policy

  func setPolicy(_ policy: AcknowledgePolicy) throws(AcknowledgeError) {
    var effects = Effects()
    try state.withLock { (state) throws(AcknowledgeError) in
      try state.machine.setPolicy(policy, completions: &effects.completions)
      state.isDrainWanted = false
      conclude(&state, &effects)
    }
    settleAndRun(effects)
    resumeParked()
  }

  func resumeParked() {
    // All under one lock: an unmount must find each of them either parked or running.
    let (ready, session) = state.withLock { state -> ([GuestRequest], PeerSession?) in
      guard state.machine.mayAdmit else { return ([], nil) }
      let parked = state.parked
      state.parked = []
      return (parked.filter { admit($0, &state) }, state.session)
    }
    // `run` takes the last one first.
    run(ready.reversed(), session)
    failUnmarkable()
    storeIntents()
  }

  /// Answered through the observer, once nothing is in flight.
  func drain() {
    var effects = Effects()
    state.withLock { state in
      state.machine.beginDrain()
      state.isDrainWanted = true
      conclude(&state, &effects)
    }
    settle(effects)
  }

  /// Stops admitting; true = no request is in flight any more. For an end of the session: what the peer owes else is void then.
  func drain(within timeout: Duration) -> Bool {
    state.withLock { $0.machine.beginDrain() }
    return state.wait(timeout: timeout) { $0.machine.requestsInFlight == 0 ? true : nil } ?? false
  }

  // MARK: the peer's frames

  func acknowledged(_ frame: FrameView) throws {
    var effects = Effects()
    // What counted before a bad range has counted: its requests are answered all the same.
    defer { settle(effects) }
    try state.withLock { state in
      defer { conclude(&state, &effects) }
      try frame.forEachRange {
        // R1: the machine drops what is not of its session.
        try state.machine.remoteAcknowledged($0, in: frame.header.session, completions: &effects.completions)
      }
    }
  }

  func flushed(_ sequence: UInt64, session: SessionID) throws {
    var effects = Effects()
    try state.withLock { state in
      try state.machine.remoteFlushed(sequence, in: session, completions: &effects.completions)
      conclude(&state, &effects)
    }
    settle(effects)
  }

  // MARK: barrier

  /// R8.2, swap: fsyncs here and there; `done` is called once with 0, an errno, or `AcknowledgeMachine.barrierLost`. False = not
  /// the current session, or, with `unlessDraining`, a drain has begun (R10). Blocks for the local fsync.
  func barrier(
    _ session: SessionID, unlessDraining: Bool = false, syncHere: () throws(Errno) -> Void,
    done: @escaping @Sendable (Int32) -> Void
  ) -> Bool {
    let request = GuestRequest(
      file: FileID(rawValue: 0), { () throws(Errno) in AppliedChange(operation: nil, reply: .done) }, whenDone: done)
    let started = state.withLock { state -> (AcknowledgeMachine.Token, epoch: Int)? in
      guard
        let (token, dispatch) = state.machine.sendBarrier(request.bits, in: session, unlessDraining: unlessDraining)
      else { return nil }
      request.retainForMachine()
      state.live.insert(request.key)
      state.session?.enqueue(headBytesMax: FrameLimits.smallHeadBytesMax) {
        FrameHead.flushRequest(into: $0, session: dispatch.session, sequence: dispatch.sequence, file: nil)
      }
      return (token, state.epoch)
    }
    guard let (token, epoch) = started else { return false }
    state.withLock { $0.session }?.push()
    var result: Int32 = 0
    do throws(Errno) { try syncHere() } catch {
      result = error.code
      observer.diskError("fsync", "the backing directory", error)
      observer.broken(session, "fsync on this node failed: \(error)")
    }
    var effects = Effects()
    state.withLock { state in
      guard state.epoch == epoch else { return }
      if let completion = state.machine.localDone(token, result: result) { effects.completions.append(completion) }
      conclude(&state, &effects)
    }
    settle(effects)
    return true
  }

  /// Makes durable here everything that was applied before this call. A walk misses what is moved in front of it to a place that it
  /// has passed, and a zone may be cleared by this flush: then the whole file system is flushed, wherever things are in it.
  func syncTree(_ root: Int32) throws(Errno) {
    let before = state.withLock { $0.moves }
    try TreeWalk.sync(root: root)
    // Under `names`: a move that the walk may have met is counted by then.
    let after = names.withLock { _ in state.withLock { $0.moves } }
    if before != after { try Backing.syncFileSystem(root) }
  }

  // MARK: unmounting

  /// Before an unmount: no thread of the kernel's requests waits for memory any more.
  func beginTearDown() { tearingDown(true) }

  /// After the kernel's connection is gone and its threads have ended: every request that is still open is answered with
  /// ENOTCONN (nobody hears it, but libfuse wants its memory back), and what was parked will never run.
  func detach() {
    // Requests that another thread is applying use descriptors that are closed next.
    _ = state.wait { $0.running == 0 ? true : nil }
    let (server, open, parked) = state.withLock { state -> (FileServer?, [GuestRequest], [GuestRequest]) in
      let open = state.live.map { GuestRequest.borrow(UInt64($0)) }.filter { $0.kernel != nil && !$0.isAbandoned }
      for request in open { request.isAbandoned = true }
      let parked = state.parked.filter { $0.kernel != nil }
      state.parked.removeAll { $0.kernel != nil }
      defer { state.server = nil }
      return (state.server, open, parked)
    }
    for request in open + parked {
      if let kernel = request.kernel { server?.answer(kernel, .error(Errno(ENOTCONN))) }
    }
    dropped(parked)
    while answering.load(ordering: .acquiring) > 0 { usleep(100) }
    tearingDown(false)
  }

  /// Before this side becomes the replica, or is mounted anew: what it knew as a primary no longer counts. Only while
  /// unmounted. Refused while a local write is still being applied, and while the peer owes an answer in this session: the row of
  /// numbers begins anew, and the old answer could be taken for a new one's (R2, R10).
  func reset(becomesReplica: Bool) throws(EngineError) {
    let (old, parked) = try state.withLock { (state) throws(EngineError) -> ([GuestRequest], [GuestRequest]) in
      guard state.machine.unfinishedMutations == 0, state.copy == nil, state.verify == nil else {
        throw EngineError(.busy, "local writes, a resync or a verification are still in progress; repeat the command")
      }
      guard state.machine.oldestOutstanding == nil else {
        throw EngineError(.busy, "the peer still has to answer what was sent in this session; drain first, or end it")
      }
      let old = state.live.map { GuestRequest.take(UInt64($0)) }
      let parked = state.parked
      state.live = []
      state.parked = []
      state.orders = [:]
      state.unmirrored = []
      state.isDrainWanted = false
      state.intents?.forgetAll()
      state.epoch += 1
      state.machine = becomesReplica ? AcknowledgeMachine() : AcknowledgeMachine(after: state.machine)
      if let session = state.session { state.machine.sessionBegan(session.id) }
      return (old, parked)
    }
    dropped(old + parked)
    for request in old + parked { request.whenDone?(AcknowledgeMachine.barrierLost) }
  }
}
