import ArgumentParser
import ControlAPI

struct ClusterTicketCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "ticket", abstract: "Print a new line for the other host to join.",
    discussion: "Tokens given before stop working.")

  @OptionGroup var common: CommonOptions
  @Flag(help: "Print the ticket as the API gives it.")
  var json = false

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let ticket = try await tool.client.clusterTicket()
    if json {
      try tool.printJSON(ticket)
    } else if common.quiet {
      tool.console.line(ticket.commandLine)
    } else {
      for line in ClusterCommand.lines(ticket) { tool.console.line(line) }
    }
    return .success
  }
}
