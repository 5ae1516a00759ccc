import CFuse3
import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import Synchronization

/// A `vmha-replicad` with its keeper, and whatever engine runs under it now.
final class KeptEngine {
  let keeper: pid_t
  private let folder: String
  private let configuration: EngineConfiguration
  private(set) var channel: LineChannel
  private var isOver = false

  /// Configured and idle.
  init(folder: String, configuration: EngineConfiguration, restarts: Int = 64) throws {
    self.folder = folder
    self.configuration = configuration
    keeper = try startBuilt("vmha-replicad", ["--module", "vm", "--root", folder, "--restarts", "\(restarts)"])
    channel = try Self.connect(folder)
    _ = try ready()
  }

  private static func connect(_ folder: String) throws -> LineChannel {
    for _ in 0..<200 {
      if let channel = try? LineChannel.connect(path: "\(folder)/run/vmha/engines/vm.sock") { return channel }
      usleep(20_000)
    }
    throw TestFailure("the engine does not listen")
  }

  func tell(_ command: EngineCommand) throws { try channel.send(command) }

  @discardableResult
  func expect<Value>(_ what: String, _ match: (EngineEvent) -> Value?) throws -> Value {
    while let event = try channel.receive(EngineEvent.self, timeout: .seconds(20)) {
      if let value = match(event) { return value }
    }
    throw TestFailure("the control connection ended before \(what)")
  }

  private func ready() throws -> EngineReport {
    try tell(.configure(configuration))
    return try expect("ready") { if case .ready(let report) = $0 { report } else { nil } }
  }

  func mountAlone() throws {
    try tell(.mount)
    try expect("mounted") { if case .mounted = $0 { true } else { nil } }
    try tell(.setPolicy(.alone))
  }

  /// From alone to in sync with `peer`, whose replica follows.
  func settle(with peer: Side) throws -> SessionID {
    try tell(.connect)
    let session = try peer.connected()
    try expect("connected") { if case .connected(session, _) = $0 { true } else { nil } }
    try peer.accept(session)
    try tell(.startResync(session, comparesEverything: false))
    try expect("resyncCopied") { if case .resyncCopied = $0 { true } else { nil } }
    try tell(.flushBarrier(session))
    try expect("barrierDone") { if case .barrierDone = $0 { true } else { nil } }
    try tell(.setPolicy(.both(session)))
    return session
  }

  func report() throws -> EngineReport {
    try tell(.report)
    return try expect("ready") { if case .ready(let report) = $0 { report } else { nil } }
  }

  /// The engine proper.
  func worker() throws -> pid_t { try engineUnder(keeper) }

  /// SIGKILL of the engine, or SIGUSR2 to its keeper; answers what the next one says of itself.
  func replace(inOrder: Bool = false) throws -> EngineReport {
    let old = try worker()
    if inOrder { kill(keeper, SIGUSR2) } else { kill(old, SIGKILL) }
    do { while let line = try channel.readLine(timeout: .seconds(10)) { _ = line } } catch let error as HostError {
      // It died with a command unread.
      guard error.errno == ECONNRESET else { throw error }
    }
    channel = try Self.connect(folder)
    let report = try ready()
    guard try worker() != old else { throw TestFailure("the engine was not replaced") }
    return report
  }

  func exit() throws {
    try tell(.exit)
    guard wait() == 0 else { throw TestFailure("the engine did not leave in order") }
  }

  /// How the keeper ended: exit code, or minus the signal.
  func wait() -> Int32 {
    var status: Int32 = 0
    waitpid(keeper, &status, 0)
    isOver = true
    return status & 0x7F == 0 ? status >> 8 & 0xFF : -(status & 0x7F)
  }

  func end() {
    guard !isOver else { return }
    kill(keeper, SIGKILL)
    _ = wait()
  }
}

/// Programs that use a mount and know what every call has to answer: the second execution of a request, or a lost one, shows.
final class MountLoad: Sendable {
  private let folder: String
  private let isOver = Flag()
  private let failures = Mutex<[String]>([])
  private let longestStall = Atomic<Int64>(0)
  let rounds = Atomic<Int>(0)
  private let threads = Mutex<[HostThread]>([])

  init(_ folder: String) { self.folder = folder }

  var failure: String? { failures.withLock { $0.first } }
  /// The longest a single call took.
  var stall: Duration { .nanoseconds(longestStall.load(ordering: .relaxed)) }

  func start() throws {
    for number in 0..<2 {
      try run("names-\(number)") { try self.names("\(self.folder)/names-\(number)", round: $0) }
    }
    try run("data") { try self.data("\(self.folder)/data", round: $0) }
    try run("ranges") { try self.ranges("\(self.folder)/ranges", round: $0) }
  }

  private func run(_ name: String, _ body: @escaping @Sendable (Int) throws -> Void) throws {
    let thread = try HostThread.start(name: name, detached: false) { [self] in
      var round = 0
      while !isOver.isSet {
        do { try body(round) } catch {
          failures.withLock { $0.append("\(name), round \(round): \(error)") }
          return
        }
        round += 1
        rounds.add(1, ordering: .relaxed)
      }
    }
    threads.withLock { $0.append(thread) }
  }

  func stop() {
    isOver.set()
    for thread in threads.withLock({ $0 }) { thread.join() }
  }

  /// -1 is the failure of `what`, unless this errno is wanted.
  @discardableResult
  private func check(_ what: String, wants: Int32 = 0, _ call: () -> Int) throws -> Int {
    let begin = monotonicNow()
    let result = call()
    let code = result == -1 ? errno : 0
    let took = (monotonicNow() - begin).nanoseconds
    var longest = longestStall.load(ordering: .relaxed)
    while took > longest {
      let (isSet, now) = longestStall.compareExchange(expected: longest, desired: took, ordering: .relaxed)
      if isSet { break }
      longest = now
    }
    guard code == wants else { throw TestFailure("\(what): errno \(code), wanted \(wants)") }
    return result
  }

  /// Every call's answer is known: nobody else is in this folder.
  private func names(_ place: String, round: Int) throws {
    try check("mkdir \(round)") { Int(mkdir(place, 0o755)) }
    let (a, b, c) = ("\(place)/a", "\(place)/b", "\(place)/c")
    let file = Int32(try check("create") { Int(open(a, O_RDWR | O_CREAT | O_EXCL, 0o640)) })
    defer { close(file) }
    try check("write") { write(file, "first", 5) }
    try check("link") { Int(link(a, b)) }
    try check("link again", wants: EEXIST) { Int(link(a, b)) }
    try check("rename") { Int(rename(b, c)) }
    try check("unlink") { Int(unlink(a)) }
    try check("unlink again", wants: ENOENT) { Int(unlink(a)) }
    try check("socket") { Int(mknod(a, S_IFSOCK | 0o600, 0)) }
    try check("socket again", wants: EEXIST) { Int(mknod(a, S_IFSOCK | 0o600, 0)) }
    try check("unlink the socket") { Int(unlink(a)) }
    try check("symlink") { Int(symlink("c", b)) }
    try check("rename onto a link") { Int(rename(c, b)) }
    try check("setxattr") { Int(setAttribute(file, "user.one", "1", create: true)) }
    try check("setxattr again", wants: EEXIST) { Int(setAttribute(file, "user.one", "2", create: true)) }
    try check("removexattr") { Int(removeAttribute(file, "user.one")) }
    try check("removexattr again", wants: ENODATA) { Int(removeAttribute(file, "user.one")) }
    var status = stat()
    try check("stat") { Int(stat(b, &status)) }
    guard status.st_nlink == 1, status.st_size == 5 else {
      throw TestFailure("\(status.st_nlink) names and \(status.st_size) bytes")
    }
    // Its last name goes while it is open.
    try check("unlink the last") { Int(unlink(b)) }
    try check("write without a name") { pwrite(file, "second", 6, 5) }
    var bytes = [UInt8](repeating: 0, count: 16)
    let count = try check("read without a name") { pread(file, &bytes, 16, 0) }
    guard Array(bytes[..<count]) == Array("firstsecond".utf8) else { throw TestFailure("read \(bytes[..<count])") }
    var listed = 0
    if let stream = opendir(place) {
      while readdir(stream) != nil { listed += 1 }
      closedir(stream)
    }
    guard listed == 2 else { throw TestFailure("\(listed) names in an empty folder") }
    try check("rmdir") { Int(rmdir(place)) }
  }

  /// Blocks of a file, each with the round it was written in last.
  private func data(_ path: String, round: Int) throws {
    let blocks = 64
    let file = Int32(try check("open") { Int(open(path, O_RDWR | O_CREAT, 0o640)) })
    defer { close(file) }
    var block = [UInt64](repeating: 0, count: 512)
    func fill(_ round: Int, _ index: Int) {
      for word in block.indices { block[word] = UInt64(round) << 32 | UInt64(index) << 16 | UInt64(word) }
    }
    for index in 0..<blocks {
      if round > 0 {
        var read = [UInt64](repeating: 0, count: 512)
        try check("read") { pread(file, &read, 4096, off_t(index * 4096)) }
        fill(round - 1, index)
        guard read == block else { throw TestFailure("block \(index) holds \(read[0]), not round \(round - 1)") }
      }
      fill(round, index)
      let count = try check("write") { pwrite(file, block, 4096, off_t(index * 4096)) }
      guard count == 4096 else { throw TestFailure("wrote \(count) bytes") }
    }
    try check("fsync") { Int(fsync(file)) }
  }

  /// Lengths and holes, one after the other: each has to hold when the next comes.
  private func ranges(_ path: String, round: Int) throws {
    let file = Int32(try check("open") { Int(open(path, O_RDWR | O_CREAT, 0o640)) })
    defer { close(file) }
    try check("truncate") { Int(ftruncate(file, 0)) }
    for index in 0..<4 {
      let block = [UInt8](repeating: UInt8(index + 1), count: 4096)
      try check("write") { pwrite(file, block, 4096, off_t(index * 4096)) }
    }
    try check("punch") { allocateRange(file, [.punchHole, .keepSize], 4096, 4096) }
    try check("zero") { allocateRange(file, .zeroRange, 4 * 4096, 4096) }
    try check("write into the hole") { pwrite(file, [UInt8(7)], 1, 4096) }
    try check("shorten") { Int(ftruncate(file, 3 * 4096)) }
    try check("lengthen") { Int(ftruncate(file, 4 * 4096)) }
    var bytes = [UInt8](repeating: 9, count: 6 * 4096)
    let count = try check("read") { pread(file, &bytes, bytes.count, 0) }
    let firsts = stride(from: 0, to: count, by: 4096).map { bytes[$0] }
    guard firsts == [1, 7, 3, 0] else { throw TestFailure("blocks \(firsts) of \(count) bytes") }
  }
}

private func setAttribute(_ file: Int32, _ name: String, _ value: String, create: Bool) -> Int32 {
  fsetxattr(file, name, value, value.utf8.count, create ? Int32(XATTR_CREATE) : 0)
}

private func removeAttribute(_ file: Int32, _ name: String) -> Int32 { fremovexattr(file, name) }

private func allocateRange(_ file: Int32, _ mode: AllocationMode, _ offset: off_t, _ length: off_t) -> Int {
  Int(vmha_allocate(file, Int32(mode.rawValue), offset, length))
}
