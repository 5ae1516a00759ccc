import ControlAPI
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Synchronization
import VirtualMachines

// `vmha add` and `vmha remove`: `Adoption` does the work; here it meets the modules, the peer and the API.
extension Daemon {
  static let adoptionPeerTimeout: Duration = .seconds(60)
  /// How long a remove waits for a module that shall be stopped to be so.
  private static let onItsWayTimeout: Duration = .seconds(10)
  private static let onItsWayLook: Duration = .milliseconds(100)

  public func planAdd(_ request: AddRequest) async throws -> AddPlan {
    try await onThread {
      if let module = try self.missingThere(request) { return self.planAgain(module) }
      let (adoption, wanted) = try self.prepareAdd(request)
      return try self.inWords(nothingChanged: true) { Self.planWords(try adoption.planAdd(wanted)) }
    }
  }

  public func add(_ request: AddRequest) async throws -> OperationID {
    try await onThread {
      if let module = try self.missingThere(request) { return try self.addAgain(module) }
      let (adoption, wanted) = try self.prepareAdd(request)
      let plan = try self.inWords(nothingChanged: true) { try adoption.planAdd(wanted) }
      guard plan.isPossible else { throw Self.checksFailed(request.name, plan) }
      let id = try self.operations.begin(.add, module: request.name, sentence: "adding \(request.name)")
      self.record(.adoption, .notice, "add by the operator", module: request.name)
      try self.inBackground(id, done: "\(request.name) is protected; start it with: vmha start \(request.name)") {
        progress in
        if let valid = ModuleName(request.name) { try self.forgetArbiter(of: valid) }
        try adoption.add(wanted, progress: progress)
        try self.serveModule(request.name)
      }
      return id
    }
  }

  public func remove(_ name: String, purgeCopy: Bool) async throws -> OperationID {
    try await onThread {
      guard self.snapshot().cluster != nil else { throw ControlError.noCluster() }
      guard let valid = ModuleName(name) else { throw ControlError.noSuchModule(name) }
      let isInterrupted = try Adoption.unfinished(paths: self.paths)[valid] != nil
      guard isInterrupted || self.runner(valid) != nil else { throw ControlError.noSuchModule(name) }
      try self.refuseUnlessStopped(valid)
      let adoption = try self.adoption()
      let request = RemovalRequest(name: name, purgeCopy: purgeCopy, record: self.runner(valid)?.durableRecord)
      let plan = try self.inWords(nothingChanged: true) { try adoption.planRemove(request) }
      guard plan.isPossible else { throw Self.checksFailed(name, plan) }
      let id = try self.operations.begin(.remove, module: name, sentence: "removing \(name)")
      self.record(.adoption, .notice, "remove by the operator", module: name)
      for warning in plan.findings where warning.severity == .warning {
        self.operations.progress(id, "note: \(warning)", done: 0, total: 0)
      }
      try self.inBackground(id, done: "\(name) is a plain VM of libvirt again; start it with: virsh start \(name)") {
        progress in
        // It may have been started before this operation was noted.
        try self.refuseUnlessStopped(valid)
        try adoption.remove(request, progress: progress)
        // If this fails, the next `add` of that name does it.
        do { try self.forgetArbiter(of: valid) } catch { self.record(.cluster, .warning, "\(error)", module: name) }
      }
      return id
    }
  }

  func serveAdoption(_ request: AdoptionPeerRequest) throws -> AdoptionPeerReply {
    guard let membership = snapshot().membership else { throw ControlError.noCluster() }
    return AdoptionPeerHandler(
      paths: paths, node: membership.node.id, hypervisor: hypervisor, seeds: seeds,
      didInstall: { try self.installed($0) }, willWithdraw: { try self.withdrawn($0) },
      record: { try ModuleStore(paths: self.paths, module: $0).readRecord() },
      willSeed: { try self.refuseUnlessEmpty($0) }
    ).handle(request)
  }

  // MARK: the other host was replaced

  /// A module of this node of which the other one, asked now, has nothing: its host was replaced, or set up anew.
  private func missingThere(_ request: AddRequest) throws -> ModuleConfiguration? {
    guard let name = ModuleName(request.name), let runner = runner(name),
      try Adoption.unfinished(paths: paths)[name] == nil
    else { return nil }
    guard case .report(let reports)? = try? callPeer(.report, timeout: Self.reportTimeout),
      !reports.contains(where: { $0.module == name })
    else { return nil }
    guard request.preferredNode == nil, request.directory == nil, request.seedDirectory == nil else {
      throw ControlError(
        .refused, "\(name) is not given to \(peerName) again", why: "it goes where it was: nothing can be chosen",
        next: "vmha add \(name), without options; vmha set changes what can be changed")
    }
    return runner.configuration
  }

  private func planAgain(_ module: ModuleConfiguration) -> AddPlan {
    AddPlan(
      name: module.name.text, number: module.number.rawValue,
      findings: [
        .init(
          .warning,
          "\(module.name) is protected already, but \(peerName) has nothing of it: a host that was replaced, or set up anew"
        )
      ],
      steps: [
        "make \(module.backingDirectory) and \(module.mountPoint) on \(peerName), which must not exist there",
        "define \(module.name) there as it is defined here", "resynchronise the whole copy, while the VM runs",
      ], bytesToCopy: 0)
  }

  private func addAgain(_ module: ModuleConfiguration) throws -> OperationID {
    let name = module.name
    let adoption = try adoption()
    let id = try operations.begin(.add, module: name.text, sentence: "giving \(name) to \(peerName) again")
    record(.adoption, .notice, "add by the operator, to \(peerName) again", module: name.text)
    let done = "\(name) is defined on \(peerName); its copy there is made anew: vmha status --watch"
    try inBackground(id, done: done) { _ in try adoption.giveAgain(name) }
    return id
  }

  // MARK: pieces

  private func prepareAdd(_ request: AddRequest) throws -> (Adoption, AdoptionRequest) {
    guard let cluster = snapshot().cluster else { throw ControlError.noCluster() }
    if let name = ModuleName(request.name), runner(name) != nil {
      throw ControlError(
        .refused, "\(request.name) is protected already", why: "it is a module of this cluster",
        next: "see: vmha status \(request.name)")
    }
    var preferred: NodeID?
    if let node = request.preferredNode {
      guard let known = cluster.node(named: node) else {
        throw ControlError(
          .invalidRequest, "there is no node '\(node)'",
          why: "the nodes are " + cluster.nodes.map(\.name).joined(separator: ", "), next: "see: vmha cluster show")
      }
      preferred = known.id
    }
    return (
      try adoption(),
      AdoptionRequest(
        name: request.name, preferredNode: preferred, directory: request.directory,
        seedDirectory: request.seedDirectory)
    )
  }

  /// One for the life of the daemon: it does one thing at a time.
  private func adoption() throws -> Adoption {
    guard let membership = snapshot().membership else { throw ControlError.noCluster() }
    return state.withLock { state in
      if let adoption = state.adoption { return adoption }
      let adoption = newAdoption(membership)
      state.adoption = adoption
      return adoption
    }
  }

  private func newAdoption(_ membership: ClusterMembership) -> Adoption {
    Adoption(
      paths: paths, node: membership.node.id, hypervisor: hypervisor,
      actions: AdoptionActions(
        peer: { request in
          guard case .adoption(let reply) = try self.callPeer(.adoption(request), timeout: Self.adoptionPeerTimeout)
          else {
            throw HostError(.invalid, "peer.adoption", path: self.peerName, "the peer's answer was not one")
          }
          return reply
        },
        createRecord: { try self.createRecord($0) }, discardRecord: { try self.discardRecord($0) }))
  }

  /// The first record: this node has everything, the other copy is empty, so this node may start at once (R5 standing).
  private func createRecord(_ module: ModuleConfiguration) throws {
    let store = ModuleStore(paths: paths, module: module.name)
    switch try store.readRecord() {
    case .valid: return
    case .absent: break
    case .damaged: try store.setRecordAside(stamp: ModuleStore.stamp())
    }
    var record = DurableRecord(
      generation: Generation(number: 1, branch: BranchID(rawValue: randomUInt64())), standing: .uptodate)
    record.peerOutdated = .consent
    record.wroteLast = true
    try store.write(record)
    try store.write(Wish(started: false, version: 0))
  }

  private func discardRecord(_ name: ModuleName) throws {
    dropModule(name)
    try ModuleStore(paths: paths, module: name).removeAll()
    try AdoptionFiles.removeFolderIfEmpty(paths.moduleState(name))
  }

  private func serveModule(_ name: String) throws {
    guard let valid = ModuleName(name) else { return }
    let file = paths.moduleFile(valid)
    try bringUp(ModuleConfiguration(xml: DurableFile.read(file), file: file))
  }

  /// The other node has added a VM: this copy is empty until it was resynchronised.
  private func installed(_ module: ModuleConfiguration) throws {
    let store = ModuleStore(paths: paths, module: module.name)
    // R0: one that is there is never written over, least of all by a module that could not be loaded yet.
    if runner(module.name) == nil, case .absent = try store.readRecord() {
      try store.write(.empty)
      try store.write(Wish(started: false, version: 0))
      record(
        .adoption, .notice, "the other node protects this VM; its copy here is empty until it is resynchronised",
        module: module.name.text)
    }
    try bringUp(module)
  }

  /// Only a copy that never was one: files that a resync has touched are neither replaced nor given back.
  private func refuseUnlessEmpty(_ name: ModuleName) throws {
    switch try ModuleStore(paths: paths, module: name).readRecord() {
    case .absent: return
    // R0: one whose record was lost may hold the newest data there is.
    case .valid(let record)
    where record.generation.branch == .empty && record.recordLost != true && runner(name).map(isStopped) ?? true:
      return
    case .valid, .damaged:
      throw AdoptionError(
        .conflict, what: "\(name): the carried copy", why: "the module's copy on \(nodeName) is in use already",
        next: "see: vmha status \(name)")
    }
  }

  private func withdrawn(_ withdrawal: AdoptionWithdrawal) throws {
    let name = withdrawal.name
    if let runner = runner(name), !isStopped(runner) {
      throw AdoptionError(
        .conflict, what: "\(name) is not removed", why: "it is \(runner.status.state.rawValue) on \(nodeName)",
        next: "stop it first: vmha stop \(name)")
    }
    // Again, at the last moment: since the plan was made this node may have been started alone.
    let store = ModuleStore(paths: paths, module: name)
    if let node = snapshot().membership?.node.id, let objection = withdrawal.objection(of: node, store.readRecord) {
      throw AdoptionError(
        .conflict, what: "\(name) is not removed", why: objection.what,
        next: "nothing of the copy on \(nodeName) is touched; docs/operating/failures.md, 'An unfinished add or remove'"
      )
    }
    try discardRecord(name)
  }

  /// A module that is half added or half removed has its files here and there: what would start is not what was stopped.
  func unfinishedAdoption(_ name: ModuleName) throws -> ControlError? {
    var kind = try Adoption.unfinished(paths: paths)[name]?.rawValue
    if kind == nil, let operation = operations.unfinished(name.text), [.add, .remove].contains(operation.kind) {
      kind = operation.kind.rawValue
    }
    return kind.map {
      ControlError(
        .refused, "\(name) is not started", why: "a 'vmha \($0) \(name)' on \(nodeName) is not finished",
        next: "wait for its end, or repeat it there: vmha \($0) \(name)")
    }
  }

  private func refuseUnlessStopped(_ name: ModuleName) throws {
    guard let runner = runner(name) else { return }
    var states = [(nodeName, isStopped(runner) ? .stop : runner.status.state)]
    if let report = stoppedReport(name) { states.append((peerName, report.status.state)) }
    for (node, state) in states where state != .stop {
      throw ControlError(
        .refused, "\(name) is not removed", why: "it is \(state.rawValue) on \(node)",
        next: "stop it first: vmha stop \(name)")
    }
  }

  /// A module that shall be stopped may still be on its way: just stopped, or its vmhad just started.
  private func isStopped(_ runner: ModuleRunner) -> Bool {
    let end = monotonicNow() + Self.onItsWayTimeout
    while runner.status.state != .stop {
      guard !runner.wish.started, monotonicNow() < end, !isStopping(within: Self.onItsWayLook) else { return false }
    }
    return true
  }

  /// The same of the peer, whose last report may be old; nil = it never told of this module.
  private func stoppedReport(_ name: ModuleName) -> ModuleReport? {
    let end = monotonicNow() + Self.onItsWayTimeout
    while true {
      let known = state.withLock { $0.peerReports[name] }
      guard let known, known.status.state != .stop, monotonicNow() < end, !isStopping(within: Self.onItsWayLook) else {
        return known
      }
      // The report decides, not whether it could be fetched.
      guard case .report(let reports)? = try? callPeer(.report, timeout: Self.reportTimeout) else { continue }
      guard let fresh = reports.first(where: { $0.module == name }) else { return nil }
      state.withLock { $0.peerReports[name] = fresh }
      if fresh.wish.started { return fresh }
    }
  }

  private func inBackground(
    _ id: OperationID, done: String, _ work: @escaping @Sendable (@escaping (AdoptionProgress) -> Void) throws -> Void
  ) throws {
    let operations = operations
    let module = try operations.status(id).module
    try inBackground(id, thread: "adoption", stackBytes: 1 << 20) {
      do {
        try self.inWords {
          try work { operations.progress(id, $0.sentence, done: $0.bytesDone, total: $0.bytesTotal) }
        }
        operations.finish(id, done)
        self.record(.adoption, .notice, done, module: module)
      } catch {
        let error =
          error as? ControlError
          ?? ControlError(.failed, "\(module): it failed", why: "\(error)", next: "repeat the command")
        operations.finish(id, error.message, error: error)
        self.record(.adoption, .error, "\(error.message): \(error.why ?? "")", module: module)
      }
    }
  }

  /// Begins the work of an operation on a thread of its own, which has to finish it. Without one the operation has failed.
  func inBackground(
    _ id: OperationID, thread: String, stackBytes: Int, _ work: @escaping @Sendable () -> Void
  ) throws {
    do { try HostThread.start(name: thread, stackBytes: stackBytes, work) } catch {
      operations.finish(id, "failed", error: ControlError(.failed, "no thread for it", why: "\(error)"))
      throw error
    }
  }

  // MARK: words

  private static func planWords(_ plan: AdoptionPlan) -> AddPlan {
    AddPlan(
      name: plan.name, number: plan.number?.rawValue, findings: plan.findings.map(findingWords),
      steps: plan.work?.steps.map(\.sentence) ?? [], bytesToCopy: plan.work?.bytesToCopy ?? 0)
  }

  private static func findingWords(_ finding: AdoptionFinding) -> AddPlan.Finding {
    let severity: ControlAPI.Severity =
      switch finding.severity {
      case .error: .error
      case .warning: .warning
      case .info: .info
      }
    return AddPlan.Finding(severity, finding.what, whatToDo: finding.whatToDo)
  }

  private static func checksFailed(_ name: String, _ plan: AdoptionPlan) -> ControlError {
    let errors = plan.findings.filter { $0.severity == .error }
    return ControlError(
      .checksFailed,
      "\(name): the checks found \(errors.count) error\(errors.count == 1 ? "" : "s"); nothing was changed",
      why: errors.first?.what, next: errors.first?.whatToDo,
      details: errors.count > 1 ? errors.map(\.description) : nil)
  }

  /// `nothingChanged`: so far it only looked.
  private func inWords<Result>(nothingChanged: Bool = false, _ work: () throws -> Result) throws -> Result {
    do { return try work() } catch let error as AdoptionError {
      let code: ControlError.Code =
        switch error.code {
        case .busy: .busy
        case .refused, .conflict: .refused
        case .peer: .peerUnreachable
        default: .failed
        }
      throw ControlError(
        code, error.what, why: error.why, next: error.next, httpStatus: nothingChanged ? 409 : nil)
    } catch let error as HypervisorError {
      throw ControlError(
        error.code == .noSuchDomain ? .noSuchVM : .hypervisorUnavailable, error.message, why: "\(error)",
        next: error.next, httpStatus: nothingChanged && error.code != .noSuchDomain ? 409 : nil)
    }
  }
}
