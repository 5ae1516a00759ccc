import CHostShims
import Glibc
import Model

/// Who is at the other end of a unix socket, as the kernel knows it.
public struct PeerCredentials: Sendable, Hashable {
  public let process: Int32
  public let user: UInt32
  public let group: UInt32
}

/// Stream sockets in the file system.
public enum UnixSocket {
  /// Longest path (bytes) the kernel takes.
  public static let pathBytesMax = 107
  private static let backlog: Int32 = 64

  /// Listens at `path` with this mode from the first moment on; a socket nobody answers on is replaced, `.inUse` if
  /// somebody does. `group` is a name in /etc/group; nil = leave it. The caller closes the descriptor and removes the
  /// path.
  public static func listen(path: String, mode: mode_t = 0o600, group: String? = nil) throws -> Int32 {
    if isAnswering(path) {
      throw HostError(.inUse, "socket.listen", path: path, "another process already listens there")
    }
    // Made beside its place and moved there, so that it is never reachable with a wider mode.
    let temporary = DurableFile.temporaryPath(path)
    unlink(temporary)
    let socket = try open()
    do {
      try withAddress(temporary) { address, length in
        _ = try HostCalls.perform("socket.bind", path: path) { bind(socket, address, length) }
      }
      if let group {
        let identifier = try groupID(group)
        try HostCalls.perform("socket.group", path: path) { chown(temporary, uid_t.max, identifier) }
      }
      try HostCalls.perform("socket.mode", path: path) { chmod(temporary, mode) }
      try HostCalls.perform("socket.listen", path: path) { Glibc.listen(socket, backlog) }
      try HostCalls.perform("socket.rename", path: path) { rename(temporary, path) }
      return socket
    } catch {
      unlink(temporary)
      close(socket)
      throw error
    }
  }

  /// The next connection, or nil after `timeout` (nil = wait). A listener that was shut down throws.
  public static func accept(_ listener: Int32, timeout: Duration?) throws -> Int32? {
    let deadline = timeout.map { monotonicNow() + $0 }
    while true {
      var entry = pollfd(fd: listener, events: Int16(POLLIN), revents: 0)
      let wait = deadline.map { ($0 - monotonicNow()).pollMilliseconds } ?? -1
      guard try HostCalls.perform("socket.poll", { poll(&entry, 1, wait) }) > 0 else { return nil }
      do {
        return try HostCalls.perform("socket.accept") { vmha_accept(listener) }
      } catch let error as HostError where error.errno == EAGAIN || error.errno == ECONNABORTED {
        continue
      }
    }
  }

  /// accept for any stream listener: a non-blocking descriptor closed on exec, or -1 and errno.
  public static func acceptNow(_ listener: Int32) -> Int32 { vmha_accept(listener) }

  public static func connect(path: String) throws -> Int32 {
    let socket = try open()
    do {
      try withAddress(path) { address, length in
        _ = try HostCalls.perform("socket.connect", path: path) { Glibc.connect(socket, address, length) }
      }
      return socket
    } catch {
      close(socket)
      throw error
    }
  }

  public static func peerCredentials(_ socket: Int32) throws -> PeerCredentials {
    var (process, user, group) = (pid_t(), uid_t(), gid_t())
    try HostCalls.perform("socket.peer") { vmha_peer_credentials(socket, &process, &user, &group) }
    return PeerCredentials(process: process, user: user, group: group)
  }

  private static func open() throws -> Int32 {
    try HostCalls.perform("socket.open") {
      socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
    }
  }

  private static func isAnswering(_ path: String) -> Bool {
    guard let socket = try? connect(path: path) else { return false }
    close(socket)
    return true
  }

  private static func groupID(_ name: String) throws -> gid_t {
    var entry = group()
    var found: UnsafeMutablePointer<group>?
    var buffer = [CChar](repeating: 0, count: 64 << 10)
    let result = getgrnam_r(name, &entry, &buffer, buffer.count, &found)
    guard result == 0, found != nil else {
      throw HostError(
        .invalid, "socket.group", path: name, errno: result, "there is no group '\(name)': groupadd --system \(name)")
    }
    return entry.gr_gid
  }

  private static func withAddress(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) throws -> Void
  ) throws {
    let bytes = Array(path.utf8)
    guard (1...pathBytesMax).contains(bytes.count) else {
      throw HostError(.limit, "socket.path", path: path, "\(bytes.count) bytes; the kernel takes \(pathBytesMax)")
    }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
    try withUnsafePointer(to: &address) { pointer in
      try pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        try body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }
}
