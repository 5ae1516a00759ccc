import ControlAPI
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Replication
import Synchronization

/// What this vmhad knows of the comparisons of a module.
struct KnownVerification: Sendable {
  var record: VerificationRecord
  /// When the last one ended, also one that came to nothing.
  var attemptedAt: WallTime?
  /// The scrub that goes on.
  var scrub: UInt64?
}

// `vmha verify` and the scrub. The primary's engine compares and keeps the result until it is asked; both vmhads keep it on disk.
extension Daemon {
  /// An engine that was told to compare shows it in its report within this.
  static let verificationBeginMax: Duration = .seconds(15)
  /// The primary is not the primary any more and its engine has said nothing for so long: the comparison is over.
  static let verificationSilenceMax: Duration = .seconds(15)
  /// A scrub that makes room for the operator's own comparison ends within this.
  static let scrubEndMax: Duration = .seconds(10)
  /// A result is known on both nodes within this, or the command does not wait for it.
  static let verificationRecordMax: Duration = .seconds(5)
  static let verificationLookEvery: Duration = .milliseconds(300)
  /// Places named in one journal entry.
  static let placesToldMax = 8

  public func verifyModule(_ name: String, repair: Bool) async throws -> OperationID {
    try await onThread {
      let runner = try self.requireModule(name)
      let isHere = try self.isPrimaryHere(runner)
      let id = randomUInt64()
      let operation = try self.operations.begin(
        .verify, module: name, sentence: "comparing both copies\(repair ? ", repairing what differs" : "")")
      do {
        if isHere {
          try self.beginVerification(runner, id: id, repairs: repair)
        } else {
          _ = try self.callPeer(.verify(runner.module, id: id, repairs: repair), timeout: .seconds(20))
        }
        self.record(.command, .notice, "verify\(repair ? " --repair" : "") by the operator", module: name)
        try HostThread.start(name: "verify-\(name)") { self.follow(operation, runner, id, isHere: isHere) }
      } catch {
        let error =
          error as? ControlError
          ?? ControlError(
            .refused, "\(name) is not compared", why: "\(error)", next: "see: vmha status \(name)")
        self.operations.finish(operation, error.message, error: error)
        throw error
      }
      return operation
    }
  }

  public func stopVerification(_ name: String) async throws {
    try await onThread {
      let runner = try self.requireModule(name)
      if (try? self.isPrimaryHere(runner)) == false {
        _ = try self.callPeer(.stopVerify(runner.module), timeout: .seconds(5))
      } else {
        runner.stopVerify()
      }
    }
  }

  /// Refuses unless both copies are in sync.
  private func isPrimaryHere(_ runner: ModuleRunner) throws -> Bool {
    if isInSyncPrimary(runner.status) { return true }
    let view = snapshot()
    if view.peerAlive == true, let peer = view.peerReports[runner.module], isInSyncPrimary(peer.status) { return false }
    throw ControlError(
      .refused, "\(runner.module) is not compared", why: "its two copies are not in sync: \(runner.status.sentence)",
      next: "wait until vmha status \(runner.module) shows PRIM and SECOND, and repeat")
  }

  /// The guest may be paused: its disks are compared all the same.
  private func isInSyncPrimary(_ status: CoreStatus) -> Bool { status.state == .prim && status.inSync }

  /// On the primary. Takes the place of a scrub.
  func beginVerification(_ runner: ModuleRunner, id: UInt64, repairs: Bool, bytesPerSecondMax: UInt64 = 0) throws {
    let deadline = monotonicNow() + Self.scrubEndMax
    while let running = running(runner) {
      let isScrub = state.withLock { $0.verifications[runner.module]?.scrub == running.id }
      guard isScrub, monotonicNow() < deadline else {
        throw ControlError(
          .busy, "\(runner.module) is being compared already", why: "\(running.bytesDone) bytes are done",
          next: "wait for its end, or stop it: vmha verify \(runner.module) --stop")
      }
      runner.stopVerify()
      runner.askEngineForReport()
      HostThread.sleep(for: .milliseconds(50))
    }
    runner.askEngineForReport()
    guard isInSyncPrimary(runner.status), case .both(let session)? = runner.engineReport?.policy else {
      throw ControlError(
        .refused, "\(runner.module) is not compared", why: "its two copies are not in sync on \(nodeName)",
        next: "see: vmha status \(runner.module)")
    }
    runner.verify(
      VerifyRequest(id: id, session: session, repairs: repairs, bytesPerSecondMax: bytesPerSecondMax))
  }

  // MARK: the operation

  /// Tells the operation how far it is until it is over, on whichever node it goes on.
  private func follow(_ operation: OperationID, _ runner: ModuleRunner, _ id: UInt64, isHere: Bool) {
    let name = runner.module.text
    var heardAt = monotonicNow()
    var hasBegun = false
    while true {
      if isHere { runner.askEngineForReport() }
      HostThread.sleep(for: Self.verificationLookEvery)
      let view = snapshot()
      let peer = view.peerReports[runner.module]
      let now = monotonicNow()
      if let report = isHere ? runner.engineReport?.verify : peer?.engine?.verify, report.id == id {
        hasBegun = true
        operations.progress(operation, report)
        if report.outcome != nil {
          let result = result(report, on: isHere ? nodeName : peerName)
          awaitRecord(of: result, runner)
          return finish(operation, name, result)
        }
        let status = isHere ? runner.status : peer?.status
        if let status, isInSyncPrimary(status), isHere || view.peerAlive == true { heardAt = now }
      }
      let limit = hasBegun ? Self.verificationSilenceMax : Self.verificationBeginMax
      if now - heardAt > limit {
        let why = hasBegun ? "the copies are not in sync any more" : "the engine did not begin"
        let start = WallTime.now()
        return finish(
          operation, name,
          VerificationResult(
            node: nodeName, startedAt: start, endedAt: start, complete: false, why: why, bytes: 0))
      }
    }
  }

  /// So that `status` shows on this node what the command has told.
  private func awaitRecord(of result: VerificationResult, _ runner: ModuleRunner) {
    guard result.complete || result.differingCount > 0 else { return }
    let deadline = monotonicNow() + Self.verificationRecordMax
    while monotonicNow() < deadline, verification(of: runner).record.last != result {
      HostThread.sleep(for: .milliseconds(50))
    }
  }

  private func finish(_ operation: OperationID, _ name: String, _ result: VerificationResult) {
    let sentence = "\(name): \(Self.sentence(result))"
    var error: ControlError?
    if !result.complete {
      error = ControlError(
        .failed, sentence, why: result.why, next: "repeat it when vmha status \(name) shows PRIM and SECOND",
        httpStatus: 500)
    }
    operations.finish(operation, sentence, error: error, verification: result)
  }

  private func result(_ report: VerifyReport, on node: String) -> VerificationResult {
    var why: String?
    if case .interrupted(let reason)? = report.outcome { why = reason }
    let start = WallTime(milliseconds: report.startedAtMs)
    return VerificationResult(
      node: node, startedAt: start, endedAt: report.endedAtMs.map { WallTime(milliseconds: $0) } ?? start,
      complete: report.outcome == .complete, why: why, bytes: report.bytesDone, findings: report.findings,
      findingsCount: report.findingsCount, repairedCount: report.repairedCount)
  }

  static func sentence(_ result: VerificationResult) -> String {
    let repaired = result.repairedCount == 0 ? "" : "; \(places(result.repairedCount)) repaired from \(result.node)"
    if result.differingCount > 0 {
      let rest = result.complete ? "" : "; the comparison was interrupted"
      return "the copies DIFFER in \(places(result.differingCount))\(repaired)\(rest)"
    }
    guard result.complete else { return "the comparison was interrupted\(repaired)" }
    return "both copies are identical, \(byteText(result.bytes)) compared\(repaired)"
  }

  private static func places(_ count: Int) -> String { count == 1 ? "1 place" : "\(count) places" }

  // MARK: results

  /// Each second: takes over what has ended, here and on the other node, and begins a scrub that is due.
  func lookAfterVerifications() {
    let view = snapshot()
    for runner in view.runners.values where runner.isLoaded {
      let known = verification(of: runner)
      if let report = runner.engineReport?.verify, report.outcome != nil, report.id != known.record.id {
        ended(runner, known, report)
      } else if let theirs = view.peerReports[runner.module]?.verification, known.record.isOlder(than: theirs) {
        var merged = theirs
        // What this node's own engine has told stays known.
        merged.id = known.record.id
        if let last = theirs.last { tell(last, runner.module.text) }
        keep(merged, runner)
      }
    }
    beginScrub(view)
  }

  /// From the disk, the first time.
  func verification(of runner: ModuleRunner) -> KnownVerification {
    if let known = state.withLock({ $0.verifications[runner.module] }) { return known }
    let known = KnownVerification(record: runner.store.readVerification() ?? VerificationRecord())
    return state.withLock { state in
      // Nothing is kept of a module that was removed meanwhile.
      guard state.runners[runner.module] === runner else { return known }
      let first = state.verifications[runner.module] ?? known
      state.verifications[runner.module] = first
      return first
    }
  }

  private func ended(_ runner: ModuleRunner, _ known: KnownVerification, _ report: VerifyReport) {
    let result = result(report, on: nodeName)
    // Told before it counts as told: after a crash in between it is told twice.
    tell(result, runner.module.text)
    if result.differingCount > 0 { runHook(runner, result) }
    state.withLock {
      $0.verifications[runner.module]?.attemptedAt = .now()
      $0.verifications[runner.module]?.scrub = nil
    }
    keep(known.record.with(result, id: report.id), runner)
  }

  private func keep(_ record: VerificationRecord, _ runner: ModuleRunner) {
    let isKept = state.withLock { state -> Bool in
      guard state.runners[runner.module] === runner else { return false }
      state.verifications[runner.module]?.record = record
      return true
    }
    guard isKept else { return }
    do { try runner.store.write(record) } catch {
      self.record(
        .verification, .warning, "the result of a comparison cannot be kept: \(error)", module: runner.module.text)
    }
  }

  private func tell(_ result: VerificationResult, _ name: String) {
    var sentence = Self.sentence(result)
    let open = result.findings.filter { !$0.isRepaired }
    if result.differingCount > 0 {
      sentence += ": " + open.prefix(Self.placesToldMax).map(\.text).joined(separator: "; ")
      if result.differingCount > min(open.count, Self.placesToldMax) { sentence += "; …" }
    }
    if let why = result.why { sentence += " (\(why))" }
    record(
      .verification, result.differingCount > 0 ? .error : result.complete ? .notice : .info, sentence, module: name,
      details: [
        "node": result.node, "bytes": "\(result.bytes)", "differing": "\(result.differingCount)",
        "repaired": "\(result.repairedCount)", "complete": "\(result.complete)",
      ])
  }

  /// The hook hears of a difference as of a change of state, with the same state twice.
  private func runHook(_ runner: ModuleRunner, _ result: VerificationResult) {
    let view = snapshot()
    guard let cluster = view.cluster else { return }
    let status = runner.status
    let environment = StateChangeHook.environment(
      module: runner.module, node: view.node, cluster: cluster, from: status.state, to: status.state,
      readiness: status.readiness, sentence: "ALARM: \(Self.sentence(result))",
      time: "\(WallTime.now())")
    hooks.stateChanged(EventHooks.Change(module: runner.module, environment: environment))
  }

  /// The comparison that goes on here. What an engine said last before it went counts no more.
  private func running(_ runner: ModuleRunner) -> VerifyReport? {
    guard isInSyncPrimary(runner.status), let report = runner.engineReport?.verify, report.outcome == nil else {
      return nil
    }
    return report
  }

  // MARK: the scrub

  private func dueAt(_ runner: ModuleRunner, _ cluster: ClusterConfiguration) -> WallTime? {
    guard isInSyncPrimary(runner.status) else { return nil }
    let known = verification(of: runner)
    // FNV-1a of the name: the same on both nodes, after every restart.
    let seed = runner.module.text.utf8.reduce(0xcbf2_9ce4_8422_2325 as UInt64) { ($0 ^ UInt64($1)) &* 0x100_0000_01b3 }
    return ScrubSchedule(interval: cluster.scrubInterval, seed: seed).dueAt(
      completedFrom: known.record.last.flatMap { $0.complete ? $0.startedAt : nil },
      inSyncSince: wallTime(of: runner.status.since), attemptedAt: known.attemptedAt, now: .now())
  }

  /// At most one comparison at a time on a node: they share its disk.
  private func beginScrub(_ view: Daemon.State) {
    guard let cluster = view.cluster, cluster.scrubInterval > .zero,
      !view.runners.values.contains(where: { running($0) != nil })
    else { return }
    let now = WallTime.now()
    let due = view.runners.values.compactMap { runner in dueAt(runner, cluster).map { ($0, runner) } }
      .filter { $0.0 <= now && operations.current(module: $0.1.module.text) == nil }.min { $0.0 < $1.0 }
    guard let (_, runner) = due else { return }
    let id = randomUInt64()
    state.withLock {
      // Also if it is refused: the next attempt comes later.
      $0.verifications[runner.module]?.attemptedAt = now
      $0.verifications[runner.module]?.scrub = id
    }
    do {
      try beginVerification(
        runner, id: id, repairs: false, bytesPerSecondMax: UInt64(cluster.scrubRateMiB) << 20)
      record(.verification, .info, "scrub begins, at most \(cluster.scrubRateMiB) MiB/s", module: runner.module.text)
    } catch { record(.verification, .info, "scrub put off: \(error)", module: runner.module.text) }
  }

  // MARK: words

  func verificationStatus(_ runner: ModuleRunner, _ view: Daemon.State) -> VerificationStatus {
    let record = verification(of: runner).record
    var status = VerificationStatus()
    status.identicalUpTo = record.identicalUpTo
    status.last = record.last
    let elsewhere = view.peerAlive == true ? view.peerReports[runner.module] : nil
    let theirs = elsewhere.flatMap { isInSyncPrimary($0.status) ? $0.engine?.verify : nil }
    status.running = (running(runner) ?? theirs).flatMap { $0.outcome == nil ? VerificationProgress($0) : nil }
    status.nextScrub = view.cluster.flatMap { dueAt(runner, $0) }
    return status
  }

  func differenceWarning(_ module: ModuleStatus) -> StatusWarning? {
    guard let result = module.verification?.last, result.differingCount > 0 else { return nil }
    let places = Self.places(result.differingCount)
    return StatusWarning(
      "the copies of \(module.name) DIFFER in \(places), found by \(result.node) at \(result.endedAt)",
      whatToDo: "they are listed by: vmha status \(module.name); see docs/operating/verify.md before you repair")
  }
}

extension VerifyFinding {
  /// "disk.img: 128.0 KiB at 5242880 differ".
  var text: String {
    switch kind {
    case .differs: "\(path): \(byteText(length)) at \(offset) differ"
    case .unreadableThere: "\(path): \(byteText(length)) at \(offset) cannot be read on the secondary's disk"
    case .unreadableHere: "\(path): \(byteText(length)) at \(offset) cannot be read on the primary's disk"
    case .size: "\(path): the lengths differ by \(length) bytes"
    case .missing: "\(path): is not on the secondary"
    case .names: "\(path): names or attributes in this folder differ"
    }
  }
}
