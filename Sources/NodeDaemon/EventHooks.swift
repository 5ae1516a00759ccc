import Glibc
import HostSystem
import Model
import ModuleConfig

/// Runs /etc/vmha/hooks/on-state-change when a module's state changes: mail, paging, DNS. One at a time, in order; vmhad
/// never waits for it and never depends on its result.
final class EventHooks: Sendable {
  /// Changes waiting for a slow hook; later ones are dropped and the journal says so.
  static let waitingMax = 200

  struct Change: Sendable {
    var module: ModuleName
    /// `StateChangeHook.environment`
    var environment: [String: String]
  }

  private let worker: Worker<Change>
  private let path: String
  private let tell: @Sendable (String) -> Void

  init(paths: HostPaths, tell: @escaping @Sendable (String) -> Void) throws {
    let path = "\(paths.eventHooks)/\(StateChangeHook.name)"
    self.path = path
    self.tell = tell
    worker = try Worker<Change>(name: "hooks", eventsMax: Self.waitingMax) { Self.run(path, $0, tell) }
  }

  func stateChanged(_ change: Change) {
    guard access(path, X_OK) == 0 else { return }
    if !worker.push(change) { tell("\(path) is too slow: a change of \(change.module) was not passed on") }
  }

  private static func run(_ path: String, _ change: Change, _ tell: @Sendable (String) -> Void) {
    do {
      let result = try ChildProcess.run(
        [path], environment: hookEnvironment(change.environment), timeout: StateChangeHook.timeout)
      if result.status != 0 { tell("\(path) ended with \(result.status): \(result.errorText.prefix(500))") }
    } catch { tell("\(error)") }
  }
}
