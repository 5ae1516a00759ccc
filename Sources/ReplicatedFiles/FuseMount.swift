import CFuse3
import Glibc
import HostSystem
import Synchronization

/// A failure of the engine's own doing, for people: what, where, why, and what to do.
public struct EngineError: Error, CustomStringConvertible, Sendable {
  public enum Code: String, Sendable {
    case mount, unmount, busy, backing, control, link, state, manifest
  }
  public let code: Code
  public let message: String
  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }
  public var description: String { message }
}

/// One mounted FUSE connection and the threads that serve it.
final class FuseMount: @unchecked Sendable {
  /// Threads that take requests from the kernel. None of them ever waits for the peer.
  static let threadCount = 6

  let mountPoint: String
  let server: FileServer
  /// Number of the connection in /sys/fs/fuse/connections.
  let connection: UInt32?
  private let session: OpaquePointer
  private let threads: Mutex<[HostThread]>
  private let whenEnded: @Sendable () -> Void
  private let running: Mutex<Int>

  /// Mounts. `whenEnded` is called once, on a thread of the mount, when the kernel's connection is gone, whoever ended it.
  init(
    module: String, mountPoint: String, server: FileServer, whenEnded: @escaping @Sendable () -> Void
  ) throws(EngineError) {
    self.mountPoint = mountPoint
    self.server = server
    self.whenEnded = whenEnded
    session = try FuseMount.makeSession(module: module, server: server)
    guard fuse_session_mount(session, mountPoint) == 0 else {
      let error = Errno.last
      fuse_session_destroy(session)
      throw EngineError(
        .mount, "cannot mount \(mountPoint): \(error); check that /dev/fuse exists and that the folder is there")
    }
    var number: UInt32 = 0
    connection = vmha_cached_device(mountPoint, &number) == 0 ? number : nil
    threads = Mutex([])
    running = Mutex(0)
  }

  private static func makeSession(module: String, server: FileServer) throws(EngineError) -> OpaquePointer {
    let options = "allow_other,default_permissions,nosuid,nodev,noatime,subtype=vmha,fsname=vmha:\(module)"
    var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("vmha-replicad"), strdup("-o"), strdup(options), nil]
    defer { for argument in arguments { free(argument) } }
    var table = fileServerOperations()
    let user = Unmanaged.passUnretained(server).toOpaque()
    let session = arguments.withUnsafeMutableBufferPointer { list in
      var parsed = fuse_args(argc: 3, argv: list.baseAddress, allocated: 0)
      let session = fuse_session_new(&parsed, &table, MemoryLayout<fuse_lowlevel_ops>.size, user)
      fuse_opt_free_args(&parsed)
      return session
    }
    guard let session else { throw EngineError(.mount, "libfuse refused its options (\(options))") }
    return session
  }

  /// Starts serving. Answers when the threads run.
  func start() throws(EngineError) {
    running.withLock { $0 = FuseMount.threadCount }
    for number in 0..<FuseMount.threadCount {
      do {
        let thread = try HostThread.start(name: "fuse-\(number)", detached: false) { [self] in loop() }
        threads.withLock { $0.append(thread) }
      } catch { throw EngineError(.mount, "cannot start a thread for \(mountPoint): \(error)") }
    }
  }

  private func loop() {
    var buffer = fuse_buf()
    while fuse_session_exited(session) == 0 {
      let count = fuse_session_receive_buf(session, &buffer)
      if count == -EINTR || count == -EAGAIN { continue }
      // 0: unmounted; an error: the connection was aborted.
      if count <= 0 { break }
      fuse_session_process_buf(session, &buffer)
    }
    fuse_session_exit(session)
    free(buffer.mem)
    let isLast = running.withLock { count in
      count -= 1
      return count == 0
    }
    if isLast { whenEnded() }
  }

  /// Unmounts. Without `force` it fails while a file is open; with it every request that waits is answered with an error first.
  func unmount(force: Bool) throws(EngineError) {
    if force {
      abort()
      guard umount2(mountPoint, Int32(VMHA_MNT_DETACH)) == 0 || errno == EINVAL else {
        throw EngineError(.unmount, "cannot unmount \(mountPoint): \(Errno.last)")
      }
      return
    }
    guard umount2(mountPoint, 0) == 0 else {
      let error = Errno.last
      throw EngineError(
        error.code == EBUSY ? .busy : .unmount,
        "cannot unmount \(mountPoint): \(error); a guest or a shell still uses files in it")
    }
  }

  private func abort() {
    guard let connection else { return }
    FuseConnections.abort(connection)
  }

  /// Waits for the serving threads. After it no new request can come.
  func join() {
    let all = threads.withLock { list in
      let all = list
      list = []
      return all
    }
    for thread in all { thread.join() }
  }

  /// Frees libfuse's state. Every request must have been answered before.
  func destroy() {
    fuse_session_unmount(session)
    fuse_session_destroy(session)
  }
}

/// The kernel's list of FUSE connections, through which a hung mount can be aborted.
public enum FuseConnections {
  static let folder = "/sys/fs/fuse/connections"

  /// Ends the connection: its requests fail, its users get ENOTCONN. Mounts fusectl if nobody has.
  public static func abort(_ connection: UInt32) {
    let path = "\(folder)/\(connection)/abort"
    if access(path, W_OK) != 0 { mount("fusectl", folder, "fusectl", 0, nil) }
    let file = open(path, O_WRONLY | O_CLOEXEC)
    guard file >= 0 else { return }
    _ = write(file, "1", 1)
    close(file)
  }

  /// Takes away what an engine that died left on the mount point: its users get ENOTCONN already. The list of mounts is
  /// asked, because the kernel may answer for a dead mount from its cache for a while.
  static func clearStaleMount(_ mountPoint: String) throws(EngineError) {
    for type in try mounts(on: mountPoint).reversed() {
      guard type == "fuse.vmha" else {
        throw EngineError(.mount, "a \(type) file system is mounted on \(mountPoint): unmount it first")
      }
      guard umount2(mountPoint, Int32(VMHA_MNT_DETACH)) == 0 else {
        throw EngineError(.mount, "cannot remove the dead mount on \(mountPoint): \(Errno.last)")
      }
      Log.note("removed a dead mount from \(mountPoint)")
    }
  }

  /// Types of the file systems mounted exactly there, the lowest first.
  private static func mounts(on mountPoint: String) throws(EngineError) -> [String] {
    let text: String
    do { text = String(decoding: try DurableFile.read("/proc/self/mountinfo"), as: UTF8.self) } catch {
      throw EngineError(.mount, "cannot read the list of mounts: \(error)")
    }
    guard let resolved = realpath(mountPoint, nil) else {
      // A dead mount cannot be resolved by name; then the name has to be the one it was mounted by.
      return types(in: text, on: mountPoint)
    }
    defer { free(resolved) }
    return types(in: text, on: String(cString: resolved))
  }

  private static func types(in text: String, on mountPoint: String) -> [String] {
    var escaped = ""
    for scalar in mountPoint.unicodeScalars {
      switch scalar {
      case " ": escaped += "\\040"
      case "\t": escaped += "\\011"
      case "\n": escaped += "\\012"
      case "\\": escaped += "\\134"
      default: escaped.unicodeScalars.append(scalar)
      }
    }
    return text.split(separator: "\n").compactMap { line in
      let fields = line.split(separator: " ")
      guard fields.count > 6, fields[4] == escaped, let dash = fields.firstIndex(of: "-"), dash + 1 < fields.count
      else { return nil }
      return String(fields[dash + 1])
    }
  }
}
