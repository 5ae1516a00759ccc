import Glibc
import Synchronization
import Testing

@testable import HostSystem

@Suite(.serialized) struct DurableTests {
  let folder: TemporaryFolder
  init() throws { folder = try TemporaryFolder() }

  @Test func checksumHasTheCheckValue() {
    #expect(Checksum.crc32c(Array("123456789".utf8)) == 0xE306_9283)
    let bytes = randomBytes(100)
    #expect(Checksum.crc32c(bytes[40...], continuing: Checksum.crc32c(bytes[..<40])) == Checksum.crc32c(bytes))
  }

  @Test func fileIsReplacedWholeWithItsMode() throws {
    let path = folder.file("x")
    try DurableFile.write(Array("one".utf8), to: path, mode: 0o640)
    try DurableFile.write(Array("two".utf8), to: path, mode: 0o604)
    #expect(try DurableFile.read(path) == Array("two".utf8))
    var status = stat()
    #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o604)
    #expect(throws: HostError.self) { try DurableFile.read(path, bytesMax: 2) }
    #expect(try DurableFile.readIfPresent(folder.file("none")) == nil)
    try DurableFile.remove(path)
    try DurableFile.remove(path)
    try DurableFile.makeFolder(folder.file("a/b/c"))
    try DurableFile.makeFolder(folder.file("a/b/c"))
    #expect(throws: HostError.self) { try DurableFile.write([], to: folder.file("no/such/folder")) }
  }

  /// Everything fails from the n-th labelled call on, as in a power cut there: the old or the new contents are read,
  /// and after a write that returned, the new.
  @Test func crashAtEveryCall() throws {
    let prefix = folder.path
    for crashPoint in 0..<40 {
      let pair = DurablePair(path: folder.file("r\(crashPoint)"))
      try pair.write([1])
      try pair.write([2])
      let calls = Mutex(0)
      HostCalls.setFaultHook { _, path in
        guard path.hasPrefix(prefix) else { return nil }
        return calls.withLock {
          $0 += 1
          return $0 > crashPoint ? EIO : nil
        }
      }
      defer { HostCalls.setFaultHook(nil) }
      let finished = (try? pair.write([3])) != nil
      HostCalls.setFaultHook(nil)
      guard case .value(let payload, _, nil) = try pair.read() else {
        Issue.record("crash at call \(crashPoint)")
        continue
      }
      #expect(finished ? payload == [3] : payload == [2] || payload == [3])
      try pair.write([4])
      #expect(try pair.read() == .value([4], sequence: finished || payload == [3] ? 4 : 3, damaged: nil))
    }
  }

  /// A full file system (of blocks, of inodes) takes a record all the same, over the older copy. Everything fails from the n-th call
  /// on, as in a power cut there: what is read is the old record or the new one, and never the new one unless it was synced.
  @Test(arguments: ["durable.open", "durable.write", "durable.sync", "durable.rename"])
  func recordIsTakenByAFullFileSystem(fullAt: String) throws {
    let prefix = folder.path
    for crashPoint in 0..<30 {
      let pair = DurablePair(path: folder.file("r\(crashPoint)"))
      let long = [UInt8](repeating: 2, count: 3000)
      try pair.write(long)
      try pair.write(long)
      let seen = Mutex((calls: 0, isFull: false, isSynced: false))
      HostCalls.setFaultHook { label, path in
        guard path.hasPrefix(prefix) else { return nil }
        return seen.withLock {
          $0.calls += 1
          if $0.calls > crashPoint { return EIO }
          if label == fullAt, !$0.isFull {
            $0.isFull = true
            return ENOSPC
          }
          $0.isSynced = $0.isSynced || $0.isFull && label == "durable.sync"
          return nil
        }
      }
      defer { HostCalls.setFaultHook(nil) }
      let finished = (try? pair.write([3])) != nil
      HostCalls.setFaultHook(nil)
      guard case .value(let payload, _, let damaged) = try pair.read() else {
        Issue.record("crash at call \(crashPoint)")
        continue
      }
      let isSynced = seen.withLock { $0.isSynced }
      let isAsItMustBe = finished || payload == [3] ? payload == [3] && isSynced && damaged == nil : payload == long
      #expect(isAsItMustBe, "crash at call \(crashPoint): \(payload.count) bytes, \(finished), \(isSynced)")
      try pair.write([4])
      guard case .value([4], _, nil) = try pair.read() else {
        Issue.record("not written after a crash at call \(crashPoint)")
        continue
      }
    }
  }

  /// Where there is nothing to write over.
  @Test func firstRecordNeedsRoom() throws {
    let pair = DurablePair(path: folder.file("p"))
    let prefix = folder.path
    HostCalls.setFaultHook { label, path in label == "durable.open" && path.hasPrefix(prefix) ? ENOSPC : nil }
    defer { HostCalls.setFaultHook(nil) }
    let error = #expect(throws: HostError.self) { try pair.write([1]) }
    #expect(error?.errno == ENOSPC && error?.operation == "durable.open")
    #expect(try pair.read() == .absent)
  }

  /// A process that was killed on the way leaves in the page cache what a power cut may take back.
  @Test func whatWasWrittenInPlaceIsSyncedBeforeItIsRead() throws {
    let pair = DurablePair(path: folder.file("p"))
    try pair.write([1])
    try pair.write([1])
    let ofPair = try calls { _ = try pair.read() }
    for copy in [".a", ".b"] {
      let file = folder.file("p" + copy)
      let (sync, read) = (ofPair.firstIndex(of: "durable.sync \(file)"), ofPair.firstIndex(of: "file.read \(file)"))
      #expect(try #require(sync) < #require(read))
    }
  }

  @Test func pairSurvivesEveryFlippedByteAndEveryTear() throws {
    let pair = DurablePair(path: folder.file("p"))
    #expect(try pair.read() == .absent)
    try pair.write([7])
    #expect(try pair.read() == .value([7], sequence: 1, damaged: nil))
    try pair.write(Array("newest".utf8))
    let newest = folder.file("p.b")
    let good = try DurableFile.read(newest)
    var bad = good.indices.map { index in
      var copy = good
      copy[index] ^= 0x10
      return copy
    }
    bad += (0..<good.count).map { Array(good[..<$0]) }
    bad.append(good + [0])
    for contents in bad {
      try DurableFile.write(contents, to: newest)
      guard case .value([7], sequence: 1, damaged: .some) = try pair.read() else {
        Issue.record("accepted \(contents)")
        return
      }
    }
    // The damaged copy is the one that the next write replaces.
    try pair.write([9])
    #expect(try pair.read() == .value([9], sequence: 2, damaged: nil))
    try DurableFile.write([0], to: folder.file("p.a"))
    try DurableFile.write([0], to: newest)
    guard case .damaged(let why) = try pair.read() else {
      Issue.record("believed")
      return
    }
    #expect(why.contains("p.a") && why.contains("p.b"))
    #expect(throws: HostError.self) { try pair.write([UInt8](repeating: 0, count: DurablePair.payloadBytesMax + 1)) }
    try pair.remove()
    #expect(try pair.read() == .absent)
  }

  /// Labels and paths of the calls below the folder while `work` runs; `failing` fails, each time.
  private func calls(failing: String? = nil, _ work: () throws -> Void) rethrows -> [String] {
    let seen = Mutex<[String]>([])
    let prefix = folder.path
    HostCalls.setFaultHook { label, path in
      guard path.hasPrefix(prefix) else { return nil }
      seen.withLock { $0.append("\(label) \(path)") }
      return label == failing ? EIO : nil
    }
    defer { HostCalls.setFaultHook(nil) }
    try work()
    return seen.withLock { $0 }
  }

  /// A process that ends between its rename and the sync of the folder leaves what a power cut may take back: whoever reads it, or that
  /// it is gone, makes that durable first, or does not know it.
  @Test func whatIsReadIsMadeDurableFirst() throws {
    let sync = "durable.folder \(folder.path)"
    let pair = DurablePair(path: folder.file("p"))
    try pair.write([1])
    #expect(throws: HostError.self) { try calls(failing: "durable.folder") { try pair.write([2]) } }
    var contents = DurablePair.Contents.absent
    let ofPair = try calls { contents = try pair.read() }
    #expect(ofPair.first == sync && contents == .value([2], sequence: 2, damaged: nil))
    let file = folder.file("f")
    #expect(throws: HostError.self) { try calls(failing: "durable.folder") { try DurableFile.write([3], to: file) } }
    for (path, expected) in [(file, [3]), (folder.file("none"), nil)] as [(String, [UInt8]?)] {
      var found: [UInt8]?
      let ofFile = try calls { found = try DurableFile.readDurable(path) }
      #expect(ofFile.first == sync && found == expected)
    }
    #expect(try DurableFile.readDurable(folder.file("no/such/folder")) == nil)
    for work in [{ _ = try pair.read() }, { _ = try DurableFile.readDurable(file) }] as [() throws -> Void] {
      let error = #expect(throws: HostError.self) { try calls(failing: "durable.folder", work) }
      #expect(error?.errno == EIO)
    }
  }

  /// The same of what is found done already.
  @Test func whatIsDoneAlreadyIsMadeDurable() throws {
    let sync = "durable.folder \(folder.path)"
    let file = folder.file("x")
    let works: [() throws -> Void] = [
      { try DurableFile.makeFolder(folder.file("made")) }, { try DurableFile.remove(file) },
      { try DurableFile.setAside(folder.file("y"), stamp: "1") },
    ]
    try DurableFile.write([1], to: file)
    try DurableFile.write([1], to: folder.file("y"))
    for work in works {
      #expect(throws: HostError.self) { try calls(failing: "durable.folder", work) }
      #expect(throws: HostError.self) { try calls(failing: "durable.folder", work) }
      let made = try calls(work)
      #expect(made.last == sync)
    }
  }

  @Test func pairHasItsGoldenBytes() {
    let bytes = DurablePair.encode([0xAB, 0xCD], sequence: 5)
    let head: [UInt8] = [86, 77, 72, 65, 80, 65, 73, 82, 1, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]
    #expect(Array(bytes[..<24]) == head)
    #expect(Array(bytes[28...]) == [0xAB, 0xCD])
  }

  @Test func hostFacts() throws {
    #expect(try bootID() == bootID())
    #expect(try !hostName().isEmpty)
    #expect(randomUInt64() != randomUInt64())
    #expect(randomBytes(1000).count == 1000)
    #expect(monotonicNow() <= monotonicNow())
  }
}
