import ControlAPI
import ControlTestSupport
import Testing

@Suite struct TimelineTests {
  @Test func twoAccountsBecomeOne() {
    let a = [
      Samples.event(1, "a0"), Samples.event(2, "a5", after: 5000), Samples.event(3, "a3: clock set back", after: 3000),
    ]
    let b = [Samples.event(7, "b4", node: "node2", after: 4000), Samples.event(8, "b6", node: "node2", after: 6000)]
    // Within one node its own order stands, whatever its clock did.
    #expect(Timeline.merged(a, b).map(\.sentence) == ["a0", "b4", "a5", "a3: clock set back", "b6"])
    #expect(Timeline.merged([], b) == b && Timeline.merged(a, []) == a)
  }

  @Test func quietSeparatesIncidents() {
    let events = [
      Samples.event(1, "start"), Samples.event(2, "link", kind: .link, module: nil, severity: .warning, after: 59_000),
      Samples.event(3, "other", module: "vm2", after: 200_000), Samples.event(4, "lost", after: 300_000),
    ]
    let timeline = Timeline(events: events)
    #expect(timeline.incidents(of: nil).map { $0.map(\.id) } == [[1, 2], [3], [4]])
    #expect(timeline.incidents(of: "vm1").map { $0.map(\.id) } == [[1, 2], [4]])
  }

  @Test func aCopyIsNoQuiet() {
    let hour: Int64 = 3_600_000
    let events = [
      Samples.event(1, "copying begins", kind: .resyncStarted),
      Samples.event(2, "copied", kind: .resyncDone, after: hour),
      Samples.event(3, "much later", after: 2 * hour),
      Samples.event(4, "copying begins", kind: .resyncStarted, after: 3 * hour),
      Samples.event(5, "vmhad started", kind: .daemon, module: nil, severity: .notice, after: 4 * hour),
      Samples.event(6, "later", after: 5 * hour),
    ]
    #expect(Timeline(events: events).incidents(of: "vm1").map { $0.map(\.id) } == [[1, 2], [3], [4, 5], [6]])
  }
}
