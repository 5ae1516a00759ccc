import ArgumentParser
import ControlAPI
import ControlHTTP
import Foundation

struct LogCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "log", abstract: "Show what happened, and why.")

  @OptionGroup var common: CommonOptions
  @Flag(name: [.short, .long], help: "Go on with what happens from now on, until interrupted.")
  var follow = false
  @Option(name: [.customShort("n"), .long], help: "How many of the newest events (1 to \(JournalPage.limitMax)).")
  var lines = 50
  @Flag(help: "One JSON object a line, as the API gives them.")
  var json = false
  @Argument(help: ArgumentHelp("Name of a VM: only its events.", valueName: "vm"))
  var name: String?

  /// Between two attempts to reach a vmhad that went away.
  static let retryInterval: Duration = .seconds(1)

  func validate() throws {
    if !(1...JournalPage.limitMax).contains(lines) {
      throw ValidationError("-n takes 1 to \(JournalPage.limitMax).")
    }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let page = try await tool.client.log(since: nil, module: name, limit: lines)
    if page.events.isEmpty, let name, !follow {
      // A VM that was removed keeps its history; only a name without any is wrong.
      guard try await tool.client.status().modules.contains(where: { $0.name == name }) else {
        throw ControlError.noSuchModule(name)
      }
    }
    for event in page.events { try print(event, tool.console) }
    if follow { try await goOn(from: page.cursor, tool) }
    return .success
  }

  private func goOn(from start: Int64, _ tool: Tool) async throws {
    var cursor = start
    var isLost = false
    while true {
      do {
        try await ControlClient(socketPath: common.socket).follow(since: cursor, module: name) { event in
          if isLost {
            tool.console.errorLine("vmhad is back")
            isLost = false
          }
          cursor = max(cursor, event.id)
          try print(event, tool.console)
        }
      } catch let error as ControlError where error.code == .daemonNotRunning || error.code == .badAnswer {
        if !isLost { tool.console.errorLine("\(error.message); waiting for it") }
        isLost = true
      }
      try await Task.sleep(for: Self.retryInterval)
    }
  }

  private func print(_ event: JournalEvent, _ console: Console) throws {
    if json {
      console.line(String(decoding: try ControlCoding.encode(event), as: UTF8.self))
    } else {
      console.line(Self.line(event, console))
    }
  }

  /// "2026-11-22 20:56:14.123  node1  vm1: copying to node2 begins [R8]".
  static func line(_ event: JournalEvent, _ console: Console) -> String {
    let colour: Colour? = event.severity == .error ? .red : event.severity == .warning ? .yellow : nil
    let mark = event.severity == .error ? "ERROR: " : event.severity == .warning ? "warning: " : ""
    let rule = event.rule.map { " [\($0)]" } ?? ""
    return Styled("\(event.time.localDate) \(event.time.localTimeOfDayExact)", .dim).rendered(console)
      + "  \(event.node)  \(event.module.map { "\($0): " } ?? "")"
      + Styled(mark + event.sentence, colour).rendered(console) + rule
  }
}
