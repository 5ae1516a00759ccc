import Model
import Replication
import Testing

@Suite struct StallWatchTests {
  private let one = SessionID(rawValue: 1)

  @Test func onlyTheSameOldestNumberIsAStall() {
    var watch = StallWatch()
    #expect(watch.look(one, oldest: 7, now: seconds(0)) == .zero)
    #expect(watch.look(one, oldest: 7, now: seconds(4)) == .seconds(4))
    #expect(watch.look(one, oldest: 8, now: seconds(5)) == .zero, "it moves")
    #expect(watch.look(one, oldest: nil, now: seconds(60)) == .zero, "nothing is awaited")
    #expect(watch.look(one, oldest: nil, now: seconds(90)) == .zero)
    #expect(watch.look(one, oldest: 9, now: seconds(91)) == .zero)
    #expect(watch.look(SessionID(rawValue: 2), oldest: 9, now: seconds(99)) == .zero, "another session")
    #expect(watch.look(SessionID(rawValue: 2), oldest: 9, now: seconds(119)) == .seconds(20))
  }

  @Test func theMachineNamesTheOldestOpenOne() throws {
    var machine = AcknowledgeMachine()
    var completions: [AcknowledgeMachine.Completion] = []
    machine.sessionBegan(one)
    try machine.setPolicy(.both(one), completions: &completions)
    #expect(machine.oldestOutstanding == nil)
    for request: UInt64 in 1...3 {
      let admitted = machine.admit(request, .mutation)
      let token = try #require(admitted)
      _ = machine.send(token)
      _ = machine.localDone(token, result: 0)
    }
    #expect(machine.oldestOutstanding == 1)
    try machine.remoteAcknowledged(SequenceRange(2), in: one, completions: &completions)
    #expect(machine.oldestOutstanding == 1)
    try machine.remoteAcknowledged(SequenceRange(1), in: one, completions: &completions)
    #expect(machine.oldestOutstanding == 3)
    try machine.remoteAcknowledged(SequenceRange(3), in: one, completions: &completions)
    #expect(machine.oldestOutstanding == nil)
  }
}
