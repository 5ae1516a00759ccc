import Glibc
import HostSystem
import Model
import Replication
import Synchronization
import Testing

@testable import ReplicatedFiles

/// Links that are slow, long, stubborn or broken, under a guest that writes without pause.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct PressureTests {
  private static let diskBytes = 8 << 20

  private func relayed() throws -> (Pair, Relay) {
    let pair = try Pair(addressOfTwo: "127.0.0.2")
    let relay = try Relay(port: pair.port)
    try shell("head -c $2 /dev/urandom > $1/disk.img", [pair.one.backing, "\(Self.diskBytes)"])
    return (pair, relay)
  }

  /// Four writers of blocks that overlap, as fast as they can for `time`: which of two overlapping blocks is the later one must
  /// be the same on both nodes. Each also counts in a place of its own, where the highest number acknowledged has to be.
  private final class Writers: Sendable {
    private static let blockBytes = 16 << 10
    private let counts = Mutex<[UInt64]>([0, 0, 0, 0])
    private let threads = Mutex<[HostThread]>([])
    var acknowledged: [UInt64] { counts.withLock { $0 } }

    init(_ path: String, for time: Duration, from first: UInt64 = 0) throws {
      let end = monotonicNow() + time
      for number in 0..<4 {
        let thread = try HostThread.start(name: "writer", detached: false) { [self] in
          let file = open(path, O_RDWR)
          defer { close(file) }
          var count = first
          while monotonicNow() < end {
            count += 1
            let block = [UInt8](repeating: .random(in: 0...255), count: .random(in: 1...Self.blockBytes))
            guard pwrite(file, block, block.count, .random(in: 4096..<65536 + 4096)) == block.count,
              pwrite(file, &count, 8, off_t(number * 512)) == 8
            else { return }
            counts.withLock { $0[number] = count }
          }
        }
        threads.withLock { $0.append(thread) }
      }
    }

    func join() { for thread in threads.withLock({ $0 }) { thread.join() } }
  }

  private func counts(in path: String) -> [UInt64] {
    let file = open(path, O_RDONLY)
    defer { close(file) }
    return (0..<4).map { number in
      var count: UInt64 = 0
      return pread(file, &count, 8, off_t(number * 512)) == 8 ? count : 0
    }
  }

  /// 100 ms of round trip; 10 Mbit/s: slower, but nothing is lost, nothing changes its order, nobody goes alone.
  @Test(arguments: [(50, nil), (0, 1_250_000)] as [(Int64, Int?)])
  func slowLinks(_ delay: Int64, _ rate: Int?) throws {
    let (pair, relay) = try relayed()
    defer {
      pair.end()
      relay.remove()
    }
    let session = try pair.settled()
    relay.change { cable in
      for side in [\Relay.Cable.there, \Relay.Cable.back] {
        cable[keyPath: side].delay = .milliseconds(delay)
        cable[keyPath: side].bytesPerSecond = rate
      }
    }
    let writers = try Writers("\(pair.one.mountPoint)/disk.img", for: .seconds(2))
    writers.join()
    #expect(writers.acknowledged.allSatisfy { $0 > 0 })
    #expect(
      counts(in: "\(pair.two.backing)/disk.img") == writers.acknowledged, "acknowledged, and not on the other node")
    try shell("sync $1/disk.img", [pair.one.mountPoint])
    #expect(pair.one.engine.report().policy == .both(session))
    #expect(try pair.differences() == "")
  }

  /// The link breaks in the middle of a frame; each node has all that was acknowledged, and a delta makes both the same.
  @Test func cutInTheMiddleOfAFrame() throws {
    let (pair, relay) = try relayed()
    defer {
      pair.end()
      relay.remove()
    }
    _ = try pair.settled()
    for (round, bytes) in [1, 70_000, 634_567].enumerated() {
      relay.change { $0.there.cutAfter = bytes }
      let writers = try Writers(
        "\(pair.one.mountPoint)/disk.img", for: .seconds(3), from: UInt64(round + 1) * 1_000_000)
      #expect(try pair.one.lost() == .frozen)
      usleep(100_000)
      // Frozen: what the guest was told by now is on the other node, and nothing more is acknowledged.
      let (copy, told) = (counts(in: "\(pair.two.backing)/disk.img"), writers.acknowledged)
      for (there, here) in zip(copy, told) where here > 0 { #expect(here...here + 1 ~= there) }
      relay.change { $0.there.cutAfter = nil }
      #expect(writers.acknowledged == told)
      pair.one.tell(.setPolicy(.alone))
      writers.join()
      // Node 2 hears the end itself, and both meet again by themselves.
      let session = try pair.one.connected()
      #expect(
        try pair.two.expect("connected") { if case .connected(session, _) = $0 { session } else { nil } } == session)
      try pair.resync(source: pair.one, target: pair.two, session)
      #expect(try pair.differences() == "")
    }
  }

  /// A peer that lives and takes nothing more: given up after the time a disk may hang, with the memory bounded meanwhile.
  @Test func aPeerThatStopsReading() throws {
    let (pair, relay) = try relayed()
    defer {
      pair.end()
      relay.remove()
    }
    // Node 2 does not mind the silence, so that its own keepalives go on: node 1 has to find out.
    var patient = pair.configuration(pair.two, .seconds(60))
    patient.keepalive = .seconds(1)
    pair.two.tell(.configure(patient))
    try pair.two.expect("ready") { if case .ready = $0 { true } else { nil } }
    let engine = try EngineProcess.product(pair.folder)
    defer { engine.end() }
    try engine.ready(pair.configuration(pair.one))
    pair.two.tell(.connect)
    engine.tell(.connect)
    let session = try engine.connected()
    _ = try pair.two.connected()
    let idle = try engine.residentBytes("VmRSS")
    engine.tell(.mount)
    try engine.expect("mounted") { if case .mounted = $0 { true } else { nil } }
    engine.tell(.setPolicy(.alone))
    try pair.two.accept(session)
    try engine.resync(session)
    engine.tell(.setPolicy(.both(session)))
    relay.change { $0.there.isStalled = true }
    let start = monotonicNow()
    // Far more than the limit, a thread each: depth 128 of 1 MiB.
    let path = "\(pair.one.mountPoint)/disk.img"
    let guests = try (0..<128).map { number in
      try HostThread.start(name: "guest", detached: false) {
        let file = open(path, O_RDWR)
        let block = [UInt8](repeating: UInt8(number), count: 1 << 20)
        _ = pwrite(file, block, block.count, off_t(number % 8 * block.count))
        close(file)
      }
    }
    let policy = try engine.expect("sessionLost") {
      if case .sessionLost(_, let policy, _) = $0 { policy } else { nil }
    }
    let frozen = monotonicNow() - start
    #expect(policy == .frozen)
    #expect(frozen > .seconds(9) && frozen < .seconds(30), "\(frozen)")
    engine.tell(.setPolicy(.alone))
    for guest in guests { guest.join() }
    let most = try engine.residentBytes("VmHWM")
    #expect(most < 256 << 20, "\(most >> 20) MiB")
    print("engine: \(idle >> 20) MiB idle, \(most >> 20) MiB at most, \(frozen) frozen")
  }

  /// A target that takes long to make its tree like the source's takes nothing meanwhile. The guest goes on, and what it writes does
  /// not pile up: the copy reads it later.
  @Test func aTargetThatIsBusyPilesUpNothing() throws {
    let (pair, relay) = try relayed()
    defer {
      pair.end()
      relay.remove()
    }
    let session = try pair.connect()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    try pair.two.accept(session)
    let (map, isBusy) = ("\(pair.two.folder)/intents", Flag())
    HostCalls.setFaultHook { label, path in
      guard label == "intents.create", path == map else { return nil }
      isBusy.set()
      usleep(1_500_000)
      return nil
    }
    defer { HostCalls.setFaultHook(nil) }
    pair.one.tell(.startResync(session, comparesEverything: false))
    for _ in 0..<500 where !isBusy.isSet { usleep(10_000) }
    let path = "\(pair.one.mountPoint)/disk.img"
    var most = 0
    for round in 0..<4 {
      try shell("head -c $2 /dev/urandom | dd of=$1 bs=1M conv=notrunc status=none", [path, "\(Self.diskBytes)"])
      most = max(most, pair.one.engine.state.withLock { $0.session?.queuedBytes ?? 0 })
      #expect(round > 0 || pair.one.engine.state.withLock { $0.session } != nil)
    }
    // Its length changes, so what is written behind the old end is sent.
    try shell("truncate -s 1M $1; head -c 3000000 /dev/urandom >> $1; echo new > $1.new", [path])
    #expect(isBusy.isSet && most < 1 << 20, "\(most) bytes wait for a target that takes nothing")
    try pair.one.expect("resyncCopied") { if case .resyncCopied = $0 { true } else { nil } }
    try pair.one.barrier(session)
    pair.one.tell(.setPolicy(.both(session)))
    #expect(try pair.differences() == "")
  }
}
