import ControlAPI
import ControlTestSupport
import Foundation
import Model
import Testing

@testable import Drills

/// Transcripts: one observation a line, "MILLISECONDS KIND ...", and the leg that must come out.
///
///     event KIND NODE | status NODE1-STATE/GUEST NODE2-STATE/GUEST ("-" for a lost node) | answers | silent
@Suite struct PhaseTrackerTests {
  private func leg(_ kind: DrillKind, from: String = "node1", _ transcript: String) throws -> DrillLeg {
    var tracker = PhaseTracker(kind: kind, from: from)
    for line in transcript.split(separator: "\n") {
      let words = line.split(separator: " ").map(String.init)
      let time = Duration.milliseconds(try #require(Int(words[0])))
      switch words[1] {
      case "event":
        tracker.observe(.event(Samples.event(1, "", kind: EventKind(rawValue: words[2]), node: words[3])), at: time)
      case "status": tracker.observe(.module(try module(words[2], words[3])), at: time)
      case "answers": tracker.observe(.probe(answers: true), at: time)
      case "silent": tracker.observe(.probe(answers: false), at: time)
      default: Issue.record("unknown observation: \(line)")
      }
    }
    return tracker.leg(name: "test")
  }

  private func module(_ first: String, _ second: String) throws -> ModuleStatus {
    var module = Samples.protected("vm1", number: 1)
    for (index, text) in [first, second].enumerated() {
      let parts = text.split(separator: "/").map(String.init)
      guard parts.count == 2 else {
        module.nodes[index].current = false
        continue
      }
      module.nodes[index].state = try #require(ModuleState(rawValue: parts[0]))
      module.nodes[index].guest = try #require(GuestState(rawValue: parts[1]))
    }
    return module
  }

  private func text(_ leg: DrillLeg) -> String {
    (["to \(leg.to ?? "nowhere")"] + leg.phases.map { "\($0.phase.rawValue) \($0.milliseconds)" }
      + (leg.silenceMilliseconds.map { ["silence \($0)"] } ?? [])).joined(separator: ", ")
  }

  @Test func crashTakenOverByTheOtherNode() throws {
    let leg = try leg(
      .crash,
      """
      2 status PRIM/running SECOND/off
      5 silent
      41 event guest_died node1
      60 status PRIM/off SECOND/off
      95 event promoted node2
      230 event guest_starting node2
      610 event guest_started node2
      640 status SECOND/off PRIM/running
      700 silent
      4100 answers
      4200 answers
      """)
    #expect(
      text(leg) == "to node2, noticed 41, promoted 95, started 610, answering 4100, silence 4100")
  }

  @Test func crashRestartedInPlaceHasNoPromotion() throws {
    let leg = try leg(
      .crash,
      """
      1 answers
      3 status PRIM/running SECOND/off
      50 event guest_died node1
      420 event guest_started node1
      430 status PRIM/running SECOND/off
      3900 answers
      """)
    #expect(text(leg) == "to node1, noticed 50, started 420, answering 3900, silence 3899")
  }

  @Test func staleStatusAfterTheCrashProvesNothing() throws {
    let leg = try leg(
      .crash,
      """
      1 status PRIM/running SECOND/off
      20 event guest_started node1
      30 answers
      """)
    #expect(text(leg) == "to nowhere")
    #expect(!PhaseTracker(kind: .crash, from: "node1").isComplete(withCheck: false))
  }

  @Test func swapIsSeenFromStatusAlone() throws {
    let leg = try leg(
      .swap,
      """
      10 answers
      20 status PRIM/running SECOND/off
      2500 silent
      2600 status PRIM/off SECOND/off
      2700 status SECOND/off PRIM/off
      3300 status SECOND/off PRIM/running
      6700 answers
      """)
    #expect(
      text(leg) == "to node2, noticed 2600, promoted 2700, started 3300, answering 6700, silence 6690")
  }

  @Test func theJournalIsMoreExactThanTheStatus() throws {
    let leg = try leg(
      .swap, from: "node2",
      """
      900 status SECOND/off PRIM/off
      850 event guest_stopped node2
      1200 status PRIM/off SECOND/off
      1100 event promoted node1
      1900 status PRIM/running SECOND/off
      1700 event guest_started node1
      """)
    #expect(text(leg) == "to node1, noticed 850, promoted 1100, started 1700")
  }

  @Test func eventsOfTheOldNodeAreNotTheNewOnes() throws {
    let leg = try leg(
      .swap,
      """
      5 event promoted node1
      6 event guest_started node1
      7 event guest_died node2
      """)
    #expect(text(leg) == "to nowhere")
  }

  @Test func reportsAreReadBack() throws {
    var report = DrillReport(
      time: Samples.time, cluster: "lab", host: "node1", module: "vm1", kind: .crash, check: "tcp 10.77.0.21 port 80")
    var first = DrillLeg(name: "crash", from: "node1")
    first.phases = [.init(phase: .noticed, milliseconds: 3)]
    report.legs = [first]
    #expect(try ControlCoding.decode(DrillReport.self, from: ControlCoding.encode(report)) == report)
    #expect(report.fileName == "2026-11-22T20-56-14.123Z-vm1-crash.json")
  }
}
