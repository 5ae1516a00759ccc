import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import Testing

/// Two engines, real FUSE mounts, real TLS. Needs root and /dev/fuse.
@Suite(.serialized, .timeLimit(.minutes(5)))
struct EngineTests {
  /// Starts with trees that differ in every way a manifest can express, then does everything to the mount.
  @Test func everyOperationIsRepeated() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell(
      """
      cd $1; mkdir -p sub deep/er; echo old > sub/file; head -c 3000000 /dev/urandom > disk.img; ln sub/file sub/twin
      ln -s nowhere link; setfattr -n user.a -v 1 sub/file; chmod 2750 deep; chown 7:8 deep
      truncate -s 50M sparse; printf x | dd of=sparse bs=1 seek=30000000 conv=notrunc status=none
      """, [pair.one.backing])
    try shell(
      """
      cd $1; mkdir -p gone/deep sub/file; echo x > gone/deep/x; echo other > disk.img; ln -s elsewhere link
      head -c 2000000 /dev/urandom > sparse; echo z > deep; setfattr -n user.b -v 2 deep; mkfifo pipe
      """, [pair.two.backing])
    let session = try pair.connect()
    try pair.inSync(source: pair.one, target: pair.two, session)
    #expect(try pair.differences() == "")
    #expect(try shell("du -k $1/sparse | cut -f1", [pair.two.backing]).split(separator: "\n").first == "4")
    try shell(
      """
      cd $1; echo hello > a; mkdir d; mv a d/b; ln d/b hard; ln -s d/b soft; truncate -s 100000 hard
      dd if=/dev/urandom of=disk.img bs=64k count=20 conv=notrunc,fsync status=none; chmod 4751 d/b; chown 5:6 d/b
      fallocate -p -o 65536 -l 131072 disk.img; fallocate -z -o 1000 -l 100000 disk.img; fallocate -l 9M new
      setfattr -n user.k -v v d/b; setfattr -x user.a sub/file; rm sub/file; rm -r deep; mkfifo pipe
      touch -d '2001-02-03 04:05:06' d/b; echo more >> hard; mkdir e; mv -T e d2; echo 1 > x; echo 2 > y
      mv x y; python3 - <<'EOF'
      import os, ctypes
      open('p', 'w').write('p'); open('q', 'w').write('qq')
      libc = ctypes.CDLL(None, use_errno=True)
      assert libc.renameat2(-100, b'p', -100, b'q', 2) == 0, os.strerror(ctypes.get_errno())
      assert libc.renameat2(-100, b'p', -100, b'q', 1) == -1
      assert open('p').read() == 'qq'
      f = open('unlinked', 'w+'); os.unlink('unlinked'); f.write('still there'); f.flush(); f.seek(0)
      assert f.read() == 'still there'; os.fsync(f.fileno()); f.close()
      d = os.open('.', os.O_RDONLY); os.fsync(d); os.close(d)
      try: os.mknod('node', 0o020644); raise SystemExit('a device was made')
      except PermissionError: pass
      for i in range(300): open(f'many{i}', 'w').write(str(i))
      assert len([n for n in os.listdir('.') if n.startswith('many')]) == 300
      for i in range(0, 300, 3): os.unlink(f'many{i}')
      b = bytes(range(256)) * 16
      fd = os.open('direct', os.O_RDWR | os.O_CREAT | os.O_DIRECT); os.close(fd)
      os.utime('direct', ns=(1, 2)); assert os.stat('direct').st_mtime_ns == 2
      os.ftruncate(os.open('direct', os.O_RDWR), 12345)
      EOF
      """, [pair.one.mountPoint])
    #expect(try pair.differences() == "")
    try pair.one.drain()
    try pair.one.unmount()
  }

  /// R10 as far as an engine goes, cold: drain, barrier, unmount, the other side mounts in the same session.
  @Test func rolesAreSwappedInOneSession() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 5000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.connect()
    try pair.inSync(source: pair.one, target: pair.two, session)
    var (from, to) = (pair.one, pair.two)
    for round in 0..<4 {
      try shell(
        "cd $1; echo $2 > round$2; head -c 100000 /dev/urandom | dd of=disk.img bs=1000 seek=$2 conv=notrunc status=none",
        [from.mountPoint, "\(round)"])
      try from.drain()
      try from.barrier(session)
      try from.unmount()
      try from.accept(session)
      try to.mount()
      to.tell(.setPolicy(.both(session)))
      try shell("cat $1/round$2", [to.mountPoint, "\(round)"])
      (from, to) = (to, from)
    }
    try shell("echo last > $1/last; sync $1/last", [from.mountPoint])
    #expect(try pair.differences() == "")
    #expect(from.engine.report().session == session)
  }

  /// R2, R9: what is not acknowledged by the peer waits, and completes only when the right to be alone is there.
  @Test func lossOfThePeerFreezesUntilAlone() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("echo data > $1/file", [pair.one.backing])
    let session = try pair.connect()
    try pair.inSync(source: pair.one, target: pair.two, session)
    pair.two.tell(.endSession)
    #expect(try pair.one.lost() == .frozen)
    let isDone = Flag()
    let path = "\(pair.one.mountPoint)/file"
    let writer = try HostThread.start(name: "writer", detached: false) {
      let file = open(path, O_WRONLY)
      precondition(write(file, "frozen", 6) == 6)
      precondition(fsync(file) == 0)
      close(file)
      isDone.set()
    }
    usleep(300_000)
    #expect(!isDone.isSet, "a write was acknowledged without a right")
    #expect(try shell("cat $1/file", [pair.one.mountPoint]).hasPrefix("data"), "reads go on while frozen")
    #expect(pair.one.engine.report().requestsInFlight == 1)
    pair.one.tell(.setPolicy(.alone))
    writer.join()
    #expect(isDone.isSet)
    // It comes back: a resync, and both hold the same again.
    let next = try pair.reconnect()
    #expect(next != session)
    pair.one.tell(.setPolicy(.both(next)))
    #expect(try pair.one.failure().contains("resync"), "both without a resync would lose what was written alone")
    try pair.resync(source: pair.one, target: pair.two, next)
    #expect(try pair.differences() == "")
  }

  /// R8.1: everything the guest writes while the copy runs is on both sides at its end.
  @Test func resyncUnderLoad() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell(
      """
      cd $1; head -c 60000000 /dev/urandom > disk.img; truncate -s 300M thin; mkdir many
      for i in $(seq 300); do echo $i > many/$i; done
      """, [pair.one.backing])
    let session = try pair.connect()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    let stop = Flag()
    let mountPoint = pair.one.mountPoint
    let writers = try (0..<3).map { number in
      try HostThread.start(name: "guest", detached: false) {
        Self.guest(number, mountPoint) { stop.isSet }
      }
    }
    usleep(100_000)
    for _ in 0..<2 { try pair.resync(source: pair.one, target: pair.two, session, alone: true) }
    try pair.resync(source: pair.one, target: pair.two, session)
    usleep(200_000)
    stop.set()
    for writer in writers { writer.join() }
    #expect(try pair.differences() == "")
  }

  /// The session is lost again and again at any moment, also in the middle of a copy; the guest only notices that it waits.
  @Test func sessionsComeAndGoUnderLoad() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell(
      """
      cd $1; head -c 20000000 /dev/urandom > disk.img; truncate -s 300M thin; mkdir many
      for i in $(seq 300); do echo $i > many/$i; done
      """, [pair.one.backing])
    var session = try pair.connect()
    try pair.inSync(source: pair.one, target: pair.two, session)
    let stop = Flag()
    let mountPoint = pair.one.mountPoint
    let writers = try (0..<3).map { number in
      try HostThread.start(name: "guest", detached: false) { Self.guest(number, mountPoint) { stop.isSet } }
    }
    defer {
      stop.set()
      pair.one.tell(.setPolicy(.alone))
      for writer in writers { writer.join() }
    }
    for cycle in 0..<4 {
      usleep(UInt32.random(in: 20_000...200_000))
      pair.two.tell(.endSession)
      #expect(try pair.one.lost() == .frozen)
      pair.one.tell(.setPolicy(.alone))
      session = try pair.reconnect()
      try pair.two.accept(session)
      if cycle % 2 == 0 {
        pair.one.tell(.startResync(session, comparesEverything: false))
        usleep(UInt32.random(in: 1000...300_000))
        pair.two.tell(.endSession)
        // Alone by right: the loss of the target of a copy does not stop the guest (or it came after the last step).
        #expect(try pair.one.lost() == .alone)
        session = try pair.reconnect()
        try pair.one.quiet()
        try pair.two.accept(session)
      }
      try pair.one.resync(session)
      try pair.one.barrier(session)
      pair.one.tell(.setPolicy(.both(session)))
    }
    usleep(200_000)
    try pair.one.drain()
    #expect(try pair.differences() == "")
  }

  /// Deep asynchronous queues with overlapping direct writes, verified by a tool that knows nothing of vmha.
  @Test(.enabled(if: access("/usr/bin/fio", X_OK) == 0)) func fioVerifies() throws {
    let pair = try Pair()
    defer { pair.end() }
    let session = try pair.connect()
    try pair.inSync(source: pair.one, target: pair.two, session)
    try shell(
      """
      cd "$1/.."; fio --name=verify --directory="$1" --size=48M --rw=randrw --rwmixwrite=70 --bsrange=512-128k --bs_unaligned \
        --direct=1 --ioengine=libaio --iodepth=16 --numjobs=2 --verify=crc32c --verify_fatal=1 --fsync=64 --minimal
      """, [pair.one.mountPoint])
    try pair.one.drain()
    #expect(try pair.differences() == "")
  }

  /// Random writes, truncations, holes, renames and removals, as several processes of a guest would do them.
  private static func guest(_ number: Int, _ folder: String, _ isOver: () -> Bool) {
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
      _ = pwrite(disk, block, size, off_t.random(in: 0..<60_000_000, using: &random))
      _ = pwrite(thin, block, size, off_t.random(in: 0..<300_000_000, using: &random))
      switch step % 16 {
      case 0: _ = fsync(disk)
      case 3: _ = ftruncate(thin, off_t.random(in: 100_000_000..<300_000_000, using: &random))
      case 5:
        let name = "\(folder)/many/new\(number).\(step)"
        let file = open(name, O_RDWR | O_CREAT, 0o644)
        _ = write(file, block, size)
        close(file)
        if step % 32 == 5 { rename(name, "\(folder)/many/\(Int.random(in: 1...300, using: &random))") }
      case 9: unlink("\(folder)/many/\(Int.random(in: 1...300, using: &random))")
      case 12: _ = posix_fallocate(disk, off_t.random(in: 0..<60_000_000, using: &random), 100_000)
      default: break
      }
    }
  }

  /// A hung or vanished peer is noticed by silence, and the reason says so.
  @Test func silenceEndsTheSession() throws {
    let pair = try Pair(silence: .seconds(2))
    defer { pair.end() }
    let session = try pair.connect()
    // Keepalives hold an idle session.
    usleep(2_500_000)
    #expect(pair.one.engine.report().session == session)
    #expect(pair.two.engine.report().session == session)
    pair.two.tell(.send(session, Array("hello core".utf8)))
    let message = try pair.one.expect("message") { if case .message(session, let bytes) = $0 { bytes } else { nil } }
    #expect(message == Array("hello core".utf8))
    pair.one.tell(.acceptReplication(SessionID(rawValue: 1)))
    #expect(try pair.one.failure().contains("is over"))
    pair.one.tell(.setPolicy(.both(SessionID(rawValue: 1))))
    #expect(try pair.one.failure().contains("is over"))
    pair.one.tell(.startResync(session, comparesEverything: false))
    #expect(try pair.one.failure().contains("not mounted"))
  }

  /// A forced unmount gets rid of a mount whose requests can never be answered.
  @Test func forcedUnmountWhileFrozen() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("echo data > $1/file", [pair.one.backing])
    try pair.one.mount()
    let path = "\(pair.one.mountPoint)/file"
    let hasFailed = Flag()
    let writer = try HostThread.start(name: "writer", detached: false) {
      let file = open(path, O_WRONLY)
      if write(file, "frozen", 6) == -1 { hasFailed.set() }
      close(file)
    }
    usleep(200_000)
    pair.one.tell(.unmount(force: false))
    #expect(try pair.one.failure().contains("busy"))
    #expect(pair.one.engine.report().fuseConnection != nil)
    try pair.one.unmount(force: true)
    writer.join()
    #expect(hasFailed.isSet)
    #expect(try shell("cat $1/file", [pair.one.backing]) == "data\n", "a parked write must not be applied")
    // And again from the start.
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    try shell("echo again > $1/file; sync $1/file", [pair.one.mountPoint])
    pair.one.tell(.syncFiles(7))
    try pair.one.expect("filesSynced") { if case .filesSynced(7) = $0 { true } else { nil } }
    try pair.one.unmount()
    #expect(try shell("ls -A $1 | wc -l", [pair.one.mountPoint]) == "0\n")
  }

  /// The full disk of the replica ends the session, and the primary hears why (R11).
  @Test func fullDiskOnTheReplica() throws {
    let pair = try Pair()
    try shell("mount -t tmpfs -o size=8m tmpfs $1", [pair.two.backing])
    defer {
      // Lazily: the engine still holds it; the folder below has to be free for its removal.
      umount2(pair.two.backing, 2)
      pair.end()
    }
    try pair.reconfigure(pair.two)
    try shell("echo data > $1/file", [pair.one.backing])
    let session = try pair.connect()
    try pair.inSync(source: pair.one, target: pair.two, session)
    let path = pair.one.mountPoint
    let writer = try HostThread.start(name: "writer", detached: false) {
      _ = try? shell("head -c 20000000 /dev/urandom > $1/big; sync $1/big", [path])
    }
    let code = try pair.two.expect("diskError") { if case .diskError(_, _, let code) = $0 { code } else { nil } }
    #expect(code == ENOSPC)
    #expect(try pair.one.lost() == .frozen)
    pair.one.tell(.setPolicy(.alone))
    writer.join()
    #expect(try shell("stat -c %s $1/big", [path]) == "20000000\n")
  }
}
