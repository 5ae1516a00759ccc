import ArgumentParser
import ControlAPI

struct StartCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "start", abstract: "Start protected VMs on their preferred nodes.")

  @OptionGroup var common: CommonOptions
  @OptionGroup var wait: WaitOptions
  @OptionGroup var selection: ModuleSelection
  @Flag(
    help: "Start even from a copy that may not be the newest: can lose writes or split. Asks, unless --yes is given.")
  var force = false
  @Flag(help: "Answer yes to the question of --force.")
  var yes = false
  @Flag(help: "Print the modules as the API describes them.")
  var json = false

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let names = try await selection.resolve(tool)
    if force {
      let status = try await tool.client.status()
      for module in status.modules where names.contains(module.name) {
        for line in ForceWarning.lines(module, on: status.thisNode, now: status.time) { tool.console.errorLine(line) }
      }
      try tool.confirm("Start \(Wording.list(names)) by force?", yes: yes)
    }
    let action = ModuleAction(tool: tool, isQuiet: common.quiet, json: json, wait: wait, waitSecondsDefault: 180)
    return try await action.run(names, goal: { _ in .started }) { name in
      try await tool.client.startModule(name, force: force)
    }
  }
}
