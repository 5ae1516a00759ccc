import CLibvirt
import Glibc
import HostSystem
import Model
import Synchronization

/// Set-up of libvirt's C library, once for the process.
enum LibvirtLibrary {
  private static let failure: HypervisorError? = {
    func failed(_ what: String) -> HypervisorError {
      HypervisorError(.failed, "set up libvirt", "\(what): \(LibvirtError.last().message)")
    }
    guard virInitialize() == 0 else { return failed("the library does not start") }
    // Without this it prints every error, also the expected ones, on standard error.
    virSetErrorFunc(nil) { _, _ in }
    guard virEventRegisterDefaultImpl() == 0 else { return failed("no event loop") }
    do {
      try HostThread.start(name: "libvirt-events") {
        while true {
          // Fails only when it cannot poll; the pause keeps that from becoming a busy loop.
          if virEventRunDefaultImpl() < 0 { usleep(100_000) }
        }
      }
    } catch {
      return HypervisorError(.failed, "set up libvirt", "no thread for its events: \(error)")
    }
    return nil
  }()

  static func prepare() throws(HypervisorError) {
    if let failure { throw failure }
  }
}

/// A connection of its own that carries the events, is watched by keepalive, and is opened again when it is lost.
final class EventMonitor: Sendable {
  private static let retryPause: Duration = .seconds(1)
  /// libvirtd that does not answer for 5 s, four times in all, counts as gone.
  private static let keepaliveSeconds: CInt = 5
  private static let keepaliveCount: CUnsignedInt = 3
  /// No connection this long after it was begun: status says so, though the attempt goes on.
  private static let openSlow: Duration = .seconds(2)

  private struct State {
    var connection: HypervisorConnection
    var handler: (@Sendable (HypervisorEvent) -> Void)?
    /// Set by libvirt when the open connection ends.
    var lossReason: String?
    var openBegan: Instant?
    var isClosing = false
  }
  private let state: Monitor<State>

  init(uri: String) throws(HypervisorError) {
    let since = monotonicNow()
    state = Monitor(State(connection: HypervisorConnection(isUp: false, since: since, why: "not connected yet")))
    let state = state
    do {
      try HostThread.start(name: "libvirt-watch") { Self.run(uri: uri, state: state) }
    } catch {
      throw HypervisorError(.failed, "watch libvirt", "no thread: \(error)")
    }
  }

  var connection: HypervisorConnection {
    state.withLock { state in
      var answer = state.connection
      if let began = state.openBegan, !answer.isUp, monotonicNow() - began > Self.openSlow {
        answer.why = "libvirtd does not answer"
      }
      return answer
    }
  }

  func setHandler(_ handler: (@Sendable (HypervisorEvent) -> Void)?) { state.withLock { $0.handler = handler } }
  func close() { state.withLock { $0.isClosing = true } }

  private static func run(uri: String, state: Monitor<State>) {
    while !state.withLock({ $0.isClosing }) {
      let why = serve(uri: uri, state: state)
      let wasUp = state.withLock { state -> Bool in
        let wasUp = state.connection.isUp
        let since = wasUp ? monotonicNow() : state.connection.since
        state.connection = HypervisorConnection(isUp: false, since: since, why: why)
        return wasUp
      }
      if wasUp { emit(state, .connectionLost(why: why)) }
      let _: Bool? = state.wait(timeout: retryPause) { $0.isClosing ? true : nil }
    }
  }

  /// Opens the connection and returns when it is over, with the reason.
  private static func serve(uri: String, state: Monitor<State>) -> String {
    state.withLock {
      $0.openBegan = monotonicNow()
      $0.lossReason = nil
    }
    guard let connection = virConnectOpen(uri) else { return LibvirtError.last().message }
    defer { virConnectClose(connection) }
    state.withLock { $0.openBegan = nil }
    let context = {
      Unmanaged.passRetained(
        EventContext {
          emit(state, $0)
        } onClose: {
          lost(state, $0)
        }
      ).toOpaque()
    }
    let registrations = [
      vmha_register_lifecycle(connection, onLifecycle, context(), releaseContext),
      vmha_register_io_error(connection, onDiskError, context(), releaseContext),
    ]
    defer { for id in registrations where id >= 0 { virConnectDomainEventDeregisterAny(connection, id) } }
    guard !registrations.contains(where: { $0 < 0 }) else { return "no events: \(LibvirtError.last().message)" }
    let hasCloseNotice = virConnectRegisterCloseCallback(connection, onClose, context(), releaseContext) == 0
    defer { if hasCloseNotice { virConnectUnregisterCloseCallback(connection, onClose) } }
    // Refused by drivers without a daemon, which cannot hang either.
    _ = virConnectSetKeepAlive(connection, keepaliveSeconds, keepaliveCount)
    state.withLock { $0.connection = HypervisorConnection(isUp: true, since: monotonicNow(), why: "") }
    emit(state, .connectionRestored)
    while true {
      let reason: String? = state.wait(timeout: retryPause) { $0.isClosing ? "closed" : $0.lossReason }
      if let reason { return reason }
      if virConnectIsAlive(connection) != 1 { return "libvirtd closed the connection" }
    }
  }

  private static func lost(_ state: Monitor<State>, _ why: String) { state.withLock { $0.lossReason = why } }

  private static func emit(_ state: Monitor<State>, _ event: HypervisorEvent) {
    // Called outside the lock: the receiver may ask for `connection`.
    state.withLock { $0.handler }?(event)
  }
}

/// What libvirt's callbacks carry; kept alive by libvirt until it calls `releaseContext`.
private final class EventContext: Sendable {
  let onEvent: @Sendable (HypervisorEvent) -> Void
  let onClose: @Sendable (String) -> Void
  init(
    _ onEvent: @escaping @Sendable (HypervisorEvent) -> Void, onClose: @escaping @Sendable (String) -> Void
  ) {
    self.onEvent = onEvent
    self.onClose = onClose
  }
  static func from(_ context: UnsafeMutableRawPointer?) -> EventContext? {
    context.map { Unmanaged<EventContext>.fromOpaque($0).takeUnretainedValue() }
  }
}

private let releaseContext: virFreeCallback = { context in
  if let context { Unmanaged<EventContext>.fromOpaque(context).release() }
}

private let onLifecycle: virConnectDomainEventCallback = { _, domain, event, detail, context in
  guard let domain, let receiver = EventContext.from(context) else { return 0 }
  if let event = LibvirtWords.event(LibvirtWords.identity(domain), event, detail: detail) { receiver.onEvent(event) }
  return 0
}

private let onDiskError: virConnectDomainEventIOErrorReasonCallback = {
  _, domain, path, device, action, reason, context in
  guard let domain, let receiver = EventContext.from(context) else { return }
  func text(_ pointer: UnsafePointer<CChar>?) -> String { pointer.map { String(cString: $0) } ?? "" }
  receiver.onEvent(
    .diskError(
      LibvirtWords.identity(domain), path: text(path), device: text(device),
      isPaused: UInt32(bitPattern: action) == VIR_DOMAIN_EVENT_IO_ERROR_PAUSE.rawValue, reason: text(reason)))
}

private let onClose: virConnectCloseFunc = { _, reason, context in
  guard let receiver = EventContext.from(context) else { return }
  switch virConnectCloseReason(rawValue: UInt32(bitPattern: reason)) {
  case VIR_CONNECT_CLOSE_REASON_EOF: receiver.onClose("libvirtd closed the connection")
  case VIR_CONNECT_CLOSE_REASON_KEEPALIVE: receiver.onClose("libvirtd does not answer")
  case VIR_CONNECT_CLOSE_REASON_CLIENT: receiver.onClose("closed")
  default: receiver.onClose("the connection broke")
  }
}
