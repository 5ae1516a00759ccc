import Glibc
import HostSystem
import Model
import ModuleConfig
import Synchronization
import VirtualMachines

/// `vmha add` and `vmha remove` on the node where the command is given. Calls block as long as the work takes; they may come from any
/// thread, one at a time is done.
public final class Adoption: Sendable {
  private let paths: HostPaths
  private let hypervisor: any Hypervisor
  private let actions: AdoptionActions
  private let survey: AdoptionSurvey
  private let isBusy = Mutex(false)

  public init(paths: HostPaths, node: NodeID, hypervisor: any Hypervisor, actions: AdoptionActions) {
    self.paths = paths
    self.hypervisor = hypervisor
    self.actions = actions
    survey = AdoptionSurvey(paths: paths, node: node, hypervisor: hypervisor)
  }

  /// Adds and removes that a crash has interrupted: their modules must not be run before the command was repeated.
  public static func unfinished(paths: HostPaths) throws -> [ModuleName: AdoptionWork.Kind] {
    var found: [ModuleName: AdoptionWork.Kind] = [:]
    for folder in try AdoptionFiles.names(in: "\(paths.state)/modules") {
      guard let name = ModuleName(folder) else { continue }
      let path = "\(paths.moduleState(name))/adoption.json"
      guard let bytes = try DurableFile.readDurable(path, bytesMax: AdoptionJournal.bytesMax) else { continue }
      found[name] = try AdoptionCoding.decode(AdoptionJournal.self, from: bytes, path: path).work.kind
    }
    return found
  }

  // MARK: Add

  /// Looks at both nodes and says what an add would do. Changes nothing. Throws `HypervisorError` or `HostError` if this host cannot
  /// be asked; whatever is wrong with the VM or the other node is a finding.
  public func planAdd(_ request: AdoptionRequest) throws -> AdoptionPlan {
    if let plan = try interrupted(request.name, .add) { return plan }
    let facts = try survey.facts(for: request)
    var peer: AdoptionPeerFacts?
    var problem = "it was not asked"
    if let question = AdoptionPlanner.question(request, facts) {
      do {
        switch try actions.peer(.facts(question)) {
        case .facts(let answer): peer = answer
        case .failed(let error): problem = "\(error)"
        case .done, .seeding, .removalFacts, .withdrawn: problem = "it gave another answer than was asked for"
        }
      } catch {
        problem = "\(error)"
      }
    }
    return AdoptionPlanner(request: request, facts: facts, peer: peer, peerProblem: problem).plan()
  }

  /// Adds the VM, or goes on with an add of it that was interrupted. Throws `AdoptionError`; what it did is then taken back unless the
  /// code is `unfinished`. Answers the plan that was carried out.
  @discardableResult
  public func add(
    _ request: AdoptionRequest, progress: @escaping (AdoptionProgress) -> Void
  ) throws -> AdoptionPlan {
    try alone("add \(request.name)") {
      let executor = self.executor(progress)
      if let done = try finishInterrupted(request.name, .add, executor) { return done }
      let plan = try planAdd(request)
      guard let work = plan.work else { throw Self.refused("add \(request.name)", plan) }
      try executor.run(work)
      return plan
    }
  }

  // MARK: The other host was replaced

  /// Gives the other node, which knows nothing of this module, its files and its definition; the copy there is empty. Repeatable: the
  /// other node refuses where anything is in the way. Throws as `add` does.
  public func giveAgain(_ name: ModuleName) throws {
    try alone("add \(name)") {
      guard var files = try AdoptionModuleFolder(paths: paths).read(name) else {
        throw AdoptionError(
          .refused, what: "add \(name)", why: "its files in \(paths.module(name)) are not there",
          next: "see: vmha status \(name)")
      }
      // As it is now: what was edited since the add is what runs here.
      if try hypervisor.facts(of: name.text) != nil {
        files.domainXML = try hypervisor.domainXML(of: name.text, inactive: true)
      }
      guard case .failed(let error) = try actions.peer(.install(files)) else { return }
      throw error
    }
  }

  // MARK: Remove

  /// Looks at both nodes and says what a remove would do. The module must be stopped on both. Changes nothing.
  public func planRemove(_ request: RemovalRequest) throws -> AdoptionPlan {
    if let plan = try interrupted(request.name, .remove) { return plan }
    guard let name = ModuleName(request.name), let facts = try survey.removalFacts(name) else {
      return AdoptionPlan(
        name: request.name,
        findings: [
          .init(
            .error, "there is no module '\(request.name)' on this node", whatToDo: "'vmha status' shows the modules")
        ])
    }
    var peer: AdoptionPeerRemovalFacts?
    var problem = ""
    do {
      let withdrawal = AdoptionExecutor.withdrawal(
        facts.files.module, request.purgeCopy ? .purge : .keep, for: request.record)
      switch try actions.peer(.removalFacts(withdrawal)) {
      case .removalFacts(let answer): peer = answer
      case .failed(let error): problem = "\(error)"
      case .done, .seeding, .facts, .withdrawn: problem = "it gave another answer than was asked for"
      }
    } catch {
      problem = "\(error)"
    }
    return RemovalPlanner(
      request: request, name: name, facts: facts, peer: peer, peerProblem: problem,
      savePath: "\(paths.state)/removed/\(name).xml"
    ).plan()
  }

  /// Gives the files and the original definition back, or goes on with a remove that was interrupted. Throws as `add` does.
  @discardableResult
  public func remove(
    _ request: RemovalRequest, progress: @escaping (AdoptionProgress) -> Void
  ) throws -> AdoptionPlan {
    try alone("remove \(request.name)") {
      let executor = self.executor(progress)
      if let done = try finishInterrupted(request.name, .remove, executor) { return done }
      let plan = try planRemove(request)
      guard let work = plan.work else { throw Self.refused("remove \(request.name)", plan) }
      try executor.run(work)
      return plan
    }
  }

  // MARK: Both

  private func executor(_ progress: @escaping (AdoptionProgress) -> Void) -> AdoptionExecutor {
    AdoptionExecutor(paths: paths, hypervisor: hypervisor, actions: actions, progress: progress)
  }

  private func alone<T>(_ what: String, _ body: () throws -> T) throws -> T {
    let isFree = isBusy.withLock { isBusy -> Bool in
      defer { isBusy = true }
      return !isBusy
    }
    guard isFree else {
      throw AdoptionError(
        .busy, what: what, why: "another add or remove is going on", next: "wait for its end and repeat the command")
    }
    defer { isBusy.withLock { $0 = false } }
    return try body()
  }

  private static func refused(_ what: String, _ plan: AdoptionPlan) -> AdoptionError {
    let first = plan.errors.first
    let more = plan.errors.count > 1 ? " (and \(plan.errors.count - 1) more)" : ""
    return AdoptionError(
      .refused, what: what, why: (first?.what ?? "its checks failed") + more,
      next: first?.whatToDo ?? "nothing was changed")
  }

  private func journal(_ name: String, _ executor: AdoptionExecutor) throws -> AdoptionJournal? {
    try ModuleName(name).flatMap { try executor.journal($0) }
  }

  /// The plan of an interrupted add or remove; nil if there is none to go on with.
  private func interrupted(_ name: String, _ kind: AdoptionWork.Kind) throws -> AdoptionPlan? {
    guard let journal = try journal(name, executor { _ in }) else { return nil }
    guard journal.work.kind == kind else {
      return AdoptionPlan(
        name: name,
        findings: [
          .init(
            .error, "an interrupted 'vmha \(journal.work.kind) \(name)' is not finished",
            whatToDo: "repeat it first: vmha \(journal.work.kind) \(name)")
        ])
    }
    // What must be taken back first is planned anew afterwards.
    let steps = journal.phase == .doing ? Array(journal.work.steps.dropFirst(journal.next)) : []
    let how = journal.phase == .doing ? "goes on where it stopped" : "is taken back; then it begins anew"
    return AdoptionPlan(
      name: name, findings: [.init(.warning, "an interrupted 'vmha \(kind) \(name)' \(how)")],
      work: AdoptionWork(kind: kind, name: journal.work.name, steps: steps))
  }

  /// Answers the plan if going forward finished the work; nil if the command must begin anew.
  private func finishInterrupted(
    _ name: String, _ kind: AdoptionWork.Kind, _ executor: AdoptionExecutor
  ) throws -> AdoptionPlan? {
    guard let journal = try journal(name, executor), let plan = try interrupted(name, kind) else { return nil }
    guard plan.isPossible else { throw Self.refused("\(kind) \(name)", plan) }
    try executor.resume(journal)
    return journal.phase == .doing ? plan : nil
  }
}

/// Answers the other node's requests. Calls block; one at a time for a module.
public struct AdoptionPeerHandler: Sendable {
  private let paths: HostPaths
  private let node: NodeID
  private let hypervisor: any Hypervisor
  private let survey: AdoptionSurvey
  private let didInstall: @Sendable (ModuleConfiguration) throws -> Void
  private let willWithdraw: @Sendable (AdoptionWithdrawal) throws -> Void
  private let record: @Sendable (ModuleName) throws -> Stored<DurableRecord>
  private let willSeed: @Sendable (ModuleName) throws -> Void
  private let seeds: SeedJobs

  /// `didInstall`: the module is there, begin to serve it (repeatable). `willWithdraw`: stop serving it and drop its durable record;
  /// what it throws stops the withdrawal. `record`: what this node's copy is, as it is on disk. `willSeed`: throws if the module's
  /// copy here is or was in use.
  init(
    paths: HostPaths, node: NodeID, hypervisor: any Hypervisor, seeds: SeedJobs,
    didInstall: @escaping @Sendable (ModuleConfiguration) throws -> Void,
    willWithdraw: @escaping @Sendable (AdoptionWithdrawal) throws -> Void,
    record: @escaping @Sendable (ModuleName) throws -> Stored<DurableRecord>,
    willSeed: @escaping @Sendable (ModuleName) throws -> Void = { _ in }
  ) {
    self.paths = paths
    self.node = node
    self.hypervisor = hypervisor
    self.didInstall = didInstall
    self.willWithdraw = willWithdraw
    self.record = record
    self.willSeed = willSeed
    self.seeds = seeds
    survey = AdoptionSurvey(paths: paths, node: node, hypervisor: hypervisor)
  }

  /// Never throws: what goes wrong is the answer.
  public func handle(_ request: AdoptionPeerRequest) -> AdoptionPeerReply {
    do {
      switch request {
      case .facts(let question): return .facts(try survey.answer(question))
      case .removalFacts(let withdrawal): return .removalFacts(try removalFacts(withdrawal))
      case .install(let files):
        try install(files)
        return .done
      case .seed(let seeding):
        try willSeed(seeding.name)
        return try seeds.seed(seeding).map { .seeding(bytesDone: $0) } ?? .done
      case .unseed(let seeding):
        try willSeed(seeding.name)
        try seeds.unseed(seeding)
        return .done
      case .withdraw(let withdrawal): return .withdrawn(keptCopy: try withdraw(withdrawal))
      }
    } catch let error as AdoptionError {
      return .failed(error)
    } catch {
      return .failed(
        AdoptionError(
          .peer, what: "the other node", why: "\(error)", next: "mend the cause there and repeat the command"))
    }
  }

  private func removalFacts(_ withdrawal: AdoptionWithdrawal) throws -> AdoptionPeerRemovalFacts {
    var facts = try survey.removalAnswer(withdrawal)
    facts.objection = withdrawal.objection(of: node) { try record(withdrawal.name) }
    return facts
  }

  private func conflict(_ why: String, _ next: String) -> AdoptionError {
    AdoptionError(.conflict, what: "the other node refuses", why: why, next: next)
  }

  private func install(_ files: AdoptionModuleFiles) throws {
    let module = files.module
    try module.validate()
    let others = try survey.modules().configurations
    for other in others.values where other.name != module.name && other.number == module.number {
      throw conflict("number \(module.number.rawValue) belongs to \(other.name) there", "repeat the command")
    }
    let isRepeated = others[module.name.text]?.uuid == module.uuid
    if let other = try hypervisor.find(name: module.name.text), other.uuid != module.uuid {
      throw conflict("it has another VM named \(other.name)", "undefine it there")
    }
    if let other = try hypervisor.find(uuid: module.uuid), other.name != module.name.text {
      throw conflict("its VM \(other.name) has the same UUID", "undefine it there")
    }
    if try hypervisor.facts(of: module.name.text)?.state.isActive == true {
      throw conflict("\(module.name) runs there", "shut it down there")
    }
    let mounts = try MountTable.read()
    for path in [module.mountPoint, module.backingDirectory] where !isRepeated {
      guard try survey.placeFacts(path, mounts: mounts).isFree else {
        throw conflict("there is something in \(path)", "move it away there")
      }
    }
    try DurableFile.makeFolder(paths.module(module.name))
    try DurableFile.makeFolder(module.backingDirectory, mode: mode_t(AdoptionPlanner.backingMode))
    try DurableFile.makeFolder(module.mountPoint, mode: mode_t(AdoptionPlanner.mountMode))
    try hypervisor.define(xml: files.domainXML)
    try hypervisor.setAutostart(module.name.text, false)
    try AdoptionModuleFolder(paths: paths).write(files)
    try didInstall(module)
  }

  private func withdraw(_ withdrawal: AdoptionWithdrawal) throws -> String? {
    let name = withdrawal.name
    let directory = AdoptionFiles.parent(withdrawal.mountPoint)
    guard withdrawal.mountPoint == ModuleConfiguration.mountPoint(of: name, in: directory),
      withdrawal.backingDirectory == ModuleConfiguration.backingDirectory(of: name, in: directory)
    else { throw conflict("\(withdrawal.backingDirectory) is no folder of a module \(name)", "do not repeat it") }
    // Without this folder nothing was ever installed here, or all was removed: whatever else has these names is not ours.
    guard try AdoptionFiles.status(paths.module(name)) != nil else {
      return try left(withdrawal.backingDirectory)
    }
    try willWithdraw(withdrawal)
    let mounts = try MountTable.read()
    guard try survey.placeFacts(withdrawal.mountPoint, mounts: mounts) != .mounted else {
      throw conflict("\(withdrawal.mountPoint) is mounted there", "stop the module first: vmha stop \(name)")
    }
    if let domain = try hypervisor.facts(of: name.text), domain.identity.uuid == withdrawal.uuid {
      guard !domain.state.isActive else { throw conflict("\(name) runs there", "stop it first: vmha stop \(name)") }
      try hypervisor.undefine(name.text, discardingNotes: true)
    }
    try AdoptionFiles.removeFolderIfEmpty(withdrawal.mountPoint)
    if withdrawal.copy == .purge { try AdoptionFiles.removeTree(withdrawal.backingDirectory) }
    try AdoptionFiles.removeFolderIfEmpty(withdrawal.backingDirectory)
    try AdoptionModuleFolder(paths: paths).remove(name)
    return try left(withdrawal.backingDirectory)
  }

  private func left(_ path: String) throws -> String? { try AdoptionFiles.status(path) == nil ? nil : path }
}
