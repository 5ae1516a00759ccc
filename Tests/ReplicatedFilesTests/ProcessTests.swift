import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import Testing

/// The executable: its socket, its signals, its death.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct ProcessTests {
  /// A `vmha-replicad` process with a control connection to it.
  private final class Process {
    let root: String
    let id: pid_t
    var channel: LineChannel

    init(root: String) throws {
      self.root = root
      id = try startBuilt("vmha-replicad", ["--module", "vm", "--root", root])
      channel = try Self.connect(root)
    }

    static func connect(_ root: String) throws -> LineChannel {
      for _ in 0..<100 {
        if let channel = try? LineChannel.connect(path: "\(root)/run/vmha/engines/vm.sock") { return channel }
        usleep(50_000)
      }
      throw TestFailure("the engine does not listen")
    }

    func tell(_ command: EngineCommand) throws { try channel.send(command) }

    @discardableResult
    func expect<Value>(_ what: String, _ match: (EngineEvent) -> Value?) throws -> Value {
      while let event = try channel.receive(EngineEvent.self, timeout: .seconds(10)) {
        if let value = match(event) { return value }
      }
      throw TestFailure("the control connection ended before \(what)")
    }

    /// SIGKILL of the keeper, which takes its engine along; answers when both are gone.
    func kill() throws -> Int32 {
      let engines = try enginesUnder(id)
      Glibc.kill(id, SIGKILL)
      let code = wait()
      for engine in engines {
        for _ in 0..<500 where Glibc.kill(engine, 0) == 0 { usleep(10_000) }
      }
      return code
    }

    /// How it ended: exit code, or minus the signal.
    func wait() -> Int32 {
      var status: Int32 = 0
      waitpid(id, &status, 0)
      return status & 0x7F == 0 ? status >> 8 & 0xFF : -(status & 0x7F)
    }
  }

  private func ready(_ process: Process, _ configuration: EngineConfiguration) throws -> EngineReport {
    try process.tell(.configure(configuration))
    return try process.expect("ready") { if case .ready(let report) = $0 { report } else { nil } }
  }

  /// A new vmhad takes the running engine over; the guest's files are there all the time.
  @Test func controlConnectionIsReplaced() throws {
    let pair = try Pair()
    defer { pair.end() }
    let process = try Process(root: pair.folder)
    var isOver = false
    defer { if !isOver { kill(process.id, SIGKILL); _ = process.wait() } }
    try process.tell(.mount)
    let refusal = try process.expect("failed") { if case .failed(_, let why) = $0 { why } else { nil } }
    #expect(refusal.contains("configure"))
    let configuration = pair.configuration(pair.one)
    #expect(try ready(process, configuration).role == .idle)
    try process.tell(.mount)
    try process.expect("mounted") { if case .mounted = $0 { true } else { nil } }
    try process.tell(.setPolicy(.alone))
    try process.tell(.report)
    _ = try process.expect("ready") { if case .ready(let report) = $0 { report } else { nil } }
    try shell("echo one > $1/file", [configuration.mountPoint])

    let old = process.channel
    process.channel = try Process.connect(pair.folder)
    let report = try ready(process, configuration)
    #expect(report.isMounted && report.policy == .alone && report.role == .primary)
    #expect(report.processID == process.id && report.fuseConnection != nil)
    #expect((try? old.readLine(timeout: .seconds(5))) == .some(nil), "the old connection is closed")
    try shell("echo two >> $1/file", [configuration.mountPoint])

    // In use: a plain SIGTERM must not take a guest's disk away.
    let file = open("\(configuration.mountPoint)/file", O_RDONLY)
    kill(process.id, SIGTERM)
    usleep(300_000)
    #expect(kill(process.id, 0) == 0)
    close(file)
    try process.tell(.exit)
    #expect(process.wait() == 0)
    isOver = true
    #expect(try shell("cat $1/file", [configuration.backingDirectory]) == "one\ntwo\n")
  }

  /// A second engine waits until the first is gone: its last write must not land on top of a later one's.
  @Test func oneEngineAtATime() throws {
    let pair = try Pair()
    defer { pair.end() }
    let configuration = pair.configuration(pair.one)
    let first = try Process(root: pair.folder)
    let second = try Process(root: pair.folder)
    var isFirstOver = false
    defer {
      for process in isFirstOver ? [second] : [first, second] {
        kill(process.id, SIGKILL)
        _ = process.wait()
      }
    }
    #expect(try ready(second, configuration).processID == first.id, "the second one does not listen yet")
    #expect(try first.kill() == -SIGKILL)
    isFirstOver = true
    // The keeper is dead; the engine that dies with it may still take a connection along.
    var report: EngineReport?
    for _ in 0..<5 where report == nil {
      second.channel = try Process.connect(pair.folder)
      report = try? ready(second, configuration)
    }
    #expect(report?.processID == second.id)
  }

  /// SIGKILL of the replica freezes the primary; SIGKILL of a primary leaves a dead mount, which the next engine removes.
  @Test func killedEngines() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("head -c 1000000 /dev/urandom > $1/disk", [pair.one.backing])
    var process = try Process(root: pair.folder)
    var isOver = false
    defer { if !isOver { kill(process.id, SIGKILL); _ = process.wait() } }
    let configuration = pair.configuration(pair.two)
    _ = try ready(process, configuration)
    try process.tell(.connect)
    pair.one.tell(.connect)
    let session = try pair.one.connected()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    try process.expect("connected") { if case .connected = $0 { true } else { nil } }
    try process.tell(.acceptReplication(session))
    try process.tell(.report)
    let role = try process.expect("ready") { if case .ready(let report) = $0 { report.role } else { nil } }
    #expect(role == .replica)
    try pair.one.resync(session)
    try pair.one.barrier(session)
    pair.one.tell(.setPolicy(.both(session)))
    try shell("echo both > $1/both; sync $1/both", [pair.one.mountPoint])
    #expect(try process.kill() == -SIGKILL)
    #expect(try pair.one.lost() == .frozen)
    #expect(try pair.differences() == "")

    // The replica's node takes over with a new engine, which is then killed under its mount.
    for round in 0..<2 {
      process = try Process(root: pair.folder)
      _ = try ready(process, configuration)
      try process.tell(.mount)
      try process.expect("mounted") { if case .mounted = $0 { true } else { nil } }
      try process.tell(.setPolicy(.alone))
      try shell("echo alone$2 >> $1/both", [pair.two.mountPoint, "\(round)"])
      if round == 0 {
        _ = try process.kill()
        #expect(open("\(pair.two.mountPoint)/both", O_RDONLY) == -1, "its users must see the end")
      }
    }
    try process.tell(.exit)
    #expect(process.wait() == 0)
    isOver = true
    #expect(try shell("cat $1/both", [pair.two.backing]) == "both\nalone0\nalone1\n")
    #expect(try shell("ls -A $1 | wc -l", [pair.two.mountPoint]) == "0\n")
  }

  /// An engine that was stopped for longer than `suspendAfter` answers no read that waited for it: the other side may have gone
  /// on. It holds the first one it finds, before any of its threads has looked at the clock (R2; timing relations).
  @Test func aStoppedEngineHoldsReadsFirst() throws {
    let pair = try Pair(silence: .seconds(2))
    defer { pair.end() }
    try shell("printf A > $1/disk", [pair.two.backing])
    let process = try Process(root: pair.folder)
    let worker = try #require(try enginesUnder(process.id).first)
    defer {
      kill(worker, SIGCONT)
      kill(process.id, SIGKILL)
      _ = process.wait()
    }
    _ = try ready(process, pair.configuration(pair.two, .seconds(2)))
    try process.tell(.connect)
    pair.one.tell(.connect)
    let session = try pair.one.connected()
    try process.expect("connected") { if case .connected = $0 { true } else { nil } }
    try process.tell(.mount)
    try process.expect("mounted") { if case .mounted = $0 { true } else { nil } }
    try process.tell(.setPolicy(.alone))
    try pair.one.accept(session)
    try process.tell(.startResync(session, comparesEverything: true))
    try process.expect("copied") { if case .resyncCopied = $0 { true } else { nil } }
    try process.tell(.flushBarrier(session))
    try process.expect("barrier") { if case .barrierDone = $0 { true } else { nil } }
    try process.tell(.setPolicy(.both(session)))
    // Before that policy counts no read is ever held.
    try process.tell(.report)
    try process.expect("both") {
      if case .ready(let report) = $0, report.policy == .both(session) { true } else { nil }
    }
    let file = open("\(pair.two.mountPoint)/disk", O_RDONLY)
    defer { close(file) }
    var byte: UInt8 = 0
    #expect(pread(file, &byte, 1, 0) == 1)

    try process.tell(.confirmSession(session))
    try process.expect("confirmed") { if case .sessionConfirmed(session) = $0 { true } else { nil } }

    kill(worker, SIGSTOP)
    // On a busy machine the signal takes a while to reach every thread, and one of them could still serve the read.
    for _ in 0..<500 where !standsStill(worker) { usleep(10_000) }
    try #require(standsStill(worker))
    try process.tell(.confirmSession(session))
    let answer = Monitor<Int?>(nil)
    try HostThread.start(name: "read") {
      var byte: UInt8 = 0
      let count = pread(file, &byte, 1, 0)
      answer.withLock { $0 = count }
    }
    usleep(2_500_000)
    try #require(answer.withLock { $0 } == nil, "a stopped engine serves no read")
    kill(worker, SIGCONT)
    #expect(answer.wait(timeout: .milliseconds(800)) { $0 } == nil)
    // Asked while it stood still, and answered with the peer's last words of before still unread: no guest may start on it.
    var missing: Set = ["readsHeld", "refused"]
    while !missing.isEmpty {
      let said = try process.expect("\(missing)") {
        switch $0 {
        case .readsHeld: "readsHeld"
        case .failed(command: "confirmSession", _): "refused"
        case .sessionConfirmed: "confirmed"
        default: nil
        }
      }
      try #require(said != "confirmed")
      missing.remove(said)
    }
    try process.tell(.setPolicy(.alone))
    #expect(answer.wait(timeout: .seconds(5)) { $0 } == 1)
  }
}
