import ArgumentParser
import ControlAPI

struct ClusterSetCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "set", abstract: "Change the cluster on both nodes, without a restart.",
    discussion: """
      Settings: detection=TIME (a silent node is lost after it), pulse=TIME (between heartbeats), boot-wait=TIME (a node \
      that boots alone waits this long for the other), boot-policy=arbiter|wait, arbiter=witness|fence|witness+fence|wait|\
      policy=none|policy=ping (who lets a node go on alone: docs/operating/arbiters.md), force-after=TIME|off (after a \
      power cut of both nodes, a copy that waits so long for the other one is started by force; can split), \
      split-policy=ask|keep-preferred (whose copy of a SPLIT VM goes on by itself: docs/operating/split.md), \
      scrub=TIME|off (both copies are compared this often), scrub-rate=NUMBER (MiB a second that it may read). \
      TIME is a whole number with ms, s, m, h or d: 5s, 250ms, 7d.

      For the witness (etcd): witness-endpoints=URL[,URL], witness-ca=FILE, witness-certificate=FILE, witness-key=FILE, \
      witness-user=NAME, witness-password-file=FILE. For fence: fence-1=AGENT:FILE and fence-2=AGENT:FILE, what powers \
      node 1 and node 2 off; FILE has the agent's key=value lines. For policy=ping: ping=ADDRESS[,ADDRESS]. An empty value \
      takes a setting back. The files must be on both nodes; an arbiter is changed only while every VM is in sync or \
      stopped, and only if its rehearsal succeeds on both nodes.
      """)

  @OptionGroup var common: CommonOptions
  @Argument(help: ArgumentHelp("What to change.", valueName: "setting=value"))
  var settings: [String] = []
  @Option(
    name: .customLong("add-link"),
    help: ArgumentHelp("A link with node 1's and node 2's address.", valueName: "name=address1,address2[,replication]"))
  var addLink: [PairArgument] = []
  @Option(name: .customLong("remove-link"), help: ArgumentHelp("A link to give up.", valueName: "name"))
  var removeLink: [String] = []
  @Flag(help: "Print the changed cluster as the API describes it.")
  var json = false

  /// A new link with the addresses of both nodes.
  struct PairArgument: ExpressibleByArgument, Sendable {
    var name: String
    var addresses: [String]
    var replication: Bool

    init?(argument: String) {
      let parts = argument.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
      guard parts.count == 2, !parts[0].isEmpty else { return nil }
      var rest = parts[1].split(separator: ",", omittingEmptySubsequences: false).map(String.init)
      replication = rest.count == 3 && rest[2] == "replication"
      if replication { rest.removeLast() }
      guard rest.count == 2, rest.allSatisfy({ !$0.isEmpty }) else { return nil }
      name = String(parts[0])
      addresses = rest
    }
  }

  func validate() throws {
    if settings.isEmpty && addLink.isEmpty && removeLink.isEmpty {
      throw ValidationError("Say what to change: detection=5s, --add-link, --remove-link, ...")
    }
    _ = try parsed()
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    var changes = try parsed()
    if !addLink.isEmpty {
      let nodes = try await tool.client.clusterShow().nodes.sorted { $0.id < $1.id }.map(\.name)
      guard nodes.count == 2 else {
        throw ControlError(
          .refused, "links can be added when both nodes are in the cluster", why: "the second node has not joined yet",
          next: "vmha cluster ticket")
      }
      changes.addLinks = addLink.map { link in
        .init(
          name: link.name, addresses: [nodes[0]: link.addresses[0], nodes[1]: link.addresses[1]],
          replication: link.replication)
      }
    }
    let cluster = try await tool.client.clusterSet(changes)
    if json {
      try tool.printJSON(cluster)
    } else if !common.quiet {
      for line in ClusterCommand.lines(cluster, tool.console) { tool.console.line(line) }
    }
    return .success
  }

  private func parsed() throws -> ClusterChanges {
    var changes = ClusterChanges()
    changes.removeLinks = removeLink
    for setting in settings {
      let parts = setting.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false).map(String.init)
      guard parts.count == 2 else { throw ValidationError("'\(setting)' is not of the form setting=value.") }
      switch parts[0] {
      case "detection": changes.detectionMilliseconds = try milliseconds(setting, parts[1])
      case "pulse": changes.pulseMilliseconds = try milliseconds(setting, parts[1])
      case "boot-wait": changes.bootWaitMilliseconds = try milliseconds(setting, parts[1])
      case "arbiter": changes.arbiter = try oneOf(Self.arbiters, setting, parts[1])
      case let name where Self.arbiterSettings.contains(name):
        changes.arbiterSettings = (changes.arbiterSettings ?? [:]).merging([name: parts[1]]) { $1 }
      case "boot-policy": changes.bootPolicy = try oneOf(["arbiter", "wait"], setting, parts[1])
      case "force-after": changes.forceAfterSeconds = try secondsOrOff(setting, parts[1])
      case "split-policy": changes.splitPolicy = try oneOf(["ask", "keep-preferred"], setting, parts[1])
      case "scrub": changes.scrubIntervalSeconds = try secondsOrOff(setting, parts[1])
      case "scrub-rate":
        guard let rate = Int(parts[1]), (1...10_240).contains(rate) else {
          throw ValidationError("'\(setting)' has no number of MiB a second, 1 to 10240.")
        }
        changes.scrubRateMiB = rate
      default:
        throw ValidationError(
          "There is no setting '\(parts[0])': detection, pulse, boot-wait, boot-policy, force-after, split-policy, "
            + "scrub, scrub-rate, arbiter, " + Self.arbiterSettings.joined(separator: ", ") + ".")
      }
    }
    return changes
  }

  static let arbiters = ["witness", "fence", "witness+fence", "wait", "policy=none", "policy=ping"]
  private static let arbiterSettings = [
    "witness-endpoints", "witness-ca", "witness-certificate", "witness-key", "witness-user", "witness-password-file",
    "fence-1", "fence-2", "ping",
  ]

  private func oneOf(_ allowed: [String], _ setting: String, _ value: String) throws -> String {
    guard allowed.contains(value) else {
      throw ValidationError("'\(setting)' is not possible: \(allowed.joined(separator: " or ")).")
    }
    return value
  }

  /// 0 = off.
  private func secondsOrOff(_ setting: String, _ value: String) throws -> Int {
    if value == "off" { return 0 }
    let time = try milliseconds(setting, value)
    guard time >= 1000 else { throw ValidationError("'\(setting)' is shorter than a second; 'off' switches it off.") }
    return time / 1000
  }

  private func milliseconds(_ setting: String, _ value: String) throws -> Int {
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)]
    let digits = value.prefix { $0.isASCII && $0.isNumber }
    guard let number = Int(digits), number <= 1_000_000,
      let unit = units.first(where: { $0.0 == value.dropFirst(digits.count) })
    else { throw ValidationError("'\(setting)' has no time like 250ms, 5s, 2m or 1h.") }
    return number * unit.1
  }
}
