import Glibc
import HostSystem
import Model
import Testing

/// A guest's fdatasync is an fdatasync on the replica too, and leaves nothing behind that a flush of everything would miss.
@Suite(.serialized, .timeLimit(.minutes(2)))
struct DataFlushTests {
  @Test func theReplicaFlushesAsTheGuestAsked() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 3000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    let session = try pair.settled()
    let file = open("\(pair.one.mountPoint)/disk.img", O_WRONLY | O_CLOEXEC)
    try #require(file >= 0)
    defer { close(file) }
    let replica = "\(pair.two.backing)/disk.img"
    let calls = Monitor<[String]>([])
    HostCalls.setFaultHook { label, path in
      if path == replica { calls.withLock { $0.append(label) } }
      return nil
    }
    defer { HostCalls.setFaultHook(nil) }

    try #require(pwrite(file, "one", 3, 0) == 3 && fdatasync(file) == 0)
    let first = calls.withLock { $0 }
    #expect(first.contains("backing.write"))
    #expect(first.contains("backing.datasync"))
    // Times and rights: the clearing of marks may have been there before, else it is this one's work.
    try pair.one.barrier(session)
    #expect(calls.withLock { $0 }.contains("backing.sync"))

    calls.withLock { $0 = [] }
    try #require(pwrite(file, "two", 3, 3) == 3 && fsync(file) == 0)
    let second = calls.withLock { $0 }
    #expect(second.contains("backing.sync"))
    #expect(!second.contains("backing.datasync"))
  }
}
