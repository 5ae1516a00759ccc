import CLibvirt
import HostSystem
import Model

/// Threads with a libvirt connection of their own. A call that does not return in time loses its lane, which ends by itself should the
/// call ever come back; the next caller gets another one. So one hung guest or a hung libvirtd never blocks anybody for longer
/// than the limit of the call.
final class CallLanes: Sendable {
  /// Calls going on at once, the hung ones included. Beyond that calls fail at once, so that hung ones cannot eat the host's memory.
  static let lanesMax = 96
  /// Idle lanes that are kept with an open connection.
  static let idleMax = 4

  private struct State {
    var idle: [Lane] = []
    var count = 0
    var isClosed = false
  }
  private let state = Monitor(State())
  private let uri: String

  init(uri: String) { self.uri = uri }

  /// Runs `body` on a lane. `isRepeatable`: it is run a second time on a new connection if the first one turns out to be dead.
  func call<T: Sendable>(
    _ operation: String, domain: String, limit: Duration, isRepeatable: Bool,
    _ body: @escaping @Sendable (OpaquePointer) throws(LibvirtFailure) -> T
  ) throws(HypervisorError) -> T {
    let lane = try take(operation, domain: domain)
    let outcome = Monitor<Outcome<T>>(.open)
    lane.submit { connection in
      let result = Self.attempt(&connection, uri: self.uri, isRepeatable: isRepeatable, body)
      let isInTime = outcome.withLock { outcome in
        guard case .open = outcome else { return false }
        outcome = .done(result)
        return true
      }
      // Given back by the lane itself, so that the next call never finds it still at work.
      if isInTime { self.giveBack(lane) }
      return isInTime
    } onEnd: {
      self.state.withLock { $0.count -= 1 }
    }
    let answer: Result<T, LibvirtFailure>? = outcome.wait(timeout: limit) {
      if case .done(let result) = $0 { return result }
      return nil
    }
    switch answer {
    case .success(let value): return value
    case .failure(let failure): throw failure.error(operation, domain: domain)
    case nil: break
    }
    // The answer may come between the end of the wait and here; whoever changes `open` first decides.
    let late: Result<T, LibvirtFailure>? = outcome.withLock {
      if case .done(let result) = $0 { return result }
      $0 = .abandoned
      return nil
    }
    switch late {
    case .success(let value): return value
    case .failure(let failure): throw failure.error(operation, domain: domain)
    case nil:
      throw HypervisorError(
        .timedOut, operation, domain: domain, "libvirt did not answer within \(limit)",
        next: "it may still be done later; a hung disk or libvirtd is the usual cause")
    }
  }

  private enum Outcome<T: Sendable>: Sendable { case open, abandoned, done(Result<T, LibvirtFailure>) }

  private static func attempt<T>(
    _ connection: inout OpaquePointer?, uri: String, isRepeatable: Bool,
    _ body: (OpaquePointer) throws(LibvirtFailure) -> T
  ) -> Result<T, LibvirtFailure> {
    var result = Result { () throws(LibvirtFailure) in try body(try open(&connection, uri: uri)) }
    guard case .failure(.libvirt(let error)) = result, error.isConnectionLoss else { return result }
    close(&connection)
    if isRepeatable {
      result = Result { () throws(LibvirtFailure) in try body(try open(&connection, uri: uri)) }
    }
    return result
  }

  private static func open(_ connection: inout OpaquePointer?, uri: String) throws(LibvirtFailure) -> OpaquePointer {
    if let open = connection {
      if virConnectIsAlive(open) == 1 { return open }
      close(&connection)
    }
    guard let new = virConnectOpen(uri) else { throw .libvirt(.last().asConnectionLoss) }
    connection = new
    return new
  }

  private static func close(_ connection: inout OpaquePointer?) {
    if let open = connection { virConnectClose(open) }
    connection = nil
  }

  private func take(_ operation: String, domain: String) throws(HypervisorError) -> Lane {
    let (idle, isRefused, isClosed) = state.withLock { state -> (Lane?, Bool, Bool) in
      if state.isClosed { return (nil, true, true) }
      if let lane = state.idle.popLast() { return (lane, false, false) }
      guard state.count < Self.lanesMax else { return (nil, true, false) }
      state.count += 1
      return (nil, false, false)
    }
    if let idle { return idle }
    if isClosed { throw HypervisorError(.notConnected, operation, domain: domain, "the connection was closed") }
    if isRefused {
      throw HypervisorError(
        .timedOut, operation, domain: domain, "\(Self.lanesMax) calls to libvirt hang",
        next: "look at 'systemctl status libvirtd'")
    }
    let lane = Lane()
    do {
      try lane.start { connection in Self.close(&connection) }
    } catch {
      state.withLock { $0.count -= 1 }
      throw HypervisorError(.failed, operation, domain: domain, "no thread for the call: \(error)")
    }
    return lane
  }

  private func giveBack(_ lane: Lane) {
    let isKept = state.withLock { state -> Bool in
      guard !state.isClosed, state.idle.count < Self.idleMax else { return false }
      state.idle.append(lane)
      return true
    }
    if !isKept { lane.end() }
  }

  /// Calls going on, the hung ones included, and idle lanes. For tests.
  var count: Int { state.withLock { $0.count } }

  func close() {
    let idle = state.withLock { state -> [Lane] in
      state.isClosed = true
      defer { state.idle = [] }
      return state.idle
    }
    idle.forEach { $0.end() }
  }
}

/// What a call's body throws: libvirt's own error, or one that is ready for the caller.
enum LibvirtFailure: Error, Sendable, Hashable {
  case libvirt(LibvirtError)
  case mapped(HypervisorError)

  /// From libvirt's last error on this thread.
  static var last: LibvirtFailure { .libvirt(.last()) }

  func error(_ operation: String, domain: String) -> HypervisorError {
    switch self {
    case .libvirt(let error): error.mapped(operation, domain: domain)
    case .mapped(let error): error
    }
  }
}

extension LibvirtError {
  /// Whatever made an open fail, nothing was asked of a domain yet.
  var asConnectionLoss: LibvirtError { LibvirtError(code: VIR_ERR_NO_CONNECT, origin: origin, message: message) }
}

/// One thread and its connection.
private final class Lane: Sendable {
  /// Answers whether the lane goes on: false when nobody waited for the result any more.
  typealias Job = @Sendable (inout OpaquePointer?) -> Bool
  private struct State {
    var job: Job?
    var onEnd: (@Sendable () -> Void)?
    var isEnding = false
  }
  private let state = Monitor(State())

  func start(closing: @escaping @Sendable (inout OpaquePointer?) -> Void) throws {
    try HostThread.start(name: "libvirt-call") {
      var connection: OpaquePointer?
      while let job = self.next() {
        if !job(&connection) { break }
      }
      closing(&connection)
      self.state.withLock { $0.onEnd }?()
    }
  }

  private func next() -> Job? {
    let found: Job?? = state.wait(timeout: nil) { state in
      if let job = state.job {
        state.job = nil
        return .some(job)
      }
      return state.isEnding ? .some(nil) : nil
    }
    return found ?? nil
  }

  func submit(_ job: @escaping Job, onEnd: @escaping @Sendable () -> Void) {
    state.withLock {
      $0.job = job
      $0.onEnd = onEnd
    }
  }

  func end() { state.withLock { $0.isEnding = true } }
}
