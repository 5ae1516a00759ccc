import Glibc
import HostSystem
import Model
import Replication
import Synchronization
import Testing

@testable import ReplicatedFiles

@Suite struct DiskWatchTests {
  private func at(_ milliseconds: Int64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }

  /// Looks each second from `start` on; answers what was said, with the second.
  private func looks(_ watch: inout DiskWatch, _ seconds: ClosedRange<Int64>, oldest: Int64?) -> [Int64: DiskWatch.News]
  {
    var said: [Int64: DiskWatch.News] = [:]
    for second in seconds {
      said[second] = watch.look(at(second * 1000), gap: .milliseconds(100)) { oldest.map { at($0 * 1000) } }
    }
    return said
  }

  @Test func saysItAgainAsLongAsItGoesOnAndThenOnceThatItIsOver() {
    var watch = DiskWatch()
    #expect(looks(&watch, 1...60, oldest: nil).isEmpty)
    let said = looks(&watch, 61...100, oldest: 60)
    #expect(said == [86: .hangs(.seconds(26)), 96: .hangs(.seconds(36))])
    #expect(looks(&watch, 101...130, oldest: nil) == [101: .answers])
  }

  /// What is old but moves on is a slow disk.
  @Test func aDiskThatAnswersOneAfterTheOtherIsSlow() {
    var watch = DiskWatch()
    for second in Int64(1)...200 { #expect(looks(&watch, second...second, oldest: second - 20).isEmpty) }
  }

  /// A host that stood still does not blame its disk for that.
  @Test func theOwnStallDoesNotCount() {
    var watch = DiskWatch()
    #expect(looks(&watch, 1...10, oldest: 1).isEmpty)
    #expect(watch.look(at(100_000), gap: .seconds(90)) { at(1000) } == nil)
    #expect(looks(&watch, 101...125, oldest: 1).isEmpty)
    #expect(looks(&watch, 126...126, oldest: 1) == [126: .hangs(.seconds(26))])
  }
}

/// The disk under the guest hangs: a labelled call does not return before the test allows it.
@Suite(.serialized, .timeLimit(.minutes(2))) struct HungDiskTests {
  /// Whoever makes one of the calls below the folder waits.
  private final class Hang: Sendable {
    private let isHung = Monitor(false)
    init(_ folder: String, _ labels: Set<String>) {
      HostCalls.setFaultHook { [isHung] label, path in
        guard labels.contains(label), path.hasPrefix(folder) else { return nil }
        _ = isHung.wait(timeout: .seconds(60)) { $0 ? nil : true }
        return nil
      }
    }
    func begin() { isHung.withLock { $0 = true } }
    func end() { isHung.withLock { $0 = false } }
    deinit {
      isHung.withLock { $0 = false }
      HostCalls.setFaultHook(nil)
    }
  }

  /// An fsync, a read, or the durable mark of a first write, that the disk does not answer: said, and taken back when it does. A guest
  /// that only waits for its peer is no hung disk.
  @Test(arguments: ["backing.sync", "backing.read", "intents.sync"]) func aRequestThatTheDiskKeepsIsTold(
    label: String
  ) throws {
    let pair = try Pair(diskStallMax: .seconds(1))
    defer { pair.end() }
    let side = pair.one
    try shell("head -c 3000000 /dev/urandom > $1/disk.img", [side.backing])
    _ = try pair.settled()
    let hang = Hang(side.folder, [label])
    hang.begin()
    let guest = try HostThread.start(name: "guest", detached: false) {
      let file = open("\(side.mountPoint)/disk.img", O_RDWR)
      var block = [UInt8](repeating: 7, count: 4096)
      if label == "backing.read" {
        _ = pread(file, &block, block.count, 2_000_000)
      } else {
        _ = pwrite(file, block, block.count, 1_500_000)
        fsync(file)
      }
      close(file)
    }
    let milliseconds = try side.expect("diskHangs") {
      if case .diskHangs(let milliseconds) = $0 { milliseconds } else { nil }
    }
    #expect(milliseconds > 1000)
    hang.end()
    try side.expect("diskAnswers") { if case .diskAnswers = $0 { true } else { nil } }
    guest.join()
    #expect(try pair.differences() == "")
  }

  @Test func aGuestThatWaitsForItsPeerHasADiskThatWorks() throws {
    let pair = try Pair(diskStallMax: .seconds(1))
    defer { pair.end() }
    try shell("head -c 3000000 /dev/urandom > $1/disk.img", [pair.one.backing])
    _ = try pair.settled()
    let hang = Hang(pair.two.folder, ["backing.write"])
    hang.begin()
    let guest = try HostThread.start(name: "guest", detached: false) {
      let file = open("\(pair.one.mountPoint)/disk.img", O_RDWR)
      _ = pwrite(file, [9], 1, 1_500_000)
      fsync(file)
      close(file)
    }
    usleep(3_500_000)
    let told = pair.one.events.withLock { $0.contains { if case .diskHangs = $0 { true } else { false } } }
    #expect(!told)
    #expect(pair.one.engine.report().requestsInFlight > 0, "the guest did not wait")
    hang.end()
    guest.join()
  }
}
