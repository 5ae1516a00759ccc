import Glibc
import HostSystem
import Model
import Replication
import Testing

@testable import ReplicatedFiles

/// Errors and hangs that could hide a difference, or stop a guest for nothing. Two engines, real mounts, disks of their own.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct DeltaFaultTests {
  private func disk(_ pair: Pair, _ side: Side, _ megabytes: Int) throws {
    try shell(
      "truncate -s \(megabytes)M $1/img; mkfs.ext4 -q -b 4096 -F $1/img; mount -o loop $1/img $2; rmdir $2/lost+found",
      [pair.folder, side.backing])
    try pair.reconfigure(side)
  }

  private func removeDisk(_ side: Side) { umount2(side.backing, 2) }

  /// An identity that cannot be read this time can be the next time: the write must not go without an intent.
  @Test func anUnreadableIdentityIsNotNoIdentity() throws {
    let folder = "/tmp/vmha-identity-\(getpid())"
    mkdir(folder, 0o755)
    defer { _ = try? shell("rm -rf $1", [folder]) }
    let intents = try Intents(path: "\(folder)/intents")
    try intents.clear()
    let file = open("\(folder)/file", O_RDWR | O_CREAT, 0o600)
    defer { close(file) }
    let identity = try #require(try FileIdentities.give(file))
    let id = FileID(rawValue: 7)
    // EBADF stands for any error: EIO, ENOMEM.
    guard case .failed = intents.covers(id, 0..<10, object: { 1_000_000 }) else {
      Issue.record("let through without an intent")
      return
    }
    guard case .pending = intents.covers(id, 0..<10, object: { file }) else {
      Issue.record("the error was remembered")
      return
    }
    #expect(intents.content(of: identity) == .zones([0..<1]))
  }

  /// A replica whose disk hangs in the middle of a copy must not stop the guest of a node that is alone.
  @Test func aHangingTargetDoesNotHangTheGuest() throws {
    let pair = try Pair()
    defer { pair.end() }
    try disk(pair, pair.two, 600)
    defer { removeDisk(pair.two) }
    try shell("head -c 300000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.connect()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    try pair.two.accept(session)
    pair.one.tell(.startResync(session, comparesEverything: false))
    try pair.one.expect("progress") { event -> Bool? in
      if case .resyncProgress(_, let progress) = event, progress.bytesDone > 5_000_000 { true } else { nil }
    }
    try shell("fsfreeze -f $1", [pair.two.backing])
    let path = "\(pair.one.mountPoint)/disk.img"
    let isDone = Flag()
    let writer = try HostThread.start(name: "writer", detached: false) {
      _ = try? shell("dd if=/dev/zero of=$1 bs=1M count=32 conv=notrunc status=none", [path])
      isDone.set()
    }
    for _ in 0..<250 where !isDone.isSet { usleep(100_000) }
    #expect(isDone.isSet, "the guest waits for a disk it does not need")
    try shell("fsfreeze -u $1", [pair.two.backing])
    writer.join()
  }

  /// A change that failed here may have been carried out in part: the copies differ, and the session must not go on as in sync.
  @Test func aFailedAllocationDoesNotLeaveCopiesThatDiffer() throws {
    let pair = try Pair()
    defer { pair.end() }
    try disk(pair, pair.one, 40)
    defer { removeDisk(pair.one) }
    try shell("head -c 3000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    #expect(throws: TestFailure.self) {
      try shell("fallocate -l 200M $1/disk.img", [pair.one.mountPoint])
    }
    usleep(1_000_000)
    let report = pair.one.engine.report()
    let differences = try pair.differences()
    #expect(report.policy != .both(session) || differences == "")
  }

  /// After a failed write-back the page cache holds what the disk does not. Stood for by changing the disk below the cache.
  @Test func theTargetComparesWhatIsOnItsDisk() throws {
    let pair = try Pair()
    defer { pair.end() }
    try disk(pair, pair.two, 100)
    defer { removeDisk(pair.two) }
    try shell("head -c 20000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    // The last 64 KiB of zone 5 were lost by the disk; the cache has them.
    try shell(
      """
      sync -f $1; fsfreeze -f $1; fsfreeze -u $1; cat $1/disk.img > /dev/null
      block=$(debugfs -R "bmap disk.img $((6 * 256 - 1))" $2/img 2> /dev/null)
      test $block -gt 100
      head -c 4096 /dev/urandom | dd of=$2/img bs=4096 seek=$block conv=notrunc status=none
      """, [pair.two.backing, pair.folder])
    #expect(try pair.differences() == "", "the cache hides it")
    pair.two.tell(.endSession)
    #expect(try pair.one.lost() == .frozen)
    pair.one.tell(.setPolicy(.alone))
    // Its mark stayed: the flush failed. Here: the zone is marked again.
    try shell(
      "printf x | dd of=$1/disk.img bs=1 seek=$((5 << 20)) conv=notrunc status=none", [pair.one.mountPoint])
    let session = try pair.reconnect()
    try pair.resync(source: pair.one, target: pair.two, session)
    try shell("sync -f $1; dd if=$1/disk.img iflag=nocache count=0 status=none", [pair.two.backing])
    #expect(try pair.differences() == "")
  }

  /// Mounted anew in the same session, a node that wrote alone must still resynchronise.
  @Test func aNewMountDoesNotForgetThatThePeerLacksWrites() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 3000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    pair.one.tell(.setPolicy(.alone))
    try shell("printf hello | dd of=$1/disk.img conv=notrunc status=none", [pair.one.mountPoint])
    try pair.one.unmount()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.both(session)))
    #expect(try pair.one.failure().contains("resync"))
    #expect(pair.one.engine.report().policy == .frozen)
  }

  /// R10: after a drain this side asks nothing more by itself: an answer that came after the swap would end the session.
  @Test func noRoundBeginsWhileDraining() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 8000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    try shell("printf x | dd of=$1/disk.img bs=1 seek=3000000 conv=notrunc status=none", [pair.one.mountPoint])
    try pair.one.drain()
    usleep(1_500_000)
    #expect(pair.one.engine.report().bytesMarked != 0)
    pair.one.tell(.setPolicy(.both(session)))
    try pair.one.proven()
  }

  /// R10: nor is one left behind that had begun before: the drain waits for its answer, and without it the roles do not change.
  @Test func aDrainWaitsForARoundThatIsOnItsWay() throws {
    let pair = try Pair(addressOfTwo: "127.0.0.2")
    defer { pair.end() }
    let relay = try Relay(port: pair.port)
    defer { relay.remove() }
    try shell("head -c 8000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    try shell("printf x | dd of=$1/disk.img bs=1 seek=3000000 conv=notrunc status=none", [pair.one.mountPoint])
    relay.change { $0.back.isStalled = true }
    // An idle engine looks every 0.75 s; the second look begins a round, which is not answered. The peer may be silent for 6 s.
    usleep(2_500_000)
    #expect(pair.one.engine.report().requestsInFlight == 0 && pair.one.engine.report().bytesMarked != 0)
    pair.one.tell(.drain)
    usleep(300_000)
    let isEarly = pair.one.events.withLock { $0.contains { if case .drained = $0 { true } else { false } } }
    #expect(!isEarly, "drained before the peer had answered the round")
    try pair.one.unmount()
    pair.one.tell(.acceptReplication(session))
    #expect(try pair.one.failure().contains("the peer still has to answer"))
    relay.change { $0.back.isStalled = false }
    try pair.one.expect("drained") { if case .drained = $0 { true } else { nil } }
    try pair.one.barrier(session)
    try pair.one.accept(session)
    try pair.two.mount()
    pair.two.tell(.setPolicy(.both(session)))
    try shell("echo after > $1/after; sync $1/after", [pair.two.mountPoint])
    #expect(try pair.differences() == "")
    #expect(pair.one.engine.report().session == session)
  }

  /// The target's last fsync takes longer than a stall may last; no guest waits for it, and the copy is not thrown away.
  @Test func aSlowFlushAtTheEndOfACopyIsNoStall() throws {
    let pair = try Pair()
    defer { pair.end() }
    try disk(pair, pair.two, 300)
    defer { removeDisk(pair.two) }
    try shell("head -c 30000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.connect()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    try pair.two.accept(session)
    let folder = pair.two.backing
    pair.one.tell(.startResync(session, comparesEverything: false))
    // All pieces are applied, the fsync hangs for longer than a stall may last.
    try pair.one.expect("progress") { event -> Bool? in
      if case .resyncProgress(_, let progress) = event, progress.bytesDone == progress.bytesTotal { true } else { nil }
    }
    try shell("fsfreeze -f $1", [folder])
    usleep(13_000_000)
    try shell("fsfreeze -u $1", [folder])
    #expect(pair.one.engine.report().session == session)
  }

  /// R2, R3: a write that is left to the copy, and still on its way to this disk, makes a hole data, also in a file that the target has just
  /// made.
  @Test func aWriteOnItsWayIntoAHoleOfANewFileIsCopied() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("truncate -s 16M $1/disk.img", [pair.one.backing])
    let session = try pair.connect()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    let (source, target, path) = (pair.one.backing, pair.two.backing, "\(pair.one.mountPoint)/disk.img")
    let (isMaking, isWriting, isWritten) = (Flag(), Flag(), Flag())
    HostCalls.setFaultHook { label, place in
      // The target makes the file, and has not made it before the write is under way here.
      if label == "backing.create", place.hasPrefix(target) {
        isMaking.set()
        isWriting.awaitSet()
      }
      // By then a copy that waits for nothing would be at its end.
      if label == "backing.write", place.hasPrefix(source) {
        isWriting.set()
        usleep(3_000_000)
      }
      return nil
    }
    defer { HostCalls.setFaultHook(nil) }
    let writer = try HostThread.start(name: "writer", detached: false) {
      isMaking.awaitSet()
      _ = try? shell("head -c 4096 /dev/urandom | dd of=$1 bs=4K seek=2000 conv=notrunc status=none", [path])
      isWritten.set()
    }
    try pair.resync(source: pair.one, target: pair.two, session, alone: true)
    writer.join()
    #expect(isWritten.isSet)
    #expect(try shell("du -k $1/disk.img | cut -f1", [target]) != "0\n")
    #expect(try pair.differences() == "")
  }
}
