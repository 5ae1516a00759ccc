import ArgumentParser
import ControlAPI

struct ClusterShowCommand: ToolCommand {
  static let configuration = CommandConfiguration(commandName: "show", abstract: "Show the cluster's configuration.")

  @OptionGroup var common: CommonOptions
  @Flag(help: "Print what the API answers.")
  var json = false

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let cluster = try await tool.client.clusterShow()
    if json {
      try tool.printJSON(cluster)
    } else {
      for line in ClusterCommand.lines(cluster, tool.console) { tool.console.line(line) }
    }
    return .success
  }
}
