import ArgumentParser
import ControlAPI

struct VersionCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "version", abstract: "Print the versions of vmha and of the vmhad that runs.")

  @OptionGroup var common: CommonOptions

  func execute(_ tool: Tool) async throws -> ExitStatus {
    tool.console.line("vmha   \(ProductVersion.text)")
    if common.quiet { return .success }
    do {
      tool.console.line("vmhad  \(try await tool.client.status().version)")
    } catch let error as ControlError {
      // Asking for the version is no reason to fail where vmhad does not run.
      tool.console.line("vmhad  unknown: \(error.message)")
    }
    return .success
  }
}
