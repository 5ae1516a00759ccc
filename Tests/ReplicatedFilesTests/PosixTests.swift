import CFuse3
import CPosixCalls
import Glibc
import HostSystem
import Model
import Synchronization
import Testing

@testable import ReplicatedFiles

/// What the random model of the surface cannot show: what the mount does not do, and says so; what is only there at an edge.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct PosixTests {
  private func errnoOf(_ result: Int) -> Int32 { result < 0 ? errno : 0 }
  private func errnoOf(_ result: Int32) -> Int32 { errnoOf(Int(result)) }

  private func withStage(_ body: (Stage, String) throws -> Void) throws {
    let stage = try Stage()
    defer { stage.end() }
    _ = try stage.pair.settled()
    try body(stage, stage.pair.one.mountPoint)
    let differences = try stage.nodesDiffer(layout: true)
    #expect(differences == [])
  }

  private func file(_ path: String, _ flags: Int32 = O_RDWR | O_CREAT) throws -> Int32 {
    let file = open(path, flags | O_CLOEXEC, 0o644)
    guard file >= 0 else { throw TestFailure("open \(path): \(String(cString: strerror(errno)))") }
    return file
  }

  /// Refused with the errno that programs know how to go on from, and without a mark on session or disk.
  @Test func whatIsNotSupportedSaysSo() throws {
    try withStage { stage, mount in
      let disk = try file("\(mount)/disk")
      defer { close(disk) }
      #expect(pwrite(disk, "data", 4, 0) == 4)
      #expect(errnoOf(posix_open_unnamed(mount, 0o600)) == EOPNOTSUPP, "O_TMPFILE")
      // FALLOC_FL_COLLAPSE_RANGE, INSERT_RANGE, UNSHARE_RANGE
      for mode: Int32 in [0x08, 0x20, 0x40] { #expect(errnoOf(posix_allocate(disk, mode, 0, 4096)) == EOPNOTSUPP) }
      #expect(errnoOf(posix_rename(AT_FDCWD, "\(mount)/disk", AT_FDCWD, "\(mount)/other", 4)) == EINVAL, "WHITEOUT")
      #expect(errnoOf(mknod("\(mount)/device", S_IFCHR | 0o600, 0x103)) == EPERM)
      #expect(errnoOf(posix_map_shared(disk)) == ENODEV, "a shared mapping of a file that is never cached")
      #expect(posix_map_private(disk) == 0x64)
      var flags: Int = 0
      // FS_IOC_GETFLAGS, FICLONE
      #expect(errnoOf(ioctl(disk, 0x8008_6601, &flags)) == ENOTTY)
      #expect(errnoOf(ioctl(disk, 0x4004_9409, disk)) == EOPNOTSUPP)
      #expect(errnoOf(posix_set_attribute("\(mount)/disk", "trusted.vmha.file", "x", 1, 0)) == EPERM)
      #expect(errnoOf(posix_get_attribute("\(mount)/disk", "trusted.vmha.file", nil, 0)) == ENODATA)
    }
  }

  /// A guest that asks for more than the file system can hold gets the errno; the disk is not broken, and the session goes on.
  @Test func theLongestFileIsTheFileSystems() throws {
    try withStage { stage, mount in
      let (mine, theirs) = (try file("\(mount)/long"), try file("\(stage.pair.folder)/long"))
      defer {
        close(mine)
        close(theirs)
      }
      let end = lseek(theirs, 0, SEEK_END)
      #expect(end == 0)
      // Around the end of ext4's files (16 TiB), at 8 TiB, and where only the type of an offset ends.
      for offset in [8 << 40, (16 << 40) - 8192, (16 << 40) - 4100, (16 << 40) - 4096, 1 << 45, Int.max - 2, Int.max] {
        for count in [1, 100, 6000] {
          let bytes = [UInt8](repeating: 7, count: count)
          let (a, b) = (pwrite(mine, bytes, count, offset), errnoOf(pwrite(theirs, bytes, count, offset)))
          #expect(errnoOf(a) == b, "\(count) bytes at \(offset)")
        }
        #expect(errnoOf(ftruncate(mine, offset)) == errnoOf(ftruncate(theirs, offset)), "size \(offset)")
      }
      var (one, two) = (stat(), stat())
      #expect(fstat(mine, &one) == 0 && fstat(theirs, &two) == 0)
      #expect(one.st_size == two.st_size && one.st_size > 8 << 40)
      #expect(stage.pair.one.engine.report().session != nil)
      let events = stage.pair.one.events.withLock { $0 }
      #expect(!events.contains { if case .diskError = $0 { true } else { false } }, "\(events)")
      // Both nodes, not compared byte by byte beyond what is there: the comparison goes from data to data.
    }
  }

  /// No name is left, and it goes on: over the loss of the session, a resync and the return to both; the number of a file that is gone
  /// may be another's before the replica knows.
  @Test func filesWithoutANameSurviveAResync() throws {
    let stage = try Stage()
    defer { stage.end() }
    let pair = stage.pair
    _ = try pair.settled()
    let mount = pair.one.mountPoint
    let open = try (0..<20).map { number in
      let path = "\(mount)/gone\(number)"
      let descriptor = try file(path)
      #expect(pwrite(descriptor, "before", 6, 0) == 6)
      if number % 2 == 0 { #expect(unlink(path) == 0) }
      return descriptor
    }
    defer { for descriptor in open { close(descriptor) } }
    pair.two.tell(.endSession)
    #expect(try pair.one.lost() == .frozen)
    pair.one.tell(.setPolicy(.alone))
    for (number, descriptor) in open.enumerated() {
      #expect(pwrite(descriptor, "alone!", 6, 6) == 6)
      if number % 4 == 1 { #expect(unlink("\(mount)/gone\(number)") == 0) }
    }
    try pair.resync(source: pair.one, target: pair.two, try pair.reconnect())
    for (number, descriptor) in open.enumerated() {
      #expect(pwrite(descriptor, "after", 5, 12) == 5)
      #expect(fsync(descriptor) == 0 && fchmod(descriptor, 0o600) == 0 && ftruncate(descriptor, 17) == 0)
      #expect(posix_allocate(descriptor, 3, 0, 1) == 0)
      var bytes = [UInt8](repeating: 0, count: 20)
      #expect(pread(descriptor, &bytes, 20, 0) == 17)
      #expect(bytes[1..<17].elementsEqual("eforealone!after".utf8))
      if number % 4 == 3 { #expect(unlink("\(mount)/gone\(number)") == 0) }
      #expect(pwrite(descriptor, "end", 3, 17) == 3)
      // Its number is free from here on; the next file takes it.
      close(descriptor)
      let next = try file("\(mount)/next\(number)")
      #expect(pwrite(next, "next \(number)", 6, 0) == 6)
      close(next)
    }
    let differences = try stage.nodesDiffer(layout: false)
    #expect(differences == [])
    #expect(pair.one.engine.report().session != nil)
  }

  /// A sector is 512 bytes: QEMU asks for it by reading less with O_DIRECT, and would read, change and write 4096 bytes for each
  /// smaller write of its guest if that went well.
  @Test func aDirectReadOfAPartOfASectorIsRefused() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 100000 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    let path = "\(pair.one.mountPoint)/disk.img"
    let (direct, buffered) = (open(path, O_RDWR | VMHA_O_DIRECT), open(path, O_RDONLY))
    defer {
      close(direct)
      close(buffered)
    }
    let part = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 4096)
    defer { part.deallocate() }
    for (size, offset) in [(1, 0), (511, 0), (100, 1024)] {
      #expect(pread(direct, part, size, off_t(offset)) == -1 && errno == EINVAL, "\(size) bytes at \(offset)")
      #expect(pread(buffered, part, size, off_t(offset)) == size)
    }
    // The last piece of a read that the kernel cut ends anywhere; so does the file.
    for (size, offset, count) in [(512, 512, 512), (4096, 98304, 1696), (16, 4080, 16)] {
      #expect(pread(direct, part, size, off_t(offset)) == count, "\(size) bytes at \(offset)")
    }
    let reads = Atomic<Int>(0)
    let backing = pair.one.backing
    HostCalls.setFaultHook { label, file in
      if label == "backing.read", file.hasPrefix(backing) { reads.add(1, ordering: .relaxed) }
      return nil
    }
    defer { HostCalls.setFaultHook(nil) }
    func readsOfQemu(_ command: String) throws -> Int {
      reads.store(0, ordering: .relaxed)
      try shell("qemu-io -f raw -t none -c \"$2\" $1", [path, command])
      return reads.load(ordering: .relaxed)
    }
    #expect(try readsOfQemu("write -P 7 5632 512") == readsOfQemu("length"), "QEMU reads before it writes a sector")
    #expect(try readsOfQemu("read 5632 512") > readsOfQemu("length"))
    #expect(try pair.differences() == "")
  }

  /// The kernel keeps all three kinds of locks by itself, between the processes and descriptors of this node.
  @Test func locksHoldOnThisNode() throws {
    try withStage { _, mount in
      let (one, two) = (try file("\(mount)/locked"), try file("\(mount)/locked"))
      defer {
        close(one)
        close(two)
      }
      #expect(flock(one, LOCK_EX) == 0)
      #expect(errnoOf(flock(two, LOCK_EX | LOCK_NB)) == EWOULDBLOCK)
      #expect(flock(one, LOCK_UN) == 0 && flock(two, LOCK_SH | LOCK_NB) == 0)
      // F_OFD_SETLK: belongs to the open file, as QEMU uses it.
      #expect(posix_lock(one, 37, Int16(F_WRLCK), 100, 1) == 0)
      #expect(errnoOf(posix_lock(two, 37, Int16(F_WRLCK), 0, 0)) == EAGAIN)
      #expect(posix_lock(two, 37, Int16(F_WRLCK), 101, 10) == 0)
      // A process's own: another process does not get it.
      #expect(posix_lock(one, F_SETLK, Int16(F_WRLCK), 500, 1) == 0)
      let attempt = "python3 -c 'import fcntl,sys; fcntl.lockf(open(sys.argv[1], \"r+\"), 6, 1, 500)' $1 2>&1 || true"
      #expect(try shell(attempt, ["\(mount)/locked"]).contains("BlockingIOError"))
    }
  }

  @Test func socketsAndDeepTreesAreReplicated() throws {
    let stage = try Stage()
    defer { stage.end() }
    let pair = stage.pair
    // Before there is a session, so that the resync has to make all of it.
    try shell(
      """
      cd $1; python3 - <<'EOF'
      import os, socket
      for i in range(270):
          os.mkdir('d' + str(i)); os.chdir('d' + str(i))
      open('bottom', 'w').write('x')
      EOF
      ln -s nowhere link; ln link twin; setfattr -h -n trusted.note -v here link
      """, [pair.one.backing])
    _ = try pair.settled()
    try shell(
      """
      cd $1; python3 -c "import socket; s = socket.socket(socket.AF_UNIX); s.bind('socket'); s.listen()"
      test -S socket; readlink twin; setfattr -h -n trusted.note -v there twin
      name=$(head -c 255 /dev/zero | tr '\\0' n); echo x > $name; ! mkdir ${name}n 2> /dev/null
      mkdir acl; setfacl -d -m u:5001:rwx acl; (umask 077; echo x > acl/file; mkdir acl/sub); getfacl -c acl/file
      """, [pair.one.mountPoint])
    // Once more from the beginning, over what is there.
    let differences = try stage.nodesDiffer(layout: false)
    #expect(differences == [])
  }

  /// stress-ng's stressors of file systems, each verifying what it does. VMHA_POSIX_SUITE is another command to run in the mount.
  @Test func anEstablishedSuitePasses() throws {
    let stressors = """
      access chmod chown copy-file dentry dir dirdeep dirmany fcntl filename flock fsize getdent hdd iomix locka lockf lockofd \
      mknod open rename seek sendfile splice touch utime
      """
    let usual = """
      for name in \(stressors); do
        stress-ng --temp-path . --verify --timeout 5 --$name 1 --$name-ops 10 || { echo "$name failed"; exit 1; }
      done
      """
    let command = getenv("VMHA_POSIX_SUITE").map { String(cString: $0) } ?? usual
    let stage = try Stage()
    defer { stage.end() }
    _ = try stage.pair.settled()
    let text = try shell("cd $1; { \(command); } 2>&1", [stage.pair.one.mountPoint], timeout: .seconds(550))
    if getenv("VMHA_POSIX_SUITE") != nil { print(text) }
    let differences = try stage.nodesDiffer(layout: false)
    #expect(differences == [])
    #expect(stage.pair.one.engine.report().session != nil)
  }

  /// A name that a change of the tree has taken away, seen at once by whoever holds the folder.
  @Test func listingGoesOnWhileNamesComeAndGo() throws {
    try withStage { _, mount in
      let folder = "\(mount)/many"
      #expect(mkdir(folder, 0o755) == 0)
      for number in 0..<300 { close(try file("\(folder)/n\(number)")) }
      guard let stream = opendir(folder) else { throw TestFailure("opendir: \(errno)") }
      defer { closedir(stream) }
      var seen: Set<String> = []
      while let entry = readdir(stream) {
        let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        #expect(seen.insert(name).inserted, "\(name) was listed twice")
        if seen.count % 10 == 0 {
          close(try file("\(folder)/new\(seen.count)"))
          if name.hasPrefix("n") { #expect(unlink("\(folder)/\(name)") == 0) }
        }
      }
      // What was there all the time is listed, whatever else came and went.
      for number in 0..<300 { #expect(seen.contains("n\(number)")) }
      rewinddir(stream)
      var left = 0
      while readdir(stream) != nil { left += 1 }
      #expect(left == (try Int(shell("ls -a $1 | wc -l", [folder]).split(separator: "\n")[0])))
    }
  }
}
