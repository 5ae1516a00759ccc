import ControlAPI
import FoundationEssentials
import HostSystem
import MirrorModule
import Model
import ModuleConfig

// The operator's requests (docs/api.md). Blocking work runs on threads of its own, never on the API's.
extension Daemon: ControlService {
  public func status() async throws -> ClusterStatus { clusterStatus() }

  public func module(_ name: String) async throws -> ModuleStatus {
    let runner = try requireModule(name)
    let view = snapshot()
    guard let cluster = view.cluster else { throw ControlError.noCluster() }
    return moduleStatus(runner, cluster, view)
  }

  public func startModule(_ name: String, force: Bool) async throws -> Acceptance {
    try await onThread { try self.start(name, force: force) }
  }

  public func stopModule(_ name: String, timeoutSeconds: Int?) async throws -> Acceptance {
    if let timeoutSeconds, !(0...3600).contains(timeoutSeconds) {
      throw ControlError(
        .invalidRequest, "a stop may take 0 (switched off at once) to 3600 seconds", why: "\(timeoutSeconds) was given")
    }
    return try await onThread { try self.stop(name, timeout: timeoutSeconds.map { .seconds($0) }) }
  }

  public func swapModule(_ name: String) async throws -> Acceptance {
    try await onThread { try self.swap(name) }
  }

  public func crashGuest(_ name: String) async throws -> Acceptance {
    try await onThread { try self.crash(name) }
  }

  public func operation(_ id: OperationID) async throws -> OperationStatus { try operations.status(id) }

  public func log(since cursor: Int64?, module: String?, limit: Int) async throws -> JournalPage {
    try await onThread { try self.journal.page(since: cursor, module: module, limit: limit) }
  }

  public func timeline(module: String?, limit: Int) async throws -> Timeline {
    try await onThread { try self.timeline(of: module, limit: limit) }
  }

  public func decisions(_ name: String) async throws -> Data {
    try JSONEncoder().encode(requireModule(name).flightRecorder)
  }

  public func events() -> AsyncStream<JournalEvent> { journal.events() }

  // MARK: start, stop, swap

  func requireModule(_ name: String) throws -> ModuleRunner {
    guard snapshot().cluster != nil else { throw ControlError.noCluster() }
    guard let valid = ModuleName(name), let runner = runner(valid) else { throw ControlError.noSuchModule(name) }
    return runner
  }

  private func start(_ name: String, force: Bool) throws -> Acceptance {
    let runner = try requireModule(name)
    if let refusal = try unfinishedAdoption(runner.module) { throw refusal }
    let cursor = try journalCursor()
    let status = runner.status
    // It is given all the same: a start takes back what was counted against the module, on both nodes.
    let isStarted = runner.wish.started && status.readiness == .ready && status.state != .stop && !force
    let version = nextWish(runner)
    // The peer first: a module that starts here should find its other half on its way.
    var notes = ""
    if snapshot().peerAlive == true, !force {
      var reply: PeerReply?
      do {
        reply = try callPeer(.command(runner.module, .start(force: false), wishVersion: version), timeout: .seconds(5))
      } catch {
        notes = "; \(peerName) could not be told: \(error)"
      }
      if case .forbidden(let what, let why, let next) = reply {
        throw ControlError(.refused, what, why: why, next: next)
      }
    }
    try check(command(runner, .start(force: force), version))
    record(.command, .notice, "start\(force ? " --force" : "") by the operator", module: name)
    if isStarted {
      let counts = "restarts and takeovers are counted from zero again"
      return accept(runner, cursor, "\(name) is started already; \(counts)\(notes)", target: runningNode(runner))
    }
    return accept(runner, cursor, "\(name) starts\(notes)", target: nil)
  }

  private func stop(_ name: String, timeout: Duration?) throws -> Acceptance {
    let runner = try requireModule(name)
    let cursor = try journalCursor()
    if !runner.wish.started, runner.status.state == .stop {
      return accept(runner, cursor, "\(name) is stopped already", target: nil)
    }
    let version = nextWish(runner)
    record(.command, .notice, "stop by the operator", module: name)
    var notes = ""
    if snapshot().peerAlive == true {
      do {
        _ = try callPeer(.command(runner.module, .stop(timeout: timeout), wishVersion: version), timeout: .seconds(5))
      } catch {
        notes = "; \(peerName) could not be told: \(error)"
      }
    }
    try check(command(runner, .stop(timeout: timeout), version))
    return accept(runner, cursor, "\(name) stops\(notes)", target: nil)
  }

  private func swap(_ name: String) throws -> Acceptance {
    let runner = try requireModule(name)
    let cursor = try journalCursor()
    let view = snapshot()
    let answer: Answer
    let target: String
    if runner.status.state == .second {
      target = view.nodeName
      guard
        case .answer(let theirs) = try callPeer(
          .command(runner.module, .swap, wishVersion: runner.wish.version), timeout: .seconds(5))
      else { throw ControlError(.failed, "\(name) is not swapped", why: "\(peerName) gave no answer") }
      answer = theirs
    } else {
      target = peerName
      answer = try command(runner, .swap, runner.wish.version)
    }
    try check(answer)
    record(.command, .notice, "swap by the operator, to \(target)", module: name)
    return accept(runner, cursor, "\(name) moves to \(target)", target: target)
  }

  private func crash(_ name: String) throws -> Acceptance {
    let runner = try requireModule(name)
    let view = snapshot()
    guard let cluster = view.cluster else { throw ControlError.noCluster() }
    let status = moduleStatus(runner, cluster, view)
    guard status.isProtected, let primary = status.primary else {
      throw ControlError(
        .refused, "the guest of \(name) is not crashed",
        why:
          "the module is not PRIM and SECOND, both ready: a real failure now would cost more than the drill is worth",
        next: "wait for: vmha status \(name)")
    }
    let cursor = try journalCursor()
    if primary.id == view.node {
      try crashGuestHere(runner)
    } else {
      _ = try callPeer(.crashGuest(runner.module), timeout: .seconds(10))
    }
    return accept(runner, cursor, "the guest of \(name) was killed on \(primary.node)", target: nil)
  }

  /// Everything that is in the journal by now lies before it.
  func journalCursor() throws -> Int64 {
    journal.flush(timeout: .seconds(1))
    return try journal.page(since: nil, module: nil, limit: 1).cursor
  }

  private func nextWish(_ runner: ModuleRunner) -> UInt64 {
    max(runner.wish.version, UInt64(WallTime.now().milliseconds)) + 1
  }

  func check(_ answer: Answer) throws {
    if case .refused(let what, let why, let next) = answer { throw ControlError(.refused, what, why: why, next: next) }
  }

  func accept(_ runner: ModuleRunner, _ cursor: Int64, _ sentence: String, target: String?) -> Acceptance {
    Acceptance(module: runner.module.text, cursor: cursor, time: .now(), sentence: sentence, targetNode: target)
  }

  private func runningNode(_ runner: ModuleRunner) -> String? {
    runner.status.state == .second ? peerName : nodeName
  }

  /// Runs blocking work on a thread of its own and waits for it without holding the API's threads.
  func onThread<Result: Sendable>(_ work: @escaping @Sendable () throws -> Result) async throws -> Result {
    try await withCheckedThrowingContinuation { continuation in
      do {
        try HostThread.start(name: "request", stackBytes: 1 << 20) {
          continuation.resume(with: Swift.Result { try work() })
        }
      } catch { continuation.resume(throwing: error) }
    }
  }
}
