import ArgumentParser
import ControlAPI

struct ClusterJoinCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "join", abstract: "Make this host the second node of a cluster.",
    discussion: "Take the line from `vmha cluster init` or `vmha cluster ticket` on the first node.")

  @OptionGroup var common: CommonOptions
  @Argument(help: "Address of the first node.")
  var address: String
  @Option(help: ArgumentHelp("SHA-256 of the cluster's CA certificate.", valueName: "hex"))
  var fingerprint: String
  @Option(help: ArgumentHelp("One-time token.", valueName: "hex"))
  var token: String
  @Option(help: ArgumentHelp("This host's address on a link of the cluster.", valueName: "name=address"))
  var link: [LinkArgument] = []
  @Option(name: .customLong("node-name"), help: "Name of this node; its host name if not given.")
  var nodeName: String?
  @Flag(help: "Print the cluster as the API describes it.")
  var json = false

  mutating func validate() throws {
    try LinkArgument.check(link)
    // As openssl prints it: colons and capitals are welcome.
    fingerprint = fingerprint.replacing(":", with: "").lowercased()
    token = token.lowercased()
    guard fingerprint.count == 64, fingerprint.allSatisfy(\.isHexDigit) else {
      throw ValidationError("--fingerprint takes the 64 hexadecimal digits that init printed.")
    }
    guard token.count == 32, token.allSatisfy(\.isHexDigit) else {
      throw ValidationError("--token takes the 32 hexadecimal digits that init printed.")
    }
    if let link = link.first(where: { $0.link.address == "ADDRESS" }) {
      throw ValidationError("Put this host's own address on \(link.link.name) in place of ADDRESS.")
    }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let cluster = try await tool.client.clusterJoin(
      ClusterJoinRequest(
        address: address, fingerprint: fingerprint, token: token, nodeName: nodeName, links: link.map(\.link)))
    if json {
      try tool.printJSON(cluster)
    } else if !common.quiet {
      tool.console.line("This host has joined.")
      for line in ClusterCommand.lines(cluster, tool.console) { tool.console.line(line) }
    }
    return .success
  }
}
