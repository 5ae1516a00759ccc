import CFuse3
import Glibc
import HostSystem
import Model
import Replication

/// `vmha verify --repair`: the peer gets what this node has.
extension Mirror {
  /// Sends what this node has, as a write like a guest's: marked durably before (R3), so that an end at any moment leaves a mark for the
  /// next resync, which is cleared like all others: by a flush of both nodes issued after it was acknowledged.
  func repair(_ piece: VerifyPiece, theirs: UInt64?, _ file: VerifyFile) throws(EngineError) {
    let begun = state.withLock { state -> UInt64? in
      state.verify?.repairResult = nil
      return state.verify?.id
    }
    guard let id = begun else { throw EngineError(.state, "it was stopped") }
    let finished: @Sendable (Int32) -> Void = { [weak self] code in
      self?.state.withLock { if $0.verify?.id == id { $0.verify?.repairResult = code } }
      self?.state.wake()
    }
    // A size decides over the bytes between the two.
    let range = theirs.map { min(piece.offset, $0)..<max(piece.offset, $0) } ?? piece.offset..<piece.end
    let action = GuestRequest.Action.repair(
      verification: id, file.reader, range, isSize: piece.subject == .size)
    submit(GuestRequest(file: file.id, action, whenDone: finished))
    // Parked by a drain, or waiting for a peer that is lost: it ends by itself, later, and then changes nothing.
    let end = state.wait { state -> (code: Int32, why: String?)? in
      guard let verify = state.verify else { return (ECANCELED, "it was stopped") }
      if let code = verify.repairResult { return (code, nil) }
      return unfitForVerify(verify.session, state).map { (ECANCELED, $0) }
    }
    if let why = end?.why { throw EngineError(.state, why) }
    // A file that is gone by now has nothing to repair.
    guard end?.code == 0 || isGone(file) else {
      return Log.note(
        "verify: a repair of \(Backing.pathForMessage(file.object.number)) failed: \(Errno(end?.code ?? 0))")
    }
    state.withLock { $0.verify?.run.repaired(piece) }
  }

  /// What a `GuestRequest.Action.repair` does, when its turn in the file has come.
  func repair(
    _ request: GuestRequest, _ verification: UInt64, _ file: OwnedDescriptor, _ range: Range<UInt64>, isSize: Bool
  ) -> Effects {
    var operation: FileOperation?
    var payload: Payload?
    var failure: Errno?
    do throws(Errno) {
      if isSize {
        let size = UInt64(try Backing.status(file.number).st_size)
        operation = .setAttributes(request.file, AttributeChange(size: size))
      } else {
        (operation, payload) = try contents(of: request.file, file.number, range)
      }
    } catch { failure = error }
    return state.withLock { state in
      // It may have waited for long: only the verification that found it knows what the peer has.
      let isWanted = state.verify?.id == verification && state.verify?.removed.contains(request.file) == false
      if !isWanted || operation == nil { failure = failure ?? Errno(ECANCELED) }
      return finish(request, operation: operation, payload: payload, failure: failure, &state)
    }
  }

  /// nil: the file ends before the range.
  private func contents(
    of id: FileID, _ file: Int32, _ range: Range<UInt64>
  ) throws(Errno) -> (FileOperation?, Payload?) {
    var count = 0
    let whole = try Payload(byteCount: Int(range.upperBound - range.lowerBound)) { (buffer) throws(Errno) in
      count = try Backing.readFromDisk(file, into: buffer, at: range.lowerBound)
    }
    guard count > 0 else { return (nil, nil) }
    let bytes = UnsafeRawBufferPointer(rebasing: whole.bytes[..<count])
    guard !isAllZero(bytes) else {
      return (.allocate(id, [.punchHole, .keepSize], offset: range.lowerBound, length: UInt64(count)), nil)
    }
    return (.write(id, offset: range.lowerBound, length: UInt32(count)), Payload(copying: bytes))
  }

  /// Both nodes make the repairs durable before they are called done.
  func flushRepairs(_ session: SessionID, _ root: Int32) throws(EngineError) {
    guard state.withLock({ ($0.verify?.run.repairedCount ?? 0) > 0 }) else { return }
    let done = Guarded<Int32?>(nil)
    let isBegun = state.withLock { state in unfitForVerify(session, state) == nil }
    guard isBegun,
      barrier(
        session, unlessDraining: true, syncHere: { () throws(Errno) in try self.syncTree(root) },
        done: { code in
          done.withLock { $0 = code }
          done.wake()
        })
    else { throw EngineError(.state, "the session was lost before the repairs were durable") }
    guard done.wait(until: { $0 }) == 0 else {
      throw EngineError(.state, "the repairs were not made durable on both nodes")
    }
  }
}
