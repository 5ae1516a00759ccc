import ArgumentParser
import ControlAPI

struct StopCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "stop", abstract: "Shut protected VMs down.",
    discussion: "The guest is asked to shut down (ACPI); when its time is over it is switched off.")

  @OptionGroup var common: CommonOptions
  @OptionGroup var wait: WaitOptions
  @OptionGroup var selection: ModuleSelection
  @Option(help: "Seconds the guest has to shut down; 0 = switch it off at once. Default: stop-timeout of module.xml.")
  var timeout: Int?
  @Flag(help: "Print the modules as the API describes them.")
  var json = false

  func validate() throws {
    if let timeout, !(0...3600).contains(timeout) { throw ValidationError("--timeout takes 0 to 3600 seconds.") }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let names = try await selection.resolve(tool)
    let action = ModuleAction(
      tool: tool, isQuiet: common.quiet, json: json, wait: wait, waitSecondsDefault: (timeout ?? 240) + 60)
    return try await action.run(names, goal: { _ in .stopped }) { name in
      try await tool.client.stopModule(name, timeoutSeconds: timeout)
    }
  }
}
