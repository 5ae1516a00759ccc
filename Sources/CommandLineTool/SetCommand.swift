import ArgumentParser
import ControlAPI
import Model

struct SetCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "set", abstract: "Change a protected VM's settings, on both nodes.",
    discussion: """
      --resync-priority: of the VMs whose copies wait to be brought up to date, those of a higher priority come first, then \
      those that have waited longest. A resync that runs is not interrupted.
      """)

  @OptionGroup var common: CommonOptions
  @OptionGroup var selection: ModuleSelection
  @Option(
    name: .customLong("resync-priority"), help: ArgumentHelp("high, normal or low.", valueName: "priority"),
    completion: .list(ResyncPriority.allCases.map(\.rawValue)), transform: Self.priority)
  var resyncPriority: ResyncPriority?

  private static func priority(_ text: String) throws -> ResyncPriority {
    guard let priority = ResyncPriority(rawValue: text) else {
      throw ValidationError("'\(text)' is none of \(ResyncPriority.allCases.map(\.rawValue).joined(separator: ", ")).")
    }
    return priority
  }

  func validate() throws {
    if resyncPriority == nil { throw ValidationError("Say what to set: --resync-priority.") }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    for name in try await selection.resolve(tool) {
      try await tool.client.setModule(name, ModuleChanges(resyncPriority: resyncPriority))
      if !common.quiet { tool.console.line("\(name): set on both nodes") }
    }
    return .success
  }
}
