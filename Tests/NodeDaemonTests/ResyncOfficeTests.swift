import HostSystem
import Model
import Replication
import Synchronization
import Testing

@testable import NodeDaemon

private let first = SessionID(rawValue: 1)
private let second = SessionID(rawValue: 2)

private func text(_ steps: [ResyncTurn.Step]) -> String {
  steps.map { step in
    switch step {
    case .end: "end"
    case .ask(let session): "ask \(session.rawValue)"
    case .goesOn(let session): "goes on \(session.rawValue)"
    case .send(.startResync(let session, let everything)): "start \(session.rawValue) \(everything)"
    case .send: "another command"
    }
  }.joined(separator: ", ")
}

@Test func theCommandIsHeldUntilItsTurn() {
  var turn = ResyncTurn()
  #expect(text(turn.follow(nil)) == "")
  turn.hold(.startResync(first, comparesEverything: true))
  #expect(text(turn.follow(first)) == "ask 1")
  #expect(text(turn.follow(first)) == "")
  turn.grant(second)
  #expect(text(turn.follow(first)) == "")
  turn.grant(first)
  #expect(text(turn.follow(first)) == "start 1 true")
  #expect(text(turn.follow(first)) == "")
  #expect(text(turn.follow(nil)) == "end")
}

/// A session that ended while the command waited: it is never sent, not even when the turn comes in that moment.
@Test func aHeldCommandDiesWithItsSession() {
  var turn = ResyncTurn()
  turn.hold(.startResync(first, comparesEverything: false))
  #expect(text(turn.follow(first)) == "ask 1")
  #expect(text(turn.follow(nil)) == "end")
  turn.grant(first)
  #expect(text(turn.follow(nil)) == "")
  turn.hold(.startResync(second, comparesEverything: false))
  #expect(text(turn.follow(second)) == "ask 2")
  turn.hold(.startResync(second, comparesEverything: false))
  turn.grant(second)
  #expect(text(turn.follow(second)) == "start 2 false")
  // One session follows another without a pause.
  turn.hold(.startResync(first, comparesEverything: true))
  #expect(text(turn.follow(first)) == "end, ask 1")
}

/// After a restart of vmhad the engine is found in the middle of a resync.
@Test func aResyncThatGoesOnTakesItsTurn() {
  var turn = ResyncTurn()
  #expect(text(turn.follow(first)) == "goes on 1")
  #expect(text(turn.follow(nil)) == "end")
}

/// The office tells each module of its turn once, at the moment it is free.
@Test func theOfficeHandsOutTurns() throws {
  let told = Mutex<[String]>([])
  let office = ResyncOffice { module, session in told.withLock { $0.append("\(module)/\(session.rawValue)") } }
  let names = try ["a", "b", "c", "d"].map { try #require(ModuleName($0)) }
  for name in names { office.ask(name, first, name == names[3] ? .high : .normal) }
  #expect(told.withLock { $0 } == ["a/1", "b/1"])
  #expect(office.ahead(of: names[2]) == .init(higherPriority: 1, others: 2))
  office.prioritise(names[2], .high)
  office.moved(names[0])
  office.look()
  #expect(told.withLock { $0.count } == 2)
  office.end(names[0])
  #expect(told.withLock { $0 } == ["a/1", "b/1", "c/1"])
  office.end(names[1])
  #expect(told.withLock { $0.last } == "d/1")
  office.end(names[3])
  #expect(office.ahead(of: names[2]) == nil)
}
