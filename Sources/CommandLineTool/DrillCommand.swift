import ArgumentParser
import ControlAPI
import Drills
import Foundation

struct DrillCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "drill", abstract: "Rehearse a failover and measure it.",
    discussion: """
      --swap exchanges the roles and goes back; --crash kills the guest's QEMU process. The guest is interrupted. Refused \
      unless both copies are in sync and the guest answers the check of its module.xml. The report is kept in \
      /var/lib/vmha/drills.
      """)

  @OptionGroup var common: CommonOptions
  @Argument(help: ArgumentHelp("Name of the VM.", valueName: "vm"))
  var name: String
  @Flag(help: "The planned exchange of roles, there and back.")
  var swap = false
  @Flag(help: "Kill the guest's QEMU process.")
  var crash = false
  @Flag(help: "Do not ask.")
  var yes = false
  @Flag(help: "Print the report as JSON.")
  var json = false

  func validate() throws {
    if swap == crash { throw ValidationError("Give one of --swap and --crash.") }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let kind: DrillKind = swap ? .swap : .crash
    // Refused before anybody is asked.
    if let refusal = Drill.refusal(try await tool.client.module(name)) { throw refusal }
    let what = swap ? "shut down and started on the other node, twice" : "killed"
    try tool.confirm("The guest of \(name) will be \(what). Go on?", yes: yes)
    let start = ContinuousClock.now
    let isSilent = common.quiet || json
    let drill = Drill(
      service: tool.client, probe: HostProbe(), module: name, kind: kind, clock: bootClockNanoseconds,
      tell: { text in
        guard !isSilent else { return }
        let elapsed = Wording.seconds(ContinuousClock.now - start)
        tool.console.line("\(String(repeating: " ", count: max(0, 7 - elapsed.count)))\(elapsed)  \(text)")
      })
    let report = try await drill.run()
    if json {
      try tool.printJSON(report)
    } else if !common.quiet {
      tool.console.line()
      for line in Self.lines(report, tool.console) { tool.console.line(line) }
    }
    try keep(report, tool)
    if let problem = report.problem {
      tool.print(
        ControlError(
          .failed, "the drill did not end as it should", why: problem, next: "vmha status \(name), vmha log \(name)"))
    }
    return report.succeeded ? .success : .failure
  }

  private func keep(_ report: DrillReport, _ tool: Tool) throws {
    let path = "\(tool.drillFolder)/\(report.fileName)"
    do {
      try FileManager.default.createDirectory(atPath: tool.drillFolder, withIntermediateDirectories: true)
      let data = try ControlCoding.encode(report, pretty: true)
      try data.write(to: URL(fileURLWithPath: path), options: .atomic)
    } catch {
      throw ControlError(
        .failed, "the drill was done, but its report could not be kept", why: "\(path): \(error.localizedDescription)",
        next: "run drills as root")
    }
    if !common.quiet && !json { tool.console.line("report: \(path)") }
  }

  static func lines(_ report: DrillReport, _ console: Console) -> [String] {
    var table = Table()
    table.rightAligned = [2, 3, 4, 5, 6]
    let head = ["", "", "noticed", "promoted", "started", "answering", "silent for"]
    table.add(head.map { Styled($0, .dim) })
    for leg in report.legs {
      let phases = DrillPhase.allCases.map { Styled(text(leg[$0])) }
      let way = "\(leg.from) -> \(leg.to ?? "nowhere")"
      table.add([Styled(leg.name), Styled(way)] + phases + [Styled(text(leg.silenceMilliseconds))])
    }
    let verdict =
      report.succeeded
      ? Styled("\(report.module) is protected and where it was.", .green)
      : Styled("The drill failed.", .red)
    return table.lines(console) + [verdict.rendered(console)]
  }

  private static func text(_ milliseconds: Int?) -> String {
    guard let milliseconds else { return "-" }
    return milliseconds < 1000 ? "\(milliseconds) ms" : Wording.seconds(.milliseconds(milliseconds))
  }
}
