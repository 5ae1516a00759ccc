import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Synchronization

/// Whether every thread of the process is stopped; false for one that is gone, or has a thread that ends just now.
func standsStill(_ process: pid_t) -> Bool {
  let folder = "/proc/\(process)/task"
  guard let threads = try? FileManager.default.contentsOfDirectory(atPath: folder) else { return false }
  return threads.allSatisfy { thread in
    guard let status = try? DurableFile.read("\(folder)/\(thread)/stat") else { return false }
    return String(decoding: status, as: UTF8.self).split(separator: ")").last?.hasPrefix(" T") ?? false
  }
}

/// Starts a program that was built beside the tests.
func startBuilt(_ program: String, _ arguments: [String]) throws -> pid_t {
  var own = [CChar](repeating: 0, count: 4096)
  let count = readlink("/proc/self/exe", &own, own.count - 1)
  let test = String(decoding: own[..<max(0, count)].map { UInt8(bitPattern: $0) }, as: UTF8.self)
  let path = "\(test[..<(test.lastIndex(of: "/") ?? test.startIndex)])/\(program)"
  var child = pid_t()
  var list = ([path] + arguments).map { strdup($0) } + [nil]
  defer { for text in list { free(text) } }
  let code = posix_spawn(&child, path, nil, nil, &list, environ)
  guard code == 0 else { throw TestFailure("cannot start \(path): errno \(code)") }
  return child
}

/// The engine proper, under its keeper; none while it is being replaced.
func enginesUnder(_ keeper: pid_t) throws -> [pid_t] {
  let text = String(decoding: try DurableFile.read("/proc/\(keeper)/task/\(keeper)/children"), as: UTF8.self)
  return text.split(separator: " ").compactMap { pid_t($0) }
}

func engineUnder(_ keeper: pid_t) throws -> pid_t {
  guard let engine = try enginesUnder(keeper).first else { throw TestFailure("the keeper \(keeper) has no engine") }
  return engine
}

/// An engine in a process of its own: the product's, or the one whose calls fail.
final class EngineProcess: @unchecked Sendable {
  /// Of the product this is the keeper.
  let id: pid_t
  private let hasKeeper: Bool
  let events = Monitor<[EngineEvent]>([])
  private let channel: LineChannel
  private let isOver = Flag()

  /// `vmha-replicad`, with its runtime folder below `folder`.
  static func product(_ folder: String) throws -> EngineProcess {
    try EngineProcess(
      "vmha-replicad", ["--module", "vm", "--root", folder], socket: "\(folder)/run/vmha/engines/vm.sock")
  }

  /// `fault`: see Tests/FaultyEngine.
  static func faulty(_ socket: String, _ fault: String, isArmed: Bool) throws -> EngineProcess {
    unlink(socket)
    return try EngineProcess("vmha-faulty-engine", [socket, fault] + (isArmed ? ["now"] : []), socket: socket)
  }

  private init(_ program: String, _ arguments: [String], socket: String) throws {
    id = try startBuilt(program, arguments)
    hasKeeper = program == "vmha-replicad"
    var found: LineChannel?
    for _ in 0..<500 where found == nil {
      found = try? LineChannel.connect(path: socket)
      if found == nil { usleep(10_000) }
    }
    guard let found else {
      kill(id, SIGKILL)
      throw TestFailure("\(program) does not listen")
    }
    channel = found
    let (events, channel) = (events, found)
    try HostThread.start(name: "events") {
      // Ends with the process.
      while let event = try? channel.receive(EngineEvent.self) { events.withLock { $0.append(event) } }
    }
  }

  /// A process that is gone hears nothing; its end shows elsewhere.
  func tell(_ command: EngineCommand) { try? channel.send(command) }

  @discardableResult
  func expect<Value>(
    _ what: String, within timeout: Duration = .seconds(20), _ match: @escaping (EngineEvent) -> Value?
  ) throws -> Value {
    try events.take(what, of: "process \(id)", within: timeout, match)
  }

  func saw(_ match: (EngineEvent) -> Bool) -> Bool { events.withLock { $0.contains(where: match) } }

  func arm() { kill(id, SIGUSR1) }

  /// It has met its fault and stands still.
  var isStopped: Bool { standsStill(id) }

  func ready(_ configuration: EngineConfiguration) throws {
    tell(.configure(configuration))
    try expect("ready") { if case .ready = $0 { true } else { nil } }
  }
  func connected() throws -> SessionID {
    try expect("connected") { if case .connected(let session, _) = $0 { session } else { nil } }
  }
  func resync(_ session: SessionID) throws {
    tell(.startResync(session, comparesEverything: false))
    try expect("resyncCopied") { if case .resyncCopied = $0 { true } else { nil } }
    tell(.flushBarrier(session))
    try expect("barrierDone") { if case .barrierDone = $0 { true } else { nil } }
  }
  func accept(_ session: SessionID) throws {
    tell(.acceptReplication(session))
    tell(.report)
    try expect("role of a replica") { if case .ready(let report) = $0, report.role == .replica { true } else { nil } }
  }

  /// The process that serves.
  private func worker() throws -> pid_t { try hasKeeper ? engineUnder(id) : id }

  /// A field of /proc/PID/status of the engine, in bytes.
  func residentBytes(_ field: String) throws -> Int {
    let process = try worker()
    let text = String(decoding: try DurableFile.read("/proc/\(process)/status"), as: UTF8.self)
    let line = text.split(separator: "\n").first { $0.hasPrefix("\(field):") }
    guard
      let kilobytes = line?.split(whereSeparator: { $0 == " " || $0 == "\t" }).dropFirst().first.flatMap({ Int($0) })
    else { throw TestFailure("/proc/\(process)/status has no \(field)") }
    return kilobytes << 10
  }

  /// SIGKILL, and gone when it returns. May be repeated.
  func end() {
    guard !isOver.isSet else { return }
    isOver.set()
    // It dies with its keeper, a moment later.
    let engine = try? worker()
    kill(id, SIGKILL)
    var status: Int32 = 0
    waitpid(id, &status, 0)
    if let engine, engine != id { for _ in 0..<500 where kill(engine, 0) == 0 { usleep(10_000) } }
    channel.close()
  }
}
