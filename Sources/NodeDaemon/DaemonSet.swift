import ControlAPI
import HostSystem
import Model
import ModuleConfig

// `vmha set`.
extension Daemon {
  private static let setPeerTimeout: Duration = .seconds(20)

  public func setModule(_ name: String, _ changes: ModuleChanges) async throws {
    try await onThread {
      let runner = try self.requireModule(name)
      guard !changes.isEmpty else { throw ControlError(.invalidRequest, "nothing was given to be set") }
      // The peer first: if it cannot, nothing was changed.
      do { _ = try self.callPeer(.set(runner.module, changes), timeout: Self.setPeerTimeout) } catch {
        throw ControlError(
          .peerUnreachable, "\(name) is not changed", why: "\(self.peerName): \(error)",
          next: "both nodes must know it: repeat the command when \(self.peerName) answers")
      }
      try self.setHere(runner, changes)
    }
  }

  /// Durable when it returns, and in force. Other changes of the file, made by hand, wait for the module's next start as they did.
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
