import CFuse3
import Glibc
import HostSystem
import Model
import Replication
import Synchronization
import Testing

@testable import ReplicatedFiles

/// Disks that are full, read-only or dead, on either node (R11). Two engines, real mounts, each tested disk a file system of its own.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct DiskTests {
  private func disk(_ pair: Pair, _ side: Side, _ megabytes: Int, _ options: String = "") throws {
    try shell(
      """
      truncate -s $3M $1; mkfs.ext4 -q -b 4096 -F $4 $1
      mount -o loop,errors=remount-ro $1 $2; rmdir $2/lost+found
      """, [image(pair), side.backing, "\(megabytes)", options])
    try pair.reconfigure(side)
  }

  /// In memory: a busy disk below does not count.
  private func image(_ pair: Pair) -> String { "/dev/shm/vmha-disk-\(getpid())-\(pair.port)" }

  private func removeDisk(_ pair: Pair, _ side: Side) {
    umount2(side.backing, 2)
    unlink(image(pair))
  }

  private func diskError(_ side: Side) throws -> (operation: String, errno: Int32) {
    try side.expect("diskError") {
      if case .diskError(let operation, _, let errno) = $0 { (operation, errno) } else { nil }
    }
  }

  /// Writes blocks of its own number at random places until it is told to stop; answers errors other than a full disk.
  private func startGuest(_ path: String, _ stop: Flag, _ bytesMax: Int, _ errors: Guarded<[Int32]>) throws
    -> HostThread
  {
    try HostThread.start(name: "guest", detached: false) {
      let file = open(path, O_RDWR | O_CREAT, 0o600)
      while !stop.isSet {
        let block = [UInt8](repeating: .random(in: 0...255), count: .random(in: 1...300_000))
        let offset = off_t.random(in: 0..<off_t(bytesMax))
        if pwrite(file, block, block.count, offset) < 0 {
          let code = errno
          errors.withLock { $0.append(code) }
          if code != ENOSPC { break }
        }
      }
      close(file)
    }
  }

  /// Full under the guest: it gets ENOSPC, and nothing else happens: what the peer has of the failed writes is put right in the
  /// same session.
  @Test func aFullDiskUnderTheGuestKeepsTheSession() throws {
    let pair = try Pair()
    defer { pair.end() }
    try disk(pair, pair.one, 40)
    defer { removeDisk(pair, pair.one) }
    try shell("echo x > $1/first", [pair.one.backing])
    let session = try pair.settled()
    let (stop, errors) = (Flag(), Guarded<[Int32]>([]))
    let guests = try (0..<4).map {
      try startGuest("\(pair.one.mountPoint)/file\($0 % 2)", stop, 60 << 20, errors)
    }
    let note = try diskError(pair.one)
    #expect(note.errno == ENOSPC)
    usleep(1_500_000)
    stop.set()
    for guest in guests { guest.join() }
    let seen = errors.withLock { $0 }
    #expect(seen.count > 20 && seen.allSatisfy { $0 == ENOSPC })
    #expect(throws: TestFailure.self) { try shell("fallocate -l 200M $1/file0", [pair.one.mountPoint]) }
    #expect(throws: TestFailure.self) { try shell("fallocate -n -l 200M $1/file1", [pair.one.mountPoint]) }
    try pair.one.barrier(session)
    #expect(pair.one.engine.report().policy == .both(session), "the peer was given up for a full disk")
    #expect(try pair.differences() == "")
    // Told once in a while, not for each of them.
    let notes = pair.one.events.withLock { $0.filter { if case .diskError = $0 { true } else { false } } }
    #expect(notes.count <= 1)
    // There is room again.
    try shell("rm $1/file0; head -c 5000000 /dev/urandom > $1/new; sync $1/new", [pair.one.mountPoint])
    #expect(try pair.differences() == "")
  }

  /// No inode left under the guest: a name that cannot be made is made nowhere.
  @Test func noInodesUnderTheGuest() throws {
    let pair = try Pair()
    defer { pair.end() }
    try disk(pair, pair.one, 20, "-N16")
    defer { removeDisk(pair, pair.one) }
    let session = try pair.settled()
    #expect(throws: TestFailure.self) {
      try shell("for n in $(seq 40); do echo $n > $1/$n; done", [pair.one.mountPoint])
    }
    #expect(try diskError(pair.one).errno == ENOSPC)
    try shell(
      "mkfifo $1/p && exit 1; mkdir $1/d && exit 1; ln -s a $1/s && exit 1; ln $1/1 $1/hard", [pair.one.mountPoint])
    #expect(pair.one.engine.report().policy == .both(session))
    #expect(try pair.differences() == "")
  }

  /// The copy's disk is full, of blocks or of inodes: it says so and ends the session; the guest goes on after its node has the
  /// right; with room again a delta makes both the same.
  @Test(arguments: ["", "-N16"])
  func aFullDiskOfTheCopy(_ options: String) throws {
    let pair = try Pair()
    defer { pair.end() }
    try disk(pair, pair.two, options.isEmpty ? 40 : 100, options)
    defer { removeDisk(pair, pair.two) }
    try shell("head -c 8000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    let (stop, errors) = (Flag(), Guarded<[Int32]>([]))
    var guests: [HostThread] = []
    if options.isEmpty {
      guests.append(try startGuest("\(pair.one.mountPoint)/big", stop, 50 << 20, errors))
    } else {
      let folder = pair.one.mountPoint
      guests.append(
        try HostThread.start(name: "guest", detached: false) {
          var number = 0
          while !stop.isSet {
            number += 1
            let file = open("\(folder)/f\(number % 40)", O_RDWR | O_CREAT, 0o600)
            if file < 0 || write(file, &number, 8) != 8 {
              let code = errno
              errors.withLock { $0.append(code) }
            }
            close(file)
          }
        })
    }
    let start = monotonicNow()
    #expect(try pair.one.lost() == .frozen)
    #expect(try diskError(pair.two).errno == ENOSPC)
    pair.one.tell(.setPolicy(.alone))
    usleep(300_000)
    stop.set()
    for guest in guests { guest.join() }
    #expect(errors.withLock { $0 }.isEmpty, "the guest's own disk has room")
    #expect(monotonicNow() - start < .seconds(60))
    try shell("rm -f $1/big $1/f[0-9]*", [pair.one.mountPoint])
    let session = try pair.one.connected()
    try pair.resync(source: pair.one, target: pair.two, session)
    #expect(try pair.differences() == "")
  }

  /// ext4 turns read-only after an error; or the disk dies. Under the guest: the peer has everything that was acknowledged. Under the
  /// copy: the guest goes on. After the repair a delta makes both the same.
  @Test(arguments: [("readonly", true), ("readonly", false), ("dead", true), ("dead", false)])
  func aDiskThatFails(_ how: String, _ isGuests: Bool) throws {
    let pair = try Pair()
    defer { pair.end() }
    let (failing, other) = isGuests ? (pair.one, pair.two) : (pair.two, pair.one)
    try disk(pair, failing, 100)
    defer { removeDisk(pair, failing) }
    try shell("head -c 20000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    let (stop, errors) = (Flag(), Guarded<[Int32]>([]))
    let guest = try startGuest("\(pair.one.mountPoint)/disk.img", stop, 20 << 20, errors)
    usleep(200_000)
    let start = monotonicNow()
    try fail(failing.backing, how)
    // R11: on the guest's node the error comes before the session's end, or its core would ask for the consent of the other one.
    let error = try diskError(failing)
    #expect(try pair.one.lost() == .frozen)
    #expect([EIO, EROFS].contains(error.errno), "\(error)")
    #expect(monotonicNow() - start < .seconds(30))
    if isGuests {
      // R11: the guest is taken from here, the other node starts it.
      try pair.one.unmount(force: true)
      stop.set()
      guest.join()
      #expect(errors.withLock { !$0.isEmpty })
      for side in [pair.one, pair.two] { side.tell(.endSession) }
      try pair.two.mount()
      pair.two.tell(.setPolicy(.alone))
    } else {
      pair.one.tell(.setPolicy(.alone))
      usleep(200_000)
      stop.set()
      guest.join()
      #expect(errors.withLock { $0.isEmpty })
    }
    try shell("head -c 300000 /dev/urandom | dd of=$1/disk.img conv=notrunc status=none", [other.mountPoint])
    // The repair.
    failing.tell(.endSession)
    var away = pair.configuration(failing)
    away.backingDirectory = failing.folder
    failing.tell(.configure(away))
    try failing.expect("ready") { if case .ready = $0 { true } else { nil } }
    try shell(
      "umount $2; e2fsck -fy $1 > /dev/null 2>&1 || test $? = 1; mount -o loop $1 $2", [image(pair), failing.backing])
    failing.tell(.configure(pair.configuration(failing)))
    try failing.expect("ready") { if case .ready = $0 { true } else { nil } }
    for side in [pair.one, pair.two] {
      side.tell(.endSession)
      try side.quiet()
      side.events.withLock { $0 = [] }
    }
    let session = try pair.connect()
    try pair.resync(source: other, target: failing, session)
    #expect(try pair.differences() == "")
  }

  /// A reader that overlooks the error and writes back what its buffer held, as QEMU does for a part of a sector: the session is over
  /// before it knows, so the peer's copy stays whole (R11).
  @Test func whatIsMadeOfAFailedReadNeverReachesThePeer() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 3000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    let before = try shell("sha256sum < $1/disk.img", [pair.two.backing])
    let file = open("\(pair.one.mountPoint)/disk.img", O_RDWR)
    refuseReads(of: pair.one.backing)
    defer { HostCalls.setFaultHook(nil) }
    var block = [UInt8](repeating: 7, count: 4096)
    #expect(pread(file, &block, block.count, 2_000_000) == -1 && errno == EIO)
    #expect(pair.one.engine.report().policy == .frozen)
    let writer = try HostThread.start(name: "guest", detached: false) { [block] in
      #expect(pwrite(file, block, block.count, 2_000_000) == -1)
      close(file)
    }
    // First the error, then the end of the session, as for a write.
    let told = try pair.one.expect("diskError") {
      if case .diskError(let operation, let place, EIO) = $0 { "\(operation) \(place)" } else { nil }
    }
    #expect(told.hasPrefix("read ") && told.hasSuffix("/disk.img at byte 2000000"), "\(told)")
    #expect(try pair.one.lost() == .frozen)
    #expect(try pair.two.lost() == .frozen)
    try pair.one.unmount(force: true)
    writer.join()
    #expect(try shell("sha256sum < $1/disk.img", [pair.two.backing]) == before)
  }

  @Test func aReadThatFailsAloneChangesNothing() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 3000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    let file = open("\(pair.one.mountPoint)/disk.img", O_RDWR)
    defer { close(file) }
    refuseReads(of: pair.one.backing)
    defer { HostCalls.setFaultHook(nil) }
    var block = [UInt8](repeating: 7, count: 4096)
    #expect(pread(file, &block, block.count, 2_000_000) == -1 && errno == EIO)
    #expect(try diskError(pair.one) == ("read", EIO))
    #expect(pwrite(file, block, block.count, 2_000_000) == block.count)
    #expect(pair.one.engine.report().policy == .alone)
  }

  private func refuseReads(of backing: String) {
    HostCalls.setFaultHook { label, path in label == "backing.read" && path.hasPrefix(backing) ? EIO : nil }
  }

  private func fail(_ folder: String, _ how: String) throws {
    if how == "readonly" {
      return try _ = shell("echo test > /sys/fs/ext4/$(basename $(findmnt -no SOURCE $1))/trigger_fs_error", [folder])
    }
    try losePower(folder)
  }
}

/// The file system of this folder, ext4 on a disk of its own, loses everything that was not made durable, and is dead until it
/// is mounted anew (EXT4_IOC_SHUTDOWN, without a flush).
func losePower(_ folder: String) throws {
  let file = open(folder, O_RDONLY | O_DIRECTORY)
  defer { close(file) }
  var root = stat()
  var own = stat()
  guard file >= 0, stat("/", &root) == 0, fstat(file, &own) == 0, root.st_dev != own.st_dev else {
    throw TestFailure("\(folder) is no file system of its own")
  }
  var how: UInt32 = 2
  guard ioctl(file, 0x8004_587D, &how) == 0 else { throw TestFailure("\(folder): EXT4_IOC_SHUTDOWN: errno \(errno)") }
}
