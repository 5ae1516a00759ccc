import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Synchronization
import Testing

/// Linux 6.9 hands the requests of a dead FUSE server out again.
private let canRepeat: Bool = {
  var names = utsname()
  uname(&names)
  let release = withUnsafeBytes(of: &names.release) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
  let numbers = release.split(whereSeparator: { !$0.isNumber }).prefix(2).compactMap { Int($0) }
  return numbers.count == 2 && (numbers[0], numbers[1]) >= (6, 9)
}()

/// The engine dies under its mount, and another one goes on with it.
@Suite(.serialized, .timeLimit(.minutes(4)))
struct KeeperTests {
  /// Nothing is lost, nothing is done twice, no program sees an error; and the copy is the same after a resync. Twenty-four
  /// deaths, some of them in sync with a replica, some before the engine before has got far.
  @Test(.enabled(if: canRepeat)) func killedUnderLoad() throws {
    let pair = try Pair()
    defer { pair.end() }
    let engine = try KeptEngine(folder: pair.folder, configuration: pair.configuration(pair.two))
    defer { engine.end() }
    try engine.mountAlone()
    #expect(try engine.report().mountOutlivesCrash == true)
    let load = MountLoad(pair.two.mountPoint)
    try load.start()
    defer {
      // First: programs that wait for a frozen mount do not stop.
      engine.end()
      load.stop()
    }
    var eras = 0
    for death in 0..<18 {
      usleep(UInt32.random(in: 1_000...(death % 3 == 0 ? 5_000 : 250_000)))
      let report = try engine.replace()
      #expect(report.isMounted && report.policy == .frozen && report.session == nil)
      #expect(report.processID == engine.keeper)
      try engine.tell(.setPolicy(.alone))
      eras += 1
      if let failure = load.failure { throw TestFailure("after \(eras) deaths: \(failure)") }
    }
    for death in 0..<7 {
      if death == 0 { pair.one.tell(.connect) }
      _ = try engine.settle(with: pair.one)
      // The last round ends in order.
      guard death < 6 else { break }
      usleep(UInt32.random(in: 1_000...400_000))
      let report = try engine.replace()
      #expect(report.policy == .frozen)
      _ = try pair.one.lost()
      // R1, R8: whatever a dead engine had not got acknowledged, the copy may lack.
      try engine.tell(.setPolicy(.alone))
      if let failure = load.failure { throw TestFailure("in sync, after \(death + 1) deaths: \(failure)") }
    }
    usleep(500_000)
    load.stop()
    #expect(load.failure == nil)
    #expect(load.rounds.load(ordering: .relaxed) > 50, "it hardly did anything")
    print("keeper: \(load.rounds.load(ordering: .relaxed)) rounds; longest call \(load.stall.milliseconds) ms")
    try engine.exit()
    #expect(try pair.differences() == "")
    #expect(try shell("ls -A $1", [pair.two.mountPoint]) == "")
  }

  /// R2: a read that was held waits under the next engine too, until there is a right; and that one says so at once.
  @Test(.enabled(if: canRepeat)) func readsStayHeld() throws {
    let pair = try Pair()
    defer { pair.end() }
    let engine = try KeptEngine(folder: pair.folder, configuration: pair.configuration(pair.two))
    defer { engine.end() }
    try shell("printf A > $1/disk", [pair.two.backing])
    try engine.mountAlone()
    pair.one.tell(.connect)
    _ = try engine.settle(with: pair.one)
    let file = open("\(pair.two.mountPoint)/disk", O_RDONLY)
    defer { close(file) }
    pair.one.tell(.endSession)
    try engine.expect("readsHeld") { if case .readsHeld = $0 { true } else { nil } }
    let answer = Monitor<Int?>(nil)
    try HostThread.start(name: "read") {
      var byte: UInt8 = 0
      let count = pread(file, &byte, 1, 0)
      answer.withLock { $0 = count == 1 ? Int(byte) : -Int(errno) }
    }
    for _ in 0..<2 {
      #expect(answer.wait(timeout: .milliseconds(300)) { $0 } == nil)
      #expect(try engine.replace().areReadsHeld == true)
    }
    #expect(answer.wait(timeout: .milliseconds(300)) { $0 } == nil)
    try engine.tell(.setPolicy(.alone))
    #expect(answer.wait(timeout: .seconds(5)) { $0 } == 65)
    try engine.expect("readsReleased") { if case .readsReleased = $0 { true } else { nil } }
    #expect(try engine.replace().areReadsHeld == false, "alone there is nobody to wait for")
    try engine.exit()
  }

  /// SIGUSR2: the program that is installed now takes the mount over.
  @Test(.enabled(if: canRepeat)) func makesRoomInOrder() throws {
    let pair = try Pair()
    defer { pair.end() }
    let engine = try KeptEngine(folder: pair.folder, configuration: pair.configuration(pair.one))
    defer { engine.end() }
    try engine.mountAlone()
    try shell("echo before > $1/file", [pair.one.mountPoint])
    let file = open("\(pair.one.mountPoint)/file", O_RDWR)
    defer { close(file) }
    var report = try engine.replace(inOrder: true)
    #expect(report.isMounted && report.policy == .frozen)
    try engine.tell(.setPolicy(.alone))
    #expect(pwrite(file, "behind", 6, 0) == 6)
    // Any number of them: they are no deaths.
    for _ in 0..<6 { report = try engine.replace(inOrder: true) }
    try engine.tell(.setPolicy(.alone))
    #expect(try shell("cat $1/file", [pair.one.mountPoint]) == "behind\n")
    close(file)
    try engine.exit()
  }

  /// As on kernels before 6.9: its users see the end, and so does vmhad.
  @Test(arguments: [0, 2]) func endsWithItsEngine(restarts: Int) throws {
    guard restarts == 0 || canRepeat else { return }
    let pair = try Pair()
    defer { pair.end() }
    let engine = try KeptEngine(folder: pair.folder, configuration: pair.configuration(pair.one), restarts: restarts)
    defer { engine.end() }
    try engine.mountAlone()
    #expect(try engine.report().mountOutlivesCrash == (restarts > 0))
    try shell("echo there > $1/file", [pair.one.mountPoint])
    for _ in 0..<restarts {
      _ = try engine.replace()
      try engine.tell(.setPolicy(.alone))
    }
    kill(try engine.worker(), SIGKILL)
    #expect(engine.wait() != 0)
    #expect(open("\(pair.one.mountPoint)/file", O_RDONLY) == -1 && errno == ENOTCONN)
    // The next one removes what is left.
    let next = try KeptEngine(folder: pair.folder, configuration: pair.configuration(pair.one))
    defer { next.end() }
    try next.mountAlone()
    #expect(try shell("cat $1/file", [pair.one.mountPoint]) == "there\n")
    try next.exit()
  }

  /// vmhad ends an engine that must not act any more by killing its keeper (R11).
  @Test(.enabled(if: canRepeat)) func diesWithItsKeeper() throws {
    let pair = try Pair()
    defer { pair.end() }
    let engine = try KeptEngine(folder: pair.folder, configuration: pair.configuration(pair.one))
    defer { engine.end() }
    try engine.mountAlone()
    let file = open("\(pair.one.mountPoint)/file", O_RDWR | O_CREAT, 0o644)
    defer { close(file) }
    let worker = try engine.worker()
    kill(engine.keeper, SIGKILL)
    #expect(engine.wait() == -SIGKILL)
    for _ in 0..<200 where kill(worker, 0) == 0 { usleep(10_000) }
    #expect(kill(worker, 0) == -1, "an engine without its keeper")
    #expect(pwrite(file, "x", 1, 0) == -1 && errno == ENOTCONN)
  }
}
