import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Testing

/// R3, R8: after a loss, only what may differ is looked at, and only what differs is sent. Two engines, real mounts.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct DeltaTests {
  private static let zone: UInt64 = 1 << 20
  private static let block: UInt64 = 64 << 10

  /// `two` is away from here on, `one` goes on alone.
  private func alone(_ pair: Pair) throws {
    pair.two.tell(.endSession)
    #expect(try pair.one.lost() == .frozen)
    pair.one.tell(.setPolicy(.alone))
  }

  /// Resynchronises and answers the last progress told.
  private func resync(_ pair: Pair, from source: Side, to target: Side, _ session: SessionID) throws -> ResyncProgress {
    try target.accept(session)
    source.tell(.startResync(session, comparesEverything: false))
    var last: ResyncProgress?
    _ = try source.expect("resyncCopied", within: .seconds(60)) { event -> Bool? in
      if case .resyncProgress(_, let progress) = event { last = progress }
      if case .resyncCopied = event { return true }
      return nil
    }
    try source.barrier(session)
    source.tell(.setPolicy(.both(session)))
    return try #require(last)
  }

  private func write(_ path: String, at offset: UInt64, _ count: Int) throws {
    let file = open(path, O_WRONLY)
    defer { close(file) }
    let bytes = (0..<count).map { _ in UInt8.random(in: 0...255) }
    guard pwrite(file, bytes, count, off_t(offset)) == count, fsync(file) == 0 else {
      throw TestFailure("cannot write \(path): \(errno)")
    }
  }

  @Test func onlyWhatWasWrittenAloneTravels() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 67108864 /dev/urandom > $1/disk.img; truncate -s 256M $1/thin", [pair.one.backing])
    _ = try pair.settled()
    try alone(pair)
    let disk = "\(pair.one.mountPoint)/disk.img"
    try write(disk, at: 5 * Self.zone + 100, 3000)
    try write(disk, at: 5 * Self.zone + 3 * Self.block, 10)
    try write(disk, at: 40 * Self.zone - 20, 10)
    try write("\(pair.one.mountPoint)/thin", at: 200 * Self.zone, 4096)
    let progress = try resync(pair, from: pair.one, to: pair.two, try pair.reconnect())
    #expect(progress.bytesTotal == 3 * Self.zone)
    #expect(progress.bytesDone == progress.bytesTotal)
    #expect((1...4 * Self.block).contains(progress.bytesSent))
    #expect(try pair.differences() == "")
    // And nothing at all the next time, once it is proven.
    try pair.one.proven()
    try alone(pair)
    let again = try resync(pair, from: pair.one, to: pair.two, try pair.reconnect())
    #expect(again.bytesTotal == 0 && again.bytesSent == 0)
  }

  /// R8: zones = union of both maps. What the target wrote by itself is overwritten too.
  @Test func theTargetsMapCountsToo() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 33554432 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    try alone(pair)
    try pair.two.mount()
    pair.two.tell(.setPolicy(.alone))
    try write("\(pair.one.mountPoint)/disk.img", at: 3 * Self.zone, 5000)
    try write("\(pair.two.mountPoint)/disk.img", at: 9 * Self.zone, 5000)
    try shell("truncate -s 20M $1/disk.img; truncate -s 32M $1/disk.img", [pair.two.mountPoint])
    try pair.one.unmount()
    let progress = try resync(pair, from: pair.two, to: pair.one, try pair.reconnect())
    // Written: zones 3 and 9; cut off: zones 20 to 31.
    #expect(progress.bytesTotal == 14 * Self.zone)
    #expect(try pair.differences() == "")
  }

  /// Another file under the same name has another identity: it is compared as a whole, whatever the maps say.
  @Test func namesDoNotDeceive() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("for n in a b c; do head -c 3000000 /dev/urandom > $1/$n; done", [pair.one.backing])
    _ = try pair.settled()
    try alone(pair)
    try shell(
      """
      cd $1; mv a a2; mv b a; mv a2 b; rm c; head -c 3000000 /dev/urandom > c; ln c d
      test -z "$(getfattr -d -m trusted.vmha a)"; ! setfattr -n trusted.vmha.file -v x a 2> /dev/null
      """, [pair.one.mountPoint])
    _ = try resync(pair, from: pair.one, to: pair.two, try pair.reconnect())
    #expect(try pair.differences() == "")
  }

  /// A damaged or missing map says "anything may differ", and all of it is compared.
  @Test(arguments: ["rm $1", "truncate -s 10 $1", "head -c 65536 /dev/urandom | dd of=$1 conv=notrunc status=none"])
  func aDamagedMapHidesNothing(_ damage: String) throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 20000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    try alone(pair)
    // What the map would have told about.
    try write("\(pair.two.backing)/disk.img", at: 12 * Self.zone, 100)
    try shell(damage, ["\(pair.two.folder)/intents"])
    try pair.reconfigure(pair.two)
    #expect(pair.two.engine.report().bytesMarked == nil)
    let progress = try resync(pair, from: pair.one, to: pair.two, try pair.reconnect())
    #expect(progress.bytesTotal == 20_000_000)
    #expect(progress.bytesSent == Self.block)
    #expect(try pair.differences() == "")
  }

  /// A copy that is interrupted goes on: what had arrived is compared, not sent again.
  @Test func anInterruptedCopyGoesOn() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 200000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.connect()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    try pair.two.accept(session)
    pair.one.tell(.startResync(session, comparesEverything: false))
    try pair.one.expect("progress") { event -> Bool? in
      if case .resyncProgress(_, let progress) = event, progress.bytesDone > 20_000_000 { true } else { nil }
    }
    pair.two.tell(.endSession)
    #expect(try pair.one.lost() == .alone)
    try pair.one.quiet()
    let progress = try resync(pair, from: pair.one, to: pair.two, try pair.reconnect())
    #expect(progress.bytesTotal == 200_000_000)
    #expect(progress.bytesSent < 180_000_000 + 2 * Self.zone)
    #expect(try pair.differences() == "")
  }

  /// R3: no byte is applied or sent before its intent is durable, and none if it cannot be.
  @Test func nothingIsWrittenBeforeItsIntent() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 8388608 /dev/zero | tr '\\0' x > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    let map = "\(pair.one.folder)/intents"
    let (backings, early) = (["\(pair.one.backing)/disk.img", "\(pair.two.backing)/disk.img"], Flag())
    let seen = Flag()
    HostCalls.setFaultHook { label, path in
      guard path == map, label == "intents.sync" else { return nil }
      usleep(200_000)
      seen.set()
      for path in backings {
        let file = open(path, O_RDONLY)
        defer { close(file) }
        var byte: UInt8 = 0
        if pread(file, &byte, 1, 5 << 20) != 1 || byte != UInt8(ascii: "x") { early.set() }
      }
      return nil
    }
    defer { HostCalls.setFaultHook(nil) }
    let disk = open("\(pair.one.mountPoint)/disk.img", O_WRONLY)
    defer { close(disk) }
    #expect(pwrite(disk, "new", 3, 5 << 20) == 3)
    #expect(seen.isSet && !early.isSet)
    // A zone that cannot be marked cannot be written; others can. When the disk has recovered, so has the map.
    HostCalls.setFaultHook { label, path in path == map && label != "intents.read" ? ENOSPC : nil }
    #expect(pwrite(disk, "no", 2, 2 << 20) == -1 && errno == ENOSPC)
    #expect(pwrite(disk, "yes", 3, 5 << 20) == 3)
    HostCalls.setFaultHook(nil)
    // "yes" had the map tried again, after its answer perhaps: a write that comes before that try is over fails with it.
    let written = (0..<100).contains { _ in
      usleep(20_000)
      return pwrite(disk, "new", 3, 2 << 20) == 3
    }
    #expect(written)
    #expect(fsync(disk) == 0)
    #expect(try pair.differences() == "")
  }
}
