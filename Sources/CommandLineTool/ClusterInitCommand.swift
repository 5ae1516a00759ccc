import ArgumentParser
import ControlAPI

struct ClusterInitCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "init", abstract: "Make a cluster of which this host is the first node.",
    discussion: "Prints the line to type on the other host. Mark the links that replication may use, at least one.")

  @OptionGroup var common: CommonOptions
  @Option(help: "Name of the cluster.")
  var name: String
  @Option(help: ArgumentHelp("A network to the other host.", valueName: "name=address[,replication]"))
  var link: [LinkArgument] = []
  @Option(name: .customLong("node-name"), help: "Name of this node; its host name if not given.")
  var nodeName: String?
  @Flag(help: "Print the ticket as the API gives it.")
  var json = false

  func validate() throws {
    try LinkArgument.check(link)
    if !link.contains(where: \.link.replication) {
      throw ValidationError("Mark at least one link for replication: --link NAME=ADDRESS,replication")
    }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let ticket = try await tool.client.clusterInitialise(
      ClusterInitialiseRequest(name: name, nodeName: nodeName, links: link.map(\.link)))
    if json {
      try tool.printJSON(ticket)
    } else if common.quiet {
      tool.console.line(ticket.commandLine)
    } else {
      tool.console.line("Cluster \(ticket.clusterName) is made; this host is its first node.")
      for line in ClusterCommand.lines(ticket) { tool.console.line(line) }
    }
    return .success
  }
}
