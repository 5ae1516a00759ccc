import ArgumentParser
import ControlAPI
import Model

struct ResolveCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "resolve", abstract: "Choose whose copy of a SPLIT VM goes on.",
    discussion: """
      The guest on the other node is shut down, its whole copy is archived there (vmha branch list), and then it is rebuilt \
      from the copy that is kept, while that one's guest goes on. Refused unless the VM is SPLIT, the nodes see each other and \
      the archive fits.
      """)

  @OptionGroup var common: CommonOptions
  @OptionGroup var wait: WaitOptions
  @Argument(help: ArgumentHelp("Name of the VM.", valueName: "vm"))
  var name: String
  @Option(help: ArgumentHelp("The node whose copy goes on.", valueName: "node"))
  var keep: String
  @Flag(help: "Do not ask.")
  var yes = false
  @Flag(help: "Print the module as the API describes it.")
  var json = false

  /// A large copy may take hours to archive and to rebuild.
  static let waitSecondsDefault = 24 * 3600

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let module = try await tool.client.module(name)
    guard module.split else {
      throw ControlError(
        .refused, "the split of \(name) is not resolved", why: "it is not SPLIT", next: "see: vmha status \(name)")
    }
    guard module.nodes.contains(where: { $0.node == keep }) else {
      throw ControlError(
        .invalidRequest, "'\(keep)' is no node of this cluster",
        why: "the nodes are \(Wording.list(module.nodes.map(\.node)))")
    }
    if !common.quiet, !json || !yes {
      for line in Self.sides(module, keep: keep) { tool.console.errorLine(line) }
    }
    try tool.confirm("Keep \(keep)'s copy of \(name) and archive the other one?", yes: yes)
    var branches: [String: String] = [:]
    for node in module.nodes { branches[node.node] = node.generation?.branch }
    let request = ResolveRequest(keep: keep, branches: branches)
    let action = ModuleAction(
      tool: tool, isQuiet: common.quiet, json: json, wait: wait, waitSecondsDefault: Self.waitSecondsDefault)
    return try await action.run([name], goal: { _ in .resolved }) { try await tool.client.resolve($0, request) }
  }

  /// What both sides are worth, and what happens to each.
  static func sides(_ module: ModuleStatus, keep: String) -> [String] {
    module.nodes.flatMap { node -> [String] in
      let fate =
        node.node == keep
        ? "goes on as it is"
        : "is ARCHIVED there"
          + (node.guest == .running || node.guest == .paused ? "; its guest is shut down" : "")
          + (node.branch.map {
            ", \(Wording.bytes($0.bytesOnDisk)) without reflinks, \(Wording.bytes($0.bytesFree)) free"
          }
            ?? "")
      let generation = node.generation.map { "generation \($0.number), branch \($0.branch)" } ?? "no generation"
      return [
        "\(node.node): \(node.state.rawValue), guest \(node.guest.rawValue), \(generation)",
        "  \(node.branch.map(Wording.branch) ?? "nothing more is known of it")",
        "  this copy \(fate)",
      ]
    }
  }
}

extension Wording {
  static func moment(_ time: WallTime?) -> String {
    time.map { "\($0.localDate) \($0.localTimeOfDay)" } ?? "a time not known"
  }

  /// Of a copy that waits: "in sync until 2026-11-23 03:12:30, last written 2026-11-23 03:12:29 (4 h 2 min ago)".
  static func age(_ facts: BranchFacts, now: WallTime) -> String {
    let ago = facts.lastWrite.map { " (\(roughly(seconds: (now - $0).components.seconds)) ago)" } ?? ""
    return "in sync until \(moment(facts.lastInSync)), last written \(moment(facts.lastWrite))\(ago)"
  }

  static func branch(_ facts: BranchFacts) -> String {
    let written = facts.bytesWritten.map { "at most \(bytes($0))" } ?? "an unknown part of it"
    return
      "alone since \(moment(facts.since)), last written \(moment(facts.lastWrite)), \(written) written since in sync"
  }
}
