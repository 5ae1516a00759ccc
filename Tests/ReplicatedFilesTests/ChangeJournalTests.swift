import CFuse3
import CKeeper
import FoundationEssentials
import Glibc
import HostSystem
import Replication
import Synchronization
import Testing

@testable import ReplicatedFiles

/// What the next engine makes of a change in whose middle one died, for each kind and each moment.
@Suite struct ChangeJournalTests {
  private struct Nowhere: GuestRequestSink {
    func submit(_ request: GuestRequest) {}
    func forgotten(_ file: FileID, descriptor: Int32) {}
    func noteDiskError(_ operation: String, _ path: String, _ error: Errno) {}
    func readFailed(_ place: String, _ error: Errno) {}
    func readBegan(_ unique: UInt64) -> Int { 0 }
    func readEnded(_ slot: Int) {}
  }

  /// A backing folder, and the memory that engines hand on.
  private final class Estate {
    let folder: String
    private let memory: Int32
    private let sockets: [Int32]

    init() throws {
      folder = "/tmp/vmha-journal-\(getpid())-\(randomUInt64() % 1_000_000)"
      mkdir(folder, 0o755)
      memory = vmha_kept_create()
      var pair: [Int32] = [0, 0]
      guard memory >= 0, socketpair(AF_UNIX, Int32(SOCK_SEQPACKET.rawValue), 0, &pair) == 0 else {
        throw TestFailure("no memory or sockets: errno \(errno)")
      }
      sockets = pair
    }

    /// An engine's view of it; `isFirst`: what mounts, and what the kernel is told of.
    func server(knowing names: [String] = []) throws -> FileServer {
      let kept = try Kept(memory: memory, socket: sockets[0])
      let server = try FileServer(
        root: try Backing.openFolder(folder), sink: Nowhere(), gate: ReadGate(until: ReadGate.always), kept: kept)
      vmha_store32(&kept.memory.pointee.adoptable, 1)
      for name in names { _ = try server.nodes.remember(try Backing.lookUp(try root(server), Array(name.utf8))) }
      return server
    }

    func root(_ server: FileServer) throws -> Int32 { try server.nodes.node(NodeTable.rootNumber).descriptor }

    /// What the next engine knows of request 7, once it has looked.
    func outcome() throws -> ChangeJournal.Outcome? {
      let next = try server()
      defer { next.closeAll() }
      try next.adopt()
      #expect(next.changes.begun().isEmpty)
      return next.changes.outcome(7)
    }

    func number(_ name: String) throws -> UInt64 {
      var status = stat()
      guard lstat("\(folder)/\(name)", &status) == 0 else { throw TestFailure("no \(name)") }
      return UInt64(status.st_ino)
    }

    func end() {
      for descriptor in sockets + [memory] { close(descriptor) }
      _ = try? ChildProcess.run(["rm", "-rf", "--one-file-system", folder], timeout: .seconds(20))
    }
  }

  /// Runs `change` as begun by an engine that dies before (`isDone` false) or after it was made.
  private func decide(
    _ estate: Estate, _ change: KeptChange, knowing names: [String], isDone: Bool, _ make: () throws -> Void
  ) throws -> ChangeJournal.Outcome? {
    let server = try estate.server(knowing: names)
    server.changes.begin(7, change)
    if isDone { try make() }
    server.closeAll()
    return try estate.outcome()
  }

  private let root = NodeTable.rootNumber

  @Test(arguments: [false, true]) func make(isDone: Bool) throws {
    let kinds: [(mode_t, String)] = [
      (S_IFREG, "touch"), (S_IFDIR, "mkdir"), (S_IFIFO, "mkfifo"), (S_IFLNK, "ln -s x"),
      (S_IFSOCK, "socket"),
    ]
    for (type, command) in kinds {
      let estate = try Estate()
      defer { estate.end() }
      let change = KeptChange(kind: .make, folder: root, type: type, name: Array("new".utf8))
      let outcome = try decide(estate, change, knowing: [], isDone: isDone) {
        guard type != S_IFSOCK else { return #expect(mknod("\(estate.folder)/new", S_IFSOCK | 0o600, 0) == 0) }
        try shell("cd $1; \(command) new", [estate.folder])
      }
      #expect(outcome == nil, "the repetition makes it")
      #expect(try shell("ls -A $1", [estate.folder]) == "", "and finds its name free")
    }
  }

  /// Never: what is not empty was not made by the request that died.
  @Test func aFileWithContentsIsNeverTakenBack() throws {
    let estate = try Estate()
    defer { estate.end() }
    let change = KeptChange(kind: .make, folder: root, type: S_IFREG, name: Array("new".utf8))
    #expect(throws: EngineError.self) {
      _ = try decide(estate, change, knowing: [], isDone: true) { try shell("echo x > $1/new", [estate.folder]) }
    }
    #expect(try shell("cat $1/new", [estate.folder]) == "x\n")
  }

  @Test(arguments: [false, true]) func linkAndRemove(isDone: Bool) throws {
    let estate = try Estate()
    defer { estate.end() }
    try shell("touch $1/file", [estate.folder])
    let file = try estate.number("file")
    let link = KeptChange(kind: .link, folder: root, object: file, name: Array("second".utf8))
    var outcome = try decide(estate, link, knowing: ["file"], isDone: isDone) {
      try shell("ln $1/file $1/second", [estate.folder])
    }
    #expect((outcome?.object == file) == isDone && outcome?.isUncounted ?? true)
    try shell("touch $1/second", [estate.folder])
    let removed = try estate.number("second")
    let remove = KeptChange(kind: .remove, folder: root, object: removed, name: Array("second".utf8))
    outcome = try decide(estate, remove, knowing: [], isDone: isDone) { try shell("rm $1/second", [estate.folder]) }
    #expect((outcome != nil) == isDone)
  }

  @Test(arguments: [false, true]) func renames(isDone: Bool) throws {
    for (prepare, command) in [
      ("touch a", "mv a b"), ("touch a b", "mv -f a b"), ("touch a; mkdir b; rmdir b", "mv a b"),
      // Exchanged.
      ("touch a b", "mv a c; mv b a; mv c b"),
    ] {
      let estate = try Estate()
      defer { estate.end() }
      try shell("cd $1; \(prepare)", [estate.folder])
      let object = try estate.number("a")
      let change = KeptChange(
        kind: .rename, folder: root, newFolder: root, object: object, name: Array("a".utf8), newName: Array("b".utf8))
      let outcome = try decide(estate, change, knowing: ["a"], isDone: isDone) {
        try shell("cd $1; \(command)", [estate.folder])
      }
      #expect((outcome != nil) == isDone, "\(command)")
    }
  }

  @Test(arguments: [false, true]) func attributesAndSizes(isDone: Bool) throws {
    let estate = try Estate()
    defer { estate.end() }
    try shell("head -c 8192 /dev/zero > $1/file", [estate.folder])
    let file = try estate.number("file")
    let path = "\(estate.folder)/file"
    let name = Array("user.x".utf8)
    var outcome = try decide(
      estate, KeptChange(kind: .addAttribute, object: file, name: name), knowing: ["file"], isDone: isDone
    ) { #expect(setxattr(path, "user.x", "1", 1, 0) == 0) }
    #expect((outcome != nil) == isDone)
    setxattr(path, "user.x", "1", 1, 0)
    outcome = try decide(
      estate, KeptChange(kind: .removeAttribute, object: file, name: name), knowing: [], isDone: isDone
    ) { #expect(removexattr(path, "user.x") == 0) }
    #expect((outcome != nil) == isDone)
    outcome = try decide(estate, KeptChange(kind: .resize, object: file), knowing: [], isDone: isDone) {}
    #expect(outcome == nil, "done again: the same size")
  }

  /// Done and not answered: the repetition is only answered, in whichever engine it comes.
  @Test func whatIsDoneIsHandedOn() throws {
    let estate = try Estate()
    defer { estate.end() }
    try shell("touch $1/file", [estate.folder])
    let file = try estate.number("file")
    let first = try estate.server(knowing: ["file"])
    first.changes.begin(7, KeptChange(kind: .make, folder: root, name: Array("file".utf8)))
    first.changes.done(7, object: file)
    first.changes.begin(8, KeptChange(kind: .make, folder: root, name: Array("gone".utf8)))
    first.changes.forget(8)
    first.closeAll()
    for _ in 0..<3 {
      let next = try estate.server()
      try next.adopt()
      #expect(next.changes.outcome(7)?.object == file && next.changes.outcome(8) == nil)
      #expect(try next.nodes.node(file).isRegular)
      next.closeAll()
    }
    #expect(try shell("ls $1", [estate.folder]) == "file\n", "it has been answered for, not made")
    let last = try estate.server()
    try last.adopt()
    last.changes.forget(7)
    last.closeAll()
    #expect(try estate.outcome() == nil)
  }

  /// The kernel's lookups are counted on: the node goes with the last of them, not before.
  @Test func lookupCountsAreHandedOn() throws {
    let estate = try Estate()
    defer { estate.end() }
    try shell("touch $1/file", [estate.folder])
    let file = try estate.number("file")
    let first = try estate.server(knowing: ["file", "file", "file"])
    #expect(first.nodes.forget(file, count: 1) == nil)
    first.closeAll()
    let next = try estate.server()
    try next.adopt()
    #expect(next.nodes.count == 2)
    #expect(next.nodes.forget(file, count: 1) == nil)
    let gone = next.nodes.forget(file, count: 1)
    #expect(gone != nil && next.nodes.count == 1)
    if let gone { close(gone.descriptor) }
    next.closeAll()
    let last = try estate.server()
    try last.adopt()
    #expect(last.nodes.count == 1)
    last.closeAll()
  }
}
