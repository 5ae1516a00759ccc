import Model
import Replication

/// A small world around the machine: three requests, one barrier, two sessions, and an oracle that knows nothing of
/// slots and rings but judges each request by R2 from plain facts.
struct AcknowledgeWorld: Hashable {
  enum Event: Hashable {
    case admit, drain, barrier
    case send(Int), applied(Int), failed(Int), acknowledged(Int), flushedByPeer(Int), barrierSynced
    case begin, lose(SessionID), turn(AcknowledgePolicy)
  }

  struct Request: Hashable {
    var token: AcknowledgeMachine.Token?
    var isFlush: Bool
    var isSent = false
    var sentIn: SessionID?
    var sequence: UInt64 = 0
    var isApplied = false
    var hasFailed = false
    /// The peer's answer arrived in the session it was sent in, while that was current.
    var isAcknowledged = false
    var isAnswerUsed = false
    /// Applied before the copy into this session began.
    var copiedIn: SessionID?
    var isSentBeforeCopyIn: SessionID?
    var isCompleted = false
  }

  static let barrierRequest: UInt64 = 99
  static let sessionCount: UInt64 = 2

  var machine = AcknowledgeMachine()
  var requests: [Request]
  var admitted = 0
  var barrier: Request?
  var isBarrierUsed = false
  var sessionsBegun: UInt64 = 0
  var session: SessionID?
  var policy = AcknowledgePolicy.frozen
  var isDraining = false
  /// Numbers given out in the current session.
  var numbered: UInt64 = 0

  init(flushes: [Bool]) { requests = flushes.map { Request(isFlush: $0) } }

  /// Everything that can happen now, and a few things that must be refused or ignored.
  var events: [Event] {
    var events: [Event] = [.turn(.frozen), .turn(.alone)]
    if admitted < requests.count { events.append(.admit) }
    if !isDraining { events.append(.drain) }
    if session != nil, !isBarrierUsed { events.append(.barrier) }
    if let barrier, !barrier.isCompleted {
      if !barrier.isApplied { events.append(.barrierSynced) }
    }
    if let barrier, !barrier.isAnswerUsed { events.append(.flushedByPeer(-1)) }
    for (index, request) in requests.enumerated() where request.token != nil {
      if !request.isSent, !request.isCompleted { events.append(.send(index)) }
      if !request.isApplied, !request.isCompleted {
        events.append(.failed(index))
        if request.isSent { events.append(.applied(index)) }
      }
      if request.sentIn != nil, !request.isAnswerUsed {
        events.append(request.isFlush ? .flushedByPeer(index) : .acknowledged(index))
      }
    }
    if session == nil, sessionsBegun < Self.sessionCount { events.append(.begin) }
    for raw in 1...Self.sessionCount where raw <= sessionsBegun {
      let any = SessionID(rawValue: raw)
      events += [.lose(any), .turn(.resyncing(any)), .turn(.settling(any)), .turn(.both(any))]
    }
    return events
  }

  /// Does it to the machine and to the facts; returns what is wrong, nil = nothing.
  mutating func happen(_ event: Event) -> String? {
    var completions: [AcknowledgeMachine.Completion] = []
    let before = machine
    switch event {
    case .admit:
      let token = machine.admit(UInt64(admitted), requests[admitted].isFlush ? .flush : .mutation)
      if (token == nil) != (policy == .frozen || isDraining) { return "admitted wrongly" }
      if let token {
        requests[admitted].token = token
        admitted += 1
      }
    case .drain:
      machine.beginDrain()
      isDraining = true
    case .begin:
      sessionsBegun += 1
      session = SessionID(rawValue: sessionsBegun)
      machine.sessionBegan(SessionID(rawValue: sessionsBegun))
      numbered = 0
    case .lose(let lost):
      machine.sessionLost(lost, completions: &completions)
      if lost == session { lose(lost) } else if machine != before { return "a stale loss changed something" }
    case .turn(let new):
      if let wrong = turn(new, before, &completions) { return wrong }
    case .barrier, .barrierSynced: happenToBarrier(event, &completions)
    case .send, .applied, .failed, .acknowledged, .flushedByPeer:
      if let wrong = happenToRequest(event, &completions) { return wrong }
    }
    return judge(completions)
  }

  private mutating func happenToBarrier(_ event: Event, _ completions: inout [AcknowledgeMachine.Completion]) {
    guard let session, event == .barrier else {
      barrier?.isApplied = true
      if let token = barrier?.token, let done = machine.localDone(token, result: 0) { completions.append(done) }
      return
    }
    guard let (token, dispatch) = machine.sendBarrier(Self.barrierRequest, in: session) else { return }
    isBarrierUsed = true
    numbered += 1
    var request = Request(token: token, isFlush: true)
    request.sentIn = dispatch.session
    request.sequence = dispatch.sequence
    barrier = request
  }

  private mutating func happenToRequest(
    _ event: Event, _ completions: inout [AcknowledgeMachine.Completion]
  ) -> String? {
    switch event {
    case .send(let index):
      guard let token = requests[index].token else { return nil }
      let dispatch = machine.send(token)
      requests[index].isSent = true
      if let dispatch {
        numbered += 1
        if dispatch.session != session || dispatch.sequence != numbered { return "sent as \(dispatch)" }
      }
      requests[index].sentIn = dispatch?.session
      requests[index].sequence = dispatch?.sequence ?? 0
      switch policy {
      case .resyncing(let current), .settling(let current), .both(let current):
        if dispatch?.session != current { return "not mirrored under \(policy)" }
      case .alone: if dispatch != nil { return "mirrored while alone" }
      case .frozen: break
      }
    case .applied(let index), .failed(let index):
      guard let token = requests[index].token else { return nil }
      let hasFailed = event == .failed(index)
      requests[index].isApplied = true
      requests[index].hasFailed = hasFailed
      if let done = machine.localDone(token, result: hasFailed ? 5 : 0) { completions.append(done) }
    case .acknowledged(let index):
      let range = SequenceRange(requests[index].sequence)
      guard let sentIn = requests[index].sentIn else { return nil }
      do {
        try machine.remoteAcknowledged(range, in: sentIn, completions: &completions)
      } catch { return "refused a good acknowledgement: \(error)" }
      answer(&requests[index])
    case .flushedByPeer(let index):
      guard let request = index < 0 ? barrier : requests[index], let sentIn = request.sentIn else { return nil }
      do {
        try machine.remoteFlushed(request.sequence, in: sentIn, completions: &completions)
      } catch { return "refused a good flush answer: \(error)" }
      if index < 0, var answered = barrier {
        answer(&answered)
        barrier = answered
      } else {
        answer(&requests[index])
      }
    default: break
    }
    return nil
  }

  private func answer(_ request: inout Request) {
    request.isAnswerUsed = true
    if request.sentIn == session { request.isAcknowledged = true }
  }

  private mutating func lose(_ lost: SessionID) {
    session = nil
    switch policy {
    case .resyncing, .settling: policy = .alone
    case .both: policy = .frozen
    case .frozen, .alone: break
    }
    for index in requests.indices where requests[index].sentIn == lost {
      requests[index].isAcknowledged = false
      requests[index].isAnswerUsed = true
    }
    barrier?.isAnswerUsed = true
  }

  private mutating func turn(
    _ new: AcknowledgePolicy, _ before: AcknowledgeMachine, _ completions: inout [AcknowledgeMachine.Completion]
  ) -> String? {
    do {
      try machine.setPolicy(new, completions: &completions)
    } catch {
      return machine == before ? mustAccept(new) : "a refused policy changed something"
    }
    switch new {
    case .resyncing(let into), .settling(let into), .both(let into):
      if into != session { return "took a policy of another session" }
    case .frozen, .alone: break
    }
    if case .resyncing(let into) = new, policy != new {
      // The manifest and the copy read what is here now; what is unfinished could be missed by both copy and stream.
      for index in requests.indices where requests[index].token != nil {
        if !requests[index].isFlush, !requests[index].isApplied { return "resync with a change unfinished" }
        requests[index].copiedIn = into
        if requests[index].isSent { requests[index].isSentBeforeCopyIn = into }
      }
    }
    policy = new
    isDraining = false
    return nil
  }

  /// The turns the module core makes are never refused.
  private func mustAccept(_ new: AcknowledgePolicy) -> String? {
    guard let session else { return nil }
    switch (policy, new) {
    case (.alone, .resyncing(session)):
      let isUnfinished = requests.contains { $0.token != nil && !$0.isFlush && !$0.isApplied }
      return isUnfinished ? nil : "refused to resync"
    case (.resyncing(session), .settling(session)), (.settling(session), .both(session)): return "refused to go on"
    default: return nil
    }
  }

  /// R2 in plain words, request by request, and what may never be.
  private mutating func judge(_ completions: [AcknowledgeMachine.Completion]) -> String? {
    var now: Set<UInt64> = []
    for done in completions where !now.insert(done.request).inserted { return "\(done.request) completed twice" }
    for index in requests.indices where requests[index].token != nil && !requests[index].isCompleted {
      let isDue = isDue(requests[index])
      if isDue != now.contains(UInt64(index)) {
        return "request \(index) " + (isDue ? "not completed" : "completed early")
      }
      now.remove(UInt64(index))
      if isDue { requests[index].isCompleted = true }
    }
    if let barrier, !barrier.isCompleted {
      let isLost = barrier.sentIn != session
      let isDue = isLost || (barrier.isApplied && barrier.isAcknowledged)
      if isDue != now.contains(Self.barrierRequest) {
        return "barrier " + (isDue ? "not completed" : "completed early")
      }
      now.remove(Self.barrierRequest)
      if isDue { self.barrier?.isCompleted = true }
      let expected = isLost ? AcknowledgeMachine.barrierLost : 0
      if isDue, completions.first(where: { $0.request == Self.barrierRequest })?.result != expected {
        return "barrier with a wrong result"
      }
    }
    if !now.isEmpty { return "completed \(now) again" }
    if policy != machine.policy { return "policy is \(machine.policy), not \(policy)" }
    let inFlight = requests.count { $0.token != nil && !$0.isCompleted }
    if machine.requestsInFlight != inFlight { return "\(machine.requestsInFlight) in flight, not \(inFlight)" }
    let isDrained = isDraining && inFlight == 0 && !(needsBoth && doesPeerOwe)
    if machine.isDrained != isDrained { return isDrained ? "not drained" : "drained early" }
    return peerLacksSomething()
  }

  private var needsBoth: Bool {
    switch policy {
    case .frozen, .alone, .resyncing: false
    case .settling, .both: true
    }
  }

  /// R10: something of this session, a barrier included, that the peer has not answered.
  private var doesPeerOwe: Bool {
    (requests + [barrier].compactMap { $0 }).contains { $0.sentIn != nil && $0.sentIn == session && !$0.isAnswerUsed }
  }

  private func isDue(_ request: Request) -> Bool {
    if request.hasFailed { return true }
    guard request.isApplied else { return false }
    switch policy {
    case .frozen: return false
    case .alone, .resyncing: return true
    case .settling(let current), .both(let current):
      if request.sentIn == current && request.isAcknowledged { return true }
      return request.isFlush && request.isSentBeforeCopyIn == current
    }
  }

  /// While both are required, every change that is or will be here is in the peer's stream or in its copy.
  private func peerLacksSomething() -> String? {
    guard case .both(let current) = policy else { return nil }
    for (index, request) in requests.enumerated() where !request.isFlush && request.isSent && !request.hasFailed {
      if request.sentIn != current && request.copiedIn != current { return "the peer lacks request \(index)" }
    }
    return nil
  }
}
