import ControlAPI
import HostSystem
import Model
import ModuleConfig

// `vmha set`.
extension Daemon {
  private static let setPeerTimeout: Duration = .seconds(20)

  public func setModule(_ name: String, _ changes: ModuleChanges) async throws {
    try await onThread {
      guard !changes.isEmpty else { throw ControlError(.invalidRequest, "nothing was given to be set") }
      // First what may be refused for more reasons.
      if let arbiter = changes.arbiter { try self.setArbiter(name, arbiter) }
      if let priority = changes.resyncPriority { try self.setPriority(name, priority) }
    }
  }

  private func setPriority(_ name: String, _ priority: ResyncPriority) throws {
    let runner = try requireModule(name)
    let changes = ModuleChanges(resyncPriority: priority)
    // The peer first: if it cannot, nothing was changed.
    do { _ = try callPeer(.set(runner.module, changes), timeout: Self.setPeerTimeout) } catch {
      throw ControlError(
        .peerUnreachable, "the resync priority of \(name) is not changed", why: "\(peerName): \(error)",
        next: "both nodes must know it: repeat the command when \(peerName) answers")
    }
    try setHere(runner, changes)
  }

  /// `cluster` = the cluster's.
  private func setArbiter(_ name: String, _ text: String) throws {
    guard let membership = snapshot().membership else { throw ControlError.noCluster() }
    let goesBack = text == ModuleChanges.clustersArbiter
    let own: Arbiter? = goesBack ? nil : try Self.word(text, "arbiter")
    var changed = membership.configuration
    // One that a module left behind which is gone can be taken back.
    guard let module = ModuleName(name), runner(module) != nil || goesBack && changed.moduleArbiters[module] != nil
    else { throw ControlError.noSuchModule(name) }
    changed.moduleArbiters[module] = own
    guard changed != membership.configuration else { return }
    _ = try translated {
      try changeStepwise(to: changed, from: membership, "the arbiter of \(name) was not changed")
    }
  }

  /// A module that is not there has no arbiter of its own: another one of this name begins with the cluster's. Throws `ControlError`.
  func forgetArbiter(of module: ModuleName) throws {
    guard let membership = snapshot().membership, membership.configuration.moduleArbiters[module] != nil else { return }
    var changed = membership.configuration
    changed.moduleArbiters[module] = nil
    _ = try translated { try changeCluster(to: changed, from: membership) }
  }

  struct OwnArbiterChange {
    var module: ModuleName
    var sentence: String
  }

  static func ownArbiterChanges(
    from old: ClusterConfiguration, to new: ClusterConfiguration
  ) -> [OwnArbiterChange] {
    Set(old.moduleArbiters.keys).union(new.moduleArbiters.keys).sorted().compactMap { module in
      guard old.moduleArbiters[module] != new.moduleArbiters[module] else { return nil }
      let whose = new.moduleArbiters[module] == nil ? "the cluster's" : "its own"
      return OwnArbiterChange(
        module: module,
        sentence: "its arbiter is \(new.arbiter(of: module).rawValue) now, \(whose), instead of "
          + old.arbiter(of: module).rawValue)
    }
  }

  /// Durable when it returns, and in force. Other changes of the file, made by hand, wait for the next start of
  /// vmhad as they did.
  func setHere(_ runner: ModuleRunner, _ changes: ModuleChanges) throws {
    let file = paths.moduleFile(runner.module)
    var onDisk = try ModuleConfiguration(xml: DurableFile.read(file), file: file)
    var inForce = runner.configuration
    if let priority = changes.resyncPriority {
      onDisk.resyncPriority = priority == .normal ? nil : priority
      inForce.resyncPriority = onDisk.resyncPriority
    }
    try DurableFile.write(Array(onDisk.xml().utf8), to: file, mode: 0o644)
    runner.reconfigure(inForce)
    if let priority = changes.resyncPriority {
      record(.command, .notice, "resync priority \(priority.rawValue) by the operator", module: runner.module.text)
    }
  }
}
