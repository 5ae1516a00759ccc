import Model
import Replication

/// A request of the guest.
final class SimRequest {
  enum Kind {
    case write(Int, Range<Int>)
    /// A change of names or attributes.
    case name(Int)
    case flush
  }
  let kind: Kind
  /// Where it comes back; nil = nobody waits for it any more.
  var done: ((_ errno: Int32) -> Void)?
  /// Of a flush: how many writes had been acknowledged when it was made, which it promises.
  var acknowledgedBefore = 0
  /// Of a flush: what the copy showed then. What came later is not behind it.
  var contentsBefore = Contents.untouched
  var bits: UInt64 = 0
  var token: AcknowledgeMachine.Token?
  var ticket: RangeOrder.Ticket?
  /// A change of names that was done is not done again (ChangeJournal).
  var isApplied = false

  init(kind: Kind, done: @escaping (_ errno: Int32) -> Void) {
    self.kind = kind
    self.done = done
  }

  /// The bytes whose contents it may change (R3).
  var intent: Range<UInt64>? {
    if case .write(_, let blocks) = kind { return Contents.bytes(of: blocks) }
    return nil
  }
}

/// The primary's write path, as in `Mirror`.
extension SimEngine {
  // MARK: requests (Mirror.submit, .admit, .place, .order, .begin)

  func accept(_ request: SimRequest) {
    if request.bits == 0 {
      lastRequest += 1
      request.bits = lastRequest
    }
    admit(request)
  }

  private func admit(_ request: SimRequest) {
    let kind: AcknowledgeMachine.Kind
    if case .flush = request.kind { kind = .flush } else { kind = .mutation }
    guard let token = machine.admit(request.bits, kind) else { return parked.append(request) }
    live[request.bits] = request
    request.token = token
    running += 1
    place(request, token)
  }

  private func place(_ request: SimRequest, _ token: AcknowledgeMachine.Token) {
    // R3: nothing is applied or sent before its intent is durable.
    if let bytes = request.intent, covers(bytes) == .pending {
      world.meet(.intentAwaited)
      unintended.append(request)
      return storeIntents()
    }
    switch request.kind {
    case .write: takeTurn(request)
    case .name:
      waitingNames.append(request)
      runNames()
    case .flush:
      if machine.leaveToCopy(token) {
        world.meet(.flushLeftToCopy)
      } else if let dispatch = machine.send(token) {
        session?.send(.flush(dispatch.sequence), from: node)
      }
      sync { $0.finish(request, result: 0) }
    }
    if intents.map.hasPending { storeIntents() }
  }

  /// Mirror.intentsStored
  func intentsStored() {
    let waiting = unintended
    unintended = []
    for request in waiting {
      guard let bytes = request.intent else { continue }
      switch covers(bytes) {
      case .durable: takeTurn(request)
      case .pending: unintended.append(request)
      }
    }
  }

  /// The map's disk failed: the guest is told.
  func failUnintended(_ errno: Int32) {
    let waiting = unintended
    unintended = []
    for request in waiting { finish(request, result: errno) }
  }

  private func takeTurn(_ request: SimRequest) {
    guard let range = request.intent else { return }
    let (ticket, startsNow) = order.admit(range, request: request.bits)
    request.ticket = ticket
    if startsNow { begin(request) } else { world.meet(.overlapWaited) }
  }

  /// When its turn in the file has come: a write is sent from here on, in this order.
  private func begin(_ request: SimRequest) {
    guard case .write(let number, let blocks) = request.kind, let token = request.token else { return }
    world.begins(number, at: node)
    if resync?.isLeftToCopy ?? false, machine.leaveToCopy(token) {
      world.meet(.leftToCopy)
    } else if let dispatch = machine.send(token) {
      session?.send(.write(dispatch.sequence, number, blocks), from: node)
    }
    apply(request, number, blocks)
  }

  /// Block by block; a process that dies in the middle leaves it torn.
  private func apply(_ request: SimRequest, _ number: Int, _ blocks: Range<Int>) {
    guard let first = blocks.first else { return finish(request, result: 0) }
    if world.options.isCalm {
      for block in blocks { node.copy.write(block, number) }
      return finish(request, result: 0)
    }
    later(0...3) { engine in
      if engine.node.writesFail { return engine.writeFailed(request) }
      engine.node.copy.write(first, number)
      if blocks.count == 1 { return engine.finish(request, result: 0) }
      engine.apply(request, number, first + 1..<blocks.upperBound)
    }
  }

  /// Mirror.writeFailed, R11: this disk may have part of it, the peer has all of it.
  private func writeFailed(_ request: SimRequest) {
    world.meet(.writeFailed)
    breakDisk(5)
    lose("a write failed on this node: EIO")
    finish(request, result: 5)
  }

  /// One at a time: sent in the order they happened, when they have happened.
  private func runNames() {
    guard !isNaming, !waitingNames.isEmpty else { return }
    isNaming = true
    let request = waitingNames.removeFirst()
    later(0...3) { engine in
      guard case .name(let number) = request.kind, let token = request.token else { return }
      if !request.isApplied {
        request.isApplied = true
        engine.node.copy.append(name: number)
      }
      if let dispatch = engine.machine.send(token) {
        engine.session?.send(.name(dispatch.sequence, number), from: engine.node)
      }
      engine.finish(request, result: 0)
      engine.isNaming = false
      engine.runNames()
    }
  }

  /// Mirror.finish
  private func finish(_ request: SimRequest, result: Int32) {
    running -= 1
    guard let token = request.token else { return }
    var completions: [AcknowledgeMachine.Completion] = []
    if let done = machine.localDone(token, result: result) { completions.append(done) }
    if let ticket = request.ticket {
      request.ticket = nil
      release(ticket)
    }
    conclude()
    settle(completions)
  }

  /// The range is free; what waited for it starts, and is sent in that order.
  func release(_ ticket: RangeOrder.Ticket) {
    var started: [RangeOrder.Started] = []
    order.complete(ticket, started: &started)
    for item in started {
      if item.request == SimResync.requestBits {
        pieceHasTurn()
      } else if let request = live[item.request] {
        begin(request)
      }
    }
  }

  /// Last, after any change of the machine.
  func conclude() {
    if isDrainWanted, machine.isDrained {
      isDrainWanted = false
      tell(.drained)
    }
    holdIfStill()
  }

  /// Answers the guest.
  func settle(_ completions: [AcknowledgeMachine.Completion]) {
    let policy = machine.policy
    for completion in completions {
      if let done = barriers.removeValue(forKey: completion.request) {
        done(completion.result)
        continue
      }
      guard let request = live.removeValue(forKey: completion.request) else { continue }
      guard let done = request.done else { continue }
      if completion.result == 0 { world.acknowledged(request, by: node, policy) }
      done(completion.result)
    }
  }

  func resumeParked() {
    guard machine.mayAdmit else { return }
    let waiting = parked
    parked = []
    for request in waiting { admit(request) }
  }

  func drain() {
    machine.beginDrain()
    isDrainWanted = true
    conclude()
  }

  /// Mirror.barrier: a flush of both in this session; false = not the current session.
  func barrier(
    _ id: SessionID, syncsHere: Bool, _ done: @escaping (SimEngine, Int32) -> Void
  ) -> Bool {
    lastRequest += 1
    let bits = lastRequest
    guard let (token, dispatch) = machine.sendBarrier(bits, in: id) else { return false }
    barriers[bits] = { [unowned self] code in done(self, code) }
    session?.send(.flush(dispatch.sequence), from: node)
    let finish: (SimEngine) -> Void = { engine in
      guard engine.barriers[bits] != nil else { return }
      if let completion = engine.machine.localDone(token, result: 0) { engine.settle([completion]) }
    }
    if syncsHere { sync(finish) } else { finish(self) }
    return true
  }

  /// Mirror.reset
  func reset(becomesReplica: Bool) -> Bool {
    guard machine.unfinishedMutations == 0, resync == nil, running == 0 else { return false }
    // The engine refuses it; whoever drains first never meets that (R10).
    guard machine.oldestOutstanding == nil else {
      world.violate("I0: \(node.name) counts anew in a session in which its peer owes an answer")
      return false
    }
    for request in live.values { request.done = nil }
    live = [:]
    parked = []
    order = RangeOrder()
    isDrainWanted = false
    let waiting = barriers.values
    barriers = [:]
    machine = becomesReplica ? AcknowledgeMachine() : AcknowledgeMachine(after: machine)
    if let session { machine.sessionBegan(session.id) }
    for done in waiting { done(AcknowledgeMachine.barrierLost) }
    return true
  }

  // MARK: the peer's frames

  func acknowledged(_ ranges: [SequenceRange], _ id: SessionID) {
    var completions: [AcknowledgeMachine.Completion] = []
    do {
      for range in ranges { try machine.remoteAcknowledged(range, in: id, completions: &completions) }
    } catch { return world.violate("I0: \(node.name): \(error)") }
    conclude()
    settle(completions)
  }

  func flushed(_ sequence: UInt64, _ id: SessionID) {
    var completions: [AcknowledgeMachine.Completion] = []
    do { try machine.remoteFlushed(sequence, in: id, completions: &completions) } catch {
      return world.violate("I0: \(node.name): \(error)")
    }
    conclude()
    settle(completions)
  }

  // MARK: the guest's process

  /// The guest's process is gone: what the kernel had not handed out yet never comes; the rest goes on for nobody.
  func forgetRequests() {
    parked = []
    for request in live.values { request.done = nil }
  }

  /// It was not answered, and nothing under way will answer it.
  var hasStuckRequest: Bool {
    (!parked.isEmpty || machine.requestsInFlight > 0) && (machine.policy == .frozen || machine.isDraining)
  }

  /// Nothing of a guest is on its way to either copy.
  var isStill: Bool {
    // What an engine that is away had not answered waits in the kernel, and may be applied here already.
    !isAway && live.isEmpty && running == 0 && (session?.isIdle ?? true) && unsaid.isEmpty
  }
}
