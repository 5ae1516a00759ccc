import ArgumentParser
import ControlAPI

/// `VM… | --all`, for start, stop and swap.
struct ModuleSelection: ParsableArguments {
  @Flag(help: "All protected VMs.")
  var all = false
  @Argument(help: ArgumentHelp("Names of VMs.", valueName: "vm"))
  var names: [String] = []

  mutating func validate() throws {
    if all && !names.isEmpty { throw ValidationError("Give names of VMs or --all, not both.") }
    if !all && names.isEmpty { throw ValidationError("Give the name of a VM, or --all.") }
    // Twice the same would be waited for twice.
    if Set(names).count != names.count { throw ValidationError("The same VM is named twice.") }
  }

  func resolve(_ tool: Tool) async throws -> [String] {
    all ? try await tool.client.status().modules.map(\.name) : names
  }
}

/// How long a command waits for what it began.
struct WaitOptions: ParsableArguments {
  @Flag(name: .customLong("no-wait"), help: "Return as soon as vmhad has accepted it.")
  var noWait = false
  @Option(
    name: .customLong("wait"),
    help: ArgumentHelp("Stop waiting after this long (it goes on in vmhad).", valueName: "seconds"))
  var seconds: Int?

  mutating func validate() throws {
    if let seconds, !(1...86_400).contains(seconds) { throw ValidationError("--wait takes 1 to 86400 seconds.") }
    if noWait && seconds != nil { throw ValidationError("Give --wait or --no-wait, not both.") }
  }
}
