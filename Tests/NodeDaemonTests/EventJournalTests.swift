import ControlAPI
import Foundation
import GRDB
import Glibc
import Synchronization
import Testing

@testable import NodeDaemon

@Suite(.timeLimit(.minutes(2))) struct EventJournalTests {
  /// A folder of its own, a journal in it, and what the journal said to the daemon's log.
  private final class Bench: Sendable {
    let folder: String
    let said = Mutex<[String]>([])
    var path: String { folder + "/journal.sqlite" }

    init() throws {
      folder = FileManager.default.temporaryDirectory.path + "/vmha-journal-\(UUID().uuidString)"
      try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }
    deinit { try? FileManager.default.removeItem(atPath: folder) }

    func open(_ limits: EventJournal.Limits = .init()) throws -> EventJournal {
      try EventJournal(path: path, node: "node1", limits: limits) { [weak self] text in
        self?.said.withLock { $0.append(text) }
      }
    }
  }

  private func event(_ sentence: String, module: String? = "vm1") -> JournalEvent {
    JournalEvent(
      monotonicNanoseconds: 7, node: "node1", module: module, kind: .state, severity: .notice, rule: "R4",
      sentence: sentence, details: ["state": "PRIM"])
  }

  @Test func eventsAreKeptAndFoundAgain() throws {
    let bench = try Bench()
    var journal = try bench.open()
    for number in 1...10 { journal.append(event("\(number)", module: number.isMultiple(of: 2) ? "vm2" : "vm1")) }
    #expect(journal.flush(timeout: .seconds(20)))
    let last = try journal.page(since: nil, module: nil, limit: 3)
    #expect(last.events.map(\.sentence) == ["8", "9", "10"] && last.cursor == 10)
    journal.close()

    journal = try bench.open()
    journal.append(event("11"))
    #expect(journal.flush(timeout: .seconds(20)))
    let first = try journal.page(since: 0, module: "vm1", limit: 2)
    #expect(first.events.map(\.id) == [1, 3] && first.cursor == 3)
    let rest = try journal.page(since: first.cursor, module: "vm1", limit: 100)
    #expect(rest.events.map(\.id) == [5, 7, 9, 1_000_001] && rest.cursor == 1_000_001)
    let copy = try #require(rest.events.first)
    #expect(copy.rule == "R4" && copy.details == ["state": "PRIM"] && copy.kind == .state && copy.severity == .notice)
    #expect(
      try journal.page(since: 1_000_001, module: nil, limit: 5) == JournalPage(events: [], cursor: 1_000_001))
    journal.close()
    #expect(bench.said.withLock { $0 } == [])
  }

  @Test func oldRowsAreRemoved() throws {
    let bench = try Bench()
    var limits = EventJournal.Limits()
    limits.rowCountMax = 1500
    let journal = try bench.open(limits)
    for number in 1...6000 {
      journal.append(event("\(number)"))
      if number.isMultiple(of: 500) { journal.flush(timeout: .seconds(20)) }
    }
    #expect(journal.flush(timeout: .seconds(20)))
    let page = try journal.page(since: 0, module: nil, limit: 1000)
    let first = try #require(page.events.first)
    // Exactly at each thousandth row, so up to that many more than the limit.
    #expect(first.id > 6000 - 1500 - 1000 && first.id <= 6000 - 1500 + 1)
    #expect(try journal.page(since: nil, module: nil, limit: 1).events.first?.sentence == "6000")
    journal.close()
  }

  @Test func aFullQueueDropsAndSaysSo() throws {
    let bench = try Bench()
    var limits = EventJournal.Limits()
    limits.queueCountMax = 10
    let journal = try bench.open(limits)
    // Holding the write lock from outside keeps the journal's thread busy.
    journal.append(event("before"))
    #expect(journal.flush(timeout: .seconds(20)))
    var configuration = Configuration()
    configuration.busyMode = .timeout(10)
    let other = try DatabaseQueue(path: bench.path, configuration: configuration)
    try other.inDatabase { database in
      try database.execute(sql: "BEGIN EXCLUSIVE")
      journal.append(event("waits"))
      usleep(200_000)
      let start = ContinuousClock.now
      for number in 1...1000 { journal.append(event("\(number)")) }
      #expect(ContinuousClock.now - start < .seconds(10))
      try database.execute(sql: "COMMIT")
    }
    var sentences: [String] = []
    for _ in 0..<200 where !sentences.contains(where: { $0.contains("dropped") }) {
      usleep(50_000)
      sentences = try journal.page(since: 0, module: nil, limit: 1000).events.map(\.sentence)
    }
    #expect(sentences.contains { $0.contains("events were dropped") })
    #expect(sentences.contains("waits"))
    journal.close()
  }

  @Test func aDamagedFileIsPutAside() throws {
    let bench = try Bench()
    try Data("this is not a database, and longer than a header of one hundred bytes ".utf8 + Data(count: 4096))
      .write(to: URL(fileURLWithPath: bench.path))
    let journal = try bench.open()
    journal.append(event("after"))
    #expect(journal.flush(timeout: .seconds(20)))
    let events = try journal.page(since: 0, module: nil, limit: 10).events
    #expect(events.contains { $0.sentence == "after" })
    #expect(events.contains { $0.kind == .journal && $0.severity == .error && $0.sentence.contains("put aside") })
    #expect(events.allSatisfy { $0.id > 1_000_000_000_000 })
    #expect(bench.said.withLock { $0 }.first?.contains("damaged") == true)
    let names = try FileManager.default.contentsOfDirectory(atPath: bench.folder)
    #expect(names.contains { $0.hasPrefix("journal.sqlite.damaged-") })
    journal.close()
  }

  @Test func aFullDiskKeepsEventsInMemoryUntilThereIsRoom() throws {
    let bench = try Bench()
    #expect(mount("vmha-test", bench.folder, "tmpfs", 0, "size=512k") == 0)
    defer { umount2(bench.folder, Int32(MNT_DETACH)) }
    var limits = EventJournal.Limits()
    limits.retry = .milliseconds(100)
    let journal = try bench.open(limits)
    journal.append(event("stored"))
    #expect(journal.flush(timeout: .seconds(20)))
    let filler = bench.folder + "/filler"
    #expect(FileManager.default.createFile(atPath: filler, contents: nil))
    let handle = try #require(FileHandle(forWritingAtPath: filler))
    while (try? handle.write(contentsOf: Data(count: 4096))) != nil {}
    try handle.close()

    let long = String(repeating: "x", count: 3000)
    for number in 1...100 { journal.append(event("\(number) \(long)")) }
    #expect(journal.flush(timeout: .seconds(20)))
    #expect(journal.trouble?.contains("kept in memory") == true)
    #expect(try journal.page(since: 0, module: nil, limit: 1000).events.count >= 101)

    #expect(unlink(filler) == 0)
    for _ in 0..<200 where journal.trouble != nil { usleep(50_000) }
    #expect(journal.trouble == nil)
    journal.close()
    let copy = try bench.open()
    #expect(copy.flush(timeout: .seconds(20)))
    for _ in 0..<100 where try copy.page(since: 0, module: nil, limit: 1000).events.isEmpty { usleep(20_000) }
    #expect(try copy.page(since: 0, module: nil, limit: 1000).events.count >= 103)
    copy.close()
    #expect(bench.said.withLock { $0 }.contains { $0.contains("written again") })
  }

  @Test func noFolderIsSaidAndCuredLater() throws {
    let bench = try Bench()
    try FileManager.default.removeItem(atPath: bench.folder)
    var limits = EventJournal.Limits()
    limits.retry = .milliseconds(50)
    let journal = try bench.open(limits)
    journal.append(event("early"))
    #expect(journal.flush(timeout: .seconds(20)))
    #expect(try journal.page(since: nil, module: nil, limit: 10).events.contains { $0.sentence == "early" })
    try FileManager.default.createDirectory(atPath: bench.folder, withIntermediateDirectories: true)
    for _ in 0..<200 where journal.trouble != nil { usleep(50_000) }
    #expect(journal.trouble == nil)
    #expect(try journal.page(since: nil, module: nil, limit: 10).events.contains { $0.sentence == "early" })
    journal.close()
  }

  @Test func liveReadersSeeWhatIsStored() async throws {
    let bench = try Bench()
    let journal = try bench.open()
    let stream = journal.events()
    for number in 1...5 { journal.append(event("\(number)")) }
    var seen: [String] = []
    for await event in stream {
      seen.append(event.sentence)
      if seen.count == 5 { break }
    }
    #expect(seen == ["1", "2", "3", "4", "5"])
    let rest = journal.events()
    journal.close()
    for await _ in rest {}
    #expect(journal.trouble == nil)
  }
}
