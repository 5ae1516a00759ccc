import ArgumentParser
import ControlAPI

struct BranchCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "branch", abstract: "Copies that were given up in a split: list, export, drop.",
    subcommands: [BranchListCommand.self, BranchExportCommand.self, BranchDropCommand.self])
}

struct BranchListCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "Show the archived branches of protected VMs, on both nodes.")

  @OptionGroup var common: CommonOptions
  @Flag(help: "Print what the API answers (docs/api.md).")
  var json = false
  @Argument(help: ArgumentHelp("Names of VMs; all without.", valueName: "vm"))
  var names: [String] = []

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let all = names.isEmpty ? try await tool.client.status().modules.map(\.name) : names
    var found: [String: [ArchivedBranch]] = [:]
    for name in all { found[name] = try await tool.client.branches(name) }
    if json {
      try tool.printJSON(found)
      return .success
    }
    for node in try await tool.client.status().nodes where !node.reachable {
      tool.console.errorLine("\(node.name) cannot be reached: what it keeps is not shown")
    }
    guard found.values.contains(where: { !$0.isEmpty }) else {
      if !common.quiet { tool.console.line("No branch is archived.") }
      return .success
    }
    var table = Table()
    table.add(["VM", "BRANCH", "NODE", "SINCE", "LAST WRITE", "SIZE", "FILES"].map { Styled($0, .dim) })
    for name in all {
      for branch in found[name] ?? [] {
        let moments = [branch.since, branch.lastWrite].map { time in
          Styled(time.map { "\($0.localDate) \($0.localTimeOfDay)" } ?? "-")
        }
        table.add(
          [Styled(name, .bold), Styled(branch.branch), Styled(branch.node)] + moments
            + [Styled(Wording.bytes(branch.bytes)), Styled(branch.directory)])
      }
    }
    for line in table.lines(tool.console) { tool.console.line(line) }
    return .success
  }
}

/// Which archived branch a command is about.
struct ArchivedBranchName: ParsableArguments {
  @Argument(help: ArgumentHelp("Name of the VM.", valueName: "vm"))
  var name: String
  @Argument(help: ArgumentHelp("The branch, 16 hexadecimal digits.", valueName: "branch"))
  var branch: String
}

struct BranchExportCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "export", abstract: "Write an archived branch into a new folder, its files as they were.",
    discussion: "On the node that keeps it (vmha branch list). The branch stays in the archive.")

  @OptionGroup var common: CommonOptions
  @OptionGroup var archived: ArchivedBranchName
  @Argument(help: ArgumentHelp("Absolute path of a folder that is not there yet.", valueName: "folder"))
  var folder: String

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let operation = try await tool.client.exportBranch(archived.name, archived.branch, to: folder)
    try await OperationProgress(tool: tool, isQuiet: common.quiet).follow(operation)
    return .success
  }
}

struct BranchDropCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "drop", abstract: "Delete an archived branch for good.",
    discussion: "On the node that keeps it (vmha branch list).")

  @OptionGroup var common: CommonOptions
  @OptionGroup var archived: ArchivedBranchName
  @Flag(help: "Do not ask.")
  var yes = false

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let (name, branch) = (archived.name, archived.branch)
    guard let found = try await tool.client.branches(name).first(where: { $0.branch == branch }) else {
      throw ControlError(
        .refused, "there is no archived branch '\(branch)' of \(name)", why: "it is not in: vmha branch list \(name)")
    }
    let written = found.lastWrite.map { "\($0.localDate) \($0.localTimeOfDay)" } ?? "at a time not known"
    try tool.confirm(
      "Delete branch \(branch) of \(name) (\(Wording.bytes(found.bytes)), last written \(written)) for good?", yes: yes)
    let operation = try await tool.client.dropBranch(name, branch)
    try await OperationProgress(tool: tool, isQuiet: common.quiet).follow(operation)
    return .success
  }
}
