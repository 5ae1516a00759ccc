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
  private func change(_ request: KernelRequest, _ number: UInt64, _ body: @escaping GuestRequest.Change) {
    sink.submit(GuestRequest(request, file: fileID(number), .name(body)))
  }

  private func checked(_ name: [UInt8]) throws(Errno) -> FileName {
    guard let component = FileName(name) else { throw Errno(name.count > FileName.bytesMax ? ENAMETOOLONG : EINVAL) }
    return component
  }

  func create(_ request: KernelRequest, parent: UInt64, name: [UInt8], mode: mode_t, flags: Int32, caller: Caller) {
    change(request, parent) { [self] () throws(Errno) in
      let name = try checked(name)
      let folder = try nodes.node(parent)
      let descriptor = try Backing.create(
        folder.descriptor, name.bytes, flags: flags & O_ACCMODE | VMHA_O_NOATIME,
        mode: try permissions(mode, in: folder, of: caller))
      do throws(Errno) {
        let (node, status) = try adopt(folder, name, type: S_IFREG, caller: caller)
        opened(descriptor)
        return AppliedChange(
          operation: .create(parent: fileID(parent), name: name, newObject(node, status)),
          reply: .created(node, status, descriptor: descriptor))
      } catch {
        close(descriptor)
        throw error
      }
    }
  }

  func makeFolder(_ request: KernelRequest, parent: UInt64, name: [UInt8], mode: mode_t, caller: Caller) {
    change(request, parent) { [self] () throws(Errno) in
      let name = try checked(name)
      let folder = try nodes.node(parent)
      try Backing.makeFolder(folder.descriptor, name.bytes, mode: try permissions(mode, in: folder, of: caller))
      let (node, status) = try adopt(folder, name, type: S_IFDIR, caller: caller)
      return AppliedChange(
        operation: .makeDirectory(parent: fileID(parent), name: name, newObject(node, status)),
        reply: .entry(node, status))
    }
  }

  func makeNode(_ request: KernelRequest, parent: UInt64, name: [UInt8], mode: mode_t, caller: Caller) {
    let type = mode & S_IFMT
    // A device means something on one host only, and the mount would not let anyone open it.
    guard type == S_IFREG || type == S_IFIFO || type == S_IFSOCK else { return fail(request, Errno(EPERM)) }
    change(request, parent) { [self] () throws(Errno) in
      let name = try checked(name)
      let folder = try nodes.node(parent)
      try Backing.makeNode(
        folder.descriptor, name.bytes, mode: type | (try permissions(mode, in: folder, of: caller)))
      let (node, status) = try adopt(folder, name, type: type, caller: caller)
      let object = newObject(node, status)
      return AppliedChange(
        operation: type == S_IFREG
          ? .create(parent: fileID(parent), name: name, object)
          : .makeNode(parent: fileID(parent), name: name, object, device: 0),
        reply: .entry(node, status))
    }
  }

  func makeSymlink(_ request: KernelRequest, parent: UInt64, name: [UInt8], target: [UInt8], caller: Caller) {
    change(request, parent) { [self] () throws(Errno) in
      let name = try checked(name)
      guard let target = LinkTarget(target) else { throw Errno(ENAMETOOLONG) }
      let folder = try nodes.node(parent)
      try Backing.makeSymlink(folder.descriptor, name.bytes, target: target.bytes)
      let (node, status) = try adopt(folder, name, type: S_IFLNK, caller: caller)
      return AppliedChange(
        operation: .makeSymlink(parent: fileID(parent), name: name, newObject(node, status), target: target),
        reply: .entry(node, status))
    }
  }

  func link(_ request: KernelRequest, _ number: UInt64, parent: UInt64, name: [UInt8]) {
    change(request, parent) { [self] () throws(Errno) in
      let name = try checked(name)
      let folder = try nodes.node(parent)
      try Backing.makeLink(try nodes.node(number).descriptor, folder.descriptor, name.bytes)
      let (node, status) = try nodes.remember(try Backing.lookUp(folder.descriptor, name.bytes))
      return AppliedChange(
        operation: .link(fileID(number), parent: fileID(parent), name: name), reply: .entry(node, status))
    }
  }

  func remove(_ request: KernelRequest, parent: UInt64, name: [UInt8], isFolder: Bool) {
    change(request, parent) { [self] () throws(Errno) in
      let name = try checked(name)
      let folder = try nodes.node(parent)
      let object = try Backing.lookUp(folder.descriptor, name.bytes)
      defer { close(object) }
      let id = fileID(UInt64(try Backing.status(object).st_ino))
      try Backing.remove(folder.descriptor, name.bytes, isFolder: isFolder)
      return AppliedChange(
        operation: isFolder
          ? .removeDirectory(parent: fileID(parent), name: name, id)
          : .unlink(parent: fileID(parent), name: name, id),
        reply: .done)
    }
  }

  func rename(
    _ request: KernelRequest, parent: UInt64, name: [UInt8], newParent: UInt64, newName: [UInt8], flags: UInt32
  ) {
    let flags = RenameFlags(rawValue: flags)
    guard RenameFlags.known.isSuperset(of: flags) else { return fail(request, Errno(EINVAL)) }
    change(request, parent) { [self] () throws(Errno) in
      let name = try checked(name)
      let newName = try checked(newName)
      try Backing.rename(
        try nodes.node(parent).descriptor, name.bytes, to: try nodes.node(newParent).descriptor, newName.bytes,
        flags: flags.rawValue)
      return AppliedChange(
        operation: .rename(
          parent: fileID(parent), name: name, newParent: fileID(newParent), newName: newName, flags),
        reply: .done)
    }
  }

  func setExtendedAttribute(
    _ request: KernelRequest, _ number: UInt64, name: [UInt8], value: [UInt8], flags: Int32, caller: Caller
  ) {
    if name == AccessLists.ofObject { dropSetGroup(request, number, of: caller) }
    change(request, number) { [self] () throws(Errno) in
      guard let name = AttributeName(name) else { throw Errno(ERANGE) }
      guard !FileIdentities.isOurs(name.bytes) else { throw Errno(EPERM) }
      guard value.count <= FileOperation.attributeValueBytesMax else { throw Errno(E2BIG) }
      let node = try nodes.node(number)
      try Backing.setAttribute(node.descriptor, name.bytes, value, flags: flags)
      return AppliedChange(
        operation: .setExtendedAttribute(fileID(number), name: name, value: value), reply: .done)
    }
  }

  func removeExtendedAttribute(_ request: KernelRequest, _ number: UInt64, name: [UInt8]) {
    change(request, number) { [self] () throws(Errno) in
      guard let name = AttributeName(name) else { throw Errno(ERANGE) }
      guard !FileIdentities.isOurs(name.bytes) else { throw Errno(EPERM) }
      let node = try nodes.node(number)
      try Backing.removeAttribute(node.descriptor, name.bytes)
      return AppliedChange(operation: .removeExtendedAttribute(fileID(number), name: name), reply: .done)
    }
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
