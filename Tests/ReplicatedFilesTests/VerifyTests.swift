import CFuse3
import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import Testing

extension Side {
  /// Begins a verification and waits for its end.
  func verify(
    _ session: SessionID, repairs: Bool = false, within seconds: Int = 100
  ) throws -> VerifyReport {
    let id = beginVerify(session, repairs: repairs)
    return try verified(id, within: seconds)
  }

  func beginVerify(_ session: SessionID, repairs: Bool = false, bytesPerSecondMax: UInt64 = 0) -> UInt64 {
    let id = randomUInt64()
    tell(.verify(VerifyRequest(id: id, session: session, repairs: repairs, bytesPerSecondMax: bytesPerSecondMax)))
    return id
  }

  func verified(_ id: UInt64, within seconds: Int = 100) throws -> VerifyReport {
    for _ in 0..<seconds * 50 {
      if let report = engine.report().verify, report.id == id, report.outcome != nil { return report }
      usleep(20_000)
    }
    throw TestFailure("\(node): the verification does not end: \(engine.report())")
  }
}

/// Both copies compared while they are in sync. Two engines, real mounts.
@Suite(.serialized, .timeLimit(.minutes(10)))
struct VerifyTests {
  private static let block: UInt64 = 64 << 10
  private static let zone: UInt64 = 1 << 20

  /// How long `noFalseAlarmUnderLoad` writes, in seconds.
  private static let loadSeconds =
    ProcessInfo.processInfo.environment["VMHA_VERIFY_SECONDS"].flatMap(Int.init) ?? 4

  /// Changes bytes behind both engines' backs, on the disk.
  private func flip(_ side: Side, _ file: String, at offset: UInt64, _ text: String = "x") throws {
    try shell(
      "printf %s $3 | dd of=$1 bs=1 seek=$2 conv=notrunc status=none; sync $1",
      ["\(side.backing)/\(file)", "\(offset)", text])
  }

  /// Random writes, truncations, holes, renames, removals and attributes.
  private static func load(_ number: Int, _ folder: String, _ isOver: () -> Bool) {
    var random = SystemRandomNumberGenerator()
    let disk = open("\(folder)/disk.img", O_RDWR)
    let thin = open("\(folder)/thin", O_RDWR)
    defer {
      close(disk)
      close(thin)
    }
    var block = [UInt8](repeating: UInt8(number), count: 64 << 10)
    var step = 0
    while !isOver() {
      step += 1
      block[Int.random(in: 0..<block.count, using: &random)] &+= 1
      let size = Int.random(in: 1...block.count, using: &random)
      _ = pwrite(disk, block, size, off_t.random(in: 0..<12_000_000, using: &random))
      _ = pwrite(thin, block, size, off_t.random(in: 0..<40_000_000, using: &random))
      let name = "\(folder)/many/\(Int.random(in: 1...60, using: &random))"
      switch step % 16 {
      case 0: _ = fsync(disk)
      case 2: _ = ftruncate(disk, off_t.random(in: 8_000_000..<12_000_000, using: &random))
      case 3: _ = ftruncate(thin, off_t.random(in: 10_000_000..<40_000_000, using: &random))
      case 5:
        let file = open("\(folder)/many/new\(number).\(step)", O_RDWR | O_CREAT, 0o644)
        _ = write(file, block, size)
        close(file)
        rename("\(folder)/many/new\(number).\(step)", name)
      case 7: chmod(name, mode_t.random(in: 0o600...0o777, using: &random))
      case 9: unlink(name)
      case 10: _ = setxattr(name, "user.n", block, 10, 0)
      case 12: _ = posix_fallocate(disk, off_t.random(in: 0..<12_000_000, using: &random), 100_000)
      case 14: truncate(name, off_t.random(in: 0..<200_000, using: &random))
      default: break
      }
    }
  }

  /// Compared at the same place of the stream: whatever a guest does meanwhile, equal copies are found equal; and a difference is
  /// found as well as without it.
  @Test func noFalseAlarmUnderLoad() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell(
      """
      cd $1; head -c 12000000 /dev/urandom > disk.img; truncate -s 40M thin; mkdir many
      head -c 3000000 /dev/urandom > still; for i in $(seq 60); do echo $i > many/$i; done
      """, [pair.one.backing])
    let session = try pair.settled()
    let stop = Flag()
    let mountPoint = pair.one.mountPoint
    let writers = try (0..<3).map { number in
      try HostThread.start(name: "guest", detached: false) { Self.load(number, mountPoint) { stop.isSet } }
    }
    defer {
      stop.set()
      for writer in writers { writer.join() }
    }
    let end = monotonicNow() + .seconds(Self.loadSeconds)
    var rounds = 0
    repeat {
      let report = try pair.one.verify(session)
      #expect(report.outcome == .complete && report.findings == [], "round \(rounds)")
      rounds += 1
    } while monotonicNow() < end
    try flip(pair.two, "still", at: 1_000_000)
    let found = try pair.one.verify(session, repairs: true)
    #expect(found.findings.map(\.path) == ["still"] && found.repairedCount == 1, "\(found)")
    #expect(try pair.one.verify(session).findingsCount == 0)
    stop.set()
    for writer in writers { writer.join() }
    try pair.one.drain()
    #expect(try pair.differences() == "")
    print("verify: \(rounds) rounds under load, no false alarm")
  }

  /// Each kind of difference is found where it is, and repaired where it can be.
  @Test func differencesAreFoundAndRepaired() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell(
      """
      cd $1; head -c 5000000 /dev/urandom > disk.img; truncate -s 100M thin; printf x | dd of=thin bs=1M seek=70 status=none
      truncate -s 100M thin; mkdir sub; for n in short long odd; do head -c 300000 /dev/urandom > sub/$n; done
      """, [pair.one.backing])
    let session = try pair.settled()
    #expect(try pair.one.verify(session).findingsCount == 0)
    let block = Self.block
    try flip(pair.two, "disk.img", at: 3 * block + 7)
    try flip(pair.two, "disk.img", at: 4 * block)
    try flip(pair.two, "disk.img", at: 4_999_999)
    try flip(pair.two, "thin", at: 90 * Self.zone + 5)
    try shell(
      "cd $1/sub; truncate -s 200000 short; truncate -s 300500 long; chmod 600 odd", [pair.two.backing])
    let found = try pair.one.verify(session)
    #expect(found.outcome == .complete && found.repairedCount == 0)
    func finding(
      _ path: String, _ kind: VerifyFinding.Kind, _ offset: UInt64 = 0, _ length: UInt64 = 0
    ) -> VerifyFinding { VerifyFinding(path: path, kind: kind, offset: offset, length: length) }
    let last = 4_999_999 / block * block
    #expect(
      Set(found.findings) == [
        // Blocks 3 and 4 belong to two pieces; side by side they are one place.
        finding("disk.img", .differs, 3 * block, 2 * block), finding("disk.img", .differs, last, 5_000_000 - last),
        finding("thin", .differs, 90 * Self.zone, block), finding("sub/short", .size, 200_000, 100_000),
        finding("sub/short", .differs, 3 * block, 300_000 - 3 * block), finding("sub/long", .size, 300_000, 500),
        finding("sub", .names),
      ], "\(found.findings)")
    #expect(found.findingsCount == found.findings.count)
    // Nothing was changed by looking.
    #expect(try pair.differences() != "")
    let repaired = try pair.one.verify(session, repairs: true)
    #expect(repaired.outcome == .complete)
    #expect(repaired.findings.filter { !$0.isRepaired }.map(\.kind) == [.names], "\(repaired.findings)")
    try shell("chmod --reference=$1/sub/odd $2/sub/odd", [pair.one.backing, pair.two.backing])
    let again = try pair.one.verify(session)
    #expect(again.findingsCount == 0 && again.bytesDone == again.bytesTotal, "\(again)")
    #expect(try pair.differences() == "")
    #expect(try shell("du -k $1/thin | cut -f1", [pair.two.backing]) != "0\n")
    // What was repaired is cleared like a guest's writes.
    try pair.one.proven()
    #expect(pair.one.engine.report().session == session)
  }

  /// A file the other node does not know is told, and ends nothing.
  @Test func anUnknownFileIsTold() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 1000000 /dev/urandom > $1/disk.img; truncate -s 3G $1/thin", [pair.one.backing])
    let session = try pair.settled()
    try shell("echo stray > $1/stray", [pair.one.backing])
    // In a hole of more than one piece.
    try flip(pair.two, "thin", at: 2500 * Self.zone)
    let report = try pair.one.verify(session, repairs: true)
    #expect(report.outcome == .complete && report.repairedCount == 1)
    #expect(
      Set(report.findings) == [
        VerifyFinding(path: ".", kind: .names), VerifyFinding(path: "stray", kind: .missing),
        VerifyFinding(
          path: "thin", kind: .differs, offset: 2500 * Self.zone, length: Self.block, isRepaired: true),
      ])
    #expect(pair.one.engine.report().session == session)
  }

  /// More places than are listed are counted, and all of them are repaired.
  @Test func manyPlaces() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 20000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    try shell(
      "for i in $(seq 0 2 199); do printf yy | dd of=$1/disk.img bs=1 seek=$((i * 65536)) conv=notrunc status=none; done",
      [pair.two.backing])
    let report = try pair.one.verify(session, repairs: true)
    #expect(report.findingsCount == 100 && report.findings.count == VerifyReport.findingsMax)
    #expect(report.repairedCount == 100 && report.findings.allSatisfy(\.isRepaired))
    #expect(try pair.differences() == "")
  }

  /// The rate is kept; what ends a session, or a role, ends the verification, and holds nothing else up.
  @Test func itGivesWay() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 60000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    var session = try pair.settled()
    let slow: UInt64 = 8 << 20
    let begun = monotonicNow()
    var id = pair.one.beginVerify(session, bytesPerSecondMax: slow)
    usleep(2_000_000)
    let done = try #require(pair.one.engine.report().verify?.bytesDone)
    let elapsed = Double((monotonicNow() - begun).nanoseconds) / 1e9
    #expect(Double(done) <= Double(slow) * (elapsed + 0.5) && done > slow / 2, "\(done) bytes in \(elapsed) s")
    // A second one is refused, the first goes on; then it is stopped.
    let other = pair.one.beginVerify(session)
    #expect(try pair.one.failure().contains("another verification"))
    #expect(pair.one.engine.report().verify?.id == id && other != id)
    pair.one.tell(.stopVerify)
    #expect(try pair.one.verified(id).outcome == .interrupted(why: "it was stopped"))
    // R10: a drain does not wait for it, and the swap in the same session goes on as ever.
    id = pair.one.beginVerify(session, bytesPerSecondMax: slow)
    usleep(300_000)
    try pair.one.drain()
    #expect(try pair.one.verified(id).outcome == .interrupted(why: "the module moves or stops"))
    try pair.one.barrier(session)
    try pair.one.unmount()
    try pair.one.accept(session)
    try pair.two.mount()
    pair.two.tell(.setPolicy(.both(session)))
    #expect(try pair.two.verify(session).findings == [])
    #expect(try pair.two.verify(session).outcome == .complete)
    // R9: the loss of the session.
    id = pair.two.beginVerify(session, bytesPerSecondMax: slow)
    usleep(300_000)
    pair.one.tell(.endSession)
    #expect(try pair.two.lost() == .frozen)
    #expect(try pair.two.verified(id).outcome == .interrupted(why: "the session was lost"))
    pair.two.tell(.setPolicy(.alone))
    #expect(try pair.two.verify(session).outcome == .interrupted(why: "the session was lost"))
    pair.one.tell(.connect)
    session = try pair.one.connected()
    #expect(try pair.two.connected() == session)
    try pair.resync(source: pair.two, target: pair.one, session)
    #expect(try pair.two.verify(session).findings == [])
    // And an unmount that is forced.
    id = pair.two.beginVerify(session, bytesPerSecondMax: slow)
    usleep(300_000)
    try pair.two.unmount(force: true)
    guard case .interrupted = try pair.two.verified(id).outcome else { throw TestFailure("it goes on without a mount") }
  }

  /// R3: the place is marked before anything is sent to it. Lost in between, the next resync mends it by that mark.
  @Test func aRepairThatIsCutOffIsMendedByTheNextResync() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 8000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    try flip(pair.two, "disk.img", at: 5 * Self.zone + 9)
    let map = "\(pair.one.folder)/intents"
    // What was cleared is stored by now.
    usleep(800_000)
    let marked = Flag()
    let two = pair.two
    HostCalls.setFaultHook { _, path in
      guard path == map, !marked.isSet else { return nil }
      marked.set()
      // The peer is gone before the mark is durable, so nothing is sent any more.
      two.tell(.endSession)
      usleep(200_000)
      return nil
    }
    defer { HostCalls.setFaultHook(nil) }
    let report = try pair.one.verify(session, repairs: true)
    HostCalls.setFaultHook(nil)
    #expect(marked.isSet)
    #expect(report.outcome == .interrupted(why: "the session was lost") && report.findingsCount == 1)
    #expect(report.repairedCount == 0)
    #expect(try pair.one.lost() == .frozen)
    #expect(try pair.differences() != "")
    pair.one.tell(.setPolicy(.alone))
    let next = try pair.reconnect()
    try pair.resync(source: pair.one, target: pair.two, next)
    #expect(try pair.differences() == "")
    #expect(try pair.one.verify(next).findings == [])
  }

  /// What a disk no longer holds, though its cache still shows it.
  @Test func theDiskIsComparedNotTheCache() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell(
      "truncate -s 100M $1/img; mkfs.ext4 -q -b 4096 -F $1/img; mount -o loop $1/img $2; rmdir $2/lost+found",
      [pair.folder, pair.two.backing])
    defer { umount2(pair.two.backing, 2) }
    try pair.reconfigure(pair.two)
    try shell("head -c 20000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    try shell(
      """
      sync -f $1; fsfreeze -f $1; fsfreeze -u $1; cat $1/disk.img > /dev/null
      block=$(debugfs -R "bmap disk.img $((6 * 256 - 1))" $2/img 2> /dev/null)
      test $block -gt 100
      head -c 4096 /dev/urandom | dd of=$2/img bs=4096 seek=$block conv=notrunc status=none
      """, [pair.two.backing, pair.folder])
    #expect(try pair.differences() == "", "the cache hides it")
    let report = try pair.one.verify(session, repairs: true)
    #expect(report.findings.map(\.offset) == [6 * Self.zone - Self.block] && report.repairedCount == 1, "\(report)")
    try shell("sync -f $1; dd if=$1/disk.img iflag=nocache count=0 status=none", [pair.two.backing])
    #expect(try pair.differences() == "")
  }
}
