import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// One module's engine process as vmhad sees it: found or started, spoken to, and missed when it goes.
///
/// The engine outlives vmhad, so `start` first looks for one that runs already. `onEvent`, `onReplaced` and `onGone` are called
/// on the link's own thread, in order; `onReplaced` for an engine whose mount another one goes on with, `onGone` only for one
/// that went unasked.
final class EngineConnection: Sendable {
  static let startTimeout: Duration = .seconds(15)
  /// An engine that died under its mount is replaced by its keeper within this time, or counts as gone. Below the 30 s after
  /// which a guest's disk driver gives up, with room for what follows.
  static let replaceTimeout: Duration = .seconds(10)
  /// An engine that says nothing for this long hangs, and its guest with it. It is asked all the while. Longer than its longest
  /// command takes (30 s, on a disk that hardly moves).
  static let wordTimeout: Duration = .seconds(45)
  /// Counted in so many pieces: time in which this process did not run either counts as one of them at most.
  private static let wordPieces = 9
  private static let lookEvery: Duration = .milliseconds(20)

  private struct State {
    var channel: LineChannel?
    /// To an engine that has not reported yet: nothing that was meant for the one before it may reach it.
    var joining: LineChannel?
    var processID: Int32?
    /// Its end was asked for: not news.
    var isLeaving = false
    var isBusy = false
    /// A start asked for while the previous engine is still going.
    var next: EngineConfiguration?
    /// What the engine was told last.
    var configuration: EngineConfiguration?
  }

  private let paths: HostPaths
  private let module: ModuleName
  private let launcher: EngineLauncher
  private let onEvent: @Sendable (EngineEvent) -> Void
  private let onReplaced: @Sendable (EngineReport, String) -> Void
  private let onGone: @Sendable (String) -> Void
  private let wordTimeout: Duration
  private let end: @Sendable (_ process: Int32) -> Void
  private let state = Mutex(State())

  init(
    paths: HostPaths, module: ModuleName, launcher: EngineLauncher, onEvent: @escaping @Sendable (EngineEvent) -> Void,
    onReplaced: @escaping @Sendable (EngineReport, String) -> Void, onGone: @escaping @Sendable (String) -> Void,
    wordTimeout: Duration = EngineConnection.wordTimeout,
    end: @escaping @Sendable (_ process: Int32) -> Void = { Glibc.kill($0, SIGKILL) }
  ) {
    self.paths = paths
    self.module = module
    self.launcher = launcher
    self.onEvent = onEvent
    self.onReplaced = onReplaced
    self.onGone = onGone
    self.wordTimeout = wordTimeout
    self.end = end
  }

  /// Returns at once; the first event is `ready`, or `onGone` says why there is none.
  func start(_ configuration: EngineConfiguration) {
    let mine = state.withLock { state -> Bool in
      if state.isBusy {
        state.next = configuration
        return false
      }
      state.isBusy = true
      state.isLeaving = false
      state.configuration = configuration
      return true
    }
    guard mine else { return }
    do {
      try HostThread.start(name: "engine-\(module.text)", stackBytes: 1 << 20) { self.run(configuration) }
    } catch {
      state.withLock { $0.isBusy = false }
      onGone("no thread for its connection: \(error)")
    }
  }

  func send(_ command: EngineCommand) {
    let channel = state.withLock { state -> LineChannel? in
      if case .exit = command { state.isLeaving = true }
      if case .configure(let configuration) = command { state.configuration = configuration }
      return state.channel
    }
    // A broken channel is noticed by its reader, which tells the core: nothing is lost by not saying it twice.
    do { try channel?.send(command) } catch { channel?.close() }
  }

  /// SIGKILL: for an engine that must not act any more (R11).
  func kill() {
    state.withLock { $0.isLeaving = true }
    endProcess()
  }

  private func endProcess() {
    if let process = processID, process > 1 { end(process) }
  }

  var processID: Int32? { state.withLock { $0.processID } }

  /// Lets go of the engine without ending it: vmhad stops, the guest goes on.
  func detach() {
    let channels = state.withLock { state in
      state.isLeaving = true
      return [state.channel, state.joining]
    }
    for channel in channels { channel?.close() }
  }

  private func run(_ configuration: EngineConfiguration) {
    var why = "its connection was closed"
    var hasServed = false
    let deadline = monotonicNow() + Self.startTimeout
    while true {
      // An engine that was started here and says nothing is broken; one that was found may be the killed one before.
      var isFinal = true
      do {
        let (channel, isStarted) = try reach()
        isFinal = isStarted
        let process = try channel.peerCredentials().process
        state.withLock {
          $0.channel = channel
          $0.processID = process
        }
        try channel.send(EngineCommand.configure(configuration))
        why = try listen(channel, ended: { isFinal = true }) {
          isFinal = true
          hasServed = true
        }
      } catch { why = "\(error)" }
      // A killed engine's socket takes connections until the process is really gone.
      guard !isFinal, monotonicNow() < deadline, !state.withLock({ $0.isLeaving }) else { break }
      state.withLock { $0.channel?.close() }
      usleep(UInt32(Self.lookEvery.milliseconds * 1000))
    }
    if hasServed { why = serveSuccessors(why) }
    let (leaving, next) = state.withLock { state in
      state.channel?.close()
      state.channel = nil
      state.processID = nil
      state.isBusy = false
      defer { state.next = nil }
      return (state.isLeaving, state.next)
    }
    if let next { return start(next) }
    if !leaving { onGone(why) }
  }

  /// Hands on what the engine says, until it goes. Answers why; `ended`: because it hung, and was killed for that.
  private func listen(
    _ channel: LineChannel, ended: () -> Void = {}, heard: () -> Void = {}
  ) throws -> String {
    var silent = 0
    while true {
      do {
        guard let event = try channel.receive(EngineEvent.self, timeout: wordTimeout / Self.wordPieces) else {
          return "its connection was closed"
        }
        silent = 0
        heard()
        onEvent(event)
      } catch let error as HostError where error.code == .timedOut {
        silent += 1
        guard silent < Self.wordPieces else {
          endProcess()
          ended()
          return "it hung, said nothing for \(wordTimeout.milliseconds / 1000) s, and was killed"
        }
        try channel.send(EngineCommand.report)
      }
    }
  }

  /// As long as a keeper starts another engine under the mount of one that died. Answers why there is none any more.
  private func serveSuccessors(_ firstWhy: String) -> String {
    var why = firstWhy
    while let (channel, report) = successor() {
      onReplaced(report, why)
      do {
        why = try listen(channel)
      } catch { why = "\(error)" }
      channel.close()
    }
    return why
  }

  /// The keeper's socket outlives its engines: it takes the connection at once, and the next engine answers it.
  private func successor() -> (LineChannel, EngineReport)? {
    let begun = monotonicNow()
    let deadline = begun + Self.replaceTimeout
    var isHeld = false
    while true {
      guard let configuration = state.withLock({ $0.isLeaving ? nil : $0.configuration }),
        let channel = try? LineChannel.connect(path: paths.engineSocket(module))
      else { return nil }
      state.withLock { $0.joining = channel }
      defer { state.withLock { $0.joining = nil } }
      do {
        try channel.send(EngineCommand.configure(configuration))
        let holdAt = begun + configuration.suspendAfter
        while let event = try next(channel, holdAt, deadline, &isHeld) {
          guard case .ready(let report) = event else { continue }
          guard report.isMounted else { return nil }
          state.withLock { $0.channel = channel }
          return (channel, report)
        }
      } catch let error as HostError where error.code == .timedOut {
        // Neither here nor gone: it must not come back to what the core gives up now.
        if !state.withLock({ $0.isLeaving }) { endProcess() }
        return nil
      } catch {
        // It died as well: its keeper may start another one.
      }
      channel.close()
      guard monotonicNow() < deadline else { return nil }
      usleep(UInt32(Self.lookEvery.milliseconds * 1000))
    }
  }

  /// R2: without an engine nobody serves the guest's reads, and nobody counts their lease: said once, when it is over at the latest.
  private func next(
    _ channel: LineChannel, _ holdAt: Instant, _ deadline: Instant, _ isHeld: inout Bool
  ) throws -> EngineEvent? {
    if !isHeld {
      do { return try channel.receive(EngineEvent.self, timeout: holdAt - monotonicNow()) } catch let error as HostError
        where error.code == .timedOut
      {
        isHeld = true
        onEvent(.readsHeld)
      }
    }
    return try channel.receive(EngineEvent.self, timeout: deadline - monotonicNow())
  }

  /// `isStarted`: none was there.
  private func reach() throws -> (channel: LineChannel, isStarted: Bool) {
    let socket = paths.engineSocket(module)
    if let channel = try? LineChannel.connect(path: socket) { return (channel, false) }
    try launcher.launch(module)
    let deadline = monotonicNow() + Self.startTimeout
    while true {
      do { return (try LineChannel.connect(path: socket), true) } catch {
        if monotonicNow() > deadline { throw error }
        usleep(UInt32(Self.lookEvery.milliseconds * 1000))
      }
    }
  }
}

/// How an engine process is started: by systemd where it runs, else as a process in a session of its own.
struct EngineLauncher: Sendable {
  let paths: HostPaths
  /// vmha-replicad, beside the running vmhad.
  let executable: String

  func launch(_ module: ModuleName) throws {
    if paths.root.isEmpty, access("/run/systemd/system", F_OK) == 0 {
      let unit = "vmha-replicad@\(module).service"
      let result = try ChildProcess.run(["systemctl", "start", unit], timeout: .seconds(10))
      guard result.status == 0 else {
        throw HostError(.invalid, "engine.start", path: unit, "systemctl start \(unit): \(result.errorText)")
      }
      return
    }
    try DurableFile.makeFolder("\(paths.root)/var/log/vmha", mode: 0o750)
    var arguments = [executable, "--module", module.text]
    if !paths.root.isEmpty { arguments += ["--root", paths.root] }
    _ = try ChildProcess.spawnDetached(arguments, log: "\(paths.root)/var/log/vmha/replicad-\(module).log")
  }
}
