import ControlAPI
import Foundation
import Testing

@testable import NodeDaemon

@Suite(.timeLimit(.minutes(2))) struct PeerJournalTests {
  private final class Bench {
    let folder: String
    init() throws {
      folder = FileManager.default.temporaryDirectory.path + "/vmha-peer-journal-\(UUID().uuidString)"
      try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }
    deinit { try? FileManager.default.removeItem(atPath: folder) }
    func open() throws -> PeerJournal { try PeerJournal(path: folder + "/peer.sqlite") }
  }

  private let noon = WallTime(milliseconds: 1_795_380_974_123)

  private func event(_ id: Int64, _ sentence: String, module: String? = "vm1", severity: ControlAPI.Severity = .info)
    -> JournalEvent
  {
    JournalEvent(
      id: id, time: WallTime(milliseconds: noon.milliseconds + id * 1000), monotonicNanoseconds: id, node: "node2",
      module: module, kind: .state, severity: severity, sentence: sentence)
  }

  private func piece(_ events: [JournalEvent], lastID: Int64, now: WallTime? = nil) -> JournalPiece {
    JournalPiece(JournalPage(events: events, cursor: lastID), lastID: lastID, now: now ?? noon)
  }

  @Test func piecesAreKeptOverARestart() throws {
    let bench = try Bench()
    var copy = try bench.open()
    #expect(try copy.take(piece([event(1, "a"), event(2, "b")], lastID: 3), asked: noon, answered: noon))
    // The same again, and the rest.
    #expect(try !copy.take(piece([event(2, "b"), event(3, "c")], lastID: 3), asked: noon, answered: noon))
    #expect(copy.cursor == 3)
    copy = try bench.open()
    let known = try copy.timeline(of: "vm1", limit: 10)
    #expect(known.events.map(\.sentence) == ["a", "b", "c"] && known.ahead == 0)
    #expect(known.knownUntil == event(3, "").time)
    #expect(try copy.timeline(of: "vm1", limit: 2).events.map(\.id) == [2, 3])
  }

  @Test func onlyWhatConcernsTheModule() throws {
    let copy = try Bench().open()
    let events = [
      event(1, "own"), event(2, "other", module: "vm2"), event(3, "chatter", module: nil),
      event(4, "node lost", module: nil, severity: .warning),
    ]
    _ = try copy.take(piece(events, lastID: 4), asked: noon, answered: noon)
    #expect(try copy.timeline(of: "vm1", limit: 10).events.map(\.id) == [1, 4])
    #expect(try copy.timeline(of: nil, limit: 10).events.map(\.id) == [1, 2, 4])
  }

  @Test func theClockOfThePeerIsCorrected() throws {
    let copy = try Bench().open()
    let ahead = WallTime(milliseconds: noon.milliseconds + 90_000)
    _ = try copy.take(piece([event(1, "a")], lastID: 1, now: ahead), asked: noon, answered: noon)
    let known = try copy.timeline(of: nil, limit: 10)
    #expect(known.ahead == 90_000)
    #expect(known.events.map(\.time.milliseconds) == [noon.milliseconds + 1000 - 90_000])
    // Within what a message takes there is nothing to correct.
    let near = WallTime(milliseconds: noon.milliseconds + 200)
    _ = try copy.take(piece([event(2, "b")], lastID: 2, now: near), asked: noon, answered: noon)
    #expect(try copy.timeline(of: nil, limit: 1).events.map(\.time.milliseconds) == [noon.milliseconds + 2000])
  }

  @Test func aJournalThatBeganAnewReplacesTheCopy() throws {
    let copy = try Bench().open()
    _ = try copy.take(piece([event(900, "old host")], lastID: 900), asked: noon, answered: noon)
    #expect(try copy.take(piece([], lastID: 2), asked: noon, answered: noon))
    #expect(copy.cursor == 0)
    _ = try copy.take(piece([event(1, "new"), event(2, "host")], lastID: 2), asked: noon, answered: noon)
    #expect(try copy.timeline(of: nil, limit: 10).events.map(\.sentence) == ["new", "host"])
  }

  @Test func aPieceFitsIntoAMessage() throws {
    let text = String(repeating: "x", count: EventJournal.textBytesMax)
    let many = (1...500).map { event($0, text) }
    let cut = piece(many, lastID: 500)
    #expect(cut.events.count < 500)
    #expect(try JSONEncoder().encode(cut).count < PeerFrames.frameBytesMax)
    #expect(piece([event(1, String(repeating: text, count: 500))], lastID: 1).events.count == 1)
  }
}
