import ControlAPI
import FoundationEssentials
import Glibc
import HostSystem
import Model
import ModuleConfig
import Synchronization

// The modules that the configuration on disk names.
extension Daemon {
  /// From one try to load a module to the next.
  static let moduleRetryPause: Duration = .seconds(5)

  func loadModules() throws {
    let unfinished = try Adoption.unfinished(paths: paths)
    for name in try moduleNamesOnDisk() {
      if let kind = unfinished[name] {
        // Half moved: nothing of it may run before the command was repeated.
        record(.adoption, .error, "'vmha \(kind) \(name)' was interrupted: repeat it to complete it", module: name.text)
        continue
      }
      loadModule(name)
    }
    if !snapshot().unloaded.isEmpty { try HostThread.start(name: "modules") { self.watchUnloaded() } }
  }

  /// A file that was mended, or that the host lets be read again, counts without a restart of vmhad. Ends with the last of them.
  private func watchUnloaded() {
    while !snapshot().unloaded.isEmpty, !isStopping(within: Self.moduleRetryPause) {
      for name in snapshot().unloaded.keys.sorted() where operations.current(module: name.text) == nil {
        loadModule(name)
      }
    }
  }

  /// A module that the other node does not have loaded would not be taken over there. One that is being added or removed is no news.
  func peerLackWarnings(_ view: State) -> [StatusWarning] {
    guard view.peerAlive == true else { return [] }
    let now = monotonicNow()
    return view.peerLacks.filter {
      now - $0.value > Self.moduleRetryPause && operations.current(module: $0.key.text) == nil
    }
    .keys.sorted().map { name in
      StatusWarning(
        "DEGRADED: vmhad on \(peerName) has not loaded \(name): it would not be taken over there",
        whatToDo: "vmha status, on \(peerName)")
    }
  }

  private func loadModule(_ name: ModuleName) {
    do {
      guard let configuration = try ModuleConfiguration(of: name, paths) else {
        // Removed meanwhile.
        return state.withLock { $0.unloaded[name] = nil }
      }
      try bringUp(configuration)
      guard state.withLock({ $0.unloaded.removeValue(forKey: name) }) != nil else { return }
      record(.daemon, .notice, "module \(name) is loaded now", module: name.text)
    } catch {
      let why = "\(error)"
      guard state.withLock({ $0.unloaded.updateValue(why, forKey: name) }) != why else { return }
      record(
        .daemon, .error,
        "module \(name) cannot be loaded: \(why); it is tried again every \(secondsText(Self.moduleRetryPause))",
        module: name.text)
    }
  }

  /// A file that cannot be looked at is not one that is absent.
  private func moduleNamesOnDisk() throws -> [ModuleName] {
    try FileManager.default.contentsOfDirectory(atPath: paths.modules).compactMap { ModuleName($0) }
      .filter { access(paths.moduleFile($0), F_OK) == 0 || errno != ENOENT && errno != ENOTDIR }.sorted()
  }

  /// A module's runner from its configuration; its core begins as soon as libvirt has told what the guest does.
  @discardableResult
  func bringUp(_ configuration: ModuleConfiguration) throws -> ModuleRunner {
    if let runner = runner(configuration.name) {
      runner.reconfigure(configuration)
      return runner
    }
    let keeper = try GuestKeeper(
      paths: paths, configuration: configuration, hypervisor: hypervisor,
      environment: { [weak self] in self?.scriptEnvironment($0) ?? [:] },
      tell: { [weak self] severity, text in
        self?.record(.decision, severityWord(severity), text, module: configuration.name.text)
      })
    let runner = try ModuleRunner(configuration: configuration, surroundings: self, keeper: keeper)
    let other = state.withLock { state -> ModuleRunner? in
      if let other = state.runners[configuration.name] { return other }
      state.runners[configuration.name] = runner
      return nil
    }
    if let other {
      // Two threads at once; this one has begun nothing yet.
      runner.detach()
      other.reconfigure(configuration)
      return other
    }
    try HostThread.start(name: "load-\(configuration.name)") {
      runner.load(peerAlive: { self.state.withLock { $0.peerAlive } }, told: { self.publishBeats() })
    }
    return runner
  }

  func dropModule(_ name: ModuleName) {
    let runner = state.withLock { state in
      state.peerReports[name] = nil
      state.verifications[name] = nil
      return state.runners.removeValue(forKey: name)
    }
    runner?.remove()
    publishBeats()
  }
}

extension Daemon.State {
  /// After each answer of the peer's vmhad.
  mutating func notePeerModules(_ known: Set<ModuleName>, now: Instant) {
    var lacks: [ModuleName: Instant] = [:]
    for name in runners.keys where !known.contains(name) { lacks[name] = peerLacks[name] ?? now }
    peerLacks = lacks
  }
}
