import CFuse3
import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// R11: a write that this node's disk refused. It was sent before it was tried here, so the peer may have it.
extension Mirror {
  /// A full disk is told of once in this time, however often a guest tries again.
  static let noSpaceNoteInterval: Duration = .seconds(10)

  /// The guest gets the error. A full disk is no reason to lose the peer: what this node now holds of the range follows in the
  /// stream. A disk that fails ends the session; the module moves.
  func writeFailed(_ request: GuestRequest, _ file: OwnedDescriptor, _ error: Errno) -> Effects {
    let place = Backing.pathForMessage(file.number, at: request.intent?.lowerBound)
    guard !error.isDiskFailure else {
      failed("write", place, error)
      return finish(request, operation: nil, failure: error)
    }
    noteDiskError("write", place, error)
    return finish(request, operation: nil, failure: error) { correct(request, file, error, &$0) }
  }

  /// What the reader makes of the error may come back as a write, and must not spoil the peer's copy, which is whole: in sync, the
  /// session is over before the reader knows. QEMU writes whatever its buffer held where it read a part of a sector in vain.
  func readFailed(_ place: String, _ error: Errno) {
    switch policy {
    case .both, .settling: failed("read", place, error)
    case .alone, .resyncing, .frozen: noteDiskError("read", place, error)
    }
  }

  func noteDiskError(_ operation: String, _ path: String, _ error: Errno) {
    if error.isNoSpace {
      let now = monotonicNow().nanoseconds
      let last = noSpaceNoted.load(ordering: .relaxed)
      guard last == .min || now - last >= Self.noSpaceNoteInterval.nanoseconds,
        noSpaceNoted.compareExchange(expected: last, desired: now, ordering: .relaxed).exchanged
      else { return }
    }
    observer.diskError(operation, path, error)
  }

  /// Under the lock, before the failed write's range is free: its contents as they are here, then the file's length. Both when every
  /// earlier change of the file is done and before any later one begins or is sent: else the length would cut off what another
  /// write has added at the peer and not here yet. The guest is told when the peer has followed (R2). The steps own the file: it may
  /// be closed by then.
  private func correct(_ request: GuestRequest, _ data: OwnedDescriptor, _ error: Errno, _ state: inout State) {
    guard let token = request.token, state.machine.isMirrored(token), let range = request.intent else { return }
    let file = request.file
    let contents: GuestRequest.Change = { () throws(Errno) in
      let reader = OwnedDescriptor(try Backing.reopen(data.number, flags: O_RDONLY))
      let size = UInt64(try Backing.status(reader.number).st_size)
      let end = min(range.upperBound, size)
      guard end > range.lowerBound else { return Self.length(of: file, size, .done) }
      let payload = try Payload(byteCount: Int(end - range.lowerBound)) { (buffer) throws(Errno) in
        // Nothing else changes the file now.
        guard try Backing.readAll(reader.number, into: buffer, at: range.lowerBound) == buffer.count else {
          throw Errno(EIO)
        }
      }
      return AppliedChange(
        operation: .write(file, offset: range.lowerBound, length: UInt32(payload.count)), reply: .done, payload: payload
      )
    }
    let length: GuestRequest.Change = { () throws(Errno) in
      Self.length(of: file, UInt64(try Backing.status(data.number).st_size), .error(error))
    }
    let steps = [(contents, false), (length, true)].map { change, answers in
      GuestRequest(after: request, answers: answers, .range(wholeFile, intent: range, change))
    }
    request.isAbandoned = true
    for step in steps {
      step.retainForMachine()
      state.live.insert(step.key)
      step.token = state.machine.admitFollower(step.bits)
      let startsNow = order(step, &state)
      precondition(!startsNow, "the failed write still holds its range")
    }
  }

  private static func length(of file: FileID, _ size: UInt64, _ reply: GuestReply) -> AppliedChange {
    AppliedChange(operation: .setAttributes(file, AttributeChange(size: size)), reply: reply)
  }
}
