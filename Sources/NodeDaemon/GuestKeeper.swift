import Glibc
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Synchronization
import VirtualMachines

/// Starts, stops and watches one module's guest. Its own thread does one thing after the other, so what libvirt tells of a
/// step that is under way is never mistaken for news.
final class GuestKeeper: Sendable {
  enum Job: Sendable { case start, stopInOrder, destroy, suspend, resume, look }

  private static let jobsMax = 1000
  private static let lookEvery: Duration = .seconds(5)
  private static let pollEvery: Duration = .milliseconds(100)
  /// A booting guest ignores the power button: it is pressed again this often.
  private static let pressAgainEvery: Duration = .seconds(5)
  /// A guest that is not gone by then is stuck, for instance on a hung mount.
  private static let destroyTimeout: Duration = .seconds(10)
  /// Files of one VM whose users libvirt may have miscounted.
  private static let staleOwnersMax = 16
  /// At the start of vmhad libvirtd may still be on its way.
  private static let hypervisorWait: Duration = .seconds(20)

  private struct State {
    var configuration: ModuleConfiguration
    var believed = CoreGuest.unknown
    /// Set while a clean stop should give way to a kill.
    var isUrgent = false
    /// `resume` was asked for and not done yet; a clean stop does it in between.
    var isResumeDue = false
    /// libvirt's answer to a suspend, which may take as long as QEMU waits for its disks; nil = none is open.
    var suspendCall: OneShot<Result<Void, any Error>>?
    var lastEnd: GuestEnd?
    var pauseReason: String?
    var stopTimeout: Duration?
    var emit: (@Sendable (CoreEvent) -> Void)?
    var isWatching = false
    var isOver = false
  }

  let paths: HostPaths
  let module: ModuleName
  private let environment: @Sendable (ModuleConfiguration) -> [String: String]
  let hypervisor: any Hypervisor
  let tell: @Sendable (CoreSeverity, String) -> Void
  private let state: Mutex<State>
  private let worker: Mutex<Worker<Job>?> = Mutex(nil)

  init(
    paths: HostPaths, configuration: ModuleConfiguration, hypervisor: any Hypervisor,
    environment: @escaping @Sendable (ModuleConfiguration) -> [String: String],
    tell: @escaping @Sendable (CoreSeverity, String) -> Void
  ) throws {
    self.paths = paths
    module = configuration.name
    self.environment = environment
    self.hypervisor = hypervisor
    self.tell = tell
    state = Mutex(State(configuration: configuration))
    let worker = try Worker<Job>(
      name: "guest-\(module.text)", eventsMax: Self.jobsMax, onWakeUp: { [weak self] in self?.lookAgain() },
      handler: { [weak self] in self?.perform($0) })
    self.worker.withLock { $0 = worker }
  }

  func connect(_ emit: @escaping @Sendable (CoreEvent) -> Void) { state.withLock { $0.emit = emit } }

  func reconfigure(_ configuration: ModuleConfiguration) { state.withLock { $0.configuration = configuration } }

  /// Overrules the module's `stopTimeout` for the clean stop that goes on, or the next one: the wish may have come over the
  /// other node before the command itself.
  func stopWithin(_ timeout: Duration?) { state.withLock { $0.stopTimeout = timeout } }

  func start() {
    state.withLock { $0.stopTimeout = nil }
    push(.start)
  }
  func stopInOrder() { push(.stopInOrder) }
  func destroy() {
    state.withLock { $0.isUrgent = true }
    push(.destroy)
  }

  func suspend() { push(.suspend) }
  func resume() {
    state.withLock { $0.isResumeDue = true }
    push(.resume)
  }

  /// In a thread of its own: a suspension (R2) does not wait for it.
  func announce() {
    let failed = { @Sendable [tell] (error: any Error) in
      tell(.notice, "the guest's network addresses could not be announced in its LAN: \(error)")
    }
    do {
      try HostThread.start(name: "announce-\(module.text)") { [hypervisor, module] in
        do { try hypervisor.announce(module.text) } catch let error as HypervisorError where error.code == .notRunning {
        } catch { failed(error) }
      }
    } catch { failed(error) }
  }

  /// libvirt told something about this guest, or answers again after it did not.
  func hypervisorSaid(_ event: HypervisorEvent) {
    state.withLock { state in
      switch event {
      case .stopped(_, .shutdown): state.lastEnd = .shutdown
      case .stopped(_, .destroyed): state.lastEnd = .destroyed
      case .stopped, .crashed: state.lastEnd = .failed
      case .diskError(_, let path, _, _, let reason):
        state.pauseReason = Self.pauseText(module, path: path, reason: reason)
      default: break
      }
    }
    push(.look)
  }

  /// `reason`: QEMU's own word.
  static func pauseText(_ module: ModuleName, path: String, reason: String) -> String {
    if reason == "enospc" {
      return "there was no room for its write to \(path): make room there, then: virsh resume \(module)"
    }
    return "disk error on \(path)" + (reason.isEmpty ? "" : " (\(reason))")
  }

  /// Begins to report what the guest does by itself.
  func watch() {
    state.withLock { $0.isWatching = true }
    push(.look)
  }

  func stop() {
    let worker = worker.withLock { worker in
      defer { worker = nil }
      return worker
    }
    state.withLock {
      $0.isOver = true
      $0.isUrgent = true
    }
    worker?.stop()
  }

  /// Waits for libvirt for a while; `unknown` if it cannot tell.
  func stateAtStart() -> CoreGuest {
    let deadline = monotonicNow() + Self.hypervisorWait
    while true {
      if let now = actual() {
        state.withLock { $0.believed = now }
        // Resumed, and vmhad died before it could say so.
        if now == .running { forgetSuspension() }
        return now
      }
      // Without libvirt: no QEMU process, no guest.
      if monotonicNow() > deadline { return qemuIsGone ? .off : .unknown }
      usleep(UInt32(Self.pollEvery.milliseconds * 1000))
    }
  }

  private var qemuIsGone: Bool {
    // Reads files only, so it can tell while libvirt hangs or is down; on doubt the guest counts as there.
    do { return try hypervisor.processID(of: module.text) == nil } catch { return false }
  }

  private func push(_ job: Job) {
    if worker.withLock({ $0 })?.push(job) == false { tell(.alarm, "the guest keeper's queue is full") }
  }

  var suspendCall: OneShot<Result<Void, any Error>>? {
    get { state.withLock { $0.suspendCall } }
    set { state.withLock { $0.suspendCall = newValue } }
  }
  var isUrgent: Bool { state.withLock { $0.isUrgent } }
  func resumeIsDone() { state.withLock { $0.isResumeDue = false } }

  private func lookAgain() {
    look()
    worker.withLock { $0 }?.setWakeUp(at: monotonicNow() + Self.lookEvery)
  }

  private func perform(_ job: Job) {
    switch job {
    case .start: startNow()
    case .stopInOrder: stopNow()
    case .destroy: destroyNow()
    case .suspend: suspendNow()
    case .resume: resumeNow()
    case .look: look()
    }
    worker.withLock { $0 }?.setWakeUp(at: monotonicNow() + Self.lookEvery)
  }

  func emit(_ event: CoreEvent) {
    let (emit, isOver) = state.withLock { ($0.emit, $0.isOver) }
    if !isOver { emit?(event) }
  }

  func believe(_ guest: CoreGuest) { state.withLock { $0.believed = guest } }

  /// nil = libvirt cannot tell now.
  func actual() -> CoreGuest? {
    do {
      return switch try hypervisor.state(of: module.text).state {
      case .shutOff: .off
      case .paused: isSuspendedByUs ? .suspended : .paused
      case .sleeping: .paused
      case .running, .shuttingDown: .running
      case .crashed: .paused
      case .unknown: nil
      }
    } catch { return error.code == .noSuchDomain ? .off : nil }
  }

  // MARK: jobs

  private func startNow() {
    state.withLock { $0.isUrgent = false }
    do {
      try runScript(.beforeStart)
      if let now = actual(), now != .off { try hypervisor.destroy(module.text) }
      state.withLock { $0.pauseReason = nil }
      forgetSuspension()
      // The libvirt hook lets only a start with this permit through.
      let permit = paths.startPermit(module)
      try DurableFile.makeFolder("\(paths.runtime)/permits", mode: 0o755)
      try DurableFile.write([], to: permit, mode: 0o644)
      defer { unlink(permit) }
      try startForgettingOwners(limit: state.withLock { $0.configuration.startTimeout })
    } catch {
      believe(.off)
      return emit(.guestStartFailed(why: "\(error)"))
    }
    believe(.running)
    emit(.guestStarted)
    do { try runScript(.afterStart) } catch { tell(.warning, "\(error)") }
  }

  /// libvirt counts in extended attributes who uses a file. A guest whose mount died under it is destroyed without that being
  /// taken back, and libvirt then refuses the next start for each such file outside the mount (a console log, a shared
  /// firmware file). With no QEMU of this VM left the notes are stale: forgotten, and the start tried again.
  private func startForgettingOwners(limit: Duration) throws {
    for _ in 0..<Self.staleOwnersMax {
      do { return try hypervisor.start(module.text, limit: limit) } catch {
        guard let path = StaleOwners.path(in: error.message), try hypervisor.processID(of: module.text) == nil else {
          throw error
        }
        tell(.notice, "libvirt took \(path) for in use by a guest that is gone; its note is removed")
        try StaleOwners.forget(path)
      }
    }
    try hypervisor.start(module.text, limit: limit)
  }

  private func stopNow() {
    state.withLock { $0.isUrgent = false }
    defer { state.withLock { $0.stopTimeout = nil } }
    do { try runScript(.beforeStop) } catch { tell(.warning, "\(error)") }
    let begin = monotonicNow()
    var press = monotonicNow()
    while actual() != .off {
      if state.withLock({ $0.isResumeDue }) { resumeNow() }
      if state.withLock({ $0.isUrgent }) { return }  // `destroy` is next in the queue and reports
      let now = monotonicNow()
      let timeout = state.withLock { $0.stopTimeout ?? $0.configuration.stopTimeout }
      if now - begin > timeout {
        tell(.warning, "the guest did not shut down in \(secondsText(timeout)); it is forced off")
        return destroyNow()
      }
      if now >= press {
        // Refused while the guest is paused or libvirt is away: tried again, then forced.
        do { try hypervisor.requestShutdown(module.text) } catch { tell(.info, "shutdown request: \(error)") }
        press = now + Self.pressAgainEvery
      }
      usleep(UInt32(Self.pollEvery.milliseconds * 1000))
    }
    wentOff(.shutdown)
  }

  private func destroyNow() {
    let deadline = monotonicNow() + Self.destroyTimeout
    var why = "libvirt cannot be reached"
    repeat {
      if state.withLock({ $0.isOver }) { return }
      switch actual() {
      case .off: return wentOff(.destroyed)
      case nil where qemuIsGone: return wentOff(.destroyed)
      default: break
      }
      do { try hypervisor.destroy(module.text) } catch { why = "\(error)" }
      if actual() == .off { return wentOff(.destroyed) }
      usleep(UInt32(Self.pollEvery.milliseconds * 1000))
    } while monotonicNow() < deadline
    emit(.guestStuck(why: why))
  }

  private func wentOff(_ end: GuestEnd) {
    believe(.off)
    state.withLock { $0.lastEnd = nil }
    forgetSuspension()
    emit(.guestOff(end))
    do { try runScript(.afterStop) } catch { tell(.warning, "\(error)") }
  }

  private func look() {
    let (isWatching, believed, lastEnd) = state.withLock { ($0.isWatching, $0.believed, $0.lastEnd) }
    guard isWatching, let now = actual(), now != believed else { return }
    believe(now)
    switch (believed, now) {
    case (_, .off):
      state.withLock { $0.lastEnd = nil }
      forgetSuspension()
      emit(.guestOff(lastEnd ?? .failed))
    case (_, .paused): emit(.guestPaused(why: pauseReason()))
    case (.suspended, .running):
      forgetSuspension()
      emit(.guestResumed)
    case (_, .suspended): emit(.guestSuspended)
    case (.paused, .running): emit(.guestResumed)
    case (_, .running): emit(.guestStarted)
    default: break
    }
  }

  private func pauseReason() -> String {
    if let known = state.withLock({ $0.pauseReason }) { return known }
    do { return try hypervisor.state(of: module.text).reason } catch { return "libvirt does not say why" }
  }

  private func runScript(_ script: ModuleScript) throws {
    guard let path = script.path(inModuleFolder: paths.module(module)) else { return }
    let result = try ChildProcess.run(
      script.arguments(path: path, module: module),
      environment: hookEnvironment(environment(state.withLock { $0.configuration })), timeout: ModuleScript.timeout)
    let said = result.outputText + result.errorText
    if !said.isEmpty { tell(.info, "\(script.rawValue) says: \(said.prefix(500))") }
    guard result.status == 0 else {
      throw HostError(
        .invalid, "script", path: path,
        "it ended with \(result.status): \(result.errorText.isEmpty ? result.outputText : result.errorText)")
    }
  }
}

/// The environment of scripts and hooks: nothing of vmhad's own leaks into it.
func hookEnvironment(_ variables: [String: String]) -> [String: String] {
  variables.merging(["PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"]) { own, _ in
    own
  }
}
