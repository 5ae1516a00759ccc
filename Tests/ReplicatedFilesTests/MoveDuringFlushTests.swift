import Glibc
import HostSystem
import Model
import Replication
import Synchronization
import Testing

@testable import ReplicatedFiles

/// R3: a flush that may clear zones covers what is moved while it walks. What goes to a place that the walk has passed it never meets.
@Suite(.serialized) struct MoveDuringFlushTests {
  @Test(arguments: [false, true]) func whatIsMovedMeanwhileIsFlushedToo(_ moves: Bool) throws {
    let folder = "/tmp/vmha-move-\(getpid())-\(randomUInt64())"
    try shell("mkdir -p $1/a $1/b && touch $1/a/x $1/b/y", [folder])
    defer { _ = try? shell("rm -rf $1", [folder]) }
    let root = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    defer { close(root) }
    let mirror = Mirror(observer: Mirror.Observer(drained: {}, diskError: { _, _, _ in }, broken: { _, _ in }))
    try mirror.setPolicy(.alone)
    let met = Mutex<[String]>([])
    HostCalls.setFaultHook { label, path in
      guard path.hasPrefix(folder) else { return nil }
      let isFirst = met.withLock { met -> Bool in
        met.append(label)
        return met.count == 1
      }
      guard isFirst, moves else { return nil }
      // The walk is in the root: both folders are ahead of it, one of them before the other.
      mirror.submit(
        GuestRequest(file: FileID(rawValue: 2)) { () throws(Errno) in
          guard rename("\(folder)/b/y", "\(folder)/a/y") == 0, let name = FileName("y") else { throw Errno.last }
          let (from, to) = (FileID(rawValue: 3), FileID(rawValue: 4))
          return AppliedChange(
            operation: .rename(parent: from, name: name, newParent: to, newName: name, []), reply: .done)
        } whenDone: { code in
          #expect(code == 0)
        })
      return nil
    }
    defer { HostCalls.setFaultHook(nil) }
    try mirror.syncTree(root)
    let labels = met.withLock { $0 }
    #expect(labels.filter { $0 == "backing.sync" }.count >= 4)
    #expect(labels.contains("backing.syncfs") == moves)
  }
}
