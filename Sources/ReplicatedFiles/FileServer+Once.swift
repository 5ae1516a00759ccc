import CFuse3
import Glibc
import Replication

/// What must not be done twice when the process that did it dies before it has told the kernel (`ChangeJournal`), and what the
/// next process does before it serves.
extension FileServer {
  /// A request that the kernel hands out again and that is on record as done is only answered.
  func once(
    _ request: KernelRequest, _ body: @escaping GuestRequest.Change,
    again: @escaping @Sendable (ChangeJournal.Outcome) throws(Errno) -> GuestReply
  ) -> GuestRequest.Change {
    guard request.isRepeated else { return body }
    return { [self] () throws(Errno) in
      guard let known = changes.outcome(request.unique) else { return try body() }
      // It was done before this process began, so it is in whatever manifest the peer gets.
      return AppliedChange(operation: .nothing, reply: try again(known))
    }
  }

  /// Carries out a change that is on record from before its beginning until its answer. One that fails may be tried again.
  func recorded(
    _ request: KernelRequest, _ change: KeptChange,
    _ apply: () throws(Errno) -> (change: AppliedChange, object: UInt64)
  ) throws(Errno) -> AppliedChange {
    changes.begin(request.unique, change)
    do throws(Errno) {
      let applied = try apply()
      // A truncation that stopped half-way: its answer is not on record, so it is tried again.
      if case .error = applied.change.reply {
        changes.forget(request.unique)
      } else {
        changes.done(request.unique, object: applied.object)
      }
      return applied.change
    } catch {
      changes.forget(request.unique)
      throw error
    }
  }

  /// As `recorded`, for a new object under a name that is free.
  func made(
    _ request: KernelRequest, _ parent: UInt64, _ name: FileName, type: mode_t,
    _ apply: (Node) throws(Errno) -> (change: AppliedChange, object: UInt64)
  ) throws(Errno) -> AppliedChange {
    let folder = try nodes.node(parent)
    // Known beforehand, so that a name found after a crash is known to be new.
    guard try numberOf(name.bytes, in: folder) == nil else { throw Errno(EEXIST) }
    let record = KeptChange(kind: .make, folder: parent, type: type, name: name.bytes)
    return try recorded(request, record) { () throws(Errno) in try apply(folder) }
  }

  /// The object that was made or linked by a process before this one. It was counted as looked up when it was made.
  func entry(_ request: KernelRequest, _ known: ChangeJournal.Outcome) throws(Errno) -> (Node, stat) {
    let node = try nodes.node(known.object)
    guard known.isUncounted else { return (node, try Backing.status(node.descriptor)) }
    let copy = fcntl(node.descriptor, F_DUPFD_CLOEXEC, 0)
    guard copy >= 0 else { throw Errno.last }
    let counted = try nodes.remember(copy)
    changes.done(request.unique, object: known.object)
    return counted
  }

  func entryAgain(
    _ request: KernelRequest
  ) -> @Sendable (ChangeJournal.Outcome) throws(Errno) -> GuestReply {
    { [self] (known) throws(Errno) in
      let (node, status) = try entry(request, known)
      return .entry(node, status)
    }
  }

  /// The object under a name; nil = there is none.
  private func object(_ name: [UInt8], in folder: Node) throws(Errno) -> OwnedDescriptor? {
    do throws(Errno) { return OwnedDescriptor(try Backing.lookUp(folder.descriptor, name)) } catch {
      if error.code == ENOENT { return nil }
      throw error
    }
  }

  /// Number of the object under a name; nil = there is none.
  func numberOf(_ name: [UInt8], in folder: Node) throws(Errno) -> UInt64? {
    guard let found = try object(name, in: folder) else { return nil }
    return UInt64(try Backing.status(found.number).st_ino)
  }

  func hasAttribute(_ node: Node, _ name: [UInt8]) throws(Errno) -> Bool {
    do throws(Errno) {
      _ = try Backing.getAttribute(node.descriptor, name, into: UnsafeMutableRawBufferPointer(start: nil, count: 0))
      return true
    } catch {
      if error.code == ENODATA { return false }
      throw error
    }
  }

  // MARK: the last name of an object

  /// `body` takes a name away. If it is the last one the keeper holds the object beforehand: it may be open.
  func losingName(_ object: OwnedDescriptor, _ status: stat, _ body: () throws(Errno) -> Void) throws(Errno) {
    let number = UInt64(status.st_ino)
    guard status.st_mode & S_IFMT == S_IFDIR || status.st_nlink <= 1, (try? nodes.node(number)) != nil else {
      return try body()
    }
    kept.hold(number, object.number)
    do throws(Errno) { try body() } catch {
      kept.drop(number)
      throw error
    }
  }

  func replacing(
    _ name: FileName, in folder: Node, _ flags: RenameFlags, _ body: () throws(Errno) -> Void
  ) throws(Errno) {
    guard flags.isDisjoint(with: [.exchange, .noReplace]), let target = try object(name.bytes, in: folder) else {
      return try body()
    }
    try losingName(target, try Backing.status(target.number), body)
  }

  // MARK: going on with another process's mount

  /// Before anything is served: knows again what the kernel knows, and decides what the dead process had begun.
  func adopt() throws(EngineError) {
    let orphans = kept.inheritedOrphans()
    for number in try nodes.adopt(orphans: orphans) { kept.drop(number) }
    for (unique, change) in changes.begun() {
      do throws(Errno) {
        guard let change else { throw Errno(ENOTSUP) }
        try resolve(unique, change)
      } catch {
        throw EngineError(.state, "cannot tell whether a change the engine died in was done: \(error)")
      }
    }
  }

  /// Names change one at a time, and nothing has changed since: so the tree tells. Each case says what was true when the record
  /// was made; an error means that it cannot have been so.
  private func resolve(_ unique: UInt64, _ change: KeptChange) throws(Errno) {
    let isDone: Bool
    switch change.kind {
    case .make:
      // The name was free and nobody has been told of the object: taken back, and made anew by the repetition.
      try takeBack(change)
      isDone = false
    case .link:
      let found = try numberOf(change.name, in: try nodes.node(change.folder))
      guard found == nil || found == change.object else { throw Errno(EEXIST) }
      isDone = found != nil
    case .remove:
      let found = try numberOf(change.name, in: try nodes.node(change.folder))
      guard found == nil || found == change.object else { throw Errno(EEXIST) }
      isDone = found == nil
    case .rename:
      let source = try numberOf(change.name, in: try nodes.node(change.folder))
      // Still there, also when both names are links of one object, of which a rename changes nothing: the repetition does it.
      isDone = source != change.object
      if isDone {
        let target = try numberOf(change.newName, in: try nodes.node(change.newFolder))
        guard target == change.object else { throw Errno(ENOENT) }
      }
    case .addAttribute: isDone = try hasAttribute(try nodes.node(change.object), change.name)
    case .removeAttribute: isDone = try !hasAttribute(try nodes.node(change.object), change.name)
    // Done again: the kernel lets nobody write to the file until it is answered.
    case .resize, .lookUp: isDone = false
    }
    if isDone {
      // Of a link only this is unknown, and one too many does no harm.
      changes.done(unique, object: change.object, isUncounted: change.kind == .link)
    } else {
      changes.forget(unique)
    }
  }

  private func takeBack(_ change: KeptChange) throws(Errno) {
    let folder = try nodes.node(change.folder)
    guard let found = try object(change.name, in: folder) else { return }
    let status = try Backing.status(found.number)
    // Never anything but what was just made: of this type, and empty.
    guard status.st_mode & S_IFMT == change.type, change.type != S_IFREG || status.st_size == 0,
      change.type == S_IFDIR || status.st_nlink == 1
    else { throw Errno(EEXIST) }
    try Backing.remove(folder.descriptor, change.name, isFolder: change.type == S_IFDIR)
    if let node = nodes.forget(UInt64(status.st_ino), count: UInt64.max) { close(node.descriptor) }
  }
}

extension FileOperation {
  /// For a place in the stream that nothing has to be done at: no file has this number.
  static var nothing: FileOperation { .forget(FileID(rawValue: 0)) }
}
