import ArgumentParser
import ControlAPI
import Foundation
import Model

struct StatusCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show nodes, links and protected VMs.",
    discussion: """
      With the names of VMs: all that is known of each. With -q nothing is printed, and the exit code is 0 if every VM \
      that shall run is protected (PRIM and SECOND ready, uptodate) and no copies are known to differ, else 1.
      """)

  @OptionGroup var common: CommonOptions
  @Flag(name: [.short, .long], help: "Go on showing it as it changes, until interrupted.")
  var watch = false
  @Flag(help: "Print what the API answers (docs/api.md).")
  var json = false
  @Argument(help: ArgumentHelp("Names of VMs.", valueName: "vm"))
  var names: [String] = []

  /// Between two looks of --watch.
  static let watchInterval: Duration = .milliseconds(500)

  func execute(_ tool: Tool) async throws -> ExitStatus {
    var shown = ""
    while true {
      let status = try await tool.client.status()
      let text = try render(status, tool.console)
      if !watch {
        if !common.quiet { tool.console.line(text) }
        return common.quiet && !status.modules.allSatisfy(Self.isWell) ? .failure : .success
      }
      if text != shown {
        let isDrawn = tool.console.isTerminal && !json
        tool.console.write((isDrawn ? "\u{1B}[H\u{1B}[2J" : "") + text + (isDrawn || json ? "\n" : "\n\n"))
        shown = text
      }
      try await Task.sleep(for: Self.watchInterval)
    }
  }

  private func render(_ status: ClusterStatus, _ console: Console) throws -> String {
    if let missing = names.first(where: { name in !status.modules.contains { $0.name == name } }) {
      throw ControlError.noSuchModule(missing)
    }
    if json {
      var status = status
      if !names.isEmpty { status.modules = status.modules.filter { names.contains($0.name) } }
      return String(decoding: try ControlCoding.encode(status, pretty: !watch), as: UTF8.self)
    }
    let lines =
      names.isEmpty
      ? StatusRendering(status, console).overview()
      : names.flatMap { name in status.modules.filter { $0.name == name } }
        .flatMap { StatusRendering(status, console).details($0) }
    return lines.joined(separator: "\n")
  }

  /// Nothing for the operator to do.
  static func isWell(_ module: ModuleStatus) -> Bool {
    switch module.wish {
    case _ where (module.verification?.differingCount ?? 0) > 0: false
    case .started: module.isProtected
    case .stopped: !module.split && module.nodes.allSatisfy { $0.state == .stop && $0.readiness == .ready }
    }
  }
}
