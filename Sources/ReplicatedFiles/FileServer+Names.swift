import CFuse3
import Glibc
import Replication

/// Who asks; new objects belong to it.
struct Caller: Sendable {
  let user: uid_t
  let group: gid_t
  let umask: mode_t

  /// By CAP_FSETID, which a file server cannot see: root has it as a rule, and nobody else.
  var keepsSetID: Bool { user == 0 }
}

/// Changes of names and attributes. Each is applied here first and sent only if it worked.
extension FileServer {
  /// `again` answers a request that a process before this one has carried out.
  private func change(
    _ request: KernelRequest, _ number: UInt64, _ body: @escaping GuestRequest.Change,
    again: @escaping @Sendable (ChangeJournal.Outcome) throws(Errno) -> GuestReply = { _ in .done }
  ) {
    sink.submit(GuestRequest(request, file: fileID(number), .name(once(request, body, again: again))))
  }

  private func checked(_ name: [UInt8]) throws(Errno) -> FileName {
    guard let component = FileName(name) else { throw Errno(name.count > FileName.bytesMax ? ENAMETOOLONG : EINVAL) }
    return component
  }

  func create(_ request: KernelRequest, parent: UInt64, name: [UInt8], mode: mode_t, caller: Caller) {
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      let name = try checked(name)
      return try made(request, parent, name, type: S_IFREG) { (folder) throws(Errno) in
        let file = OwnedDescriptor(
          try Backing.create(
            folder.descriptor, name.bytes, flags: O_RDWR | VMHA_O_NOATIME,
            mode: try permissions(mode, in: folder, of: caller)))
        let (node, status) = try adopt(folder, name, type: S_IFREG, caller: caller)
        node.opened(file)
        let change = AppliedChange(
          operation: .create(parent: fileID(parent), name: name, newObject(node, status)),
          reply: .created(node, status))
        return (change, node.number)
      }
    }
    change(request, parent, body) { [self] (known) throws(Errno) in
      let (node, status) = try entry(request, known)
      node.opened()
      return .created(node, status)
    }
  }

  func makeFolder(_ request: KernelRequest, parent: UInt64, name: [UInt8], mode: mode_t, caller: Caller) {
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      let name = try checked(name)
      return try made(request, parent, name, type: S_IFDIR) { (folder) throws(Errno) in
        try Backing.makeFolder(folder.descriptor, name.bytes, mode: try permissions(mode, in: folder, of: caller))
        let (node, status) = try adopt(folder, name, type: S_IFDIR, caller: caller)
        let change = AppliedChange(
          operation: .makeDirectory(parent: fileID(parent), name: name, newObject(node, status)),
          reply: .entry(node, status))
        return (change, node.number)
      }
    }
    change(request, parent, body, again: entryAgain(request))
  }

  func makeNode(_ request: KernelRequest, parent: UInt64, name: [UInt8], mode: mode_t, caller: Caller) {
    let type = mode & S_IFMT
    // A device means something on one host only, and the mount would not let anyone open it.
    guard type == S_IFREG || type == S_IFIFO || type == S_IFSOCK else { return fail(request, Errno(EPERM)) }
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      let name = try checked(name)
      return try made(request, parent, name, type: type) { (folder) throws(Errno) in
        try Backing.makeNode(
          folder.descriptor, name.bytes, mode: type | (try permissions(mode, in: folder, of: caller)))
        let (node, status) = try adopt(folder, name, type: type, caller: caller)
        let object = newObject(node, status)
        let change = AppliedChange(
          operation: type == S_IFREG
            ? .create(parent: fileID(parent), name: name, object)
            : .makeNode(parent: fileID(parent), name: name, object, device: 0),
          reply: .entry(node, status))
        return (change, node.number)
      }
    }
    change(request, parent, body, again: entryAgain(request))
  }

  func makeSymlink(_ request: KernelRequest, parent: UInt64, name: [UInt8], target: [UInt8], caller: Caller) {
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      let name = try checked(name)
      guard let target = LinkTarget(target) else { throw Errno(ENAMETOOLONG) }
      return try made(request, parent, name, type: S_IFLNK) { (folder) throws(Errno) in
        try Backing.makeSymlink(folder.descriptor, name.bytes, target: target.bytes)
        let (node, status) = try adopt(folder, name, type: S_IFLNK, caller: caller)
        let change = AppliedChange(
          operation: .makeSymlink(parent: fileID(parent), name: name, newObject(node, status), target: target),
          reply: .entry(node, status))
        return (change, node.number)
      }
    }
    change(request, parent, body, again: entryAgain(request))
  }

  func link(_ request: KernelRequest, _ number: UInt64, parent: UInt64, name: [UInt8]) {
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      let name = try checked(name)
      let folder = try nodes.node(parent)
      let object = try nodes.node(number)
      guard try numberOf(name.bytes, in: folder) == nil else { throw Errno(EEXIST) }
      let record = KeptChange(kind: .link, folder: parent, object: number, name: name.bytes)
      return try recorded(request, record) { () throws(Errno) in
        try Backing.makeLink(object.descriptor, folder.descriptor, name.bytes)
        let (node, status) = try nodes.remember(try Backing.lookUp(folder.descriptor, name.bytes))
        let change = AppliedChange(
          operation: .link(fileID(number), parent: fileID(parent), name: name), reply: .entry(node, status))
        return (change, node.number)
      }
    }
    change(request, parent, body, again: entryAgain(request))
  }

  func remove(_ request: KernelRequest, parent: UInt64, name: [UInt8], isFolder: Bool) {
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      let name = try checked(name)
      let folder = try nodes.node(parent)
      let object = OwnedDescriptor(try Backing.lookUp(folder.descriptor, name.bytes))
      let status = try Backing.status(object.number)
      let number = UInt64(status.st_ino)
      let record = KeptChange(kind: .remove, folder: parent, object: number, name: name.bytes)
      return try recorded(request, record) { () throws(Errno) in
        try losingName(object, status) { () throws(Errno) in
          try Backing.remove(folder.descriptor, name.bytes, isFolder: isFolder)
        }
        let operation: FileOperation =
          isFolder
          ? .removeDirectory(parent: fileID(parent), name: name, fileID(number))
          : .unlink(parent: fileID(parent), name: name, fileID(number))
        return (AppliedChange(operation: operation, reply: .done), number)
      }
    }
    change(request, parent, body)
  }

  func rename(
    _ request: KernelRequest, parent: UInt64, name: [UInt8], newParent: UInt64, newName: [UInt8], flags: UInt32
  ) {
    let flags = RenameFlags(rawValue: flags)
    guard RenameFlags.known.isSuperset(of: flags) else { return fail(request, Errno(EINVAL)) }
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      let name = try checked(name)
      let newName = try checked(newName)
      let folder = try nodes.node(parent)
      let newFolder = try nodes.node(newParent)
      guard let number = try numberOf(name.bytes, in: folder) else { throw Errno(ENOENT) }
      let record = KeptChange(
        kind: .rename, folder: parent, newFolder: newParent, object: number, name: name.bytes, newName: newName.bytes)
      return try recorded(request, record) { () throws(Errno) in
        try replacing(newName, in: newFolder, flags) { () throws(Errno) in
          try Backing.rename(
            folder.descriptor, name.bytes, to: newFolder.descriptor, newName.bytes, flags: flags.rawValue)
        }
        let change = AppliedChange(
          operation: .rename(
            parent: fileID(parent), name: name, newParent: fileID(newParent), newName: newName, flags),
          reply: .done)
        return (change, number)
      }
    }
    change(request, parent, body)
  }

  func setExtendedAttribute(
    _ request: KernelRequest, _ number: UInt64, name: [UInt8], value: [UInt8], flags: Int32, caller: Caller
  ) {
    if name == AccessLists.ofObject { dropSetGroup(request, number, of: caller) }
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      guard let name = AttributeName(name) else { throw Errno(ERANGE) }
      guard !FileIdentities.isOurs(name.bytes) else { throw Errno(EPERM) }
      guard value.count <= FileOperation.attributeValueBytesMax else { throw Errno(E2BIG) }
      let node = try nodes.node(number)
      func apply() throws(Errno) -> AppliedChange {
        try Backing.setAttribute(node.descriptor, name.bytes, value, flags: flags)
        return AppliedChange(
          operation: .setExtendedAttribute(fileID(number), name: name, value: value), reply: .done)
      }
      // Setting the same again is harmless, unless it must not be there.
      guard flags & Int32(XATTR_CREATE) != 0 else { return try apply() }
      guard try !hasAttribute(node, name.bytes) else { throw Errno(EEXIST) }
      let record = KeptChange(kind: .addAttribute, object: number, name: name.bytes)
      return try recorded(request, record) { () throws(Errno) in (try apply(), number) }
    }
    change(request, number, body)
  }

  func removeExtendedAttribute(_ request: KernelRequest, _ number: UInt64, name: [UInt8]) {
    let body: GuestRequest.Change = { [self] () throws(Errno) in
      guard let name = AttributeName(name) else { throw Errno(ERANGE) }
      guard !FileIdentities.isOurs(name.bytes) else { throw Errno(EPERM) }
      let node = try nodes.node(number)
      func apply() throws(Errno) -> AppliedChange {
        try Backing.removeAttribute(node.descriptor, name.bytes)
        return AppliedChange(operation: .removeExtendedAttribute(fileID(number), name: name), reply: .done)
      }
      // Refused, or for an access list that is not there: no change, as often as one likes.
      guard try hasAttribute(node, name.bytes) else { return try apply() }
      let record = KeptChange(kind: .removeAttribute, object: number, name: name.bytes)
      return try recorded(request, record) { () throws(Errno) in (try apply(), number) }
    }
    change(request, number, body)
  }

  // MARK: new objects

  /// The permissions to make an object with. The umask does not count where the folder has a default access list, which the
  /// backing file system applies by itself.
  private func permissions(_ mode: mode_t, in folder: Node, of caller: Caller) throws(Errno) -> mode_t {
    let hasDefault = try AccessLists.isPresent(AccessLists.ofNewObjects, on: folder.descriptor)
    return mode & 0o7777 & (hasDefault ? 0o7777 : ~caller.umask)
  }

  /// Gives a new object its owner; on failure it is removed again, so that a request fails as a whole.
  private func adopt(_ folder: Node, _ name: FileName, type: mode_t, caller: Caller) throws(Errno) -> (Node, stat) {
    do throws(Errno) {
      let object = try Backing.lookUp(folder.descriptor, name.bytes)
      do throws(Errno) {
        let parent = try Backing.status(folder.descriptor)
        let inherits = parent.st_mode & S_ISGID != 0
        let made = try Backing.status(object)
        try Backing.setOwner(object, user: caller.user, group: inherits ? parent.st_gid : caller.group)
        // A change of owner takes the set-id bits away.
        if made.st_mode & 0o6000 != 0, type != S_IFLNK { try Backing.setMode(object, made.st_mode) }
      } catch {
        close(object)
        throw error
      }
      return try nodes.remember(object)
    } catch {
      // The first error counts; a name that stays behind is seen by the next lookup.
      try? Backing.remove(folder.descriptor, name.bytes, isFolder: type == S_IFDIR)
      throw error
    }
  }

  private func newObject(_ node: Node, _ status: stat) -> NewObject {
    NewObject(
      id: fileID(node.number), mode: UInt32(status.st_mode), owner: status.st_uid, group: status.st_gid,
      accessed: FileTime(status.st_atim), modified: FileTime(status.st_mtim))
  }
}

extension FileTime {
  init(_ time: timespec) {
    self = FileTime(seconds: Int64(time.tv_sec), nanoseconds: UInt32(clamping: time.tv_nsec)) ?? .zero
  }
  var timespec: Glibc.timespec { Glibc.timespec(tv_sec: Int(seconds), tv_nsec: Int(nanoseconds)) }
}
