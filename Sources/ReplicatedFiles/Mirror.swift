import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// The primary's write path: admits guest requests, keeps overlapping ones in order, applies them here, mirrors them into
/// the session, and answers when R2 allows. Decisions are `AcknowledgeMachine`'s and `RangeOrder`'s; this is their lock
/// and their I/O.
final class Mirror: GuestRequestSink {
  /// Bytes of guest writes held in memory, waiting ones included; beyond that no further write is taken from the kernel.
  static let payloadBytesMax = 64 << 20

  /// Bytes waiting for the link during a copy; above, guest writes wait. Close to the copy's own window, for a fair share.
  static let copyQueueBytesMax = 4 << 20

  /// What happened that the engine must know. Called without locks.
  struct Observer: Sendable {
    var drained: @Sendable () -> Void
    /// R11, on this node's disk.
    var diskError: @Sendable (_ operation: String, _ path: String, _ error: Errno) -> Void
    /// The session must end.
    var broken: @Sendable (_ session: SessionID, _ why: String) -> Void
  }

  struct State {
    var machine = AcknowledgeMachine()
    var session: PeerSession?
    var orders: [FileID: RangeOrder] = [:]
    var parked: [GuestRequest] = []
    /// Admitted requests, kept alive until they complete.
    var live: Set<UInt> = []
    /// Requests being applied or fsynced here now, on whatever thread.
    var running = 0
    /// Changes when the machine is replaced: tokens of the old one mean nothing then.
    var epoch = 0
    /// Files without a name when the manifest was read: the replica does not have them.
    var unmirrored: Set<FileID> = []
    var isDrainWanted = false
    /// Objects that were given another name or place, in the life of this engine.
    var moves: UInt64 = 0
    var server: FileServer?
    var copy: ResyncState?
    var verify: VerifyState?
    /// Of the questions of verifications, in the life of this engine.
    var verifySequence: UInt64 = 1
    var intents: Intents?
    /// Admitted, and waiting until their intents are durable (R3); in the order they came.
    var unintended: [GuestRequest] = []
    /// Admitted, and to be answered with this error.
    var unmarkable: [(GuestRequest, Errno)] = []
  }

  /// What has to be done after the lock is left.
  struct Effects {
    var completions: [AcknowledgeMachine.Completion] = []
    var started: [GuestRequest] = []
    var isDrained = false
    var session: PeerSession?
    var wakes = false
  }

  let state = Guarded(State())
  /// Changes of names happen one at a time, so that they are sent in the order they happened.
  let names = Mutex(())
  private let payloadBytes = Atomic<Int>(0)
  /// Threads that are telling the kernel an answer now.
  let answering = Atomic<Int>(0)
  let isCopying = Atomic<Bool>(false)
  private let isTearingDown = Atomic<Bool>(false)
  let bytesWritten = Atomic<UInt64>(0)
  /// When the engine's last look at its sessions and its disk began, nanoseconds; set when that look is over and has given up what
  /// it had to. The reads' lease counts from it; for each request it is exact enough to see a disk hang, and free of cost.
  let clock = Atomic<Int64>(monotonicNow().nanoseconds)
  let reads = ReadSlots()
  /// When a full disk was last told of, nanoseconds.
  let noSpaceNoted = Atomic<Int64>(.min)
  let observer: Observer

  init(observer: Observer) { self.observer = observer }

  // MARK: requests

  func submit(_ request: GuestRequest) {
    if request.bytes > 0 { awaitMemory(request.bytes) }
    start(request)
  }

  private func start(_ request: GuestRequest) {
    let (mayRun, storesIntents, fails, session) = state.withLock { state in
      (admit(request, &state), state.intents?.wantsStore ?? false, !state.unmarkable.isEmpty, state.session)
    }
    if mayRun { run([request], session) }
    if fails { failUnmarkable() }
    if storesIntents { storeIntents() }
  }

  func tearingDown(_ isTearingDown: Bool) { self.isTearingDown.store(isTearingDown, ordering: .relaxed) }

  /// Parked requests that will never run.
  func dropped(_ requests: [GuestRequest]) {
    for request in requests { payloadBytes.subtract(request.bytes, ordering: .relaxed) }
  }

  func forgotten(_ file: FileID, descriptor: Int32) {
    submit(
      GuestRequest(file: file) { () throws(Errno) in
        AppliedChange(operation: .forget(file), reply: .done)
      } whenDone: { _ in
        close(descriptor)
      })
  }

  /// Bounds memory: the kernel keeps what is not taken from it.
  private func awaitMemory(_ bytes: Int) {
    while !isTearingDown.load(ordering: .relaxed),
      payloadBytes.load(ordering: .relaxed) > Self.payloadBytesMax || isCopyBehind
    { usleep(500) }
    payloadBytes.add(bytes, ordering: .relaxed)
  }

  /// During a copy the guest does not wait for the peer's acknowledgements; if it is faster than the link, it must wait for
  /// the queue, or the queue would grow without end and the copy would never get its share.
  private var isCopyBehind: Bool {
    guard isCopying.load(ordering: .relaxed) else { return false }
    return state.withLock { state in
      guard let copy = state.copy, let session = state.session else { return false }
      // The target still makes its tree like the manifest: that may take long, and takes nothing from the queue. Most writes are
      // left to the copy meanwhile; when the others are too many the session ends, and they are in the next manifest.
      return session.queuedBytes > (copy.isTargetKnown ? Self.copyQueueBytesMax : PeerSession.queueBytesMax)
    }
  }

  /// Under the lock. True = run it now; false = it is parked or waits behind another.
  func admit(_ request: GuestRequest, _ state: inout State) -> Bool {
    let kind: AcknowledgeMachine.Kind
    if case .flush = request.action { kind = .flush } else { kind = .mutation }
    guard let token = state.machine.admit(request.bits, kind) else {
      state.parked.append(request)
      return false
    }
    request.retainForMachine()
    state.live.insert(request.key)
    request.token = token
    let startsNow = place(request, token, &state)
    if startsNow { state.running += 1 }
    return startsNow
  }

  private func place(
    _ request: GuestRequest, _ token: AcknowledgeMachine.Token, _ state: inout State
  ) -> Bool {
    // Both wait as if they were being carried out: whoever tears the mount down must know of them.
    switch cover(request, &state) {
    case .durable: break
    case .pending:
      state.running += 1
      isOnDisk(request)
      state.unintended.append(request)
      return false
    case .failed(let error):
      state.running += 1
      state.unmarkable.append((request, error))
      return false
    }
    switch request.action {
    case .write, .range, .repair: return order(request, &state)
    case .name: return true
    case .flush(_, let dataOnly):
      // The guest does not wait for the target now, and the target has better to do.
      if state.machine.leaveToCopy(token) { return true }
      if let dispatch = state.machine.send(token) {
        let file = state.unmirrored.contains(request.file) ? nil : request.file
        state.session?.enqueue(headBytesMax: FrameLimits.smallHeadBytesMax) {
          FrameHead.flushRequest(
            into: $0, session: dispatch.session, sequence: dispatch.sequence, file: file, dataOnly: dataOnly)
        }
      }
      return true
    }
  }

  /// Under the lock: its place among the overlapping ones. False = it waits for one of them.
  func order(_ request: GuestRequest, _ state: inout State) -> Bool {
    let range: Range<UInt64>
    switch request.action {
    case .write(_, let offset, let payload): range = offset..<offset + UInt64(payload.count)
    case .range(let whole, _, _):
      range = whole
      // Its length may change: what is written behind a new end must be sent.
      state.copy?.leftToCopy[request.file] = nil
    case .repair(_, _, let repaired, let isSize): range = isSize ? wholeFile : repaired
    case .name, .flush: return true
    }
    let (ticket, startsNow) = state.orders[request.file, default: RangeOrder()].admit(range, request: request.bits)
    request.ticket = ticket
    if startsNow { begin(request, &state) }
    return startsNow
  }

  /// Under the lock, when its turn in the file has come: a write is sent from here on, in this order.
  private func begin(_ request: GuestRequest, _ state: inout State) {
    guard case .write(_, let offset, let payload) = request.action, let token = request.token,
      !isLeftToCopy(request, token, &state), let dispatch = state.machine.send(token)
    else { return }
    guard !state.unmirrored.contains(request.file) else { return sendNothing(request.file, dispatch, state) }
    sendWrite(request.file, offset, payload, dispatch, state)
  }

  /// A number without a change, for a file the replica does not have.
  private func sendNothing(_ file: FileID, _ dispatch: AcknowledgeMachine.Dispatch, _ state: State) {
    state.session?.enqueue(
      FrameHead.bytes(.operation(.forget(file)), session: dispatch.session, sequence: dispatch.sequence))
  }

  /// Without locks. Applies here and finishes; then whatever this one held back.
  func run(_ requests: [GuestRequest], _ session: PeerSession?) {
    var next = requests
    session?.push()
    while let request = next.popLast() {
      isOnDisk(request)
      let effects: Effects
      switch request.action {
      case .write(let file, let offset, let payload):
        effects = write(request, file, offset, payload)
      case .range(_, _, let change):
        effects = apply(request, change)
      case .name(let change):
        effects = names.withLock { _ in apply(request, change) }
      case .repair(let verification, let file, let range, let isSize):
        effects = repair(request, verification, file, range, isSize: isSize)
      case .flush(let file, let dataOnly):
        effects = flush(request, file.number, dataOnly: dataOnly)
      }
      next += effects.started
      settle(effects)
    }
  }

  private func write(
    _ request: GuestRequest, _ file: OwnedDescriptor, _ offset: UInt64, _ payload: Payload
  ) -> Effects {
    do throws(Errno) {
      try Backing.writeAll(file.number, payload.bytes, at: offset)
      bytesWritten.add(UInt64(payload.count), ordering: .relaxed)
      request.reply = .written(payload.count)
      return finish(request, operation: nil, failure: nil)
    } catch {
      return writeFailed(request, file, error)
    }
  }

  private func apply(_ request: GuestRequest, _ change: GuestRequest.Change) -> Effects {
    do throws(Errno) {
      let applied = try change()
      request.reply = applied.reply
      return finish(request, operation: applied.operation, payload: applied.payload, failure: nil)
    } catch {
      if error.isDiskFailure || error.isNoSpace { noteDiskError("change", "\(request.file)", error) }
      if case .range = request.action, error.mayBeHalfDone, let session = state.withLock({ $0.session?.id }) {
        // As for a write: this disk may have part of it, and the peer has nothing.
        observer.broken(session, "a change of \(request.file) failed half-way on this node: \(error)")
      }
      return finish(request, operation: nil, failure: error)
    }
  }

  private func flush(_ request: GuestRequest, _ descriptor: Int32, dataOnly: Bool) -> Effects {
    do throws(Errno) {
      try Backing.sync(descriptor, dataOnly: dataOnly)
      return finish(request, operation: nil, failure: nil)
    } catch {
      failed("fsync", Backing.pathForMessage(descriptor), error)
      return finish(request, operation: nil, failure: error)
    }
  }

  func failed(_ operation: String, _ path: String, _ error: Errno) {
    // R11: before the loss of the session, which the core would answer by asking the peer for the right to go on here.
    observer.diskError(operation, path, error)
    if let session = state.withLock({ $0.session?.id }) {
      observer.broken(session, "\(operation) of \(path) failed on this node: \(error)")
    }
  }

  /// `corrects`: under the lock, before anything behind the request may start.
  func finish(
    _ request: GuestRequest, operation: FileOperation?, payload: Payload? = nil, failure: Errno?,
    corrects: (inout State) -> Void = { _ in }
  ) -> Effects {
    state.withLock { state in
      finish(request, operation: operation, payload: payload, failure: failure, corrects: corrects, &state)
    }
  }

  /// Under the lock.
  func finish(
    _ request: GuestRequest, operation: FileOperation?, payload: Payload? = nil, failure: Errno?,
    corrects: (inout State) -> Void = { _ in }, _ state: inout State
  ) -> Effects {
    var effects = Effects()
    state.running -= 1
    request.onDiskSince.store(0, ordering: .relaxed)
    guard let token = request.token else { return effects }
    if failure == nil, let operation {
      if operation.moves { state.moves += 1 }
      send(operation, payload, of: request, token, &state)
    }
    corrects(&state)
    if let done = state.machine.localDone(token, result: failure?.code ?? 0) { effects.completions.append(done) }
    if let ticket = request.ticket { release(ticket, of: request.file, &state, &effects) }
    conclude(&state, &effects)
    return effects
  }

  private func send(
    _ operation: FileOperation, _ payload: Payload?, of request: GuestRequest, _ token: AcknowledgeMachine.Token,
    _ state: inout State
  ) {
    var sent = operation
    if case .forget(let file) = operation {
      // Its descriptor is closed after this, so its number can come back as another file only behind this frame.
      state.copy?.plan.remove(file)
      state.copy?.removed.insert(file)
      state.verify?.removed.insert(file)
      state.unmirrored.remove(file)
      state.intents?.forget(file)
    } else if !state.unmirrored.isEmpty, let file = operation.subject, state.unmirrored.contains(file) {
      sent = .forget(file)
    }
    guard let dispatch = state.machine.send(token) else { return }
    guard case .write(let file, let offset, _) = sent, let payload else {
      state.session?.enqueue(
        FrameHead.bytes(.operation(sent), session: dispatch.session, sequence: dispatch.sequence))
      return
    }
    sendWrite(file, offset, payload, dispatch, state)
  }

  private func sendWrite(
    _ file: FileID, _ offset: UInt64, _ payload: Payload, _ dispatch: AcknowledgeMachine.Dispatch, _ state: State
  ) {
    state.session?.enqueue(
      headBytesMax: FrameLimits.smallHeadBytesMax,
      {
        FrameHead.write(
          into: $0, session: dispatch.session, sequence: dispatch.sequence, file: file, offset: offset,
          dataLength: payload.count)
      }, payload: payload)
  }

  /// Under the lock: the range is free; what waited for it starts, and is sent in that order.
  func release(_ ticket: RangeOrder.Ticket, of file: FileID, _ state: inout State, _ effects: inout Effects) {
    var started: [RangeOrder.Started] = []
    state.orders[file]?.complete(ticket, started: &started)
    for item in started {
      if item.request == ResyncState.requestBits {
        state.copy?.isRangeHeld = true
        effects.wakes = true
        continue
      }
      if item.request == VerifyState.requestBits {
        state.verify?.isRangeHeld = true
        effects.wakes = true
        continue
      }
      let request = GuestRequest.borrow(item.request)
      begin(request, &state)
      state.running += 1
      effects.started.append(request)
    }
    if state.orders[file]?.isEmpty == true { state.orders[file] = nil }
  }

  /// Under the lock, last: what must be noticed after any change of the machine.
  func conclude(_ state: inout State, _ effects: inout Effects) {
    effects.session = state.session
    if state.isDrainWanted {
      if state.machine.isDrained {
        state.isDrainWanted = false
        effects.isDrained = true
      }
    }
    if state.machine.isDraining, state.machine.unfinishedMutations == 0 { effects.wakes = true }
    if state.running == 0, isTearingDown.load(ordering: .relaxed) { effects.wakes = true }
  }

  /// Without locks: answers the kernel, wakes who waits.
  func settle(_ effects: Effects) {
    if effects.wakes { state.wake() }
    effects.session?.push()
    for completion in effects.completions { answer(completion) }
    if effects.isDrained { observer.drained() }
  }

  /// Runs what a change outside of a request's own thread has started.
  func settleAndRun(_ effects: Effects) {
    settle(effects)
    if !effects.started.isEmpty { run(effects.started, nil) }
  }

  private func answer(_ completion: AcknowledgeMachine.Completion) {
    let request = GuestRequest.take(completion.request)
    payloadBytes.subtract(request.bytes, ordering: .relaxed)
    let server = state.withLock { state -> FileServer? in
      state.live.remove(request.key)
      guard !request.isAbandoned, request.kernel != nil, let server = state.server else { return nil }
      answering.add(1, ordering: .relaxed)
      return server
    }
    request.whenDone?(completion.result)
    guard let server, let kernel = request.kernel else { return }
    server.answer(kernel, completion.result == 0 ? request.reply : .error(Errno(completion.result)))
    answering.subtract(1, ordering: .releasing)
  }
}

extension Errno {
  /// The disk, not the request, is at fault (R11).
  var isDiskFailure: Bool { [EIO, EROFS, EUCLEAN, ENODEV, ENXIO].contains(code) }
  /// The disk is sound and full.
  var isNoSpace: Bool { [ENOSPC, EDQUOT].contains(code) }
  /// A change of a range may have stopped in its middle; the others are refusals before its beginning.
  var mayBeHalfDone: Bool {
    ![EINVAL, EOPNOTSUPP, ENOTSUP, EPERM, EACCES, EBADF, EFBIG, ENODEV, ESPIPE, ETXTBSY, ESTALE].contains(code)
  }
}

extension FileOperation {
  /// An object is found elsewhere afterwards, or its names may be.
  var moves: Bool {
    switch self {
    case .rename, .link: true
    default: false
    }
  }

  /// The file that is changed, if the operation is about one.
  var subject: FileID? {
    switch self {
    case .write(let file, _, _), .setAttributes(let file, _), .allocate(let file, _, _, _),
      .setExtendedAttribute(let file, _, _), .removeExtendedAttribute(let file, _), .forget(let file):
      return file
    case .create, .makeDirectory, .makeNode, .makeSymlink, .link, .unlink, .removeDirectory, .rename:
      return nil
    }
  }
}
