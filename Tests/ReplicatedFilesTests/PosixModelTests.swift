import CPosixCalls
import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Synchronization
import Testing

/// Random system calls on a module's mount and, the same ones, on a plain folder of the same file system: every answer, and at the end
/// every name, attribute and byte, has to be the same; and the other node has to have it all.
///
/// VMHA_POSIX_SEEDS=N runs seeds 1 to N instead of a few, VMHA_POSIX_SEED=S only that one, VMHA_POSIX_STEPS=K that many steps.
@Suite(.serialized, .timeLimit(.minutes(30)))
struct PosixModelTests {
  private static func number(_ name: String) -> Int? { getenv(name).flatMap { Int(String(cString: $0)) } }
  private static let steps = number("VMHA_POSIX_STEPS") ?? 1000

  private static func seeds(_ usual: ClosedRange<Int>) -> ClosedRange<Int> {
    if let one = number("VMHA_POSIX_SEED") { return one...one }
    return number("VMHA_POSIX_SEEDS").map { 1...$0 } ?? usual
  }

  @Test func everyAnswerIsThatOfAPlainFolder() throws {
    let stage = try Stage()
    defer { stage.end() }
    _ = try stage.pair.settled()
    for seed in Self.seeds(1...4) {
      let steps = StepMaker.steps(seed: UInt64(seed), count: Self.steps)
      guard let failure = try stage.run(steps) else { continue }
      let (least, why) = try stage.shortened(steps, failure)
      Issue.record("seed \(seed), \(steps.count) steps: \(failure)\nthe shortest found: \(why)\n\(Stage.text(least))")
      return
    }
    let differences = try stage.nodesDiffer(layout: true)
    #expect(differences == [])
    #expect(stage.pair.one.engine.report().session != nil, "nothing that a guest asks for ends the session")
  }

  /// The other node is away in the middle, and comes back to a resync while the steps go on; files that are open have lost their names
  /// before, during and after.
  @Test func aResyncInTheMiddleHidesNothing() throws {
    for seed in Self.seeds(101...103) {
      let stage = try Stage()
      defer { stage.end() }
      _ = try stage.pair.settled()
      let pair = stage.pair
      let steps = StepMaker.steps(seed: UInt64(seed), count: Self.steps)
      let resync = Mutex<HostThread?>(nil)
      let resyncFailure = Mutex<String?>(nil)
      let failure = try stage.run(steps) { index in
        switch index {
        case steps.count / 4:
          pair.two.tell(.endSession)
          #expect(try pair.one.lost() == .frozen)
          pair.one.tell(.setPolicy(.alone))
        case steps.count / 2:
          let session = try pair.reconnect()
          let thread = try HostThread.start(name: "resync", detached: false) {
            do { try pair.resync(source: pair.one, target: pair.two, session) } catch {
              resyncFailure.withLock { $0 = "\(error)" }
            }
          }
          resync.withLock { $0 = thread }
        case steps.count * 3 / 4: resync.withLock { $0 }?.join()
        default: break
        }
      }
      let ended = resyncFailure.withLock { $0 }
      #expect(ended == nil)
      if let failure {
        Issue.record("seed \(seed), with a resync from step \(steps.count / 2) on: \(failure)\n\(Stage.text(steps))")
      }
      let differences = try stage.nodesDiffer(layout: false)
      #expect(differences == [], "seed \(seed)")
    }
  }

  /// Several threads, each in a folder of its own and all in one file, to which they append and in which each has blocks of its own.
  @Test func threadsDoNotDisturbEachOther() throws {
    let stage = try Stage()
    defer { stage.end() }
    _ = try stage.pair.settled()
    let shared = "\(stage.pair.one.mountPoint)/shared"
    let failures = Mutex<[String]>([])
    let threads = try (0..<4).map { number in
      try HostThread.start(name: "model", detached: false) {
        do {
          let steps = StepMaker.steps(seed: UInt64(200 + number), count: Self.steps)
          let worlds = try stage.worlds()
          let writer = try SharedWriter(shared, number: number, of: 4)
          let failure = try stage.walk(steps, worlds) { _ in try writer.step() }
          if let failure { failures.withLock { $0.append("thread \(number): \(failure)") } }
        } catch { failures.withLock { $0.append("thread \(number): \(error)") } }
      }
    }
    for thread in threads { thread.join() }
    let found = failures.withLock { $0 }
    #expect(found == [])
    #expect(try SharedWriter.check(shared, writers: 4, steps: Self.steps) == nil)
    let differences = try stage.nodesDiffer(layout: true)
    #expect(differences == [])
  }
}

/// Writes numbered records to the end of one file and into blocks of another, together with others.
private final class SharedWriter {
  private static let block = 5000
  private let log: Int32
  private let blocks: Int32
  private let number: Int
  private let writers: Int
  private var steps = 0

  init(_ path: String, number: Int, of writers: Int) throws {
    log = open(path + ".log", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o644)
    blocks = open(path + ".blocks", O_WRONLY | O_CREAT | O_CLOEXEC, 0o644)
    guard log >= 0, blocks >= 0 else { throw TestFailure("cannot open \(path): \(errno)") }
    self.number = number
    self.writers = writers
  }
  deinit {
    close(log)
    close(blocks)
  }

  private static func record(_ number: Int, _ step: Int) -> [UInt8] {
    Array("writer \(number) step \(100_000 + step)\n".utf8)
  }

  func step() throws {
    let record = Self.record(number, steps)
    let block = [UInt8](repeating: UInt8(truncatingIfNeeded: steps + number), count: Self.block)
    guard write(log, record, record.count) == record.count,
      pwrite(blocks, block, block.count, (steps * writers + number) * block.count) == block.count
    else { throw TestFailure("step \(steps): \(errno)") }
    steps += 1
  }

  /// nil = everything is there once.
  static func check(_ path: String, writers: Int, steps: Int) throws -> String? {
    let log = try DurableFile.read(path + ".log", bytesMax: 1 << 26)
    let length = record(0, 0).count
    guard log.count == writers * steps * length else { return "\(log.count) bytes were appended" }
    let records = Set(stride(from: 0, to: log.count, by: length).map { Array(log[$0..<$0 + length]) })
    for writer in 0..<writers {
      for step in 0..<steps where !records.contains(record(writer, step)) { return "no record \(step) of \(writer)" }
    }
    let blocks = try DurableFile.read(path + ".blocks", bytesMax: 1 << 28)
    guard blocks.count == writers * steps * block else { return "\(blocks.count) bytes in blocks" }
    for index in 0..<writers * steps {
      let wanted = UInt8(truncatingIfNeeded: index / writers + index % writers)
      if blocks[index * block] != wanted || blocks[(index + 1) * block - 1] != wanted { return "block \(index)" }
    }
    return nil
  }
}
