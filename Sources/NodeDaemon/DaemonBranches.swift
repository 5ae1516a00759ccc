import ControlAPI
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Synchronization

// Splits and archived branches, for the operator (R12; docs/operating/split.md).
extension Daemon {
  static let resolveTimeout: Duration = .seconds(60)

  public func resolve(_ name: String, _ request: ResolveRequest) async throws -> Acceptance {
    try await onThread { try self.resolveSplit(name, request) }
  }

  public func branches(_ name: String) async throws -> [ArchivedBranch] {
    try await onThread {
      let runner = try self.requireModule(name)
      var found = try self.branchesHere(runner)
      if self.snapshot().peerAlive == true {
        guard case .branches(let theirs) = try self.callPeer(.branches(runner.module), timeout: .seconds(10)) else {
          throw ControlError(.failed, "\(self.peerName) gave no answer about its branches")
        }
        found += theirs
      }
      return found
    }
  }

  public func exportBranch(_ name: String, _ branch: String, to directory: String) async throws -> OperationID {
    try await onThread {
      let (runner, id) = try self.archivedBranch(name, branch)
      let operation = try self.operations.begin(
        .exportBranch, module: name, sentence: "writing branch \(branch) of \(name) to \(directory)")
      try self.work(operation, "branch \(branch) of \(name) is in \(directory)") {
        try runner.archive.export(id, to: directory)
      }
      return operation
    }
  }

  public func dropBranch(_ name: String, _ branch: String) async throws -> OperationID {
    try await onThread {
      let (runner, id) = try self.archivedBranch(name, branch)
      let operation = try self.operations.begin(
        .dropBranch, module: name, sentence: "deleting branch \(branch) of \(name)")
      self.record(.command, .warning, "branch \(branch) is dropped by the operator", module: name)
      try self.work(operation, "branch \(branch) of \(name) is deleted") { try runner.archive.drop(id) }
      return operation
    }
  }

  // MARK: choosing a side

  private func resolveSplit(_ name: String, _ request: ResolveRequest) throws -> Acceptance {
    let runner = try requireModule(name)
    let cursor = try journalCursor()
    let view = snapshot()
    guard let cluster = view.cluster, let kept = cluster.node(named: request.keep), cluster.nodes.count == 2 else {
      throw ControlError(
        .invalidRequest, "'\(request.keep)' is no node of this cluster", why: "--keep takes the name of a node",
        next: "see: vmha status")
    }
    if let operation = operations.current(module: name) {
      throw ControlError(.busy, "\(name) is being worked on", why: operation, next: "wait for its end and repeat")
    }
    guard view.peerAlive == true else {
      throw ControlError(
        .refused, "the split of \(name) is not resolved", why: "\(peerName) cannot be reached",
        next: "bring it and the links back first")
    }
    let loser = kept.id.peer
    let status = moduleStatus(runner, cluster, view)
    func generation(_ node: NodeID) throws -> Generation {
      guard let entry = status.nodes.first(where: { $0.id == node }), let known = entry.generation,
        request.branches[entry.node] == known.branch, let branch = BranchID(hexadecimal: known.branch)
      else {
        throw ControlError(
          .refused, "the split of \(name) is not resolved",
          why: "the branches are no longer those that were chosen from", next: "look again: vmha status \(name)")
      }
      return Generation(number: known.number, branch: branch)
    }
    let mine = try generation(loser)
    let theirs = try generation(kept.id)
    record(.command, .warning, "resolve by the operator: \(request.keep)'s copy goes on", module: name)
    if loser == view.node {
      try check(giveUp(runner, mine: mine, theirs: theirs))
    } else {
      guard
        case .answer(let answer) = try callPeer(
          .resolve(runner.module, mine: mine, theirs: theirs), timeout: Self.resolveTimeout)
      else { throw ControlError(.failed, "\(name) is not resolved", why: "\(peerName) gave no answer") }
      try check(answer)
    }
    return accept(
      runner, cursor,
      "\(name) goes on with \(request.keep)'s copy; the guest on the other node is shut down and its branch archived",
      target: request.keep)
  }

  /// On the node whose copy is given up.
  func giveUp(_ runner: ModuleRunner, mine: Generation, theirs: Generation) throws -> Answer {
    if runner.status.isSplit {
      // Before anything is stopped for it.
      do {
        try runner.archive.checkRoom(
          for: mine.branch, TreeSurvey(runner.configuration.backingDirectory).bytes)
      } catch {
        return .refused(
          what: "the split of \(runner.module) is not resolved", why: "this node's branch cannot be archived: \(error)",
          next: "make room on \(nodeName), or drop an older branch: vmha branch list \(runner.module)")
      }
    }
    return try runner.command(.resolve(mine: mine, theirs: theirs), wishVersion: runner.wish.version)
  }

  /// The site chose beforehand (split-policy); from here on it is the operator's way, with its guards.
  func resolveByPolicy(_ module: ModuleName, mine: Generation, theirs: Generation) {
    @Sendable func failed(_ why: String) {
      record(
        .decision, .error, "split-policy: the split is not resolved: \(why); both copies stay", module: module.text,
        rule: "R12")
    }
    do {
      try HostThread.start(name: "resolve-\(module.text)", stackBytes: 1 << 20) { [self] in
        guard let runner = runner(module) else { return }
        do { try check(giveUp(runner, mine: mine, theirs: theirs)) } catch { failed("\(error)") }
      }
    } catch { failed("\(error)") }
  }

  /// Looks at the copies of modules that are SPLIT or wait: on a thread of its own, so that a disk that hangs holds nobody else up.
  func watchBranches() {
    var notes = SyncNotes(paths: paths)
    while !isStopping(within: Self.reportEvery) {
      var facts: [ModuleName: BranchFacts] = [:]
      let runners = snapshot().runners
      notes.forget(allBut: runners.keys)
      for (name, runner) in runners {
        // The disk that has no room for it says so elsewhere.
        try? notes.look(at: name, inSync: runner.status.inSync, now: WallTime.now())
        facts[name] = branchFacts(runner)
      }
      state.withLock { if $0.branchFacts != facts { $0.branchFacts = facts } }
    }
  }

  /// What an operator chooses by, in a split or when a copy waits for a node that may never return; nil while there is nothing to
  /// choose, or the copy cannot be read: then status shows none.
  private func branchFacts(_ runner: ModuleRunner) -> BranchFacts? {
    let status = runner.status
    let waits = status.readiness == .blocked && !status.inSync && !status.isAlone
    guard status.isSplit || waits, let generation = status.generation,
      let survey = try? TreeSurvey(runner.configuration.backingDirectory), let free = try? runner.archive.bytesFree()
    else { return nil }
    var facts = BranchFacts(
      since: runner.branchSince(generation.branch).map(WallTime.init(milliseconds:)),
      lastWrite: survey.lastWrite.map(WallTime.init(milliseconds:)), bytesWritten: runner.engineReport?.bytesMarked,
      bytesOnDisk: survey.bytes, bytesFree: free)
    facts.lastInSync = SyncNotes.read(paths, runner.module)
    return facts
  }

  // MARK: archived branches

  func branchesHere(_ runner: ModuleRunner) throws -> [ArchivedBranch] {
    try runner.archive.list().map { record in
      ArchivedBranch(
        branch: "\(record.generation.branch)", number: record.generation.number, node: nodeName,
        since: record.since.map(WallTime.init(milliseconds:)),
        lastWrite: record.lastWrite.map(WallTime.init(milliseconds:)),
        archived: WallTime(milliseconds: record.archivedAt), bytes: record.bytes, files: record.files,
        directory: runner.archive.files(record.generation.branch))
    }
  }

  private func archivedBranch(_ name: String, _ branch: String) throws -> (ModuleRunner, BranchID) {
    let runner = try requireModule(name)
    guard let id = BranchID(hexadecimal: branch), try runner.archive.find(id) != nil else {
      throw ControlError(
        .refused, "there is no archived branch '\(branch)' of \(name) on \(nodeName)",
        why: "branches stay on the node whose copy was given up", next: "see where: vmha branch list \(name)")
    }
    return (runner, id)
  }

  /// In the background, to its end.
  private func work(
    _ operation: OperationID, _ done: String, _ body: @escaping @Sendable () throws -> Void
  ) throws {
    try inBackground(operation, thread: "branch", stackBytes: 4 << 20) {
      do {
        try body()
        self.operations.finish(operation, done)
      } catch {
        self.operations.finish(
          operation, "failed", error: ControlError(.failed, "it was not done", why: "\(error)", next: "repeat it"))
      }
    }
  }
}

extension BranchID {
  /// 16 hexadecimal digits, as people see it.
  init?(hexadecimal text: String) {
    guard text.count == 16, let value = UInt64(text, radix: 16) else { return nil }
    self.init(rawValue: value)
  }
}
