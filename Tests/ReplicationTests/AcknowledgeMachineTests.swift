import Model
import Testing

@testable import Replication

private let one = SessionID(rawValue: 1)
private let two = SessionID(rawValue: 2)

extension AcknowledgeMachine {
  fileprivate mutating func admitted(_ request: UInt64, _ kind: Kind) throws -> Token {
    let token = admit(request, kind)
    return try #require(token)
  }
  fileprivate mutating func turn(_ policy: AcknowledgePolicy) throws -> [Completion] {
    var completions: [Completion] = []
    try setPolicy(policy, completions: &completions)
    return completions
  }
  fileprivate mutating func acknowledge(_ range: SequenceRange, _ session: SessionID) throws -> [Completion] {
    var completions: [Completion] = []
    try remoteAcknowledged(range, in: session, completions: &completions)
    return completions
  }
  fileprivate mutating func lose(_ session: SessionID) -> [Completion] {
    var completions: [Completion] = []
    sessionLost(session, completions: &completions)
    return completions
  }
}

private func refusal(_ body: () throws -> Void) -> AcknowledgeError.Code? {
  do {
    try body()
    return nil
  } catch {
    return (error as? AcknowledgeError)?.code
  }
}

@Suite struct AcknowledgeMachineTests {
  /// Every state that any order of events can lead to, against the oracle.
  private func explore(flushes: [Bool], statesMax: Int) -> (states: Int, wrong: String?) {
    let start = AcknowledgeWorld(flushes: flushes)
    var seen: Set<AcknowledgeWorld> = [start]
    var queue = [start]
    var trail: [AcknowledgeWorld: (AcknowledgeWorld, AcknowledgeWorld.Event)] = [:]
    var head = 0
    while head < queue.count, seen.count < statesMax {
      let world = queue[head]
      head += 1
      for event in world.events {
        var next = world
        if let wrong = next.happen(event) {
          var story = ["\(event): \(wrong)"]
          var at = world
          while let (previous, event) = trail[at] {
            story.insert("\(event)", at: 0)
            at = previous
          }
          return (seen.count, story.joined(separator: "\n"))
        }
        if seen.insert(next).inserted {
          queue.append(next)
          trail[next] = (world, event)
        }
      }
    }
    return (seen.count, nil)
  }

  /// One request: every state. Two requests: the first 40,000 states, shortest stories first; all of them (925,154 and
  /// 1,304,406) take a raised limit, an optimised build and two minutes.
  @Test(arguments: [[false], [true], [false, false], [false, true]])
  func everyInterleaving(_ flushes: [Bool]) {
    let (states, wrong) = explore(flushes: flushes, statesMax: 40_000)
    #expect(wrong == nil, "\(wrong ?? "")")
    #expect(states > 500)
  }

  /// Longer stories than the exhaustive search can reach: more requests, any order.
  @Test func randomStories() {
    var random = SeededGenerator(seed: 42)
    for story in 0..<300 {
      var world = AcknowledgeWorld(flushes: (0..<6).map { _ in random.chance(30) })
      for step in 0..<120 {
        let events = world.events
        let event = events[Int.random(in: 0..<events.count, using: &random)]
        // Losses and turns are rare, else nothing ever gets far.
        switch event {
        case .lose, .failed: if random.chance(70) { continue }
        case .turn(.frozen), .turn(.alone): if random.chance(60) { continue }
        default: break
        }
        let wrong = world.happen(event)
        #expect(wrong == nil, "story \(story), step \(step): \(event): \(wrong ?? "")")
        if wrong != nil { return }
      }
    }
  }

  @Test func frozenParksAndInFlightCompletesAlone() throws {
    var machine = AcknowledgeMachine()
    #expect(machine.admit(1, .mutation) == nil)
    machine.sessionBegan(one)
    #expect(try machine.turn(.both(one)).isEmpty)
    let token = try machine.admitted(1, .mutation)
    #expect(machine.send(token) == .init(session: one, sequence: 1))
    #expect(machine.localDone(token, result: 0) == nil)
    #expect(machine.lose(one).isEmpty)
    #expect(machine.policy == .frozen)
    #expect(machine.admit(2, .mutation) == nil)
    // R1: the acknowledgement of the lost session no longer counts.
    #expect(try machine.acknowledge(SequenceRange(1), one).isEmpty)
    // R9: in-flight writes complete under (b).
    #expect(try machine.turn(.alone) == [.init(request: 1, result: 0)])
  }

  @Test func aResyncLeadsToBoth() throws {
    var machine = AcknowledgeMachine()
    _ = try machine.turn(.alone)
    let slowFlush = try machine.admitted(1, .flush)
    #expect(machine.send(slowFlush) == nil)
    machine.sessionBegan(one)
    #expect(refusal { _ = try machine.turn(.both(one)) } == .wrongOrder)
    let write = try machine.admitted(2, .mutation)
    _ = machine.send(write)
    #expect(refusal { _ = try machine.turn(.resyncing(one)) } == .unfinished)
    #expect(machine.localDone(write, result: 0) == .init(request: 2, result: 0))
    #expect(try machine.turn(.resyncing(one)).isEmpty)
    let mirrored = try machine.admitted(3, .mutation)
    #expect(machine.send(mirrored)?.sequence == 1)
    #expect(machine.localDone(mirrored, result: 0) == .init(request: 3, result: 0))
    let crossing = try machine.admitted(4, .mutation)
    #expect(machine.send(crossing)?.sequence == 2)
    _ = try machine.turn(.settling(one))
    #expect(machine.localDone(crossing, result: 0) == nil)
    #expect(machine.localDone(slowFlush, result: 0) == .init(request: 1, result: 0))
    _ = try machine.turn(.both(one))
    #expect(try machine.acknowledge(SequenceRange(1, through: 2), one) == [.init(request: 4, result: 0)])
  }

  @Test func afterALossBothNeedsAResync() throws {
    var machine = AcknowledgeMachine()
    machine.sessionBegan(one)
    _ = try machine.turn(.both(one))
    _ = machine.lose(one)
    machine.sessionBegan(two)
    #expect(refusal { _ = try machine.turn(.both(two)) } == .needsResync)
    #expect(refusal { _ = try machine.turn(.both(one)) } == .otherSession)
    #expect(refusal { _ = try machine.turn(.resyncing(two)) } == .wrongOrder)
    _ = try machine.turn(.alone)
    _ = try machine.turn(.resyncing(two))
    _ = try machine.turn(.settling(two))
    _ = try machine.turn(.both(two))
  }

  /// R1: each session counts its sequences from 1; only its own answers complete what it sent.
  @Test func aFlushOfALostSessionCountsNoMore() throws {
    var machine = AcknowledgeMachine()
    machine.sessionBegan(one)
    _ = try machine.turn(.both(one))
    let lost = try machine.admitted(1, .flush)
    #expect(machine.send(lost) == .init(session: one, sequence: 1))
    _ = machine.lose(one)
    _ = try machine.turn(.alone)
    machine.sessionBegan(two)
    for policy in [AcknowledgePolicy.resyncing(two), .settling(two), .both(two)] { _ = try machine.turn(policy) }
    let flush = try machine.admitted(2, .flush)
    #expect(machine.send(flush) == .init(session: two, sequence: 1))
    #expect(machine.localDone(flush, result: 0) == nil)
    var completions: [AcknowledgeMachine.Completion] = []
    try machine.remoteFlushed(1, in: one, completions: &completions)
    #expect(completions.isEmpty)
    try machine.remoteFlushed(1, in: two, completions: &completions)
    #expect(completions == [.init(request: 2, result: 0)])
  }

  @Test func brokenPeersAreNoticed() throws {
    var machine = AcknowledgeMachine()
    machine.sessionBegan(one)
    _ = try machine.turn(.both(one))
    let write = try machine.admitted(1, .mutation)
    let flush = try machine.admitted(2, .flush)
    _ = machine.send(write)
    _ = machine.send(flush)
    #expect(refusal { _ = try machine.acknowledge(SequenceRange(1, through: UInt64.max), one) } == .unknownSequence)
    #expect(refusal { _ = try machine.acknowledge(SequenceRange(3), one) } == .unknownSequence)
    // An acknowledgement is not a flush: "applied" must never count as "durable".
    #expect(refusal { _ = try machine.acknowledge(SequenceRange(2), one) } == .wrongKind)
    #expect(try machine.acknowledge(SequenceRange(1), one).isEmpty)
    #expect(refusal { _ = try machine.acknowledge(SequenceRange(1), one) } == .unknownSequence)
  }

  @Test func manyInFlightOutOfOrder() throws {
    var machine = AcknowledgeMachine()
    machine.sessionBegan(one)
    _ = try machine.turn(.both(one))
    var random = SeededGenerator(seed: 7)
    var acknowledged = 0
    var next: UInt64 = 0
    var open: [(AcknowledgeMachine.Token, UInt64, local: Bool, remote: Bool)] = []
    for _ in 0..<20_000 {
      if open.count < 500, random.chance(50) {
        let token = try machine.admitted(next, .mutation)
        let sent = machine.send(token)
        let dispatch = try #require(sent)
        open.append((token, dispatch.sequence, false, false))
        next += 1
      } else if let index = open.indices.randomElement(using: &random) {
        var completions: [AcknowledgeMachine.Completion] = []
        if !open[index].local {
          open[index].local = true
          if let done = machine.localDone(open[index].0, result: 0) { completions = [done] }
        } else if !open[index].remote {
          open[index].remote = true
          completions = try machine.acknowledge(SequenceRange(open[index].1), one)
        }
        #expect(completions.count == (open[index].local && open[index].remote ? 1 : 0))
        acknowledged += completions.count
        if open[index].local && open[index].remote { open.remove(at: index) }
      }
    }
    #expect(machine.requestsInFlight == open.count)
    #expect(acknowledged == Int(next) - open.count)
  }
}
