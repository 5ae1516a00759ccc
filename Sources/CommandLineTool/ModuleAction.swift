import ArgumentParser
import ControlAPI
import Model

/// What start, stop and swap have in common: send all, then wait for all and tell what happens.
struct ModuleAction {
  enum Goal: Sendable {
    case started
    case stopped
    /// Serving on this node.
    case swapped(to: String?)
    /// No longer SPLIT, and in sync.
    case resolved
  }

  /// A module that shows "blocked" is given this long after its acceptance to get out of what it was in before the command.
  static let settleTime: Duration = .seconds(2)

  let tool: Tool
  let isQuiet: Bool
  let json: Bool
  /// A swap that shows the guest running, protected, on its old node this long after the command has come back.
  private static let returnTime: Duration = .seconds(6)
  let wait: WaitOptions
  /// Seconds to wait unless told otherwise.
  let waitSecondsDefault: Int

  private struct Pending {
    var name: String
    var goal: Goal
  }

  func run(
    _ names: [String], goal: (Acceptance) -> Goal, _ send: (String) async throws -> Acceptance
  ) async throws -> ExitStatus {
    var codes: [ExitStatus] = []
    var pending: [Pending] = []
    var cursor: Int64?
    let start = ContinuousClock.now
    for name in names {
      do {
        let acceptance = try await send(name)
        if !isQuiet && !json { tool.console.line(acceptance.sentence) }
        cursor = min(cursor ?? acceptance.cursor, acceptance.cursor)
        pending.append(Pending(name: name, goal: goal(acceptance)))
      } catch let error as ControlError where names.count > 1 && error.code != .daemonNotRunning {
        tool.print(error)
        codes.append(ExitStatus(error))
      }
    }
    if let cursor, !wait.noWait { codes.append(try await follow(pending, from: cursor, since: start)) }
    if json {
      let names = pending.map(\.name)
      try tool.printJSON(try await tool.client.status().modules.filter { names.contains($0.name) })
    }
    return ExitStatus.worst(codes)
  }

  private func follow(
    _ all: [Pending], from cursor: Int64, since start: ContinuousClock.Instant
  ) async throws -> ExitStatus {
    var pending = all
    var cursor = cursor
    var codes: [ExitStatus] = []
    let accepted = ContinuousClock.now
    let limit = Duration.seconds(wait.seconds ?? waitSecondsDefault)
    while true {
      let status = try await tool.client.status()
      cursor = try await tell(all.map(\.name), from: cursor, since: start)
      let elapsed = ContinuousClock.now - start
      pending = pending.filter { item in
        guard let module = status.modules.first(where: { $0.name == item.name }) else {
          tool.print(ControlError(.failed, "\(item.name) is no longer protected", why: "it was removed meanwhile"))
          codes.append(.failure)
          return false
        }
        guard let result = Self.result(module, item.goal, ContinuousClock.now - accepted) else { return true }
        codes.append(finish(module, item.goal, result, elapsed))
        return false
      }
      if pending.isEmpty { return ExitStatus.worst(codes) }
      if elapsed >= limit {
        for item in pending {
          let sentence = status.modules.first { $0.name == item.name }.flatMap(Self.mostTelling)?.sentence
          tool.print(
            ControlError(
              .timedOut, "\(item.name) is not \(Self.word(item.goal)) after \(limit.components.seconds) s",
              why: sentence,
              next: "it goes on in vmhad: vmha status \(item.name), vmha log \(item.name)"))
        }
        return ExitStatus.worst(codes + [.timedOut])
      }
      try await Task.sleep(for: tool.pollInterval)
    }
  }

  /// Prints the modules' new events; the cursor behind them.
  private func tell(_ names: [String], from cursor: Int64, since start: ContinuousClock.Instant) async throws -> Int64 {
    let only = names.count == 1 ? names.first : nil
    let page = try await tool.client.log(since: cursor, module: only, limit: JournalPage.limitMax)
    guard !isQuiet, !json else { return page.cursor }
    let elapsed = Wording.seconds(ContinuousClock.now - start)
    for event in page.events where event.module.map(names.contains) ?? false {
      let label = names.count == 1 ? event.node : "\(event.module ?? "") \(event.node)"
      let padding = String(repeating: " ", count: max(0, 7 - elapsed.count))
      let colour: Colour? = event.severity == .error ? .red : event.severity == .warning ? .yellow : nil
      tool.console.line("\(padding)\(elapsed)  \(label): \(Styled(event.sentence, colour).rendered(tool.console))")
    }
    return page.cursor
  }

  private func finish(
    _ module: ModuleStatus, _ goal: Goal, _ result: Result<String, ControlError>, _ elapsed: Duration
  ) -> ExitStatus {
    switch result {
    case .success(let text):
      if !isQuiet && !json { tool.console.line("\(text)  (\(Wording.seconds(elapsed)))") }
      return .success
    case .failure(let error):
      tool.print(error)
      return .failure
    }
  }

  /// nil while it is on its way. `elapsed`: since it was accepted.
  static func result(_ module: ModuleStatus, _ goal: Goal, _ elapsed: Duration) -> Result<String, ControlError>? {
    if let text = reached(module, goal) { return .success(text) }
    if case .swapped(let target?) = goal, elapsed >= returnTime, module.isProtected, let primary = module.primary,
      primary.node != target
    {
      return .failure(
        ControlError(
          .failed, "\(module.name) was not swapped: it runs on \(primary.node) again",
          why: "\(target) could not take it, or gave it back", next: "vmha log \(module.name)"))
    }
    let current = module.nodes.filter(\.current)
    guard elapsed >= settleTime, let blocked = current.first(where: { $0.readiness == .blocked }),
      !current.contains(where: { $0.readiness == .transient })
    else { return nil }
    return .failure(
      ControlError(
        .failed, "\(module.name) is not \(word(goal)): \(blocked.state.rawValue) blocked on \(blocked.node)",
        why: blocked.sentence, next: "vmha status \(module.name), vmha log \(module.name)"))
  }

  private static func reached(_ module: ModuleStatus, _ goal: Goal) -> String? {
    let current = module.nodes.filter(\.current)
    switch goal {
    case .started:
      guard let primary = module.primary, primary.readiness == .ready, primary.guest == .running else { return nil }
      let note = primary.state == .alone ? ", without a second copy for now" : ""
      return "\(module.name) runs on \(primary.node)\(note)"
    case .stopped:
      let isStopped = current.allSatisfy { $0.state == .stop && $0.readiness != .transient && $0.guest != .running }
      guard isStopped, !current.isEmpty else { return nil }
      let lost = module.nodes.filter { !$0.current }.map(\.node)
      return "\(module.name) is stopped" + (lost.isEmpty ? "" : " here; \(Wording.list(lost)) cannot be asked")
    case .swapped(let target):
      guard let target, let node = current.first(where: { $0.node == target }), node.readiness == .ready,
        node.state == .prim || node.state == .alone, node.guest == .running
      else { return nil }
      return "\(module.name) runs on \(node.node)"
    case .resolved:
      guard module.isProtected, let primary = module.primary else { return nil }
      return "\(module.name) is in sync again and runs on \(primary.node)"
    }
  }

  private static func mostTelling(_ module: ModuleStatus) -> ModuleNodeStatus? {
    module.nodes.first { $0.current && $0.readiness != .ready } ?? module.primary ?? module.nodes.first
  }

  private static func word(_ goal: Goal) -> String {
    switch goal {
    case .started: "started"
    case .stopped: "stopped"
    case .swapped: "swapped"
    case .resolved: "resolved"
    }
  }
}
