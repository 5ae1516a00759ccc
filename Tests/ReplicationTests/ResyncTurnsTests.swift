import Model
import Replication
import Testing

private func at(_ seconds: Int) -> Instant { Instant(nanoseconds: Int64(seconds) * 1_000_000_000) }
private func session(_ number: UInt64) -> SessionID { SessionID(rawValue: number) }

private func named(_ name: String) throws -> ModuleName { try #require(ModuleName(name)) }

private func names(_ turns: [(module: ModuleName, session: SessionID)]) -> String {
  turns.map { "\($0.module)/\($0.session.rawValue)" }.joined(separator: " ")
}

@Test func turnsGoByPriorityThenByAge() throws {
  var turns = ResyncTurns()
  let order: [(String, ResyncPriority)] = [
    ("a", .low), ("b", .normal), ("c", .normal), ("d", .low), ("e", .high), ("f", .normal),
  ]
  for (index, item) in order.enumerated() {
    turns.ask(try named(item.0), session(UInt64(index + 1)), item.1, now: at(index))
    // The first two find the link free: whoever begins is not interrupted.
    #expect(names(turns.next(now: at(index))) == (index < 2 ? "\(item.0)/\(index + 1)" : ""))
  }
  #expect(turns.ahead(of: try named("a")) == nil)
  #expect(turns.ahead(of: try named("e")) == .init(higherPriority: 0, others: 2))
  #expect(turns.ahead(of: try named("f")) == .init(higherPriority: 1, others: 3))
  #expect(turns.ahead(of: try named("d")) == .init(higherPriority: 4, others: 1))
  var begun: [String] = []
  for done in ["a", "b", "e", "c", "f", "d"] {
    turns.end(try named(done))
    begun.append(names(turns.next(now: at(10))))
  }
  #expect(begun == ["e/5", "c/3", "f/6", "d/4", "", ""])
}

@Test func aPriorityCanChangeWhileItWaits() throws {
  var turns = ResyncTurns()
  for (index, name) in ["a", "b", "c", "d"].enumerated() {
    turns.ask(try named(name), session(UInt64(index)), .normal, now: at(0))
  }
  #expect(names(turns.next(now: at(0))) == "a/0 b/1")
  turns.prioritise(try named("d"), .high)
  turns.end(try named("b"))
  #expect(names(turns.next(now: at(1))) == "d/3")
}

/// A resync that hangs keeps its turn, but nobody waits for it; when it moves again it counts again.
@Test func aTurnThatHangsHoldsNobodyUp() throws {
  var turns = ResyncTurns()
  for (index, name) in ["a", "b", "c", "d"].enumerated() {
    turns.ask(try named(name), session(UInt64(index)), .normal, now: at(0))
  }
  #expect(names(turns.next(now: at(0))) == "a/0 b/1")
  for second in stride(from: 5, through: 60, by: 5) {
    turns.moved(try named("b"), now: at(second))
    let began = names(turns.next(now: at(second)))
    if second < 30 { #expect(began == "") }
    if second == 30 { #expect(began == "c/2") }
    turns.moved(try named("c"), now: at(second))
  }
  turns.moved(try named("a"), now: at(60))
  turns.end(try named("c"))
  #expect(names(turns.next(now: at(61))) == "")
  turns.end(try named("b"))
  #expect(names(turns.next(now: at(62))) == "d/3")
}

/// A session that is lost gives the turn back, a new one asks anew; a resync that an earlier vmhad began counts.
@Test func turnsLastAsLongAsTheSession() throws {
  var turns = ResyncTurns()
  turns.goesOn(try named("a"), session(1), .low, now: at(0))
  turns.goesOn(try named("b"), session(2), .low, now: at(0))
  turns.ask(try named("c"), session(3), .normal, now: at(0))
  #expect(names(turns.next(now: at(0))) == "")
  // `c` loses its session while it waits, and comes back.
  turns.ask(try named("c"), session(4), .normal, now: at(1))
  turns.ask(try named("a"), session(5), .low, now: at(2))
  #expect(names(turns.next(now: at(2))) == "c/4")
  turns.end(try named("b"))
  #expect(names(turns.next(now: at(3))) == "a/5")
  #expect(turns.ahead(of: try named("b")) == nil)
}
