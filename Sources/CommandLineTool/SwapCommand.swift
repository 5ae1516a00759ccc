import ArgumentParser
import ControlAPI

struct SwapCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "swap", abstract: "Move protected VMs to the other node.",
    discussion: "The guest is shut down here and started there. Refused unless the other copy is in sync.")

  @OptionGroup var common: CommonOptions
  @OptionGroup var wait: WaitOptions
  @OptionGroup var selection: ModuleSelection
  @Flag(help: "Print the modules as the API describes them.")
  var json = false

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let status = try await tool.client.status()
    let names = try await selection.resolve(tool)
    let action = ModuleAction(tool: tool, isQuiet: common.quiet, json: json, wait: wait, waitSecondsDefault: 360)
    return try await action.run(
      names,
      goal: { acceptance in
        // Where it was before, in case vmhad does not say where it goes.
        let before = status.modules.first { $0.name == acceptance.module }?.primary?.node
        return .swapped(to: acceptance.targetNode ?? status.nodes.map(\.name).first { $0 != before })
      }
    ) { name in try await tool.client.swapModule(name) }
  }
}
