import FoundationEssentials
import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// The engine's unix socket: one control connection at a time, a new one replaces the old. The engine goes on without any.
public final class ControlServer: Sendable {
  /// Events that wait for vmhad to read them; beyond, the connection is closed, and the next one starts from a report.
  static let eventsWaitingMax = 1024

  private struct Outgoing: Sendable {
    let channel: LineChannel
    let event: EngineEvent
  }

  private let listener: Int32
  private let current = Mutex<LineChannel?>(nil)
  private let engineBox = Mutex<Engine?>(nil)
  private let outgoing: Worker<Outgoing>

  /// How long a new engine waits for the one before it to be gone.
  static let predecessorTimeout: Duration = .seconds(12)

  /// A listening socket, and a lock that is held until the last process with the descriptor is gone, its last write included.
  public struct Place: Sendable {
    public let listener: Int32
    public let lock: Int32
    public init(listener: Int32, lock: Int32) {
      self.listener = listener
      self.lock = lock
    }
  }

  /// Listens at `path` (mode 0600). Only one engine does so at a time, held by a lock on `PATH.lock`: a killed engine that still
  /// hangs in a write could land it on top of a later resync.
  public static func open(path: String) throws -> Place {
    let lock = try lock("\(path).lock")
    return Place(listener: try UnixSocket.listen(path: path), lock: lock)
  }

  /// Starts an engine that waits to be configured through connections to `place`.
  public init(_ place: Place, kept: Kept, endsWithProcess: Bool) throws {
    listener = place.listener
    outgoing = try Worker(name: "events", eventsMax: Self.eventsWaitingMax) { item in
      do { try item.channel.send(item.event) } catch {
        Log.note("control connection: \(error)")
        item.channel.close()
      }
    }
    let engine = try Engine(kept: kept, endsWithProcess: endsWithProcess) { [weak self] event in self?.emit(event) }
    engineBox.withLock { $0 = engine }
  }

  private static func lock(_ path: String) throws -> Int32 {
    let file = try HostCalls.perform("engine.lock", path: path) {
      Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
    }
    let deadline = monotonicNow() + predecessorTimeout
    while flock(file, LOCK_EX | LOCK_NB) != 0 {
      guard errno == EWOULDBLOCK || errno == EINTR, monotonicNow() < deadline else {
        close(file)
        throw HostError(
          .invalid, "engine.lock", path: path,
          "another engine of this module is not gone yet: it hangs in its disk, or runs")
      }
      usleep(20_000)
    }
    return file
  }

  public var engine: Engine? { engineBox.withLock { $0 } }

  private func emit(_ event: EngineEvent) {
    guard let channel = current.withLock({ $0 }) else { return }
    if !outgoing.push(Outgoing(channel: channel, event: event)) {
      Log.note("vmhad does not read its events: its connection is closed")
      channel.close()
    }
  }

  /// Serves control connections, for ever.
  public func run() {
    while true {
      do {
        guard let socket = try UnixSocket.accept(listener, timeout: nil) else { continue }
        let channel = LineChannel(socket: socket)
        // Here, in the order in which they came: of two threads the one of the older connection may run last.
        let old = current.withLock { current -> LineChannel? in
          defer { current = channel }
          return current
        }
        old?.close()
        do { try HostThread.start(name: "control") { [self] in serve(channel) } } catch {
          end(channel)
          throw error
        }
      } catch {
        Log.note("control socket: \(error)")
        usleep(100_000)
      }
    }
  }

  private func serve(_ channel: LineChannel) {
    while true {
      do {
        guard let command = try channel.receive(EngineCommand.self) else { break }
        // Replaced while this command was on its way: the new connection has the say.
        guard current.withLock({ $0 === channel }) else { break }
        engine?.perform(command)
      } catch let error as HostError where error.code == .invalid {
        emit(.failed(command: "unknown", why: "\(error)"))
      } catch {
        Log.note("control connection: \(error)")
        break
      }
    }
    end(channel)
  }

  private func end(_ channel: LineChannel) {
    current.withLock { if $0 === channel { $0 = nil } }
    channel.close()
  }
}
