import Model

/// R2: decides when a guest's request may be answered. A value without I/O; its user calls it under one lock and
/// replies after leaving that lock. Nothing here allocates per request once the arrays have grown to the working
/// depth.
///
/// A mutation or flush goes through these steps, in this order:
/// 1. `admit`: nil = park it untouched and try again after the next `setPolicy` (frozen, draining).
/// 2. `send`: when its place in the stream is fixed (a write: at once; a change of names: after it worked here). The
///    answer says in which session and with which number to queue its frame, under the same lock; nil = nothing is
///    mirrored now.
/// 3. `localDone`, and `remoteAcknowledged` or `remoteFlushed`, in any order. Whichever makes it complete returns the
///    completion.
///
/// **Requests older than a resync.** To begin one: `beginDrain`, wait until `unfinishedMutations` is 0, read the
/// manifest, `setPolicy(.resyncing(S))`, which refuses otherwise and admits again. So what is in flight then are
/// fsyncs only, and the copy reads every mutation older than S; they are marked as covered by S and complete in
/// `settling(S)` and `both(S)` with the local fsync alone. That is enough: before `both` (R8.2) both nodes fsync,
/// after all of them were issued, and until then the peer counts as inconsistent anyway. Everything admitted later is
/// sent in S itself. `settling` is turned to when every piece of the copy was acknowledged.
public struct AcknowledgeMachine: Hashable, Sendable {
  /// Names one admitted request until it completes.
  public struct Token: Hashable, Sendable {
    fileprivate var index: UInt32
    fileprivate var serial: UInt32
  }

  public enum Kind: Sendable, Hashable {
    case mutation
    case flush
  }

  /// Queue the frame with exactly this session and number, before the lock is left.
  public struct Dispatch: Hashable, Sendable {
    public var session: SessionID
    public var sequence: UInt64
  }

  /// Answer this request now. `result` is 0 or the errno of the local apply.
  public struct Completion: Hashable, Sendable {
    public var request: UInt64
    public var result: Int32
  }

  /// Result of a barrier whose session was lost (Linux ECANCELED).
  public static let barrierLost: Int32 = 125

  public private(set) var policy = AcknowledgePolicy.frozen
  public private(set) var session: SessionID?
  public private(set) var isDraining = false
  /// Admitted and not completed, barriers apart.
  public private(set) var requestsInFlight = 0
  /// Mutations admitted and not yet applied here. Must be 0 when a resync reads its manifest.
  public private(set) var unfinishedMutations = 0

  /// The session everything is mirrored into. Outlives a turn to `frozen` (which stops answers, not the stream), but
  /// no loss.
  private var mirror: SessionID?
  /// The peer may lack something: `both` needs a resync first.
  private var needsResync = false
  private var slots: [Slot] = []
  private var freeSlots: [UInt32] = []
  private var outstanding = OutstandingRing()

  public init() {}

  /// For a copy that was written to by another process, in a session that is over: the peer may lack something.
  public init(needsResync: Bool) { self.needsResync = needsResync }

  /// For the same copy, mounted anew: what the peer lacks it still lacks.
  public init(after old: AcknowledgeMachine) { needsResync = old.needsResync }

  private struct Slot: Hashable, Sendable {
    var request: UInt64 = 0
    var session: SessionID?
    var coveredBy: SessionID?
    var result: Int32 = 0
    var serial: UInt32 = 0
    var kind = Kind.mutation
    var isLive = false
    var isBarrier = false
    var isDispatched = false
    var isLocalDone = false
    var isAcknowledged = false
  }

  // MARK: - requests

  /// Whether `admit` would take a request.
  public var mayAdmit: Bool { policy != .frozen && !isDraining }

  /// nil = the request has to wait, untouched; ask again after `setPolicy`.
  public mutating func admit(_ request: UInt64, _ kind: Kind) -> Token? {
    mayAdmit ? take(request, kind) : nil
  }

  /// Part of what an admitted request does, whatever the policy has become: a drain waits for it too.
  public mutating func admitFollower(_ request: UInt64) -> Token { take(request, .mutation) }

  private mutating func take(_ request: UInt64, _ kind: Kind) -> Token {
    requestsInFlight += 1
    if kind == .mutation { unfinishedMutations += 1 }
    return occupy(request, kind, isBarrier: false)
  }

  /// Sent in the current session: the peer has it, or will.
  public func isMirrored(_ token: Token) -> Bool {
    isLive(token) && session != nil && slots[Int(token.index)].session == session
  }

  /// Instead of `send`, during `resyncing`: the copy reads this change after it was applied here; a flush is covered by the joint one
  /// behind the copy (R8.2), which is issued after everything that it promises. false = it has to be sent.
  public mutating func leaveToCopy(_ token: Token) -> Bool {
    let index = Int(token.index)
    guard case .resyncing(let session) = policy, isLive(token), !slots[index].isDispatched else { return false }
    slots[index].isDispatched = true
    slots[index].coveredBy = session
    return true
  }

  /// Fixes the request's place in the stream. Once for each token, before a successful `localDone`.
  public mutating func send(_ token: Token) -> Dispatch? {
    let index = Int(token.index)
    precondition(isLive(token) && !slots[index].isDispatched, "a request may be sent once, before it is done")
    slots[index].isDispatched = true
    guard let mirror else { return nil }
    slots[index].session = mirror
    return Dispatch(session: mirror, sequence: outstanding.append(token, slots[index].kind))
  }

  /// The request is applied (or fsynced) here, or failed with an errno: then it is answered at once, whatever the
  /// policy.
  public mutating func localDone(_ token: Token, result: Int32) -> Completion? {
    let index = Int(token.index)
    guard isLive(token) else { return nil }  // a barrier whose session was lost in the meantime
    precondition(!slots[index].isLocalDone, "a request is done once")
    precondition(slots[index].isDispatched || result != 0, "a change that worked must be sent before it is done")
    slots[index].isLocalDone = true
    slots[index].result = result
    if slots[index].kind == .mutation { unfinishedMutations -= 1 }
    return completion(index)
  }

  /// R8.2 and swap: a flush of everything, which completes when both nodes have fsynced in this session, whatever the
  /// policy; with `barrierLost` when the session is lost. Queue its flush request, fsync here, then `localDone`. nil =
  /// not the current session, or, with `unlessDraining`, a drain has begun: what it has waited for must stay all (R10).
  public mutating func sendBarrier(
    _ request: UInt64, in session: SessionID, unlessDraining: Bool = false
  ) -> (token: Token, dispatch: Dispatch)? {
    guard session == self.session, !(unlessDraining && isDraining) else { return nil }
    let token = occupy(request, .flush, isBarrier: true)
    slots[Int(token.index)].isDispatched = true
    slots[Int(token.index)].session = session
    return (token, Dispatch(session: session, sequence: outstanding.append(token, .flush)))
  }

  /// The oldest number sent in this session that the peer has not acknowledged; nil = none. While it stays the same the peer
  /// does nothing.
  public var oldestOutstanding: UInt64? { outstanding.oldestOpen }
  /// As `oldestOutstanding`, of changes only: a flush may take as long as a disk needs.
  public var oldestOutstandingChange: UInt64? { outstanding.oldestOpenMutation }

  // MARK: - the peer

  /// The peer applied these operations. An acknowledgement of another session is dropped (R1); one of something never
  /// sent, twice, or of a flush means the peer is broken: end the session.
  public mutating func remoteAcknowledged(
    _ range: SequenceRange, in session: SessionID, completions: inout [Completion]
  ) throws(AcknowledgeError) {
    guard session == self.session else { return }  // R1
    try acknowledge(range, .mutation, &completions)
  }

  /// The peer made everything before this flush request durable.
  public mutating func remoteFlushed(
    _ sequence: UInt64, in session: SessionID, completions: inout [Completion]
  ) throws(AcknowledgeError) {
    guard session == self.session else { return }  // R1
    try acknowledge(SequenceRange(sequence), .flush, &completions)
  }

  private mutating func acknowledge(
    _ range: SequenceRange, _ kind: Kind, _ completions: inout [Completion]
  ) throws(AcknowledgeError) {
    guard range.first <= range.last, outstanding.contains(range) else {
      throw AcknowledgeError(
        .unknownSequence, "the peer acknowledged \(range.first) to \(range.last); outstanding are \(outstanding.text)")
    }
    for sequence in range.first...range.last {
      let token = try outstanding.acknowledge(sequence, kind)
      guard isLive(token) else { continue }  // answered already, while it needed no peer
      slots[Int(token.index)].isAcknowledged = true
      if let done = completion(Int(token.index)) { completions.append(done) }
    }
    outstanding.dropAcknowledged()
  }

  /// A session was agreed. Nothing is mirrored into it until `setPolicy`.
  public mutating func sessionBegan(_ session: SessionID) {
    precondition(self.session == nil, "the old session must be lost before a new one begins")
    self.session = session
  }

  /// R1: voids every acknowledgement of the session that is not used up, and lets the policy fall as
  /// `AcknowledgePolicy` says. A session that is not the current one changes nothing.
  public mutating func sessionLost(_ session: SessionID, completions: inout [Completion]) {
    guard session == self.session else { return }
    self.session = nil
    outstanding = OutstandingRing()
    if mirror == session {
      mirror = nil
      needsResync = true
    }
    switch policy {
    case .frozen, .alone: break
    case .resyncing, .settling: policy = .alone
    case .both: policy = .frozen
    }
    for index in slots.indices where slots[index].isLive && slots[index].session == session {
      slots[index].isAcknowledged = false
      if slots[index].isBarrier {
        completions.append(Completion(request: slots[index].request, result: AcknowledgeMachine.barrierLost))
        vacate(index)
      }
    }
    completeAll(&completions)
  }

  // MARK: - the policy

  /// Turns to a policy, ends draining, and completes what it allows. Refuses what could acknowledge something the peer
  /// lacks: `resyncing` only after `alone` with no mutation unfinished, `settling` only after `resyncing`, `both` only
  /// after `settling` or, in a session in which nothing was ever left out, after `frozen`; and every session but the
  /// current one. Nothing changes then.
  public mutating func setPolicy(
    _ policy: AcknowledgePolicy, completions: inout [Completion]
  ) throws(AcknowledgeError) {
    try check(policy)
    switch policy {
    case .frozen: break
    case .alone:
      mirror = nil
      needsResync = true
    case .resyncing(let session):
      if policy == self.policy { break }  // only its first turn is where the copy begins
      mirror = session
      for index in slots.indices where slots[index].isLive && slots[index].isDispatched {
        slots[index].coveredBy = session  // a flush, see above
      }
    case .settling: needsResync = false
    case .both(let session): mirror = session
    }
    self.policy = policy
    isDraining = false
    completeAll(&completions)
  }

  private func check(_ new: AcknowledgePolicy) throws(AcknowledgeError) {
    let wanted: SessionID
    switch new {
    case .frozen, .alone: return
    case .resyncing(let session), .settling(let session), .both(let session): wanted = session
    }
    guard wanted == session else {
      throw AcknowledgeError(
        .otherSession, "session \(wanted) is over; \(session.map { "the current one is \($0)" } ?? "there is none now")"
      )
    }
    if new == policy { return }
    switch (policy, new) {
    case (.resyncing, .settling), (.settling, .both): return
    case (.alone, .resyncing):
      guard unfinishedMutations == 0 else {
        throw AcknowledgeError(
          .unfinished, "\(unfinishedMutations) changes are still being applied: the copy could miss them; drain first")
      }
    case (.frozen, .both):
      guard !needsResync, mirror == nil || mirror == wanted else {
        throw AcknowledgeError(
          .needsResync,
          "the peer may lack writes made without it: it has to be resynchronised before both can be required")
      }
    default:
      throw AcknowledgeError(.wrongOrder, "the policy cannot turn from \(policy) to \(new)")
    }
  }

  /// Stops admitting until the next `setPolicy`; the acknowledgements in flight go on.
  public mutating func beginDrain() { isDraining = true }

  /// R10: nothing is in flight any more and, while both are required, the peer owes no answer, not even to a barrier: a swap
  /// follows, which counts anew in the same session, and an answer that came after it would be taken for another one's.
  public var isDrained: Bool {
    guard isDraining, requestsInFlight == 0 else { return false }
    switch policy {
    case .frozen, .alone, .resyncing: return true
    case .settling, .both: return oldestOutstanding == nil
    }
  }

  // MARK: - inside

  private func isLive(_ token: Token) -> Bool {
    let slot = slots[Int(token.index)]
    return slot.isLive && slot.serial == token.serial
  }

  /// R2.
  private func mayComplete(_ slot: Slot) -> Bool {
    guard slot.isLive, slot.isLocalDone else { return false }
    if slot.result != 0 { return true }
    if slot.isBarrier { return slot.isAcknowledged }
    switch policy {
    case .frozen: return false
    case .alone, .resyncing: return true
    case .settling(let session), .both(let session):
      return (slot.session == session && slot.isAcknowledged) || slot.coveredBy == session
    }
  }

  private mutating func completion(_ index: Int) -> Completion? {
    guard mayComplete(slots[index]) else { return nil }
    let done = Completion(request: slots[index].request, result: slots[index].result)
    if !slots[index].isBarrier { requestsInFlight -= 1 }
    vacate(index)
    return done
  }

  private mutating func completeAll(_ completions: inout [Completion]) {
    for index in slots.indices where slots[index].isLocalDone {
      if let done = completion(index) { completions.append(done) }
    }
  }

  private mutating func occupy(_ request: UInt64, _ kind: Kind, isBarrier: Bool) -> Token {
    let index: Int
    if let free = freeSlots.popLast() {
      index = Int(free)
    } else {
      index = slots.count
      slots.append(Slot())
    }
    slots[index].request = request
    slots[index].kind = kind
    slots[index].isBarrier = isBarrier
    slots[index].isLive = true
    return Token(index: UInt32(index), serial: slots[index].serial)
  }

  /// The new serial makes every token and outstanding entry of the old request void.
  private mutating func vacate(_ index: Int) {
    let serial = slots[index].serial &+ 1
    slots[index] = Slot()
    slots[index].serial = serial
    freeSlots.append(UInt32(index))
  }
}

/// The peer or the core asked for something that cannot be right; nothing was changed by a refused `setPolicy`, and
/// the session has to end after a refused acknowledgement.
public struct AcknowledgeError: Error, Hashable, Sendable, CustomStringConvertible {
  public enum Code: Hashable, Sendable {
    case unknownSequence, wrongKind, otherSession, needsResync, wrongOrder, unfinished
  }
  public var code: Code
  public var message: String
  init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }
  public var description: String { message }
}

/// What was sent in this session and not acknowledged: a ring indexed by sequence number, from `oldest` up to but not
/// including `next`.
private struct OutstandingRing: Hashable, Sendable {
  private struct Entry: Hashable, Sendable {
    var token = AcknowledgeMachine.Token(index: 0, serial: 0)
    var kind = AcknowledgeMachine.Kind.mutation
    var isAcknowledged = true
  }
  private static let capacityStart = 8
  private var entries: [Entry] = []
  private var oldest: UInt64 = 1
  private var next: UInt64 = 1

  var oldestOpenMutation: UInt64? {
    (oldest..<next).first { sequence in
      let entry = entries[place(sequence)]
      return entry.kind == .mutation && !entry.isAcknowledged
    }
  }

  /// `dropAcknowledged` keeps `oldest` at an open one.
  var oldestOpen: UInt64? { oldest == next ? nil : oldest }

  var text: String { oldest == next ? "none" : "\(oldest) to \(next - 1)" }

  private func place(_ sequence: UInt64) -> Int { Int(truncatingIfNeeded: sequence) & (entries.count - 1) }

  func contains(_ range: SequenceRange) -> Bool { range.first >= oldest && range.last < next }

  mutating func append(_ token: AcknowledgeMachine.Token, _ kind: AcknowledgeMachine.Kind) -> UInt64 {
    if Int(next - oldest) == entries.count { grow() }
    let sequence = next
    next += 1
    entries[place(sequence)] = Entry(token: token, kind: kind, isAcknowledged: false)
    return sequence
  }

  private mutating func grow() {
    let count = max(entries.count * 2, OutstandingRing.capacityStart)
    var larger = [Entry](repeating: Entry(), count: count)
    for sequence in oldest..<next { larger[Int(truncatingIfNeeded: sequence) & (count - 1)] = entries[place(sequence)] }
    entries = larger
  }

  mutating func acknowledge(
    _ sequence: UInt64, _ kind: AcknowledgeMachine.Kind
  ) throws(AcknowledgeError) -> AcknowledgeMachine.Token {
    let index = place(sequence)
    guard !entries[index].isAcknowledged else {
      throw AcknowledgeError(.unknownSequence, "the peer acknowledged \(sequence) twice")
    }
    guard entries[index].kind == kind else {
      throw AcknowledgeError(
        .wrongKind, "the peer acknowledged \(sequence) as a \(kind), but it was sent as a \(entries[index].kind)")
    }
    entries[index].isAcknowledged = true
    return entries[index].token
  }

  mutating func dropAcknowledged() {
    while oldest < next, entries[place(oldest)].isAcknowledged { oldest += 1 }
  }
}
