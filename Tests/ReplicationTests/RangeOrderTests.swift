import Testing

@testable import Replication

@Suite struct RangeOrderTests {
  /// The rule itself, as a list: a change may run when no earlier unfinished one overlaps it.
  private struct NaiveList {
    var changes: [(request: UInt64, range: Range<UInt64>, isRunning: Bool)] = []
    mutating func startable() -> [UInt64] {
      var started: [UInt64] = []
      for index in changes.indices where !changes[index].isRunning {
        if !changes[..<index].contains(where: { $0.range.overlaps(changes[index].range) }) {
          changes[index].isRunning = true
          started.append(changes[index].request)
        }
      }
      return started
    }
  }

  @Test(arguments: 0..<20) func sameAsANaiveList(_ seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    var order = RangeOrder()
    var naive = NaiveList()
    var tickets: [UInt64: RangeOrder.Ticket] = [:]
    var started: [RangeOrder.Started] = []
    for request in 0..<2000 as Range<UInt64> {
      let start = UInt64.random(in: 0..<40, using: &random)
      var range = start..<start + UInt64.random(in: 0..<8, using: &random)
      if random.chance(3) { range = RangeOrder.wholeFile }
      if random.chance(3) { range = start..<UInt64.max }
      let (ticket, startsNow) = order.admit(range, request: request)
      tickets[request] = ticket
      naive.changes.append((request, range, false))
      #expect(naive.startable() == (startsNow ? [request] : []))
      while order.count > 30 || (!order.isEmpty && random.chance(50)) {
        guard let done = naive.changes.indices.filter({ naive.changes[$0].isRunning }).randomElement(using: &random)
        else {
          Issue.record("nothing runs: stuck")
          return
        }
        let finished = naive.changes.remove(at: done).request
        started.removeAll()
        guard let ticket = tickets.removeValue(forKey: finished) else { return }
        order.complete(ticket, started: &started)
        #expect(started.map(\.request) == naive.startable())
        for one in started { #expect(tickets[one.request] == one.ticket) }
      }
    }
    #expect(order.count == naive.changes.count)
  }

  @Test func waitingChangesHoldBackLaterOnes() {
    var order = RangeOrder()
    var started: [RangeOrder.Started] = []
    let first = order.admit(0..<10, request: 1)
    let barrier = order.admit(RangeOrder.wholeFile, request: 2)
    let late = order.admit(20..<30, request: 3)
    #expect(first.startsNow)
    #expect(!barrier.startsNow)
    #expect(!late.startsNow)
    order.complete(first.ticket, started: &started)
    #expect(started.map(\.request) == [2])
    started.removeAll()
    order.complete(barrier.ticket, started: &started)
    #expect(started.map(\.request) == [3])
  }

  @Test func rangesOfOperations() {
    let file = FileID(rawValue: 1)
    #expect(FileOperation.write(file, offset: 5, length: 3).orderedRange?.range == 5..<8)
    #expect(FileOperation.setAttributes(file, AttributeChange(size: 9)).orderedRange?.range == 9..<UInt64.max)
    #expect(FileOperation.setAttributes(file, AttributeChange(mode: 0o600)).orderedRange == nil)
    #expect(
      FileOperation.allocate(file, [.punchHole, .keepSize], offset: 4, length: 4).orderedRange?.range == 4..<8)
    #expect(FileOperation.allocate(file, .collapseRange, offset: 4, length: 4).orderedRange?.range == 4..<UInt64.max)
    #expect(FileOperation.forget(file).orderedRange == nil)
  }
}
