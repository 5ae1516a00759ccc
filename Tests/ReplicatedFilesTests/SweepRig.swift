import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import Synchronization
import Testing

/// One host call of one node at which something happens.
struct CrashPoint: Hashable, Sendable, CustomStringConvertible {
  enum What: String, Sendable, CaseIterable {
    /// The power of its node goes.
    case cut
    /// The power of both nodes goes, and this one is the source afterwards.
    case bothCut
    /// The call fails, once.
    case error, noSpace
  }
  enum Phase: String, Sendable, CaseIterable { case load, resync }
  var node: Int
  var phase: Phase
  var what: What
  var label: String
  var number: Int

  var fault: String {
    switch what {
    case .cut, .bothCut: "stop:\(label):\(number)"
    case .error: "\(EIO):\(label):\(number)"
    case .noSpace: "\(ENOSPC):\(label):\(number)"
    }
  }
  var description: String {
    "\(what.rawValue) at \(label) no. \(number) of the \(node == 0 ? "writer" : "replica"), \(phase.rawValue)"
  }
}

/// Two nodes for the sweep: each a disk of its own that can lose its power, and an engine process whose calls can fail. Node 0 is the
/// writer at the beginning of every run.
final class SweepRig {
  /// Something this run waits for will not come: a node stands still, or gave its session up.
  struct Interrupted: Error { let why: String }
  /// Times a resync is begun again after its fault.
  private static let attemptsMax = 10

  private let folder: String
  private let port: Int
  private var devices: [String] = []
  private var engines: [EngineProcess] = []
  private var seed: UInt64

  init(seed: UInt64) throws {
    self.seed = seed
    // Memory: what is durable is so at once, and a run takes no longer on a busy disk.
    folder = "/dev/shm/vmha-sweep-\(getpid())-\(randomUInt64() % 1_000_000)"
    port = Pair.nextPort.add(1, ordering: .relaxed).newValue
    mkdir(folder, 0o755)
    try Pair.makeCertificates(folder)
    for node in 0..<2 {
      let made = try shell(
        """
        mkdir $1 $2; truncate -s 64M $1.img; device=$(losetup --find --show $1.img); echo $device
        mkfs.ext4 -q -b 4096 $device; mount $device $1; mkdir $1/.vmha-vm
        """, [home(node), mountPoint(node)])
      devices.append(made.split(separator: "\n").first.map(String.init) ?? "")
    }
    try SweepGuest.make(backing(0))
  }

  func end() {
    for engine in engines { engine.end() }
    for node in 0..<2 {
      umount2(mountPoint(node), 2)
      umount2(home(node), 2)
    }
    for device in devices { _ = try? ChildProcess.run(["losetup", "-d", device], timeout: .seconds(20)) }
    _ = try? ChildProcess.run(["rm", "-rf", "--one-file-system", folder], timeout: .seconds(60))
  }

  private func home(_ node: Int) -> String { "\(folder)/n\(node + 1)" }
  private func backing(_ node: Int) -> String { "\(home(node))/.vmha-vm" }
  private func mountPoint(_ node: Int) -> String { "\(folder)/m\(node + 1)" }

  private func configuration(_ node: Int) throws -> EngineConfiguration {
    let (own, peer) = node == 0 ? ("one", "two") : ("two", "one")
    return EngineConfiguration(
      module: try #require(ModuleName("vm")), node: node == 0 ? .first : .second, peerName: peer, port: port,
      links: [EngineLink(name: "lo", localAddress: "127.0.0.1", peerAddress: "127.0.0.1")],
      backingDirectory: backing(node), mountPoint: mountPoint(node), intentsFile: "\(home(node))/intents",
      authorityFile: "\(folder)/ca.crt", certificateFile: "\(folder)/\(own).crt", keyFile: "\(folder)/\(own).key",
      silenceMax: .seconds(2), keepalive: .milliseconds(400), suspendAfter: .milliseconds(1333))
  }

  // MARK: nodes

  private func boot(_ node: Int, _ fault: String = "none", isArmed: Bool = false) throws {
    let engine = try EngineProcess.faulty("\(folder)/e\(node)", fault, isArmed: isArmed)
    if engines.count == 2 { engines[node] = engine } else { engines.append(engine) }
    engine.tell(.configure(try configuration(node)))
    _ = try expect(node, "ready") { if case .ready = $0 { true } else { nil } }
  }

  /// Everything that was not durable is lost. The node stands still, or is stopped at this moment.
  private func cutPower(_ node: Int) throws {
    kill(engines[node].id, SIGSTOP)
    try losePower(home(node))
    engines[node].end()
    umount2(mountPoint(node), 2)
    try shell(
      "for i in $(seq 50); do umount $1 2> /dev/null && break; sleep 0.02; done; mount $2 $1; touch $1/alive",
      [home(node), devices[node]])
  }

  /// The first event of this kind, and everything before it taken away.
  private func expect<Value>(
    _ node: Int, _ what: String, within timeout: Duration = .seconds(20), _ match: (EngineEvent) -> Value?
  ) throws -> Value {
    let end = monotonicNow() + timeout
    while true {
      let found = try engines[node].events.withLock { list -> Value? in
        for (index, event) in list.enumerated() {
          if let value = match(event) {
            list.removeFirst(index + 1)
            return value
          }
          switch event {
          case .sessionLost, .failed: throw Interrupted(why: "node \(node), \(what): \(event)")
          default: continue
          }
        }
        return nil
      }
      if let found { return found }
      if engines.contains(where: \.isStopped) { throw Interrupted(why: "a node stands still") }
      guard monotonicNow() < end else {
        throw TestFailure("node \(node): no \(what); \(engines[node].events.withLock { $0 })")
      }
      usleep(2000)
    }
  }

  private func forget() { for engine in engines { engine.events.withLock { $0 = [] } } }

  // MARK: steps

  /// `source` goes alone and makes `target` the same, R8 to its end. Answers the session.
  @discardableResult
  private func resync(_ source: Int, to target: Int) throws -> SessionID {
    for node in [target, source] { engines[node].tell(.connect) }
    engines[source].tell(.mount)
    engines[source].tell(.setPolicy(.alone))
    let session = try expect(source, "connected") { if case .connected(let session, _) = $0 { session } else { nil } }
    _ = try expect(target, "connected") { if case .connected(session, _) = $0 { true } else { nil } }
    engines[target].tell(.acceptReplication(session))
    engines[target].tell(.report)
    _ = try expect(target, "role") { if case .ready(let report) = $0, report.role == .replica { true } else { nil } }
    engines[source].tell(.startResync(session, comparesEverything: false))
    _ = try expect(source, "copied") { if case .resyncCopied(session) = $0 { true } else { nil } }
    engines[source].tell(.flushBarrier(session))
    _ = try expect(source, "barrier") { if case .barrierDone(session) = $0 { true } else { nil } }
    engines[target].tell(.clearIntents(session))
    engines[target].tell(.report)
    _ = try expect(target, "cleared map") { if case .ready = $0 { true } else { nil } }
    engines[source].tell(.setPolicy(.both(session)))
    return session
  }

  private enum Outcome { case stopped, lost, finished }

  private func watch(_ guest: SweepGuest) throws -> Outcome {
    let end = monotonicNow() + .seconds(30)
    while monotonicNow() < end {
      if engines.contains(where: \.isStopped) { return .stopped }
      let isLost = engines.contains { engine in
        engine.saw { event in
          switch event {
          case .sessionLost: true
          case .diskError(_, _, let code): code != ENOSPC
          default: false
          }
        }
      }
      if isLost { return .lost }
      if guest.isDone { return .finished }
      usleep(2000)
    }
    throw TestFailure("the guest hangs")
  }

  // MARK: a run

  /// Labels that each node met: under load, and as the target and the source of a resync.
  func record() throws -> [CrashPoint.Phase: [[String: Int]]] {
    var met: [CrashPoint.Phase: [[String: Int]]] = [:]
    for phase in CrashPoint.Phase.allCases {
      for node in 0..<2 {
        let file = "\(folder)/calls-\(phase.rawValue)-\(node)"
        try run(CrashPoint(node: node, phase: phase, what: .cut, label: "", number: 0), fault: "record:\(file)")
        let text = try DurableFile.readIfPresent(file).map { String(decoding: $0, as: UTF8.self) } ?? ""
        let counts = text.split(separator: "\n").reduce(into: [String: Int]()) { $0[String($1), default: 0] += 1 }
        met[phase, default: []].append(counts)
      }
    }
    return met
  }

  /// Both nodes in sync, a guest under which it happens, the return, and both the same with nothing lost. Answers whether the
  /// point was met.
  @discardableResult
  func run(_ point: CrashPoint, fault: String? = nil) throws -> Bool {
    defer {
      for engine in engines { engine.end() }
      engines = []
      for node in 0..<2 { umount2(mountPoint(node), 2) }
    }
    let (fault, victim, other) = (fault ?? point.fault, point.node, 1 - point.node)
    for node in 0..<2 { try boot(node, node == victim && point.phase == .load ? fault : "none") }
    let session = try resync(0, to: 1)
    // What the runs before have left would fill the disks.
    try shell("rm -rf $1/names/*", [mountPoint(0)])
    seed &+= 1
    let guest = try SweepGuest(folder: mountPoint(0), backing: backing(0), seed: seed)
    forget()
    engines[victim].arm()
    try guest.start(steps: point.phase == .load ? 72 : 24)
    defer {
      guest.stop()
      guest.join()
    }
    var outcome = try watch(guest)
    var wasMet = outcome != .finished
    if point.phase == .resync { outcome = .stopped }
    var (source, target) = (other, victim)
    switch outcome {
    case .finished:
      engines[0].tell(.flushBarrier(session))
      _ = try expect(0, "barrier") { if case .barrierDone = $0 { true } else { nil } }
      try judge(guest, on: [0, 1], keepsAcknowledged: true)
      return wasMet
    case .lost:
      try giveUp(victim, guest)
    case .stopped:
      try cutPower(victim)
      if point.what == .bothCut {
        try cutPower(other)
        (source, target) = (victim, other)
      } else if victim == 1 {
        try goOnAlone(guest)
      }
      guest.stop()
      guest.join()
    }
    do {
      if outcome == .stopped {
        for node in point.what == .bothCut ? [other, victim] : [victim] {
          let isFaulty = point.phase == .resync && node == victim
          try boot(node, isFaulty ? fault : "none", isArmed: isFaulty)
        }
      }
      try resync(source, to: target)
    } catch is Interrupted {
      wasMet = true
      try again(victim, source, target)
    }
    try judge(guest, on: [0, 1], keepsAcknowledged: point.what != .bothCut)
    return wasMet
  }

  /// R11: the module leaves the node whose disk failed. The writer: its guest is destroyed. The copy: the writer goes on alone.
  private func giveUp(_ victim: Int, _ guest: SweepGuest) throws {
    if victim == 0 {
      engines[0].tell(.unmount(force: true))
      _ = try engines[0].expect("unmounted") { if case .unmounted = $0 { true } else { nil } }
    } else {
      try goOnAlone(guest)
    }
    guest.stop()
    guest.join()
    for engine in engines { engine.tell(.endSession) }
    usleep(50_000)
    forget()
  }

  private func goOnAlone(_ guest: SweepGuest) throws {
    _ = try engines[0].expect("sessionLost") { if case .sessionLost = $0 { true } else { nil } }
    engines[0].tell(.setPolicy(.alone))
    for _ in 0..<20 where !guest.isDone { usleep(5000) }
  }

  /// The resync met the fault: after a power cut, or in the same processes, it is done again, and to its end.
  private func again(_ victim: Int, _ source: Int, _ target: Int) throws {
    for attempt in 1... {
      if engines[victim].isStopped {
        try cutPower(victim)
        try boot(victim)
      } else if engines[victim].saw({ if case .failed("configure", _) = $0 { true } else { false } }) {
        // It could not begin: vmhad starts it again.
        engines[victim].end()
        try boot(victim)
      }
      for engine in engines { engine.tell(.endSession) }
      // The copy that was given up ends by itself.
      usleep(100_000)
      forget()
      do {
        try resync(source, to: target)
        return
      } catch let error as Interrupted {
        if attempt == Self.attemptsMax { throw error }
      }
    }
  }

  private func judge(_ guest: SweepGuest, on nodes: [Int], keepsAcknowledged: Bool) throws {
    guest.stop()
    guest.join()
    for node in nodes { try guest.check(backing(node), keepsAcknowledged: keepsAcknowledged) }
    let differences = try Pair.differences(backing(0), backing(1), folder)
    guard differences.isEmpty else { throw TestFailure("the copies differ:\n\(differences)") }
  }
}
