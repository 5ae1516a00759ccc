import CFuse3
import Glibc
import HostSystem
import Model
import Replication
import SecureLinks
import Synchronization

/// A file descriptor that is closed with its last owner.
final class OwnedDescriptor: Sendable {
  let number: Int32
  init(_ number: Int32) { self.number = number }
  deinit { close(number) }
}

/// What a target lacks, on its way to it.
struct ResyncState {
  /// Stands for the copy where the range order knows requests by their address.
  static let requestBits: UInt64 = 0

  let session: SessionID
  var plan: ResyncPlan
  var pace: CopyPace
  /// What the target has said of its files, until it has said everything.
  var target: [FileID: FileContent] = [:]
  var isTargetKnown = false
  /// Until the plan is made: files of the manifest with their lengths. What is written within is not sent: its zone is marked
  /// (R3), so the plan will hold it, and the copy reads what was written.
  var leftToCopy: [FileID: UInt64] = [:]
  /// The piece being copied has its turn in its file.
  var isRangeHeld = false
  var removed: Set<FileID> = []
  /// Changes with each acknowledgement.
  var acknowledgements: UInt64 = 0

  init(session: SessionID, now: Instant) {
    self.session = session
    plan = ResyncPlan(files: [], now: now)
    pace = CopyPace(now: now)
  }

  /// The guest is first: while this module's is waiting for something, and on the link also those of the others.
  mutating func setWindows(isBusy: Bool) {
    plan.windowBytes = isBusy ? Mirror.busyWindowBytes : ResyncPlan.windowBytesDefault
    plan.contentsWindowBytes = pace.windowBytes
    plan.contentsPieceBytesMax = pace.pieceBytesMax
  }
}

/// A regular file of the source.
struct ResyncSource {
  let object: OwnedDescriptor
  /// As it is when the manifest is read.
  let size: UInt64
  let allocated: UInt64
}

/// The source of a resync: the manifest; then, in order with the guest's writes, hashes or contents of whatever either
/// node's map says may differ, in pieces.
extension Mirror {
  /// Data on its way while the guest is waiting for something: small, so that its requests do not queue behind the copy.
  static let busyWindowBytes = 2 << 20
  static let progressInterval: Duration = .milliseconds(500)
  /// Local writes that were accepted before the manifest are applied within this time, or the resync is refused.
  static let drainTimeout: Duration = .seconds(30)

  /// Runs on a thread of its own until everything is copied and the policy is `settling`; throws when the session is lost
  /// or the tree cannot be read.
  func resync(
    _ id: SessionID, root: Int32, comparesEverything: Bool, progress: (ResyncProgress) -> Void
  ) throws(EngineError) {
    let key = HashKey(randomUInt64(), randomUInt64())
    let hasher: BlockHasher
    do { hasher = try BlockHasher(key) } catch {
      throw EngineError(.busy, "cannot start a resync: \(error)")
    }
    try holdChanges(id)
    // Before the manifest goes: the target may answer it at once.
    state.withLock { $0.copy = ResyncState(session: id, now: monotonicNow()) }
    isCopying.store(true, ordering: .relaxed)
    defer {
      isCopying.store(false, ordering: .relaxed)
      state.withLock { $0.copy = nil }
    }
    var sources: [FileID: ResyncSource]
    do throws(EngineError) {
      sources = try beginCopy(id, root: root, key)
    } catch {
      releaseChanges()
      throw error
    }
    resumeParked()
    do throws(EngineError) {
      try awaitTarget(id, sources, comparesEverything)
      try copyAll(id, &sources, hasher, progress)
      try flushAhead(id)
    } catch {
      throw EngineError(error.code, "the resync stopped: \(error.message)")
    }
    // R8.1: from here on both must have every write.
    var effects = Effects()
    let refusal = state.withLock { state -> AcknowledgeError? in
      defer { conclude(&state, &effects) }
      do throws(AcknowledgeError) {
        let wasDraining = state.machine.isDraining
        try state.machine.setPolicy(.settling(id), completions: &effects.completions)
        if wasDraining { state.machine.beginDrain() }
        return nil
      } catch { return error }
    }
    settleAndRun(effects)
    if let refusal { throw EngineError(.state, "the resync stopped at its end: \(refusal)") }
  }

  /// Everything that changes the tree waits until the manifest is read; it ends with `releaseChanges` or `beginCopy`.
  private func holdChanges(_ id: SessionID) throws(EngineError) {
    let refusal = state.withLock { state -> String? in
      guard state.session?.id == id else { return "session \(id) is over" }
      guard state.machine.policy == .alone else { return "the policy is \(state.machine.policy), it has to be alone" }
      guard !state.machine.isDraining, state.copy == nil else { return "a drain or another resync is in progress" }
      state.machine.beginDrain()
      return nil
    }
    if let refusal { throw EngineError(.busy, "cannot start a resync: \(refusal)") }
    let isStill = state.wait(timeout: Self.drainTimeout) { state -> Bool? in
      guard state.session?.id == id else { return false }
      return state.machine.unfinishedMutations == 0 ? true : nil
    }
    guard isStill == true else {
      releaseChanges()
      let why = isStill == nil ? "local writes hang" : "the session was lost"
      throw EngineError(.busy, "cannot start a resync: \(why)")
    }
  }

  private func releaseChanges() {
    var effects = Effects()
    state.withLock { state in
      guard !state.isDrainWanted else { return }
      // The policy it has anyway: only the drain ends. Cannot be refused.
      do throws(AcknowledgeError) {
        try state.machine.setPolicy(state.machine.policy, completions: &effects.completions)
      } catch { Log.note("resync: \(error)") }
      conclude(&state, &effects)
    }
    settleAndRun(effects)
    resumeParked()
  }

  private func beginCopy(
    _ id: SessionID, root: Int32, _ key: HashKey
  ) throws(EngineError) -> [FileID: ResyncSource] {
    guard let session = state.withLock({ $0.session }), session.id == id else {
      throw EngineError(.link, "the session was lost")
    }
    var sources: [FileID: ResyncSource] = [:]
    try sendManifest(root: root, to: session, key: key, identityOnly: false) { (found) throws(EngineError) in
      guard found.type == S_IFREG, sources[found.id] == nil else { return }
      let copy = dup(found.descriptor)
      guard copy >= 0 else { throw EngineError(.backing, "cannot keep '\(found.path)' open: \(Errno.last)") }
      sources[found.id] = ResyncSource(
        object: OwnedDescriptor(copy), size: UInt64(found.status.st_size),
        allocated: UInt64(found.status.st_blocks) * 512)
    }
    var effects = Effects()
    let refusal = state.withLock { state -> AcknowledgeError? in
      defer { conclude(&state, &effects) }
      do throws(AcknowledgeError) {
        try state.machine.setPolicy(.resyncing(id), completions: &effects.completions)
        if state.isDrainWanted { state.machine.beginDrain() }
        state.copy?.leftToCopy = sources.mapValues(\.size)
        return nil
      } catch { return error }
    }
    settleAndRun(effects)
    if let refusal { throw EngineError(.state, "cannot start a resync: \(refusal)") }
    return sources
  }

  /// The target makes its tree like the manifest and says what its map holds; what to look at is the union of both.
  private func awaitTarget(
    _ id: SessionID, _ sources: [FileID: ResyncSource], _ comparesEverything: Bool
  ) throws(EngineError) {
    let known = state.wait { state -> [FileID: FileContent]?? in
      guard state.session?.id == id, let copy = state.copy, copy.session == id else { return .some(nil) }
      return copy.isTargetKnown ? .some(copy.target) : nil
    }
    guard let target = known ?? nil else { throw EngineError(.link, "the session was lost") }
    // Every write is sent from here on, and then the map is read: a write that was not sent has marked its zone before.
    let intents = state.withLock { state -> Intents? in
      state.copy?.leftToCopy = [:]
      return state.intents
    }
    let files = sources.sorted { $0.key < $1.key }.map { id, source in
      // What either side does not know is looked at as a whole.
      let own = comparesEverything ? .whole : intents?.content(of: id) ?? .whole
      return ResyncFile(
        file: id, size: source.size, allocated: source.allocated, content: own.union(target[id] ?? .whole))
    }
    state.withLock { state in
      guard let copy = state.copy, copy.session == id else { return }
      state.copy?.plan = ResyncPlan(files: files.filter { !copy.removed.contains($0.file) }, now: monotonicNow())
      state.copy?.target = [:]
    }
  }

  /// The target's map, frame by frame.
  func differing(_ file: FileID, _ content: FileContent, session: SessionID) {
    state.withLock { state in
      guard state.session?.id == session, state.copy?.session == session, state.copy?.isTargetKnown == false else {
        return  // R1
      }
      let known = state.copy?.target[file]
      state.copy?.target[file] = known?.union(content) ?? content
    }
  }

  func differingEnd(session: SessionID) {
    state.withLock { state in
      guard state.session?.id == session, state.copy?.session == session else { return }  // R1
      state.copy?.isTargetKnown = true
    }
    state.wake()
  }

  /// Tells the peer the tree, with its ids. Nothing may change it meanwhile.
  func sendManifest(
    root: Int32, to session: PeerSession, key: HashKey, identityOnly: Bool,
    _ use: (FoundObject) throws(EngineError) -> Void = { (_) throws(EngineError) in }
  ) throws(EngineError) {
    var folders: [TreePath: FileID] = [:]
    var seen: Set<FileID> = []
    var linked: [FileID: ManifestEntry] = [:]
    var identities: Set<FileIdentity> = []
    let intents = state.withLock { $0.intents }
    var (entries, attributes): (UInt32, UInt32) = (0, 0)
    session.enqueue(FrameHead.bytes(.manifestBegin(identityOnly: identityOnly, key: key), session: session.id))
    try TreeWalk.visit(root: root) { (found) throws(EngineError) in
      if found.type == S_IFDIR { folders[found.path] = found.id }
      let parent = found.path.parent.flatMap { folders[$0] }
      var entry = ManifestEntry(found, parent: parent)
      if found.status.st_nlink > 1, found.type != S_IFDIR {
        // Under each name the same, although looking at a symbolic link changes its time of access.
        let place = entry.place
        entry = linked[found.id] ?? entry
        linked[found.id] = entry
        entry.place = place
      }
      session.enqueue(FrameHead.bytes(.manifestEntry(entry), session: session.id))
      entries += 1
      if seen.insert(found.id).inserted {
        if !identityOnly, found.type == S_IFREG, let intents {
          do throws(Errno) { try intents.identify(found.id, found.descriptor, seen: &identities) } catch {
            throw EngineError(.backing, "cannot mark '\(found.path)': \(error)")
          }
        }
        for (name, value) in try TreeWalk.extendedAttributes(found) {
          session.enqueue(
            FrameHead.bytes(.manifestAttribute(found.id, name: name, value: value), session: session.id))
          attributes += 1
        }
      }
      try use(found)
      try awaitManifestRoom(session)
    }
    session.enqueue(
      FrameHead.bytes(.manifestEnd(entries: entries, attributes: attributes), session: session.id))
    state.withLock { $0.unmirrored = Set(($0.server?.nodes.orphans() ?? []).map { FileID(rawValue: $0) }) }
    session.push()
  }

  // MARK: contents

  private func copyAll(
    _ id: SessionID, _ sources: inout [FileID: ResyncSource], _ hasher: BlockHasher,
    _ progress: (ResyncProgress) -> Void
  ) throws(EngineError) {
    var open: [FileID: OwnedDescriptor] = [:]
    var lastProgress = monotonicNow()
    var dropped = DroppedCache()
    while true {
      let now = monotonicNow()
      let (step, count, report) = state.withLock { state -> (ResyncPlan.Step?, UInt64, ResyncProgress?) in
        guard state.session?.id == id, state.copy?.session == id else { return (nil, 0, nil) }
        let isBusy = state.machine.requestsInFlight > 0
        state.copy?.setWindows(isBusy: isBusy)
        let isDue = now - lastProgress >= Self.progressInterval
        let report = isDue ? state.copy?.plan.progress(now: now) : nil
        return (state.copy?.plan.next(), state.copy?.acknowledgements ?? 0, report)
      }
      guard let step else { throw EngineError(.link, "the session was lost") }
      if let report {
        lastProgress = now
        progress(report)
      }
      switch step {
      case .scan(let file, let from):
        scan(file, from: from, try reader(file, sources, &open))
      case .copy(let piece):
        try copy(piece, id, try reader(piece.file, sources, &open), hasher, &dropped)
      case .fileSent(let file):
        open[file] = nil
        if let source = sources.removeValue(forKey: file) { sendTimes(file, source.object) }
      case .wait:
        _ = state.wait(timeout: .milliseconds(100)) { state -> Bool? in
          state.session?.id != id || state.copy?.acknowledgements != count ? true : nil
        }
      case .done:
        if let report = state.withLock({ $0.copy?.plan.progress(now: monotonicNow()) }) { progress(report) }
        return
      }
    }
  }

  /// Before the guest has to wait for the target (R8.1): what the copy has left in its memory is written while the guest still
  /// goes on, for as long as that takes, so that the flush of R8.2 is short.
  private func flushAhead(_ id: SessionID) throws(EngineError) {
    let answer = Guarded<Int32?>(nil)
    let isStarted = barrier(id, syncHere: {}) { code in
      answer.withLock { $0 = code }
      answer.wake()
    }
    let code = isStarted ? answer.wait { $0 } : AcknowledgeMachine.barrierLost
    guard code == 0 else { throw EngineError(.link, "the session was lost") }
  }

  private func reader(
    _ file: FileID, _ sources: [FileID: ResyncSource], _ open: inout [FileID: OwnedDescriptor]
  ) throws(EngineError) -> Int32 {
    if let descriptor = open[file] { return descriptor.number }
    guard let object = sources[file]?.object else { throw EngineError(.state, "\(file) is not part of the copy") }
    do throws(Errno) {
      let descriptor = OwnedDescriptor(try Backing.reopen(object.number, flags: O_RDONLY))
      open[file] = descriptor
      return descriptor.number
    } catch {
      throw EngineError(.backing, "cannot read \(Backing.pathForMessage(object.number)): \(error)")
    }
  }

  private func scan(_ file: FileID, from: UInt64, _ descriptor: Int32) {
    var status = stat()
    // A size of zero when it cannot be told would skip contents; the largest makes the copy read, and say what is wrong.
    let size = fstat(descriptor, &status) == 0 ? UInt64(status.st_size) : UInt64(Int64.max)
    var data: Range<UInt64>?
    let start = vmha_seek_data(descriptor, off_t(from))
    if start >= 0 {
      let end = vmha_seek_hole(descriptor, start)
      data = UInt64(start)..<(end > start ? UInt64(end) : size)
    } else if errno != ENXIO {
      // The file system cannot tell: everything is data.
      data = from < size ? from..<size : nil
    }
    state.withLock { $0.copy?.plan.scanned(file, from: from, data: data, size: size) }
  }

  private enum Content {
    case data(Payload)
    case hashes([BlockHash], length: UInt32)
    case zeros(UInt64)
    case nothing
    case stale
  }

  private func copy(
    _ piece: ResyncPiece, _ id: SessionID, _ descriptor: Int32, _ hasher: BlockHasher, _ dropped: inout DroppedCache
  ) throws(EngineError) {
    let ticket = state.withLock { state -> RangeOrder.Ticket in
      let (ticket, startsNow) = state.orders[piece.file, default: RangeOrder()]
        .admit(piece.range, request: ResyncState.requestBits)
      state.copy?.isRangeHeld = startsNow
      return ticket
    }
    // Held back by a write that is being applied here; that ends without the peer.
    let isHeld = state.wait(timeout: Self.drainTimeout) { $0.copy?.isRangeHeld == true ? true : nil }
    var content = Content.nothing
    var failure: EngineError?
    if isHeld == true {
      do throws(Errno) { content = try read(piece, descriptor, hasher, &dropped) } catch {
        let place = Backing.pathForMessage(descriptor, at: piece.offset)
        failure = EngineError(.backing, "cannot read \(place): \(error)")
        observer.diskError("read", place, error)
      }
    } else {
      failure = EngineError(.state, "a write to \(Backing.pathForMessage(descriptor)) hangs")
    }
    var effects = Effects()
    state.withLock { state in
      if failure == nil { send(piece, content, id, &state) }
      release(ticket, of: piece.file, &state, &effects)
      conclude(&state, &effects)
    }
    settleAndRun(effects)
    if let failure { throw failure }
  }

  private func read(
    _ piece: ResyncPiece, _ descriptor: Int32, _ hasher: BlockHasher, _ dropped: inout DroppedCache
  ) throws(Errno) -> Content {
    guard !piece.isHole else {
      let start = vmha_seek_data(descriptor, off_t(piece.offset))
      // Only ENXIO says that there is nothing: the target's bytes must not be punched for an error of this disk.
      if start < 0 { return errno == ENXIO ? .zeros(piece.length) : .stale }
      return UInt64(start) < piece.offset + piece.length ? .stale : .zeros(piece.length)
    }
    // R11: what this disk holds, not what its cache kept after a failed write-back; else the target would get what this node loses
    // with its power.
    dropped.drop(piece, descriptor)
    var count = 0
    var isZero = false
    let payload = try Payload(byteCount: Int(piece.length)) { (buffer) throws(Errno) in
      count = try Backing.readAll(descriptor, into: buffer, at: piece.offset)
      isZero = isAllZero(UnsafeRawBufferPointer(rebasing: buffer[..<count]))
    }
    guard count > 0 else { return .nothing }
    if isZero { return .zeros(UInt64(count)) }
    if piece.kind == .compare {
      return .hashes(
        try blockHashes(UnsafeRawBufferPointer(rebasing: payload.bytes[..<count]), hasher), length: UInt32(count))
    }
    guard count < payload.count else { return .data(payload) }
    return .data(Payload(copying: UnsafeRawBufferPointer(rebasing: payload.bytes[..<count])))
  }

  /// Under the lock, while the range is held: the piece takes its place in the stream before any later write to it.
  private func send(_ piece: ResyncPiece, _ content: Content, _ id: SessionID, _ state: inout State) {
    guard state.session?.id == id, var copy = state.copy else { return }
    state.copy = nil
    defer { state.copy = copy }
    guard !copy.removed.contains(piece.file) else { return copy.plan.skip(piece) }
    switch content {
    case .nothing: copy.plan.skip(piece)
    case .stale: copy.plan.stale(piece)
    case .zeros(let length):
      let sequence = copy.plan.send(piece, bytes: 0)
      state.session?.enqueue(headBytesMax: FrameLimits.smallHeadBytesMax) {
        FrameHead.resyncZero(
          into: $0, session: id, sequence: sequence, file: piece.file, offset: piece.offset, length: length)
      }
    case .hashes(let hashes, let length):
      let sequence = copy.plan.sendHashes(piece)
      state.session?.enqueue(
        FrameHead.bytes(
          .resyncCompare(piece.file, offset: piece.offset, length: length, hashes: hashes), session: id,
          sequence: sequence))
    case .data(let payload):
      let sequence = copy.plan.send(piece, bytes: UInt64(payload.count))
      copy.pace.sent(sequence, bytes: payload.count, now: monotonicNow())
      state.session?.enqueue(
        headBytesMax: FrameLimits.smallHeadBytesMax,
        {
          FrameHead.resyncData(
            into: $0, session: id, sequence: sequence, file: piece.file, offset: piece.offset,
            dataLength: payload.count)
        }, payload: payload)
    }
  }

  /// The copy has changed the target's times; it gets those of the source.
  private func sendTimes(_ file: FileID, _ object: OwnedDescriptor) {
    submit(
      GuestRequest(file: file) { () throws(Errno) in
        let status = try Backing.status(object.number)
        // Removed meanwhile: nothing to tell. Removals are changes of names too, so this cannot change before it is sent.
        guard status.st_nlink > 0 else { throw Errno(ENOENT) }
        let change = AttributeChange(accessed: FileTime(status.st_atim), modified: FileTime(status.st_mtim))
        return AppliedChange(operation: .setAttributes(file, change), reply: .done)
      } whenDone: { _ in
      })
  }

  func resyncCompared(_ sequence: UInt64, differing: UInt32, session: SessionID) throws {
    let now = monotonicNow()
    try state.withLock { state in
      // R1
      guard state.session?.id == session, state.copy?.session == session else { return }
      try state.copy?.plan.compared(sequence, differing: differing, now: now)
      state.copy?.acknowledgements += 1
    }
    state.wake()
  }

  func resyncAcknowledged(_ frame: FrameView) throws {
    let now = monotonicNow()
    try state.withLock { state in
      // R1
      guard state.session?.id == frame.header.session, state.copy?.session == frame.header.session else { return }
      try frame.forEachRange {
        try state.copy?.plan.acknowledged($0, now: now)
        state.copy?.pace.acknowledged($0, now: now)
      }
      state.copy?.acknowledgements += 1
    }
    state.wake()
  }
}
