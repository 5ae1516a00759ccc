import ArgumentParser
import ControlAPI

struct ClusterCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "cluster", abstract: "Make, join, show and change the cluster.",
    subcommands: [
      ClusterInitCommand.self, ClusterJoinCommand.self, ClusterTicketCommand.self, ClusterShowCommand.self,
      ClusterSetCommand.self,
    ])

  /// What to type on the other host.
  static func lines(_ ticket: JoinTicket) -> [String] {
    (ticket.replaces.map { ["The cluster has both its nodes: this lets in a host that takes the place of \($0)."] }
      ?? [])
      + [
        "On the other host run, with its own address for each link:", "", "  \(ticket.commandLine)", "",
        "The token works once, until \(ticket.expires.localTimeOfDay). Another one: vmha cluster ticket",
      ]
  }

  static func lines(_ cluster: ClusterDescription, _ console: Console) -> [String] {
    var lines = [Styled("cluster \(cluster.identity.name)", .bold).rendered(console)]
    var table = Table()
    table.indent = "  "
    table.add(["uuid", Styled(cluster.identity.uuid)])
    table.add(["revision", Styled(String(cluster.identity.revision))])
    for node in cluster.nodes { table.add([Styled("node \(node.id)"), Styled(node.name)]) }
    for link in cluster.links {
      let addresses = cluster.nodes.map { "\($0.name) \(link.addresses[$0.name] ?? "-")" }
      let use = link.replication ? "replication" : "heartbeat only"
      table.add([Styled("link \(link.name)"), Styled(Wording.list(addresses + [use]))])
    }
    table.add(["pulse", Styled(Wording.milliseconds(cluster.pulseMilliseconds))])
    table.add(["detection", Styled(Wording.milliseconds(cluster.detectionMilliseconds))])
    table.add(["boot wait", Styled(Wording.milliseconds(cluster.bootWaitMilliseconds))])
    table.add(["arbiter", Styled(cluster.arbiter)])
    for (module, arbiter) in (cluster.moduleArbiters ?? [:]).sorted(by: { $0.key < $1.key }) {
      table.add([Styled("arbiter of \(module)"), Styled(arbiter)])
    }
    for (name, value) in (cluster.arbiterSettings ?? [:]).sorted(by: { $0.key < $1.key }) {
      table.add([Styled(name), Styled(value)])
    }
    if let policy = cluster.bootPolicy { table.add(["boot policy", Styled(policy)]) }
    if let seconds = cluster.forceAfterSeconds {
      table.add(["force after", Styled(seconds == 0 ? "off" : Wording.roughly(seconds: Int64(seconds)))])
    }
    if let policy = cluster.splitPolicy { table.add(["split policy", Styled(policy)]) }
    if let seconds = cluster.scrubIntervalSeconds {
      let rate = cluster.scrubRateMiB.map { ", at most \($0) MiB/s" } ?? ""
      let text = seconds == 0 ? "never" : "every \(Wording.roughly(seconds: Int64(seconds)))\(rate)"
      table.add(["scrub", Styled(text)])
    }
    if let fingerprint = cluster.fingerprint { table.add(["CA SHA-256", Styled(fingerprint)]) }
    if let time = cluster.certificateExpires { table.add(["certificate", Styled("until \(time.localDate)")]) }
    lines += table.lines(console)
    lines += cluster.warnings.flatMap { warning in
      [Styled("warning: ", .yellow).rendered(console) + warning.what, "         \(warning.whatToDo)"]
    }
    return lines
  }
}

/// `NAME=ADDRESS[,replication]` as given to init and join.
struct LinkArgument: ExpressibleByArgument, Sendable {
  var link: OwnLink

  init?(argument: String) {
    let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
    guard parts.count == 2, !parts[0].isEmpty else { return nil }
    let rest = parts[1].split(separator: ",", omittingEmptySubsequences: false)
    guard let address = rest.first, !address.isEmpty, rest.count <= 2,
      rest.count == 1 || rest[1] == "replication"
    else { return nil }
    link = OwnLink(name: String(parts[0]), address: String(address), replication: rest.count == 2)
  }

  static func check(_ links: [LinkArgument]) throws {
    if links.isEmpty { throw ValidationError("Give at least one --link NAME=ADDRESS; two are better.") }
    let names = links.map(\.link.name)
    if Set(names).count != names.count { throw ValidationError("The same link is named twice.") }
  }
}
