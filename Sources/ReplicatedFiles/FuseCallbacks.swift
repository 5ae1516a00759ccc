import CFuse3
import Glibc
import Replication

/// The largest write the kernel may send, and the largest read it may ask for, in bytes.
let requestBytesMax = 1 << 20
/// Asynchronous requests the kernel keeps in flight at most; it bounds what a frozen mount can hold in memory.
let backgroundRequestsMax: UInt32 = 64

private func threadKey(_ destroy: (@convention(c) (UnsafeMutableRawPointer?) -> Void)?) -> pthread_key_t {
  var key = pthread_key_t()
  let code = pthread_key_create(&key, destroy)
  precondition(code == 0, "no thread-local storage left")
  return key
}

/// A buffer of this thread for what a read answers.
private let scratchKey = threadKey { free($0) }

private func scratch() -> UnsafeMutableRawBufferPointer {
  if let memory = pthread_getspecific(scratchKey) {
    return UnsafeMutableRawBufferPointer(start: memory, count: requestBytesMax)
  }
  let memory = UnsafeMutableRawPointer.allocate(byteCount: requestBytesMax, alignment: 4096)
  pthread_setspecific(scratchKey, memory)
  return UnsafeMutableRawBufferPointer(start: memory, count: requestBytesMax)
}

private func bytes(_ text: UnsafePointer<CChar>?) -> [UInt8] {
  guard let text else { return [] }
  return Array(UnsafeRawBufferPointer(start: text, count: strlen(text)))
}

/// The kernel's number of the request this thread is at: libfuse does not tell.
private let numberKey = threadKey(nil)

/// Before a request, as read from the kernel, is processed on this thread.
func noteRequest(_ bytes: UnsafeMutableRawBufferPointer) {
  let number = bytes.loadUnaligned(as: fuse_in_header.self).unique
  pthread_setspecific(numberKey, UnsafeRawPointer(bitPattern: UInt(number)))
}

/// Runs `body` with the server a request belongs to.
@inline(__always)
private func serve(_ raw: fuse_req_t?, _ body: (FileServer, KernelRequest) -> Void) {
  guard let raw, let user = fuse_req_userdata(raw) else { return }
  let request = KernelRequest(raw: raw, number: UInt64(UInt(bitPattern: pthread_getspecific(numberKey))))
  Unmanaged<FileServer>.fromOpaque(user)._withUnsafeGuaranteedRef { body($0, request) }
}

private func caller(_ request: KernelRequest) -> Caller {
  guard let context = fuse_req_ctx(request.raw) else { return Caller(user: 0, group: 0, umask: 0) }
  return Caller(user: context.pointee.uid, group: context.pointee.gid, umask: context.pointee.umask)
}

/// What the kernel is promised at the start of a mount, for as long as it lasts. An engine that goes on with a mount is asked the
/// same question and must give the same answer: a change here needs a new VMHA_KEPT_VERSION.
private func negotiate(_ connection: UnsafeMutablePointer<fuse_conn_info>) {
  var wanted = connection.pointee.want | connection.pointee.capable & UInt32(FUSE_CAP_ASYNC_DIO)
  // Access control lists are enforced by the kernel; then the umask is ours to apply, because a folder's default list replaces it.
  wanted |= connection.pointee.capable & UInt32(FUSE_CAP_POSIX_ACL | FUSE_CAP_DONT_MASK)
  // Truncation must come as a request of its own (it is ordered and replicated), and set-id bits are the kernel's work.
  wanted &= ~UInt32(FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_HANDLE_KILLPRIV | FUSE_CAP_WRITEBACK_CACHE)
  wanted &= ~UInt32(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE)
  connection.pointee.want = wanted
  connection.pointee.max_write = UInt32(requestBytesMax)
  connection.pointee.max_background = backgroundRequestsMax
  connection.pointee.congestion_threshold = backgroundRequestsMax * 3 / 4
}

/// The table libfuse calls through. What it lacks (locks, above all) the kernel does by itself, which is what QEMU needs.
func fileServerOperations() -> fuse_lowlevel_ops {
  var table = fuse_lowlevel_ops()
  table.`init` = { _, connection in if let connection { negotiate(connection) } }
  addReads(&table)
  addNames(&table)
  addData(&table)
  return table
}

private func addReads(_ table: inout fuse_lowlevel_ops) {
  table.lookup = { raw, parent, name in serve(raw) { $0.lookUp($1, parent: UInt64(parent), name: bytes(name)) } }
  table.forget = { raw, number, count in
    serve(raw) { server, request in
      server.forget(UInt64(number), count: count)
      fuse_reply_none(request.raw)
    }
  }
  table.forget_multi = { raw, count, list in
    serve(raw) { server, request in
      for item in UnsafeBufferPointer(start: list, count: count) {
        server.forget(item.ino, count: item.nlookup)
      }
      fuse_reply_none(request.raw)
    }
  }
  table.getattr = { raw, number, _ in serve(raw) { $0.getAttributes($1, UInt64(number)) } }
  table.readlink = { raw, number in serve(raw) { $0.readLink($1, UInt64(number)) } }
  table.open = { raw, number, info in serve(raw) { $0.open($1, UInt64(number), flags: info?.pointee.flags ?? 0) } }
  table.read = { raw, number, size, offset, info in
    let isDirect = info.map { $0.pointee.flags & VMHA_O_DIRECT != 0 } ?? false
    serve(raw) { $0.read($1, UInt64(number), size: size, offset: offset, isDirect: isDirect, buffer: scratch()) }
  }
  table.release = { raw, number, _ in serve(raw) { $0.release($1, UInt64(number)) } }
  table.opendir = { raw, number, info in
    serve(raw) { server, request in
      guard let info else { return server.fail(request, Errno(EINVAL)) }
      server.openFolder(request, UInt64(number), info: info)
    }
  }
  table.readdir = { raw, number, size, offset, _ in
    serve(raw) { $0.readFolder($1, UInt64(number), size: size, offset: offset, buffer: scratch()) }
  }
  table.releasedir = { raw, number, _ in serve(raw) { $0.release($1, UInt64(number)) } }
  table.statfs = { raw, number in serve(raw) { $0.statistics($1, UInt64(number)) } }
  table.getxattr = { raw, number, name, size in
    serve(raw) { $0.getExtendedAttribute($1, UInt64(number), name: bytes(name), size: size) }
  }
  table.listxattr = { raw, number, size in serve(raw) { $0.listExtendedAttributes($1, UInt64(number), size: size) } }
  table.lseek = { raw, number, offset, whence, _ in
    serve(raw) { $0.seek($1, UInt64(number), offset: offset, whence: whence) }
  }
}

private func addNames(_ table: inout fuse_lowlevel_ops) {
  table.create = { raw, parent, name, mode, _ in
    serve(raw) {
      $0.create(
        $1, parent: UInt64(parent), name: bytes(name), mode: mode & 0o7777 | S_IFREG, caller: caller($1))
    }
  }
  table.mkdir = { raw, parent, name, mode in
    serve(raw) { $0.makeFolder($1, parent: UInt64(parent), name: bytes(name), mode: mode, caller: caller($1)) }
  }
  table.mknod = { raw, parent, name, mode, _ in
    serve(raw) { $0.makeNode($1, parent: UInt64(parent), name: bytes(name), mode: mode, caller: caller($1)) }
  }
  table.symlink = { raw, target, parent, name in
    serve(raw) {
      $0.makeSymlink($1, parent: UInt64(parent), name: bytes(name), target: bytes(target), caller: caller($1))
    }
  }
  table.link = { raw, number, parent, name in
    serve(raw) { $0.link($1, UInt64(number), parent: UInt64(parent), name: bytes(name)) }
  }
  table.unlink = { raw, parent, name in
    serve(raw) { $0.remove($1, parent: UInt64(parent), name: bytes(name), isFolder: false) }
  }
  table.rmdir = { raw, parent, name in
    serve(raw) { $0.remove($1, parent: UInt64(parent), name: bytes(name), isFolder: true) }
  }
  table.rename = { raw, parent, name, newParent, newName, flags in
    serve(raw) {
      $0.rename(
        $1, parent: UInt64(parent), name: bytes(name), newParent: UInt64(newParent), newName: bytes(newName),
        flags: flags)
    }
  }
  table.setxattr = { raw, number, name, value, size, flags in
    serve(raw) {
      $0.setExtendedAttribute(
        $1, UInt64(number), name: bytes(name), value: Array(UnsafeRawBufferPointer(start: value, count: size)),
        flags: flags, caller: caller($1))
    }
  }
  table.removexattr = { raw, number, name in
    serve(raw) { $0.removeExtendedAttribute($1, UInt64(number), name: bytes(name)) }
  }
}

private func addData(_ table: inout fuse_lowlevel_ops) {
  table.write = { raw, number, data, size, offset, _ in
    serve(raw) {
      $0.write(
        $1, UInt64(number), bytes: UnsafeRawBufferPointer(start: data, count: size), offset: offset,
        caller: caller($1))
    }
  }
  // Closing a file promises nothing; what must be durable is asked for by fsync.
  table.flush = { raw, _, _ in serve(raw) { $0.answer($1, .done) } }
  table.fsync = { raw, number, dataOnly, _ in
    serve(raw) { $0.flush($1, UInt64(number), dataOnly: dataOnly != 0) }
  }
  table.fsyncdir = { raw, number, _, _ in serve(raw) { $0.flush($1, UInt64(number), dataOnly: false) } }
  table.fallocate = { raw, number, mode, offset, length, _ in
    serve(raw) {
      $0.allocate($1, UInt64(number), mode: mode, offset: offset, length: length, caller: caller($1))
    }
  }
  table.setattr = { raw, number, wanted, mask, _ in
    serve(raw) { server, request in
      guard let wanted else { return server.fail(request, Errno(EINVAL)) }
      server.setAttributes(request, UInt64(number), wanted.pointee, mask: mask, caller: caller(request))
    }
  }
}
