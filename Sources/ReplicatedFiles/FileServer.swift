import CFuse3
import Glibc
import Replication
import Synchronization

/// Where requests that change something go: the mirror in an engine.
protocol GuestRequestSink: Sendable {
  func submit(_ request: GuestRequest)
  /// The file has no name and no user left. Closes the descriptor, which keeps its id from being used again, when the
  /// peer can no longer mistake one for the other.
  func forgotten(_ file: FileID, descriptor: Int32)
  /// R11, for what the request itself does not tell.
  func noteDiskError(_ operation: String, _ path: String, _ error: Errno)
  /// R11, before the reader is told.
  func readFailed(_ place: String, _ error: Errno)
  /// The disk gets this read, and then has it no more: what the first answers tells the second which.
  func readBegan(_ unique: UInt64) -> Int
  func readEnded(_ slot: Int)
}

/// Serves one mounted tree from a backing directory: reads at once, changes through the sink.
final class FileServer: Sendable {
  let nodes: NodeTable
  let sink: any GuestRequestSink
  let kept: Kept
  let changes: ChangeJournal
  /// The longest file the backing file system takes.
  let fileBytesMax: UInt64
  let gate: ReadGate
  /// The answer to the INIT request of a connection that is gone on with is not for the kernel.
  let isMute = Atomic<Bool>(false)

  init(root: Int32, sink: any GuestRequestSink, gate: ReadGate, kept: Kept) throws(Errno) {
    fileBytesMax = Backing.fileBytesMax(root)
    nodes = try NodeTable(root: root, kept: kept)
    self.sink = sink
    self.gate = gate
    self.kept = kept
    changes = ChangeJournal(kept)
  }

  func fileID(_ number: UInt64) -> FileID { FileID(rawValue: number) }

  /// Open files, as far as this process has seen; a folder being listed counts too.
  var openCount: Int { nodes.openCount }

  /// After the kernel's connection is gone and every request is answered.
  func closeAll() { nodes.closeAll() }

  func dispose(_ node: Node) {
    if let status = try? Backing.status(node.descriptor), status.st_nlink == 0 {
      kept.drop(node.number)
      sink.forgotten(fileID(node.number), descriptor: node.descriptor)
    } else {
      close(node.descriptor)
    }
  }

  // MARK: answers

  func fail(_ request: KernelRequest, _ error: Errno) { fuse_reply_err(request.raw, error.code) }

  /// Answers the kernel. Never called twice for one request.
  func answer(_ request: KernelRequest, _ reply: GuestReply) {
    // It repeats nothing it has an answer to.
    defer { changes.forget(request.unique) }
    switch reply {
    case .done: fuse_reply_err(request.raw, 0)
    case .error(let error): fuse_reply_err(request.raw, error.code)
    case .written(let count): fuse_reply_write(request.raw, count)
    case .attributes(let number, var status):
      status.st_ino = ino_t(number)
      fuse_reply_attr(request.raw, &status, Double(kernelCacheSeconds))
    case .entry(let node, var status):
      status.st_ino = ino_t(node.number)
      var entry = fuse_entry_param()
      entry.ino = fuse_ino_t(node.number)
      entry.attr = status
      entry.attr_timeout = Double(kernelCacheSeconds)
      entry.entry_timeout = Double(kernelCacheSeconds)
      // The kernel gave the request up: it will never forget what it never got.
      if fuse_reply_entry(request.raw, &entry) == -ENOENT { forget(node.number, count: 1) }
    case .created(let node, var status):
      let code = vmha_reply_create(request.raw, node.number, &status, kernelCacheSeconds)
      if code == -ENOENT {
        node.closed()
        forget(node.number, count: 1)
      }
    }
  }

  func forget(_ number: UInt64, count: UInt64) {
    if let node = nodes.forget(number, count: count) { dispose(node) }
  }
}

/// A folder being listed, by all who list it.
final class DirectoryStream: @unchecked Sendable {
  private let stream: OpaquePointer
  private let lock = Mutex(())

  /// `folder` is borrowed: an O_PATH descriptor.
  init(_ folder: Int32) throws(Errno) {
    let descriptor = try Backing.reopen(folder, flags: O_RDONLY | O_DIRECTORY)
    guard let stream = fdopendir(descriptor) else {
      let error = Errno.last
      close(descriptor)
      throw error
    }
    self.stream = stream
  }

  deinit { closedir(stream) }

  /// Fills `buffer` with entries from `offset` on, as libfuse packs them; answers the bytes used.
  func fill(_ buffer: UnsafeMutableRawBufferPointer, from offset: off_t, request: fuse_req_t) throws(Errno) -> Int {
    let result: Result<Int, Errno> = lock.withLock { _ in
      seekdir(stream, Int(offset))
      var used = 0
      while true {
        errno = 0
        guard let entry = readdir(stream) else {
          return errno == 0 || used > 0 ? .success(used) : .failure(.last)
        }
        var status = stat()
        status.st_ino = entry.pointee.d_ino
        status.st_mode = mode_t(entry.pointee.d_type) << 12
        let space = buffer.count - used
        let start = buffer.baseAddress?.advanced(by: used).assumingMemoryBound(to: CChar.self)
        let next = entry.pointee.d_off
        let size = withUnsafePointer(to: &entry.pointee.d_name) { pointer in
          pointer.withMemoryRebound(to: CChar.self, capacity: 256) { name in
            fuse_add_direntry(request, start, space, name, &status, next)
          }
        }
        if size > space { return .success(used) }
        used += size
      }
    }
    return try result.get()
  }
}
