import CFuse3
import Glibc
import Replication

/// POSIX access control lists, as the extended attributes that they are on disk.
enum AccessLists {
  static let ofObject = Array("system.posix_acl_access".utf8)
  static let ofNewObjects = Array("system.posix_acl_default".utf8)

  static func isOne(_ name: [UInt8]) -> Bool { name == ofObject || name == ofNewObjects }

  static func isPresent(_ name: [UInt8], on object: Int32) throws(Errno) -> Bool {
    do throws(Errno) {
      return try Backing.getAttribute(object, name, into: UnsafeMutableRawBufferPointer(start: nil, count: 0)) > 0
    } catch {
      if isAbsence(error) { return false }
      throw error
    }
  }

  static func remove(_ name: [UInt8], from object: Int32) throws(Errno) {
    do throws(Errno) { try Backing.removeAttribute(object, name) } catch { if !isAbsence(error) { throw error } }
  }

  /// The second: a file system without access lists.
  private static func isAbsence(_ error: Errno) -> Bool { error.code == ENODATA || error.code == ENOTSUP }
}

/// What a change by an ordinary user takes from a file beside what was asked for. The engine is root, from whom the backing file
/// system takes nothing.
extension FileServer {
  /// More groups than a process can have.
  private static let groupsMax = 65536

  /// The set-id bits that a change of a file's data or owner takes. The kernel sees to some of them by itself, but not to all.
  func takenSetID(_ request: KernelRequest, _ status: stat, _ caller: Caller) -> mode_t {
    guard !caller.keepsSetID, status.st_mode & 0o6000 != 0, status.st_mode & S_IFMT == S_IFREG else { return 0 }
    // Without the right to execute the bit once meant mandatory locking; the group's own members keep it.
    let takesGroup =
      status.st_mode & S_ISGID != 0
      && (status.st_mode & S_IXGRP != 0 || !isMember(caller, of: status.st_gid, request))
    return status.st_mode & S_ISUID | (takesGroup ? S_ISGID : 0)
  }

  /// Goes ahead of a write, in its order, as a change of its own.
  func dropSetID(_ request: KernelRequest, _ number: UInt64, descriptor: Int32, of caller: Caller) {
    guard !caller.keepsSetID, let status = try? Backing.status(descriptor) else { return }
    let taken = takenSetID(request, status, caller)
    if taken != 0 { dropBits(taken, of: number) }
  }

  /// A new access list takes the set-group-id bit, if the caller is not of the file's group.
  func dropSetGroup(_ request: KernelRequest, _ number: UInt64, of caller: Caller) {
    guard !caller.keepsSetID, let node = try? nodes.node(number), let status = try? Backing.status(node.descriptor),
      status.st_mode & S_ISGID != 0, !isMember(caller, of: status.st_gid, request)
    else { return }
    dropBits(S_ISGID, of: number)
  }

  private func isMember(_ caller: Caller, of group: gid_t, _ request: KernelRequest) -> Bool {
    caller.group == group || groups(of: request).contains(group)
  }

  private func groups(of request: KernelRequest) -> [gid_t] {
    let count = fuse_req_getgroups(request.raw, 0, nil)
    guard (1...Int32(Self.groupsMax)).contains(count) else { return [] }
    var list = [gid_t](repeating: 0, count: Int(count))
    let found = fuse_req_getgroups(request.raw, count, &list)
    return Array(list[..<Int(max(0, min(found, count)))])
  }

  private func dropBits(_ bits: mode_t, of number: UInt64) {
    let file = fileID(number)
    sink.submit(
      GuestRequest(file: file) { [self] () throws(Errno) in
        // Looked up when its turn comes: a mount that was torn down while this waited has closed its descriptors.
        let node = try nodes.node(number)
        let mode = try Backing.status(node.descriptor).st_mode & 0o7777 & ~bits
        try Backing.setMode(node.descriptor, mode)
        return AppliedChange(
          operation: .setAttributes(file, AttributeChange(mode: UInt32(mode))), reply: .done)
      } whenDone: { _ in
      })
  }
}
