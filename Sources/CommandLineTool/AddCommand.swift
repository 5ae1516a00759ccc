import ArgumentParser
import ControlAPI

struct AddCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Protect a VM.",
    discussion: """
      Checks both nodes, says what it will do, asks, and does it. A failure or crash at any step is completed or undone \
      by repeating the command. The VM must be off. Of a VM that is protected already, but of which the other host has \
      nothing because it was replaced: it is defined there again and its copy made anew, while the VM runs.
      """)

  @OptionGroup var common: CommonOptions
  @Argument(help: ArgumentHelp("libvirt's name of the VM.", valueName: "vm"))
  var name: String
  @Flag(help: "Do not ask.")
  var yes = false
  @Flag(name: .customLong("dry-run"), help: "Only check and say what would be done.")
  var dryRun = false
  @Option(help: ArgumentHelp("Node on which the VM is started; this one if not given.", valueName: "node"))
  var prefer: String?
  @Option(
    name: .customLong("dir"),
    help: ArgumentHelp("Folder for its disks; that of its first disk if not given.", valueName: "folder"))
  var directory: String?
  @Option(
    name: .customLong("seed-from"),
    help: ArgumentHelp(
      "Folder on the other node with a copy of the disks that was carried there: it is compared, only differences are sent.",
      valueName: "folder"))
  var seed: String?
  @Flag(help: "With --dry-run: print the plan as the API gives it.")
  var json = false

  func validate() throws {
    if let directory, !directory.hasPrefix("/") { throw ValidationError("--dir takes an absolute path.") }
    if let seed, !seed.hasPrefix("/") {
      throw ValidationError("--seed-from takes an absolute path, on the other node.")
    }
    if json && !dryRun { throw ValidationError("--json needs --dry-run.") }
    if yes && dryRun { throw ValidationError("Give --yes or --dry-run, not both.") }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let request = AddRequest(name: name, preferredNode: prefer, directory: directory, seedDirectory: seed)
    let plan = try await tool.client.planAdd(request)
    if json {
      try tool.printJSON(plan)
      return plan.isPossible ? .success : .refused
    }
    if !common.quiet { for line in Self.lines(plan, tool.console) { tool.console.line(line) } }
    guard plan.isPossible else {
      throw ControlError(
        .checksFailed, "\(name) cannot be protected as it is",
        details: common.quiet ? plan.findings.filter { $0.severity == .error }.map(\.what) : nil)
    }
    if dryRun { return .success }
    try tool.confirm("Protect \(name) now?", yes: yes)
    try await OperationProgress(tool: tool, isQuiet: common.quiet).follow(try await tool.client.add(request))
    return .success
  }

  static func lines(_ plan: AddPlan, _ console: Console) -> [String] {
    var lines = ["Checks for \(plan.name):"]
    for finding in plan.findings.sorted(by: { $0.severity > $1.severity }) {
      let mark: Styled =
        switch finding.severity {
        case .error: Styled("  FAILED   ", .red)
        case .warning: Styled("  warning  ", .yellow)
        case .notice, .info: Styled("  ok       ", .green)
        }
      lines.append(mark.rendered(console) + finding.what)
      if let next = finding.whatToDo { lines.append("           -> \(next)") }
    }
    if plan.findings.isEmpty { lines.append("  nothing stands against it") }
    guard plan.isPossible else { return lines }
    lines.append("What will be done" + (plan.number.map { " (as module \($0))" } ?? "") + ":")
    for (index, step) in plan.steps.enumerated() {
      lines.append("  \(index < 9 ? " " : "")\(index + 1). \(step)")
    }
    if plan.bytesToCopy > 0 {
      lines.append("  \(Wording.bytes(plan.bytesToCopy)) are copied from one disk to another.")
    }
    return lines
  }
}
