import CFuse3
import Glibc
import Replication

/// Changes of file contents and requests for durability.
extension FileServer {
  /// A write is sent while it is applied, so what this file system would refuse is refused, or cut, before: a write that fails
  /// ends the session and counts as a broken disk.
  func write(
    _ request: KernelRequest, _ number: UInt64, bytes: UnsafeRawBufferPointer, offset: off_t, caller: Caller
  ) {
    guard !bytes.isEmpty else { return answer(request, .written(0)) }
    guard offset >= 0, UInt64(offset) < fileBytesMax else { return fail(request, Errno(EFBIG)) }
    let count = Int(min(UInt64(bytes.count), fileBytesMax - UInt64(offset)))
    guard let file = openFile(request, number, writing: true) else { return }
    dropSetID(request, number, descriptor: file.number, of: caller)
    let action = GuestRequest.Action.write(
      file: file, offset: UInt64(offset),
      payload: Payload(copying: UnsafeRawBufferPointer(rebasing: bytes[..<count])))
    sink.submit(GuestRequest(request, file: fileID(number), action))
  }

  func flush(_ request: KernelRequest, _ number: UInt64, dataOnly: Bool) {
    guard let file = openFile(request, number, writing: false) else { return }
    sink.submit(GuestRequest(request, file: fileID(number), .flush(file: file, dataOnly: dataOnly)))
  }

  /// What the request needs of its file, open until it is answered. nil = it was answered with an error. In an engine that goes on
  /// with another's mount this may be what first meets a disk that failed (R11).
  func openFile(_ request: KernelRequest, _ number: UInt64, writing: Bool) -> OwnedDescriptor? {
    do throws(Errno) {
      let node = try nodes.node(number)
      // Pipes and sockets are the kernel's.
      guard node.isRegular || node.isFolder else { throw Errno(EINVAL) }
      do throws(Errno) { return try node.file(writing: writing) } catch {
        if error.isDiskFailure { sink.noteDiskError("open", Backing.pathForMessage(node.descriptor), error) }
        throw error
      }
    } catch {
      fail(request, error)
      return nil
    }
  }

  func allocate(
    _ request: KernelRequest, _ number: UInt64, mode: Int32, offset: off_t, length: off_t, caller: Caller
  ) {
    let mode = AllocationMode(rawValue: UInt32(bitPattern: mode))
    // What moves data cannot be done twice; the kernel never asks a FUSE server for it.
    guard AllocationMode.known.isSuperset(of: mode), !mode.movesData else { return fail(request, Errno(EOPNOTSUPP)) }
    guard offset >= 0, length > 0, UInt64(offset) + UInt64(length) <= UInt64(Int64.max) else {
      return fail(request, Errno(EINVAL))
    }
    let from = UInt64(offset)
    let count = UInt64(length)
    guard let file = openFile(request, number, writing: true) else { return }
    dropSetID(request, number, descriptor: file.number, of: caller)
    // One that may make the file longer, and may stop half-way, is alone in its file: see below.
    let isPlain = mode.isSubset(of: .keepSize)
    let range = mode == [] ? wholeFile : from..<(from + count)
    let action = GuestRequest.Action.range(range, intent: from..<(from + count)) { [self] () throws(Errno) in
      do throws(Errno) {
        try Backing.allocate(file.number, mode: Int32(bitPattern: mode.rawValue), offset: from, length: count)
      } catch {
        // A full disk leaves the contents as they were; the file may have become longer.
        guard isPlain, error.isNoSpace else { throw error }
        sink.noteDiskError("fallocate", Backing.pathForMessage(file.number), error)
        let size = mode == [] ? UInt64(try Backing.status(file.number).st_size) : nil
        return AppliedChange(
          operation: .setAttributes(fileID(number), AttributeChange(size: size)), reply: .error(error))
      }
      return AppliedChange(
        operation: .allocate(fileID(number), mode, offset: from, length: count), reply: .done)
    }
    sink.submit(GuestRequest(request, file: fileID(number), action))
  }

  /// chmod, chown, truncate, utimens, in any combination, as the kernel sends them.
  func setAttributes(_ request: KernelRequest, _ number: UInt64, _ given: stat, mask givenMask: Int32, caller: Caller) {
    let (wanted, mask) = withoutSetID(request, number, given, givenMask, caller)
    let change: GuestRequest.Change = { [self] () throws(Errno) in
      let node = try nodes.node(number)
      var applied = AttributeChange()
      let reply: GuestReply
      do throws(Errno) {
        try apply(wanted, mask: mask, to: node, applied: &applied)
        reply = .attributes(number, try Backing.status(node.descriptor))
      } catch {
        // What was done before the failing step is on this disk, so it must be on the other.
        guard applied != AttributeChange() else { throw error }
        reply = .error(error)
      }
      return AppliedChange(operation: .setAttributes(fileID(number), applied), reply: reply)
    }
    guard mask & FUSE_SET_ATTR_SIZE != 0 else {
      return sink.submit(GuestRequest(request, file: fileID(number), .name(change)))
    }
    let resize = once(request) { [self] () throws(Errno) in
      try recorded(request, KeptChange(kind: .resize, object: number)) { () throws(Errno) in (try change(), number) }
    } again: { [self] _ throws(Errno) in
      .attributes(number, try Backing.status(nodes.node(number).descriptor))
    }
    // What is cut off or added. A write that makes the file longer at the same time has an intent of its own.
    let size = (try? Backing.status(nodes.node(number).descriptor).st_size).map { UInt64($0) } ?? wholeFile.upperBound
    let wantedSize = UInt64(max(wanted.st_size, 0))
    let intent = min(size, wantedSize)..<max(size, wantedSize)
    sink.submit(GuestRequest(request, file: fileID(number), .range(wholeFile, intent: intent, resize)))
  }

  private func withoutSetID(
    _ request: KernelRequest, _ number: UInt64, _ given: stat, _ mask: Int32, _ caller: Caller
  ) -> (stat, Int32) {
    guard mask & (FUSE_SET_ATTR_SIZE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID) != 0, !caller.keepsSetID,
      let status = try? Backing.status(nodes.node(number).descriptor)
    else { return (given, mask) }
    let taken = takenSetID(request, status, caller)
    guard taken != 0 else { return (given, mask) }
    var wanted = given
    wanted.st_mode = (mask & FUSE_SET_ATTR_MODE != 0 ? given.st_mode : status.st_mode) & ~taken
    return (wanted, mask | FUSE_SET_ATTR_MODE)
  }

  /// Fills `applied` with the exact values after each step that worked.
  private func apply(
    _ wanted: stat, mask: Int32, to node: Node, applied: inout AttributeChange
  ) throws(Errno) {
    if mask & FUSE_SET_ATTR_SIZE != 0 {
      guard node.isRegular, wanted.st_size >= 0 else { throw Errno(EINVAL) }
      try Backing.setSize(node.descriptor, UInt64(wanted.st_size))
      applied.size = UInt64(wanted.st_size)
    }
    if mask & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID) != 0 {
      let user = mask & FUSE_SET_ATTR_UID != 0 ? wanted.st_uid : uid_t.max
      let group = mask & FUSE_SET_ATTR_GID != 0 ? wanted.st_gid : gid_t.max
      try Backing.setOwner(node.descriptor, user: user, group: group)
    }
    if mask & FUSE_SET_ATTR_MODE != 0 { try Backing.setMode(node.descriptor, wanted.st_mode) }
    if mask & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID | FUSE_SET_ATTR_MODE) != 0 {
      // All three, as they are now: a change of owner may have changed the mode.
      let status = try Backing.status(node.descriptor)
      applied.owner = status.st_uid
      applied.group = status.st_gid
      if node.type != S_IFLNK { applied.mode = UInt32(status.st_mode & 0o7777) }
    }
    try setTimes(node, wanted, mask: mask)
    let status = try Backing.status(node.descriptor)
    applied.accessed = FileTime(status.st_atim)
    applied.modified = FileTime(status.st_mtim)
  }

  private func setTimes(_ node: Node, _ wanted: stat, mask: Int32) throws(Errno) {
    let all = FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_ATIME_NOW | FUSE_SET_ATTR_MTIME_NOW
    guard mask & all != 0 else { return }
    func time(_ given: timespec, _ set: Int32, _ now: Int32) -> timespec {
      if mask & now != 0 { return timespec(tv_sec: 0, tv_nsec: Int(VMHA_UTIME_NOW)) }
      return mask & set != 0 ? given : timespec(tv_sec: 0, tv_nsec: Int(VMHA_UTIME_OMIT))
    }
    try Backing.setTimes(
      node.descriptor, access: time(wanted.st_atim, FUSE_SET_ATTR_ATIME, FUSE_SET_ATTR_ATIME_NOW),
      modification: time(wanted.st_mtim, FUSE_SET_ATTR_MTIME, FUSE_SET_ATTR_MTIME_NOW))
  }
}

/// What a change of a file's length is ordered against.
let wholeFile: Range<UInt64> = 0..<UInt64.max
