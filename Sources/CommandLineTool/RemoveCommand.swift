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
    if try await isModule(tool) {
      if !common.quiet && !yes {
        tool.console.line("\(name) will no longer be protected; its disks go back to where they were.")
        tool.console.line(
          purgeCopy ? "The copy on the other node is DELETED." : "The copy on the other node is kept as plain files.")
      }
      try tool.confirm("Remove \(name) from vmha now?", yes: yes)
    }
    let operation = try await tool.client.remove(name, purgeCopy: purgeCopy)
    try await OperationProgress(tool: tool, isQuiet: common.quiet).follow(operation)
    return .success
  }

  /// A remove that was interrupted shows no module any more. It was agreed to when it was begun; vmhad knows whether there is one to
  /// go on with, and refuses otherwise.
  private func isModule(_ tool: Tool) async throws -> Bool {
    do {
      _ = try await tool.client.module(name)
      return true
    } catch let error as ControlError where error.code == .noSuchModule {
      return false
    }
  }
}
