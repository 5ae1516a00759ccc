import CFuse3
import Glibc
import HostSystem
import Model
import Replication
import SecureLinks
import Synchronization

/// A verification that goes on.
struct VerifyState {
  /// Stands for the comparison where the range order knows requests by their address.
  static let requestBits: UInt64 = 1

  let id: UInt64
  let session: SessionID
  var run: VerifyRun
  /// The piece being looked at has its turn in its file.
  var isRangeHeld = false
  var isStopWanted = false
  /// The peer does not know these any more: nothing may be written to them there.
  var removed: Set<FileID> = []
  /// How the repair that was begun last ended; nil = not yet.
  var repairResult: Int32?
  /// Changes with each answer.
  var answers: UInt64 = 0
}

/// The object of the primary that is being looked at.
struct VerifyFile {
  let id: FileID
  /// O_PATH.
  let object: OwnedDescriptor
  /// Opened for reading.
  let reader: OwnedDescriptor
}

/// The primary's side of a verification. It goes over the tree object by object; each piece is read and its question queued while the
/// range is held in the order of guest writes, as in a resync, so both nodes look at the same moment of the stream. It touches no
/// acknowledgement, no policy and no flush; a repair is a write like a guest's (R2, R3).
extension Mirror {
  /// No answer for so long: the peer's disk hangs.
  static let verifyAnswerMax: Duration = .seconds(30)
  static let verifyReportInterval: Duration = .milliseconds(500)
  /// Later walks over the tree find what was renamed from where the walk had not been to where it had.
  static let verifyWalksMax = 3
  /// Before a folder that looked different is looked at again.
  static let folderSettleTime: Duration = .milliseconds(100)

  /// Runs on a thread of its own until everything is compared; throws when it has to end before. `report` is told how far it is and, last
  /// of all, what was found, also when it throws.
  func verify(_ request: VerifyRequest, root: Int32, report: (VerifyRun) -> Void) throws(EngineError) {
    let key = HashKey(randomUInt64(), randomUInt64())
    let hasher: BlockHasher
    do { hasher = try BlockHasher(key) } catch {
      throw EngineError(.busy, "no hash: \(error)")
    }
    try beginVerify(request, key, bytesTotal: try Self.dataBytes(root))
    var walk = VerifyWalk(hasher: hasher, lastReport: monotonicNow())
    defer { endVerify(report) }
    for number in 1...Self.verifyWalksMax {
      let before = walk.seen.count
      try TreeWalk.visit(root: root, skipsVanished: true) { (found) throws(EngineError) in
        guard walk.seen.insert(found.id).inserted else { return }
        try look(at: found, &walk, report)
      }
      if number > 1, walk.seen.count == before { break }
    }
    if request.repairs { try flushRepairs(request.session, root) }
  }

  fileprivate struct VerifyWalk {
    let hasher: BlockHasher
    var seen: Set<FileID> = []
    var lastReport: Instant
  }

  private static func dataBytes(_ root: Int32) throws(EngineError) -> UInt64 {
    var total: UInt64 = 0
    try TreeWalk.visit(root: root, skipsVanished: true) { (found) throws(EngineError) in
      guard found.type == S_IFREG else { return }
      total += min(UInt64(found.status.st_blocks) * 512, UInt64(found.status.st_size))
    }
    return total
  }

  private func beginVerify(_ request: VerifyRequest, _ key: HashKey, bytesTotal: UInt64) throws(EngineError) {
    let refusal = state.withLock { state -> String? in
      if let why = unfitForVerify(request.session, state) { return why }
      guard state.verify == nil, state.copy == nil else { return "another comparison is in progress" }
      let run = VerifyRun(
        request, firstSequence: state.verifySequence, bytesTotal: bytesTotal, now: monotonicNow())
      state.verify = VerifyState(id: request.id, session: request.session, run: run)
      state.session?.enqueue(FrameHead.bytes(.verifyBegin(key: key), session: request.session))
      return nil
    }
    if let refusal { throw EngineError(.state, refusal) }
  }

  private func endVerify(_ report: (VerifyRun) -> Void) {
    let run = state.withLock { state -> VerifyRun? in
      let run = state.verify?.run
      state.verifySequence = run?.nextSequence ?? state.verifySequence
      state.verify = nil
      return run
    }
    state.wake()
    if let run { report(run) }
  }

  /// Under the lock. Why nothing may be asked now, nil = it may. Not once a drain has begun: a swap follows, and then the peer is the
  /// one that asks.
  func unfitForVerify(_ session: SessionID, _ state: State) -> String? {
    guard state.session?.id == session else { return "the session was lost" }
    guard state.machine.policy == .both(session) else { return "the copies are not in sync" }
    if state.machine.isDraining { return "the module moves or stops" }
    if state.verify?.isStopWanted == true { return "it was stopped" }
    return nil
  }

  /// From any thread; answers whether there was one. It ends within the time of one read.
  @discardableResult
  func stopVerify() -> Bool {
    let isRunning = state.withLock { state in
      state.verify?.isStopWanted = true
      return state.verify != nil
    }
    state.wake()
    return isRunning
  }

  func verified(_ sequence: UInt64, _ answer: VerifyAnswer, session: SessionID) throws {
    let now = monotonicNow()
    try state.withLock { state in
      // R1; and one to a verification that has ended.
      guard state.session?.id == session, state.verify?.session == session else { return }
      try state.verify?.run.answered(sequence, answer, now: now)
      state.verify?.answers += 1
    }
    state.wake()
  }

  // MARK: one object

  private func look(at found: FoundObject, _ walk: inout VerifyWalk, _ report: (VerifyRun) -> Void) throws(EngineError)
  {
    guard found.type == S_IFREG || found.type == S_IFDIR else { return }
    let file: VerifyFile
    do throws(Errno) {
      let object = OwnedDescriptor(dup(found.descriptor))
      guard object.number >= 0 else { throw Errno.last }
      let flags = found.type == S_IFDIR ? O_RDONLY | O_DIRECTORY : O_RDONLY
      let reader = OwnedDescriptor(try Backing.reopen(object.number, flags: flags))
      file = VerifyFile(id: found.id, object: object, reader: reader)
    } catch { throw EngineError(.backing, "cannot open '\(found.path)': \(error)") }
    // What made the file may not have been sent yet; it is sent before this lock is given back.
    names.withLock { _ in }
    state.withLock { $0.verify?.run.begin("\(found.path)") }
    if found.type == S_IFDIR {
      try ask(VerifyPiece(file.id, .folder), file, &walk, report)
    } else {
      try lookAtContents(file, &walk, report)
    }
    while try followUp(file, &walk, report) {}
    if state.withLock({ $0.verify?.run.isMissing == true }), !isGone(file) {
      state.withLock { $0.verify?.run.add(.missing) }
    }
  }

  /// Only when it has no name any more; then the peer may have forgotten it already.
  func isGone(_ file: VerifyFile) -> Bool {
    (try? Backing.status(file.object.number).st_nlink) == 0
  }

  private func lookAtContents(
    _ file: VerifyFile, _ walk: inout VerifyWalk, _ report: (VerifyRun) -> Void
  ) throws(EngineError) {
    var size = try self.size(file)
    // Large files are told their data once; nobody reads ahead of a comparison that goes in pieces.
    posix_fadvise(file.reader.number, 0, 0, POSIX_FADV_RANDOM)
    try ask(VerifyPiece(file.id, .size, offset: size), file, &walk, report)
    var position: UInt64 = 0
    while position < size {
      guard state.withLock({ $0.verify?.run.isMissing == false }) else { return }
      let data = Self.nextData(file.reader.number, from: position, size: size)
      while position < data.lowerBound {
        let length = min(data.lowerBound - position, VerifyRun.holeBytesMax)
        try ask(VerifyPiece(file.id, .zeros, offset: position, length: length), file, &walk, report)
        position += length
      }
      while position < data.upperBound {
        guard state.withLock({ $0.verify?.run.isMissing == false }) else { return }
        let end = min((position / VerifyRun.pieceBytes + 1) * VerifyRun.pieceBytes, data.upperBound)
        try ask(VerifyPiece(file.id, .data, offset: position, length: end - position), file, &walk, report)
        position = end
      }
      // What is written behind the end from now on is mirrored.
      size = min(size, try self.size(file))
    }
  }

  private func size(_ file: VerifyFile) throws(EngineError) -> UInt64 {
    do throws(Errno) { return UInt64(try Backing.status(file.object.number).st_size) } catch {
      throw EngineError(.backing, "cannot read \(Backing.pathForMessage(file.object.number)): \(error)")
    }
  }

  /// The next bytes that are no hole, or nothing at the end. A file system that cannot tell has data everywhere.
  private static func nextData(_ descriptor: Int32, from: UInt64, size: UInt64) -> Range<UInt64> {
    let start = vmha_seek_data(descriptor, off_t(from))
    guard start >= 0 else { return errno == ENXIO ? size..<size : from..<size }
    guard UInt64(start) < size else { return size..<size }
    let end = vmha_seek_hole(descriptor, start)
    return UInt64(start)..<(end > start ? min(UInt64(end), size) : size)
  }

  // MARK: one piece

  /// Asks when it is its turn; before, whatever follows from earlier answers.
  private func ask(
    _ piece: VerifyPiece, _ file: VerifyFile, _ walk: inout VerifyWalk, _ report: (VerifyRun) -> Void
  ) throws(EngineError) {
    while true {
      while try followUp(file, &walk, report, waits: false) {}
      if try isItsTurn(&walk, report) { break }
    }
    try askNow(piece, file, walk.hasher)
  }

  /// Carries out what follows from the answers. With `waits` it answers false only when all is answered and nothing follows any more.
  private func followUp(
    _ file: VerifyFile, _ walk: inout VerifyWalk, _ report: (VerifyRun) -> Void, waits: Bool = true
  ) throws(EngineError) -> Bool {
    let (next, isIdle, answers) = state.withLock { state in
      (state.verify?.run.nextFollowUp(), state.verify?.run.isIdle ?? true, state.verify?.answers ?? 0)
    }
    switch next {
    case .look(let piece):
      if piece.subject == .folder { usleep(useconds_t(Self.folderSettleTime.milliseconds * 1000)) }
      while !(try isItsTurn(&walk, report)) {}
      try askNow(piece, file, walk.hasher)
    case .repair(let piece, let theirs):
      try repair(piece, theirs: theirs, file)
    case nil:
      guard waits, !isIdle else { return false }
      try awaitAnswer(nil, after: answers, &walk, report)
    }
    return true
  }

  /// False = it has waited a while: look for follow-ups, and ask again.
  private func isItsTurn(_ walk: inout VerifyWalk, _ report: (VerifyRun) -> Void) throws(EngineError) -> Bool {
    let (turn, answers, why) = state.withLock { state -> (VerifyRun.Turn, UInt64, String?) in
      guard let verify = state.verify else { return (.go, 0, "it was stopped") }
      let turn = verify.run.turn(isBusy: state.machine.requestsInFlight > 0, now: monotonicNow())
      return (turn, verify.answers, unfitForVerify(verify.session, state))
    }
    if let why { throw EngineError(.state, why) }
    guard case .wait(let time) = turn else { return true }
    try awaitAnswer(time, after: answers, &walk, report)
    return false
  }

  /// Until there is an answer more than `answers`, or `time` is over.
  private func awaitAnswer(
    _ time: Duration?, after answers: UInt64, _ walk: inout VerifyWalk, _ report: (VerifyRun) -> Void
  ) throws(EngineError) {
    let limit = min(time ?? Self.verifyReportInterval, Self.verifyReportInterval)
    _ = state.wait(timeout: limit) { state -> Bool? in
      guard let verify = state.verify, unfitForVerify(verify.session, state) == nil else { return true }
      return verify.answers != answers ? true : nil
    }
    let now = monotonicNow()
    let (why, run) = state.withLock { state -> (String?, VerifyRun?) in
      guard let verify = state.verify else { return ("it was stopped", nil) }
      let isSilent = !verify.run.isIdle && now - verify.run.lastAnswerAt > Self.verifyAnswerMax && time == nil
      return (
        unfitForVerify(verify.session, state) ?? (isSilent ? "the other node gives no answer" : nil), verify.run
      )
    }
    if let why { throw EngineError(.state, why) }
    if let run, now - walk.lastReport >= Self.verifyReportInterval {
      walk.lastReport = now
      report(run)
    }
  }

  private enum Look {
    case question(VerifyQuestion)
    case nothing
    /// Data appeared in the hole: looked at as data.
    case stale
    case unreadable
  }

  /// R3's order: the range is held while this node's copy is read and the question is queued.
  private func askNow(_ piece: VerifyPiece, _ file: VerifyFile, _ hasher: BlockHasher) throws(EngineError) {
    var piece = piece
    while true {
      let isStale: Bool
      switch piece.subject {
      case .folder:
        // Changes of names and attributes are sent under this lock, or before it was taken.
        var failure: EngineError?
        names.withLock { _ in
          do throws(EngineError) {
            let hash = try TreeWalk.listingHash(file.object.number, hasher)
            send(piece, .question(.folder(hash)), file)
          } catch { failure = isGone(file) ? nil : error }
        }
        if let failure { throw failure }
        isStale = false
      case .size: isStale = try askSize(&piece, file)
      case .data, .zeros:
        isStale = try hold(piece.offset..<piece.end, file) { () -> Bool in
          let look = read(piece, file, hasher)
          guard case .stale = look else {
            send(piece, look, file)
            return false
          }
          return true
        }
      }
      guard isStale else { break }
      if piece.subject == .zeros { return try askAsData(piece, file, hasher) }
    }
    state.withLock { $0.session }?.push()
  }

  /// A hole that is one no more, in pieces of data. Not counted as progress: it was not there at the beginning.
  private func askAsData(_ piece: VerifyPiece, _ file: VerifyFile, _ hasher: BlockHasher) throws(EngineError) {
    let end = min(piece.end, (piece.offset / VerifyRun.pieceBytes + 1) * VerifyRun.pieceBytes)
    try askNow(VerifyPiece(piece.file, .data, offset: piece.offset, length: end - piece.offset), file, hasher)
    guard end < piece.end else { return }
    state.withLock {
      $0.verify?.run.lookLater(VerifyPiece(piece.file, .zeros, offset: end, length: piece.end - end))
    }
  }

  /// True = the file became shorter meanwhile: again. Whatever changes the size from here on overlaps what is held.
  private func askSize(_ piece: inout VerifyPiece, _ file: VerifyFile) throws(EngineError) -> Bool {
    let assumed = piece.offset
    var now: UInt64 = 0
    var failure: EngineError?
    let asked = piece
    let isShorter = try hold(assumed..<UInt64.max, file) { () -> Bool in
      do throws(EngineError) { now = try size(file) } catch { failure = error }
      guard failure == nil, now >= assumed else { return true }
      send(asked.resized(now), .question(.size), file)
      return false
    }
    if let failure { throw failure }
    piece = asked.resized(now)
    return isShorter
  }

  /// `body` runs while no change overlaps the range, and none can begin.
  private func hold<Result>(
    _ range: Range<UInt64>, _ file: VerifyFile, _ body: () -> Result
  ) throws(EngineError) -> Result {
    let ticket = state.withLock { state -> RangeOrder.Ticket in
      let (ticket, startsNow) = state.orders[file.id, default: RangeOrder()]
        .admit(range, request: VerifyState.requestBits)
      state.verify?.isRangeHeld = startsNow
      return ticket
    }
    // Held back by a write that is being applied here; that ends without the peer.
    let isHeld = state.wait(timeout: Self.drainTimeout) { $0.verify?.isRangeHeld == true ? true : nil } == true
    let result = isHeld ? body() : nil
    var effects = Effects()
    state.withLock { state in
      release(ticket, of: file.id, &state, &effects)
      conclude(&state, &effects)
    }
    settleAndRun(effects)
    guard let result else {
      throw EngineError(.state, "a write to \(Backing.pathForMessage(file.object.number)) hangs")
    }
    return result
  }

  private func read(_ piece: VerifyPiece, _ file: VerifyFile, _ hasher: BlockHasher) -> Look {
    if piece.subject == .zeros {
      let start = vmha_seek_data(file.reader.number, off_t(piece.offset))
      if start < 0, errno != ENXIO { return .stale }
      let end = start < 0 ? piece.end : min(piece.end, UInt64(start))
      // What has got data meanwhile is looked at later.
      return end == piece.offset ? .stale : .question(.zeros(offset: piece.offset, length: end - piece.offset))
    }
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(piece.length), alignment: 4096)
    defer { buffer.deallocate() }
    do throws(Errno) {
      let count = try Backing.readFromDisk(file.reader.number, into: buffer, at: piece.offset)
      guard count > 0 else { return .nothing }
      let hashes = try blockHashes(UnsafeRawBufferPointer(rebasing: buffer[..<count]), hasher)
      return .question(.data(offset: piece.offset, length: UInt32(count), hashes: hashes))
    } catch {
      Log.note("verify: read of \(Backing.pathForMessage(file.reader.number)) at \(piece.offset): \(error)")
      return .unreadable
    }
  }

  /// While the range is held: the question takes its place in the stream before any later change of it.
  private func send(_ piece: VerifyPiece, _ look: Look, _ file: VerifyFile) {
    state.withLock { state in
      guard let verify = state.verify else { return }
      switch look {
      case .nothing, .stale: state.verify?.run.skip(piece)
      case .unreadable:
        // After a repair it stays what it was found to be.
        guard !piece.isSecondLook else { return }
        state.verify?.run.add(.unreadableHere, piece.offset, piece.length)
        state.verify?.run.skip(piece)
      case .question(let question):
        // Noticed, and said, by whoever waits for the answer.
        guard unfitForVerify(verify.session, state) == nil else { return }
        var asked = piece
        if case .data(_, let length, _) = question { asked = piece.shortened(UInt64(length)) }
        if case .zeros(_, let length) = question, length < piece.length {
          asked = piece.shortened(length)
          let rest = VerifyPiece(piece.file, .zeros, offset: asked.end, length: piece.length - length)
          state.verify?.run.lookLater(rest)
        }
        guard let sequence = state.verify?.run.ask(asked, now: monotonicNow()) else { return }
        state.session?.enqueue(
          FrameHead.bytes(.verify(piece.file, question), session: verify.session, sequence: sequence))
      }
    }
  }
}
