import CFuse3
import Glibc
import HostSystem
import Synchronization
import Testing

@testable import ReplicatedFiles
@testable import Replication

private func identity(_ number: UInt64) -> FileIdentity {
  guard let made = FileIdentity(high: 7, low: number) else { preconditionFailure("seven is not zero") }
  return made
}

/// A batch as a map makes it.
private func one(_ change: IntentChange) -> IntentBatch { IntentBatch(number: 1, changes: [change]) }

/// The map, its file, and what a power cut must not lose.
private struct Keeper {
  var map: IntentMap
  let file: IntentFile
  let path: String
  /// Zones that the map said were set.
  var promised: Set<UInt32>
  var failures: [IntentFile.Failure] = []
  let name = identity(1)

  init(_ path: String, promised: Set<UInt32> = []) throws {
    self.path = path
    let opened = try IntentFile.open(path: path, logBytes: 64 << 10)
    file = opened.file
    map = IntentMap(opened.snapshot)
    self.promised = promised
  }

  /// One write to a zone, and the storing that it needs; false if that failed.
  mutating func write(_ zone: UInt32) -> Bool {
    let bytes = UInt64(zone) << 20..<UInt64(zone) << 20 + 1
    let slot = map.slot(for: name)
    for _ in 0..<2 {
      if map.touch(slot, bytes: bytes) {
        promised.insert(zone)
        return true
      }
      map.want(slot, bytes: bytes)
      guard store() else { return false }
    }
    return false
  }

  mutating func store() -> Bool {
    while let batch = map.takeBatch() {
      do throws(IntentFile.Failure) {
        try file.store(batch) { map.snapshot() }
        map.stored(batch.number)
      } catch {
        failures.append(error)
        map.failed(batch.number)
        return false
      }
    }
    return true
  }

  /// All of it as one history; stops where something cannot be stored.
  mutating func work() {
    for zone in 0..<12 as Range<UInt32> {
      guard write(zone * 7) else { return }
      if zone == 5 {
        map.endRound(map.beginRound(busy: []))
        map.endRound(map.beginRound(busy: []))
        promised = []
        guard store() else { return }
      }
    }
    // More than one block.
    let slot = map.slot(for: name)
    for zone in 100..<400 as Range<UInt64> { map.want(slot, bytes: zone << 21..<zone << 21 + 1) }
    guard store() else { return }
    for zone in 100..<400 as Range<UInt32> { guard write(zone * 2) else { return } }
  }

  func isKept(by snapshot: IntentSnapshot) -> Bool {
    guard case .zones(let ranges) = snapshot.zones(of: name) else { return true }
    let set = ZoneSet(ranges)
    return promised.allSatisfy(set.contains)
  }
}

@Suite(.serialized) struct IntentFileTests {
  let folder = "/tmp/vmha-intents-\(getpid())-\(randomUInt64())"
  init() throws { try DurableFile.makeFolder(folder, mode: 0o700) }

  private func cleanUp() {
    HostCalls.setFaultHook(nil)
    _ = try? ChildProcess.run(["rm", "-rf", folder], timeout: .seconds(10))
  }

  @Test func survivesReopening() throws {
    defer { cleanUp() }
    let path = "\(folder)/intents"
    let first = try IntentFile.open(path: path)
    #expect(first.snapshot == .everything && first.note?.contains("does not exist") == true)
    #expect(first.file.needsCheckpoint)
    #expect(throws: IntentFile.Failure.self) { try first.file.append(one(.reset)) }
    try first.file.checkpoint(IntentSnapshot())
    #expect(!first.file.needsCheckpoint)
    try first.file.append(one(.set(identity(1), 4..<6)))
    try first.file.append(one(.whole(identity(2), true)))
    let second = try IntentFile.open(path: path)
    #expect(second.note == nil && second.file.needsCheckpoint)
    #expect(second.snapshot.zones(of: identity(1)) == .zones([4..<6]))
    #expect(second.snapshot.zones(of: identity(2)) == .whole && !second.snapshot.isEverything)
    try second.file.checkpoint(second.snapshot)
    #expect(try IntentFile.open(path: path).snapshot == second.snapshot)
    var status = stat()
    #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o600)
    #expect(Int(status.st_blocks) * 512 >= IntentLog.logBytes, "the log's blocks are there")
  }

  @Test func whatCannotBeReadIsEverything() throws {
    defer { cleanUp() }
    let path = "\(folder)/intents"
    try DurableFile.write(Array("nonsense".utf8), to: path)
    #expect(try IntentFile.open(path: path).snapshot == .everything)
    try DurableFile.remove(path)
    #expect(mkdir(path, 0o700) == 0)
    let folderInstead = try IntentFile.open(path: path)
    #expect(folderInstead.snapshot == .everything && folderInstead.note != nil)
    #expect(throws: IntentFile.Failure.self) { try folderInstead.file.checkpoint(IntentSnapshot()) }
    #expect(rmdir(path) == 0)
    #expect(symlink("/etc/passwd", path) == 0)
    #expect(try IntentFile.open(path: path).snapshot == .everything)
    let large = "\(folder)/large"
    try DurableFile.write([], to: large)
    #expect(truncate(large, off_t(IntentLog.fileBytesMax) + 1) == 0)
    #expect(try IntentFile.open(path: large).snapshot == .everything)
    #expect(throws: IntentFile.Failure.self) { _ = try IntentFile.open(path: "\(folder)/none/intents") }
  }

  @Test func aFullLogIsRewritten() throws {
    defer { cleanUp() }
    var keeper = try Keeper("\(folder)/intents")
    for zone in 0..<200 as Range<UInt32> { #expect(keeper.write(zone * 9 % 1000) == true) }
    #expect(keeper.failures.isEmpty)
    let again = try IntentFile.open(path: keeper.path)
    #expect(again.note == nil && again.snapshot == keeper.map.snapshot())
  }

  /// Its first block says that a batch of several is there, so it must not be on the disk before the others are.
  @Test func largeBatchesArriveInOrder() throws {
    defer { cleanUp() }
    let path = "\(folder)/intents"
    let large = IntentBatch(number: 1, changes: (0..<400).map { .set(identity(1), $0 * 2..<$0 * 2 + 1) })
    for failing in 0...4 {
      let file = try IntentFile.open(path: path).file
      try file.checkpoint(IntentSnapshot())
      let labels = Mutex<[String]>([])
      HostCalls.setFaultHook { label, _ in
        guard label.hasPrefix("intents.") else { return nil }
        return labels.withLock {
          $0.append(label)
          return $0.count == failing + 1 ? EIO : nil
        }
      }
      let isStored = (try? file.append(large)) != nil
      HostCalls.setFaultHook(nil)
      let order = ["intents.write", "intents.sync", "intents.write", "intents.sync"]
      #expect(labels.withLock { $0 } == Array(order.prefix(failing + 1)) && isStored == (failing == 4))
      let found = try IntentFile.open(path: path)
      // Without the last sync it may be there all the same.
      #expect(found.snapshot.files.isEmpty == (failing < 3) && found.note == nil)
      #expect(file.needsCheckpoint == !isStored)
    }
  }

  /// Counts the labelled calls of one history, then fails each of them: once, or from there on as a power cut does.
  @Test(arguments: [true, false]) func everyCallFails(once: Bool) throws {
    defer { cleanUp() }
    let labels = try history("count", failing: nil, once: once)
    let known: Set = ["create", "mode", "fill", "flush", "rename", "folder", "write", "sync"]
    #expect(Set(labels).subtracting(known.map { "intents.\($0)" }) == ["intents.open", "intents.size", "intents.read"])
    for index in labels.indices { _ = try history("\(once)-\(index)", failing: index, once: once) }
  }

  private func history(_ name: String, failing index: Int?, once: Bool) throws -> [String] {
    let path = "\(folder)/\(name)"
    var first = try Keeper(path)
    first.map = IntentMap(IntentSnapshot())
    try first.file.checkpoint(IntentSnapshot())
    #expect(first.write(1) == true)
    let seen = Mutex<[String]>([])
    HostCalls.setFaultHook { label, where_ in
      guard label.hasPrefix("intents.") else { return nil }
      return seen.withLock {
        $0.append(label)
        guard let index else { return nil }
        return once ? ($0.count - 1 == index ? EIO : nil) : ($0.count - 1 >= index ? EIO : nil)
      }
    }
    defer { HostCalls.setFaultHook(nil) }
    var keeper: Keeper
    do {
      keeper = try Keeper(path, promised: first.promised)
    } catch let error as IntentFile.Failure {
      #expect(index != nil && error.errno == EIO)
      return seen.withLock { $0 }
    }
    keeper.work()
    if let index {
      #expect(keeper.failures.count <= 1 && keeper.failures.allSatisfy { $0.errno == EIO })
      if !keeper.failures.isEmpty {
        // The power cut, right here.
        HostCalls.setFaultHook(nil)
        let found = try IntentFile.open(path: path).snapshot
        #expect(keeper.isKept(by: found), "call \(index), power cut")
        // Or it goes on, with a checkpoint first.
        #expect(keeper.file.needsCheckpoint)
        keeper.work()
        #expect(keeper.failures.count == 1)
      }
    } else {
      #expect(keeper.failures.isEmpty)
    }
    HostCalls.setFaultHook(nil)
    let last = try IntentFile.open(path: path)
    #expect(keeper.isKept(by: last.snapshot) && last.note == nil, "call \(index ?? -1), at the end")
    return seen.withLock { $0 }
  }
}
