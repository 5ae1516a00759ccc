import ArgumentParser
import ControlAPI

struct RemoveCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "remove", abstract: "Stop protecting a VM and give it back.",
    discussion: """
      The VM gets its plain disk files and its original definition back on the node with the good copy. Its copy on the \
      other node stays unless --purge-copy is given. The VM must be stopped: vmha stop VM.
      """)

  @OptionGroup var common: CommonOptions
  @Argument(help: ArgumentHelp("Name of the VM.", valueName: "vm"))
  var name: String
  @Flag(name: .customLong("purge-copy"), help: "Delete the copy on the other node.")
  var purgeCopy = false
  @Flag(help: "Do not ask.")
  var yes = false

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let module = try await tool.client.module(name)
    if !common.quiet && !yes {
      tool.console.line("\(module.name) will no longer be protected; its disks go back to where they were.")
      tool.console.line(
        purgeCopy ? "The copy on the other node is DELETED." : "The copy on the other node is kept as plain files.")
    }
    try tool.confirm("Remove \(name) from vmha now?", yes: yes)
    let operation = try await tool.client.remove(name, purgeCopy: purgeCopy)
    try await OperationProgress(tool: tool, isQuiet: common.quiet).follow(operation)
    return .success
  }
}
