import ArgumentParser
import ControlAPI

struct CheckCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "check", abstract: "Rehearse the arbiter on both nodes.",
    discussion: """
      The witness is read and written (a key of its own), each VM's register is compared with both copies, fence devices \
      are asked for their status and whom they power off, ping addresses are pinged. Nothing is powered off and no VM is touched. \
      Exit code 0 if everything that would be needed works, else 1.
      """)

  @OptionGroup var common: CommonOptions
  @Flag(help: "Print what the API answers (docs/api.md).")
  var json = false

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let report = try await tool.client.check()
    if json {
      try tool.printJSON(report)
    } else if !common.quiet {
      for line in Self.lines(report, tool.console) { tool.console.line(line) }
    }
    return report.passed ? .success : .failure
  }

  static func lines(_ report: CheckReport, _ console: Console) -> [String] {
    var lines = ["arbiter: \(report.arbiter)"]
    for (module, text) in (report.moduleArbiters ?? [:]).sorted(by: { $0.key < $1.key }) {
      lines.append("  \(module) has its own: \(text)")
    }
    if report.checks.isEmpty { return lines + ["", "There is nothing to rehearse: it asks nobody."] }
    var table = Table()
    table.rightAligned = [3]
    table.add(["NODE", "CHECK", "RESULT", "MS", "DETAIL"].map { Styled($0, .bold) })
    for check in report.checks {
      table.add([
        Styled(check.node), Styled((check.module.map { "\($0): " } ?? "") + check.what),
        check.passed ? Styled("ok", .green) : Styled("FAILED", .red), Styled("\(check.milliseconds)"),
        Styled(check.detail),
      ])
    }
    lines += [""] + table.lines(console)
    return lines
  }
}
