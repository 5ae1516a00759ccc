import ControlAPI
import Glibc
import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import Synchronization

/// Serves a `ControlService` as JSON over HTTP/1.1 on a unix socket. Who may open the socket may do everything: root and
/// one group.
public struct ControlServer: Sendable {
  /// Connections served at a time; more wait in the socket's backlog.
  public static let connectionCountMax = 128

  private let service: any ControlService
  private let socketPath: String
  private let group: String?
  private let logger: Logger

  /// `group`: may use the socket besides root (mode 0660); nil, or a group this host does not have = root only (0600).
  public init(service: any ControlService, socketPath: String, group: String?, logger: Logger) {
    self.service = service
    self.socketPath = socketPath
    self.group = group
    self.logger = logger
  }

  /// Serves until the task is cancelled; open event streams end with it. `onReady` runs once the socket answers.
  ///
  /// Throws `ControlError` code `refused` if another process serves this socket, `failed` if it cannot be made.
  public func run(onReady: @escaping @Sendable () async -> Void = {}) async throws {
    let claim = try SocketClaim(path: socketPath)
    defer { claim.release() }
    let grant = SocketGrant(path: socketPath, group: group, logger: logger)
    let problem = ErrorBox()
    let application = Application(
      router: ControlRoutes(service: service).router(),
      configuration: ApplicationConfiguration(
        address: .unixDomainSocket(path: socketPath), serverName: "vmhad",
        availableConnectionsDelegate: MaximumAvailableConnections(Self.connectionCountMax, logger: logger)),
      onServerRunning: { channel in
        do throws(ControlError) {
          try grant.apply()
        } catch {
          problem.set(error)
          channel.close(promise: nil)
          return
        }
        await onReady()
      }, logger: logger)
    do {
      try await application.run()
    } catch is CancellationError {
      // The way it is meant to end.
    } catch {
      guard !Task.isCancelled else { return }
      throw problem.value
        ?? ControlError(
          .failed, "the control socket \(socketPath) cannot be served", why: "\(error)",
          next: "check that its folder exists and can be written")
    }
    if let error = problem.value { throw error }
  }
}

private final class ErrorBox: Sendable {
  private let box = Mutex<ControlError?>(nil)
  func set(_ error: ControlError) { box.withLock { $0 = error } }
  var value: ControlError? { box.withLock { $0 } }
}

/// The sole right of one process to serve a socket path, held as a lock on `PATH.lock`. A lock and not only a look at the
/// socket, because two daemons that start together would both find it dead.
struct SocketClaim {
  private let descriptor: Int32
  private let path: String

  init(path: String) throws(ControlError) {
    self.path = path
    let lockPath = path + ".lock"
    descriptor = open(lockPath, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    guard descriptor >= 0 else {
      throw ControlError(
        .failed, "the lock file \(lockPath) cannot be opened", why: errnoText(errno),
        next: "check that its folder exists and can be written")
    }
    guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
      let reason = errno
      close(descriptor)
      throw ControlError(
        .refused, "another vmhad serves \(path)",
        why: reason == EWOULDBLOCK ? "it holds \(lockPath)" : errnoText(reason),
        next: "one vmhad per host: systemctl status vmhad")
    }
    switch probeSocket(path) {
    case .answers:
      close(descriptor)
      throw ControlError(
        .refused, "another process serves \(path)", why: "it answers a connection",
        next: "see which one: ss -xlp | grep \(path)")
    case .dead:
      unlink(path)
    case .absent, .forbidden, .broken:
      break
    }
  }

  func release() {
    unlink(path)
    close(descriptor)
  }
}

/// Owner, group and mode of the socket. Until it is applied only root can connect (umask of a daemon: 022).
private struct SocketGrant: Sendable {
  let path: String
  let group: String?
  let logger: Logger

  func apply() throws(ControlError) {
    var mode: mode_t = 0o600
    if let group {
      if let identifier = groupIdentifier(group) {
        guard chown(path, uid_t.max, identifier) == 0 else { throw failure("chown") }
        mode = 0o660
      } else {
        logger.warning("no group \(group) on this host: only root can use \(path)")
      }
    }
    guard chmod(path, mode) == 0 else { throw failure("chmod") }
  }

  private func failure(_ call: String) -> ControlError {
    ControlError(.failed, "the control socket \(path) cannot be protected", why: "\(call): \(errnoText(errno))")
  }

  private func groupIdentifier(_ name: String) -> gid_t? {
    var entry = Glibc.group()
    var result: UnsafeMutablePointer<Glibc.group>?
    var buffer = [CChar](repeating: 0, count: 64 * 1024)
    guard getgrnam_r(name, &entry, &buffer, buffer.count, &result) == 0, result != nil else { return nil }
    return entry.gr_gid
  }
}
