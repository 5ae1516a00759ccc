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
  /// Another process can go on with it when this one dies.
  let outlivesProcess: Bool
  private let session: OpaquePointer
  private let device: Int32
  private let threads = Mutex<[HostThread]>([])
  private let whenEnded: @Sendable () -> Void
  private let running = Mutex<Int>(0)

  /// Mounts. `whenEnded` is called once, on a thread of the mount, when the kernel's connection is gone, whoever ended it.
  /// With a keeper and a kernel that can hand requests out again (6.9) the connection outlives this process, unless
  /// `endsWithProcess`.
  init(
    module: String, mountPoint: String, server: FileServer, endsWithProcess: Bool,
    whenEnded: @escaping @Sendable () -> Void
  ) throws(EngineError) {
    let device = open("/dev/fuse", O_RDWR | O_CLOEXEC)
    guard device >= 0 else {
      throw EngineError(.mount, "cannot open /dev/fuse: \(Errno.last); is the fuse module loaded?")
    }
    let session = try FuseMount.makeSession(server: server, device: device)
    let options = "fd=\(device),rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
    let flags = UInt(MS_NOSUID | MS_NODEV | MS_NOATIME)
    guard Glibc.mount("vmha:\(module)", mountPoint, "fuse.vmha", flags, options) == 0 else {
      let error = Errno.last
      fuse_session_destroy(session)
      throw EngineError(.mount, "cannot mount \(mountPoint): \(error); check that the folder is there")
    }
    var number: UInt32 = 0
    let connection = vmha_cached_device(mountPoint, &number) == 0 ? number : nil
    do throws(EngineError) {
      let first = try FuseMount.firstRequest(device)
      let canRepeat = first.withUnsafeBytes { vmha_init_offers_resend($0.baseAddress, $0.count) } != 0
      outlivesProcess = server.kept.hasKeeper && canRepeat && !endsWithProcess
      FuseMount.process(first, session)
      // Only now: a next process does not answer INIT again. Nobody is served yet.
      if outlivesProcess {
        server.kept.begin(device: device, connection: connection, mountPoint: mountPoint, initRequest: first)
      }
    } catch {
      umount2(mountPoint, Int32(VMHA_MNT_DETACH))
      fuse_session_destroy(session)
      throw error
    }
    self.mountPoint = mountPoint
    self.server = server
    self.whenEnded = whenEnded
    self.session = session
    self.device = device
    self.connection = connection
  }

  /// Goes on with the mount of a process that is dead: libfuse is told again what the kernel said at first, and the kernel is asked
  /// to hand out again what it has no answer to. Owns `device`. `server` knows the kernel's objects already.
  init(
    device: Int32, mountPoint: String, initRequest: [UInt8], server: FileServer,
    whenEnded: @escaping @Sendable () -> Void
  ) throws(EngineError) {
    session = try FuseMount.makeSession(server: server, device: device)
    server.isMute.store(true, ordering: .sequentiallyConsistent)
    FuseMount.process(initRequest, session)
    server.isMute.store(false, ordering: .sequentiallyConsistent)
    guard vmha_ask_for_repetition(device) == 0 else {
      let error = Errno.last
      fuse_session_destroy(session)
      throw EngineError(.mount, "the kernel does not hand the requests of \(mountPoint) out again: \(error)")
    }
    self.mountPoint = mountPoint
    self.server = server
    self.whenEnded = whenEnded
    self.device = device
    connection = server.kept.connection
    outlivesProcess = true
  }

  private static func makeSession(server: FileServer, device: Int32) throws(EngineError) -> OpaquePointer {
    var arguments: [UnsafeMutablePointer<CChar>?] = [strdup("vmha-replicad"), nil]
    defer { for argument in arguments { free(argument) } }
    var table = fileServerOperations()
    let user = Unmanaged.passUnretained(server).toOpaque()
    let session = arguments.withUnsafeMutableBufferPointer { list in
      var parsed = fuse_args(argc: 1, argv: list.baseAddress, allocated: 0)
      let session = fuse_session_new(&parsed, &table, MemoryLayout<fuse_lowlevel_ops>.size, user)
      fuse_opt_free_args(&parsed)
      return session
    }
    guard let session else {
      close(device)
      throw EngineError(.mount, "libfuse does not start a session")
    }
    var channel = fuse_custom_io(
      writev: { device, parts, count, user in
        let isMute = user.map {
          Unmanaged<FileServer>.fromOpaque($0)._withUnsafeGuaranteedRef { $0.isMute.load(ordering: .relaxed) }
        }
        guard isMute == true else { return writev(device, parts, count) }
        return UnsafeBufferPointer(start: parts, count: Int(count)).reduce(0) { $0 + $1.iov_len }
      }, read: { device, buffer, count, _ in read(device, buffer, count) }, splice_receive: nil, splice_send: nil)
    guard fuse_session_custom_io(session, &channel, device) == 0 else {
      fuse_session_destroy(session)
      close(device)
      throw EngineError(.mount, "libfuse does not take the connection")
    }
    return session
  }

  /// The kernel's INIT, which a mount begins with.
  private static func firstRequest(_ device: Int32) throws(EngineError) -> [UInt8] {
    let buffer = RequestBuffer()
    do throws(Errno) {
      guard let bytes = try buffer.receive(device) else { throw Errno(ENODEV) }
      return Array(bytes)
    } catch { throw EngineError(.mount, "the kernel ended the new mount at once: \(error)") }
  }

  private static func process(_ request: [UInt8], _ session: OpaquePointer) {
    var request = request
    request.withUnsafeMutableBytes { process($0, session) }
  }

  private static func process(_ request: UnsafeMutableRawBufferPointer, _ session: OpaquePointer) {
    var buffer = fuse_buf()
    buffer.mem = request.baseAddress
    buffer.size = request.count
    fuse_session_process_buf(session, &buffer)
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
    let memory = RequestBuffer()
    while fuse_session_exited(session) == 0 {
      // nil: unmounted; an error: the connection was aborted.
      guard let bytes = (try? memory.receive(device)) ?? nil else { break }
      noteRequest(bytes)
      FuseMount.process(bytes, session)
    }
    fuse_session_exit(session)
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

  /// Frees libfuse's state and closes the connection. Every request must have been answered before.
  func destroy() { fuse_session_destroy(session) }
}

/// Where one thread receives requests. All of it is in memory before the first one comes, and stays there: a thread that is killed
/// while the kernel copies a request to it must not need a page, or the kernel ends that request with EIO instead of handing it
/// out again.
private final class RequestBuffer {
  /// A write of the largest size, and what stands before it.
  private static let byteCount = requestBytesMax + 4096
  private let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 4096)

  init() {
    memory.initializeMemory(as: UInt8.self, repeating: 0)
    // Where the limit of locked memory forbids it, only swapping could still matter.
    _ = mlock(memory.baseAddress, memory.count)
  }

  deinit {
    _ = munlock(memory.baseAddress, memory.count)
    memory.deallocate()
  }

  /// Waits for the next request; nil = unmounted. It is overwritten by the next call.
  func receive(_ device: Int32) throws(Errno) -> UnsafeMutableRawBufferPointer? {
    while true {
      let count = read(device, memory.baseAddress, memory.count)
      if count >= MemoryLayout<fuse_in_header>.size { return UnsafeMutableRawBufferPointer(rebasing: memory[..<count]) }
      let error = count < 0 ? Errno.last : Errno(EIO)
      // ENOENT: the request was interrupted before it came here.
      if [EINTR, EAGAIN, ENOENT].contains(error.code) { continue }
      if error.code == ENODEV { return nil }
      throw error
    }
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
