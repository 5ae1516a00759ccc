import Model
import Testing

@testable import Replication

/// What an admitted request still has to do, and what a copy does for it.
@Suite struct AcknowledgeFollowerTests {
  private let session = SessionID(rawValue: 1)

  private func turned(_ policies: AcknowledgePolicy...) throws -> AcknowledgeMachine {
    var machine = AcknowledgeMachine()
    machine.sessionBegan(session)
    var completions: [AcknowledgeMachine.Completion] = []
    for policy in policies { try machine.setPolicy(policy, completions: &completions) }
    return machine
  }

  /// A correction belongs to a write that was admitted: neither a drain nor a freeze holds it back, and the drain waits for it.
  @Test func aDrainWaitsForAFollower() throws {
    var machine = try turned(.alone, .resyncing(session), .settling(session), .both(session))
    let writeGiven = machine.admit(1, .mutation)
    let write = try #require(writeGiven)
    _ = machine.send(write)
    #expect(machine.isMirrored(write))
    machine.beginDrain()
    let held = machine.admit(2, .mutation)
    #expect(held == nil)
    let follower = machine.admitFollower(3)
    let failed = machine.localDone(write, result: 28)
    #expect(failed?.result == 28)
    #expect(!machine.isDrained && machine.unfinishedMutations == 1)
    let dispatchGiven = machine.send(follower)
    let dispatch = try #require(dispatchGiven)
    let early = machine.localDone(follower, result: 0)
    #expect(early == nil)
    var completions: [AcknowledgeMachine.Completion] = []
    try machine.remoteAcknowledged(
      SequenceRange(1, through: dispatch.sequence), in: session, completions: &completions)
    #expect(completions.map(\.request) == [3] && machine.isDrained)
  }

  /// R10: the round of the write-intent map begins before the drain and is answered after the flush of the swap, which counts anew.
  @Test func aDrainWaitsForEveryAnswer() throws {
    var machine = try turned(.alone, .resyncing(session), .settling(session), .both(session))
    let roundGiven = machine.sendBarrier(1, in: session, unlessDraining: true)
    let round = try #require(roundGiven)
    machine.beginDrain()
    let late = machine.sendBarrier(2, in: session, unlessDraining: true)
    #expect(late == nil, "a barrier behind the drain")
    let flushGiven = machine.sendBarrier(3, in: session)
    let flush = try #require(flushGiven)
    var completions: [AcknowledgeMachine.Completion] = []
    try machine.remoteFlushed(flush.dispatch.sequence, in: session, completions: &completions)
    #expect(machine.requestsInFlight == 0 && !machine.isDrained && machine.oldestOutstanding == round.dispatch.sequence)
    try machine.remoteFlushed(round.dispatch.sequence, in: session, completions: &completions)
    #expect(machine.isDrained && machine.oldestOutstanding == nil)
  }

  /// Alone and during a copy no peer is waited for, and a lost session owes nothing.
  @Test func aDrainWaitsForNoPeerThatIsNotNeeded() throws {
    var machine = try turned(.alone, .resyncing(session))
    let sent = machine.sendBarrier(1, in: session)
    machine.beginDrain()
    #expect(sent != nil && machine.isDrained)
    machine = try turned(.alone, .resyncing(session), .settling(session), .both(session))
    _ = machine.sendBarrier(1, in: session)
    machine.beginDrain()
    #expect(!machine.isDrained)
    var completions: [AcknowledgeMachine.Completion] = []
    machine.sessionLost(session, completions: &completions)
    #expect(machine.isDrained && machine.policy == .frozen)
  }

  @Test func whatALostSessionHadIsNotMirrored() throws {
    var machine = try turned(.alone, .resyncing(session), .settling(session), .both(session))
    let writeGiven = machine.admit(1, .mutation)
    let write = try #require(writeGiven)
    _ = machine.send(write)
    var completions: [AcknowledgeMachine.Completion] = []
    machine.sessionLost(session, completions: &completions)
    #expect(!machine.isMirrored(write))
  }

  /// Only a copy can be left something, and then it needs no acknowledgement, before its end or after.
  @Test func leftToTheCopy() throws {
    var machine = try turned(.alone)
    let beforeGiven = machine.admit(1, .mutation)
    let before = try #require(beforeGiven)
    let beforeLeft = machine.leaveToCopy(before)
    #expect(!beforeLeft)
    _ = machine.send(before)
    let beforeDone = machine.localDone(before, result: 0)
    #expect(beforeDone?.request == 1)
    var completions: [AcknowledgeMachine.Completion] = []
    try machine.setPolicy(.resyncing(session), completions: &completions)
    let earlyGiven = machine.admit(2, .mutation)
    let early = try #require(earlyGiven)
    let lateGiven = machine.admit(3, .mutation)
    let late = try #require(lateGiven)
    let (earlyLeft, lateLeft) = (machine.leaveToCopy(early), machine.leaveToCopy(late))
    #expect(earlyLeft && lateLeft && machine.oldestOutstanding == nil)
    let earlyDone = machine.localDone(early, result: 0)
    #expect(earlyDone?.request == 2)
    try machine.setPolicy(.settling(session), completions: &completions)
    let lateDone = machine.localDone(late, result: 0)
    #expect(lateDone?.request == 3)
    let afterGiven = machine.admit(4, .mutation)
    let after = try #require(afterGiven)
    let afterLeft = machine.leaveToCopy(after)
    #expect(!afterLeft)
  }
}
