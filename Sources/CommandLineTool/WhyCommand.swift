import ArgumentParser
import ControlAPI
import ControlHTTP
import Foundation
import Model

struct WhyCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "why", abstract: "Tell what happened to a VM, step by step on both nodes, and why it is as it is.",
    discussion: """
      Shows the last incident: what happened without a quiet minute in between, from the journals of both nodes (a node keeps \
      a copy of the other one's), with the time from each step to the next. Rules in brackets are those of docs/protocol.md.
      """)

  static let incidentsMax = 100

  @OptionGroup var common: CommonOptions
  @Option(name: [.customShort("n"), .long], help: "How many incidents, the newest last (1 to \(incidentsMax)).")
  var incidents = 1
  @Flag(help: "The whole timeline as JSON, as the API gives it.")
  var json = false
  @Flag(
    help: """
      The last decisions of the VM's core on this node, as JSON that a developer can replay. Holds names and states, no \
      contents and no keys.
      """)
  var decisions = false
  @Argument(help: ArgumentHelp("Name of a VM; without one: everything.", valueName: "vm"))
  var name: String?

  func validate() throws {
    if !(1...Self.incidentsMax).contains(incidents) { throw ValidationError("-n takes 1 to \(Self.incidentsMax).") }
    if decisions, name == nil { throw ValidationError("--decisions needs the name of a VM.") }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    if decisions, let name {
      tool.console.line(String(decoding: try await tool.client.decisions(name), as: UTF8.self))
      return .success
    }
    let status = try await tool.client.status()
    let module = status.modules.first { $0.name == name }
    let timeline = try await tool.client.timeline(module: name, limit: Timeline.limitMax)
    // A VM that was removed keeps its history; only a name without any is wrong.
    if let name, module == nil, !timeline.events.contains(where: { $0.module == name }) {
      throw ControlError.noSuchModule(name)
    }
    if json {
      try tool.printJSON(timeline)
    } else {
      for line in WhyRendering(timeline, tool.console).lines(of: name, module, now: status.time, incidents) {
        tool.console.line(line)
      }
    }
    return .success
  }
}

/// A `Timeline` as people read it.
struct WhyRendering {
  let timeline: Timeline
  let console: Console

  init(_ timeline: Timeline, _ console: Console) {
    self.timeline = timeline
    self.console = console
  }

  func lines(of name: String?, _ module: ModuleStatus?, now: WallTime, _ count: Int) -> [String] {
    var lines: [String] = []
    if let module { lines += present(module) + [""] }
    let incidents = timeline.incidents(of: name).suffix(count)
    if incidents.isEmpty { lines.append("Nothing has happened yet.") }
    for incident in incidents { lines += story(incident, now) + [""] }
    lines += remarks(since: incidents.last?.last?.time)
    while lines.last == "" { lines.removeLast() }
    return lines
  }

  private func present(_ module: ModuleStatus) -> [String] {
    module.nodes.map { node in
      let state = "\(node.state.rawValue) \(node.readiness.rawValue)" + (node.current ? "" : ", last known")
      return Styled(module.name, .bold).rendered(console) + " on \(node.node): \(state): \(node.sentence)"
    }
  }

  private struct Step {
    var event: JournalEvent
    /// What became of it: "promoted", "ALONE ready".
    var changes: [String] = []
  }

  /// A change of state is told with the decision that made it, not once more after it.
  private func steps(_ incident: [JournalEvent]) -> [Step] {
    var steps: [Step] = []
    /// Where each node last told of each module.
    var last: [String: Int] = [:]
    for event in incident {
      let teller = "\(event.node) \(event.module ?? "")"
      if event.kind == .state || event.kind == .promoted, let index = last[teller],
        event.sentence.hasSuffix(": \(steps[index].event.sentence)")
      {
        steps[index].changes.append(String(event.sentence.dropLast(steps[index].event.sentence.count + 2)))
        continue
      }
      last[teller] = steps.count
      steps.append(Step(event: event))
    }
    return steps
  }

  private func story(_ incident: [JournalEvent], _ now: WallTime) -> [String] {
    guard let first = incident.first, let last = incident.last else { return [] }
    let steps = steps(incident)
    let length = steps.count == 1 ? "" : ", \(steps.count) steps in \(Wording.seconds(last.time - first.time))"
    let age = Wording.roughly(seconds: (now - last.time).components.seconds)
    var table = Table()
    table.indent = "  "
    table.rightAligned = [1]
    var previous = first.time
    for step in steps {
      let event = step.event
      // Clocks of two hosts may put an answer before its question by a little.
      let time = max(0, event.time.milliseconds - previous.milliseconds)
      previous = max(previous, event.time)
      table.add([
        Styled(event.time.localTimeOfDayExact, .dim),
        Styled(time == 0 ? "" : "+\(seconds(time))"), Styled(event.node), Styled(sentence(step), colour(event)),
      ])
    }
    return ["\(first.time.localDate) \(first.time.localTimeOfDay)\(length), \(age) ago"] + table.lines(console)
  }

  private func sentence(_ step: Step) -> String {
    (step.event.module.map { "\($0): " } ?? "") + step.event.sentence + (step.event.rule.map { " [\($0)]" } ?? "")
      + (step.changes.isEmpty ? "" : " -> " + Wording.list(step.changes))
  }

  private func colour(_ event: JournalEvent) -> Colour? {
    event.severity == .error ? .red : event.severity == .warning ? .yellow : nil
  }

  /// "0.105 s", "12.3 s".
  private func seconds(_ milliseconds: Int64) -> String {
    milliseconds < 10_000
      ? "\(milliseconds / 1000).\(String(1000 + milliseconds % 1000).dropFirst()) s"
      : Wording.seconds(.milliseconds(milliseconds))
  }

  /// What is not known, and what was corrected.
  private func remarks(since last: WallTime?) -> [String] {
    guard let peer = timeline.peer else { return [] }
    var lines: [String] = []
    if let until = timeline.peerKnownUntil {
      if let last, until < last {
        lines.append("What \(peer) did after \(until.localDate) \(until.localTimeOfDay) is not known here.")
      }
    } else {
      lines.append("What \(peer) did is not known here: its journal was never read.")
    }
    if let ahead = timeline.peerClockAheadMilliseconds {
      let direction = ahead > 0 ? "ahead of" : "behind"
      lines.append(
        "The clock of \(peer) is \(seconds(abs(ahead))) \(direction) this node's; its times are corrected. Mend that: chrony or NTP on both hosts."
      )
    }
    return lines
  }
}
