import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import SecureLinks
import Synchronization

struct TestFailure: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// Something one thread tells another.
final class Flag: Sendable {
  private let value = Atomic<Bool>(false)
  var isSet: Bool { value.load(ordering: .acquiring) }
  func set() { value.store(true, ordering: .releasing) }
  /// Ten seconds at most: what was to set it may have failed, and a test says so itself.
  func awaitSet() { for _ in 0..<10_000 where !isSet { usleep(1_000) } }
}

extension Monitor<[EngineEvent]> {
  /// Waits for an event and takes everything up to it.
  func take<Found>(
    _ what: String, of engine: String, within timeout: Duration, _ match: @escaping (EngineEvent) -> Found?
  ) throws -> Found {
    let found: Found? = wait(timeout: timeout) { list in
      for (index, event) in list.enumerated() {
        if let value = match(event) {
          list.removeFirst(index + 1)
          return value
        }
      }
      return nil
    }
    guard let found else {
      throw TestFailure("\(engine): no \(what) within \(timeout); events: \(withLock { $0 })")
    }
    return found
  }
}

/// One engine, driven as vmhad would, with its events on record.
final class Side: @unchecked Sendable {
  let node: NodeID
  let folder: String
  let events = Monitor<[EngineEvent]>([])
  let engine: Engine

  var backing: String { "\(folder)/.vmha-vm" }
  var mountPoint: String { "\(folder)/vm" }

  init(node: NodeID, folder: String, diskStallMax: Duration? = nil) throws {
    self.node = node
    self.folder = folder
    for path in [folder, "\(folder)/.vmha-vm", "\(folder)/vm"] { mkdir(path, 0o755) }
    let events = self.events
    engine = try Engine(clearInterval: .milliseconds(200), diskStallMax: diskStallMax) { event in
      events.withLock { $0.append(event) }
    }
  }

  func tell(_ command: EngineCommand) { engine.perform(command) }

  /// Waits for an event and takes everything up to it.
  @discardableResult
  func expect<Value>(
    _ what: String, within timeout: Duration = .seconds(20), _ match: @escaping (EngineEvent) -> Value?
  ) throws -> Value {
    try events.take(what, of: "\(node)", within: timeout, match)
  }

  func connected() throws -> SessionID {
    try expect("connected") { if case .connected(let session, _) = $0 { session } else { nil } }
  }
  func lost() throws -> AcknowledgePolicy {
    try expect("sessionLost") { if case .sessionLost(_, let policy, _) = $0 { policy } else { nil } }
  }
  func mount() throws {
    tell(.mount)
    try expect("mounted") { if case .mounted = $0 { true } else { nil } }
  }
  func unmount(force: Bool = false) throws {
    tell(.unmount(force: force))
    try expect("unmounted") { if case .unmounted = $0 { true } else { nil } }
  }
  /// Waits until no resync is running any more.
  func quiet() throws {
    for _ in 0..<1000 where engine.isResyncing { usleep(10_000) }
    if engine.isResyncing { throw TestFailure("\(node): the resync does not end") }
  }
  func failure() throws -> String {
    try expect("failed") { if case .failed(_, let why) = $0 { why } else { nil } }
  }
  func drain() throws {
    tell(.drain)
    try expect("drained") { if case .drained = $0 { true } else { nil } }
  }
  func barrier(_ session: SessionID) throws {
    tell(.flushBarrier(session))
    try expect("barrierDone") { if case .barrierDone = $0 { true } else { nil } }
  }
  /// Returns when the engine is the replica: what the peer sends from then on is applied.
  func accept(_ session: SessionID) throws {
    tell(.acceptReplication(session))
    tell(.report)
    try expect("ready") { if case .ready(let report) = $0, report.role == .replica { true } else { nil } }
  }

  /// Waits until nothing is left in this side's map.
  func proven() throws {
    for _ in 0..<500 where engine.report().bytesMarked != 0 { usleep(20_000) }
    let marked = engine.report().bytesMarked
    guard marked == 0 else { throw TestFailure("\(node): \(marked.map(String.init) ?? "everything") is still marked") }
  }

  func resync(_ session: SessionID) throws {
    tell(.startResync(session, comparesEverything: false))
    try expect("resyncCopied", within: .seconds(120)) { if case .resyncCopied = $0 { true } else { nil } }
  }
}

/// Two engines in this process over 127.0.0.1, with a cluster of their own.
final class Pair: @unchecked Sendable {
  let folder: String
  let one: Side
  let two: Side
  static let nextPort = Atomic<Int>(17_441 + Int(getpid() % 997) * 20)
  let port: Int

  /// Where node 1 finds node 2; 127.0.0.2 is a `Relay`'s.
  private let addressOfTwo: String

  /// A process that does not run for half of `silence` gives its session up: it is longer than a busy machine takes to come back.
  init(silence: Duration = .seconds(6), addressOfTwo: String = "127.0.0.1", diskStallMax: Duration? = nil) throws {
    self.addressOfTwo = addressOfTwo
    folder = "/tmp/vmha-engine-\(getpid())-\(randomUInt64() % 1_000_000)"
    mkdir(folder, 0o755)
    port = Pair.nextPort.add(1, ordering: .relaxed).newValue
    try Pair.makeCertificates(folder)
    one = try Side(node: .first, folder: "\(folder)/n1", diskStallMax: diskStallMax)
    two = try Side(node: .second, folder: "\(folder)/n2", diskStallMax: diskStallMax)
    for side in [one, two] {
      side.tell(.configure(configuration(side, silence)))
      try side.expect("ready") { if case .ready = $0 { true } else { nil } }
    }
  }

  static func makeCertificates(_ folder: String) throws {
    let authority = try ClusterAuthority.create(cluster: "6d2f1c1e-0000-4000-8000-000000000001")
    try save(authority.certificatePEM, "\(folder)/ca.crt")
    for name in ["one", "two"] {
      let key = try NodeKey.create()
      try save(key.pem, "\(folder)/\(name).key")
      try save(try authority.sign(request: try key.request(), node: name), "\(folder)/\(name).crt")
    }
  }

  private let module = ModuleName("vm") ?? { preconditionFailure("'vm' is a module's name") }()

  func configuration(_ side: Side, _ silence: Duration = .seconds(6)) -> EngineConfiguration {
    let (own, peer) = side.node == .first ? ("one", "two") : ("two", "one")
    return EngineConfiguration(
      module: module, node: side.node, peerName: peer, port: port,
      links: [
        EngineLink(
          name: "lo", localAddress: "127.0.0.1", peerAddress: side.node == .first ? addressOfTwo : "127.0.0.1")
      ],
      backingDirectory: side.backing, mountPoint: side.mountPoint, intentsFile: "\(side.folder)/intents",
      authorityFile: "\(folder)/ca.crt",
      certificateFile: "\(folder)/\(own).crt", keyFile: "\(folder)/\(own).key", silenceMax: silence,
      keepalive: silence / 5, suspendAfter: silence * 2 / 3)
  }

  private static func save(_ bytes: [UInt8], _ path: String) throws {
    try DurableFile.write(bytes, to: path, mode: 0o600)
  }

  func connect() throws -> SessionID {
    two.tell(.connect)
    one.tell(.connect)
    let session = try one.connected()
    guard try two.connected() == session else { throw TestFailure("the ends have different sessions") }
    return session
  }

  /// After node 2 ended the session.
  func reconnect() throws -> SessionID {
    two.tell(.connect)
    let session = try two.connected()
    guard try one.connected() == session else { throw TestFailure("the ends have different sessions") }
    return session
  }

  /// `source` mounts, goes alone, copies everything to `target`, and both are in sync.
  func inSync(source: Side, target: Side, _ session: SessionID) throws {
    try source.mount()
    source.tell(.setPolicy(.alone))
    try resync(source: source, target: target, session)
  }

  /// In sync, `one` the primary, with nothing left in its map.
  func settled() throws -> SessionID {
    let session = try connect()
    try inSync(source: one, target: two, session)
    two.tell(.clearIntents(session))
    try one.proven()
    return session
  }

  /// With `alone` the source gives the target up again instead of needing it.
  func resync(source: Side, target: Side, _ session: SessionID, alone: Bool = false) throws {
    try target.accept(session)
    try source.resync(session)
    try source.barrier(session)
    source.tell(.setPolicy(alone ? .alone : .both(session)))
  }

  /// Makes the engine open its directories anew.
  func reconfigure(_ side: Side) throws {
    var other = configuration(side)
    other.backingDirectory = side.folder
    for configuration in [other, configuration(side)] {
      side.tell(.configure(configuration))
      try side.expect("ready") { if case .ready = $0 { true } else { nil } }
    }
  }

  func end() {
    for side in [one, two] {
      side.tell(.endSession)
      side.tell(.unmount(force: true))
      umount2(side.mountPoint, 2)
    }
    _ = try? ChildProcess.run(["rm", "-rf", "--one-file-system", folder], timeout: .seconds(60))
  }

  /// Differences between both backing trees: names, types, modes, owners, sizes, contents, xattrs, link targets.
  func differences() throws -> String { try Self.differences(one.backing, two.backing, folder) }

  /// The same of two trees in `n1` and `n2`; `folder` is for notes.
  static func differences(_ first: String, _ second: String, _ folder: String) throws -> String {
    let script = """
      cd "$1" && for d in "$1" "$2"; do cd "$d" || exit 1
        find . -printf '%P %y %m %U %G %n %l\\n' | sort > "$3/list.$(basename $(dirname $d))"
        find . -type f -exec sha256sum {} + | sort -k2 >> "$3/list.$(basename $(dirname $d))"
        find . -print0 | sort -z | xargs -0 getfattr -h -d -m - 2>/dev/null | grep -av '^$' \
          >> "$3/list.$(basename $(dirname $d))" || true
      done; diff "$3/list.n1" "$3/list.n2" | head -40
      """
    let result = try ChildProcess.run(
      ["bash", "-c", script, "diff", first, second, folder], timeout: .seconds(120))
    return result.outputText + result.errorText
  }
}

/// Runs a shell script and throws what it complained about.
@discardableResult
func shell(_ script: String, _ arguments: [String] = [], timeout: Duration = .seconds(120)) throws -> String {
  let result = try ChildProcess.run(
    ["bash", "-c", "set -euo pipefail\n" + script, "sh"] + arguments, timeout: timeout)
  let text = result.outputText
  guard result.status == 0 else {
    throw TestFailure(
      "script ended with \(result.status): \(text)\(result.errorText)\n\(script)")
  }
  return text
}
