import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import Testing

/// R2, last line: reads of a node that is cut off. Needs root and /dev/fuse.
@Suite(.serialized, .timeLimit(.minutes(3)))
struct ReadHoldTests {
  /// A read on a thread of its own, and what came of it.
  private final class Read: Sendable {
    private let result = Monitor<Int?>(nil)
    init(_ path: String, offset: Int = 0) throws {
      let file = open(path, O_RDONLY)
      guard file >= 0 else { throw TestFailure("cannot open \(path): errno \(errno)") }
      try HostThread.start(name: "read") { [result] in
        var byte: UInt8 = 0
        let count = pread(file, &byte, 1, off_t(offset))
        let answer = count == 1 ? Int(byte) : -Int(errno)
        close(file)
        result.withLock { $0 = answer }
      }
    }
    /// The byte, minus an errno, or nil: no answer in time.
    func answer(_ timeout: Duration) -> Int? { result.wait(timeout: timeout) { $0 } }
  }

  private func held(_ side: Side) throws {
    try side.expect("readsHeld") { if case .readsHeld = $0 { true } else { nil } }
  }
  private func released(_ side: Side) throws {
    try side.expect("readsReleased") { if case .readsReleased = $0 { true } else { nil } }
  }

  /// A short freeze holds no read; a longer one all of them, until the right has come.
  @Test func readsWaitInALongFreezeOnly() throws {
    let pair = try Pair()
    defer { pair.end() }
    try shell("printf A > $1/disk", [pair.one.backing])
    _ = try pair.settled()
    let disk = "\(pair.one.mountPoint)/disk"
    pair.two.tell(.endSession)
    #expect(try pair.one.lost() == .frozen)
    #expect(try Read(disk).answer(.seconds(3)) == 65, "a freeze that has just begun")
    try held(pair.one)
    #expect(pair.one.engine.report().areReadsHeld == true)
    let late = [try Read(disk), try Read(disk)]
    for read in late { #expect(read.answer(.milliseconds(300)) == nil) }
    // What vmhad needs goes on.
    #expect(access(disk, R_OK) == 0)
    pair.one.tell(.setPolicy(.alone))
    for read in late { #expect(read.answer(.seconds(5)) == 65) }
    try released(pair.one)
    #expect(try Read(disk).answer(.seconds(5)) == 65)
    #expect(pair.one.engine.report().areReadsHeld == false)
  }

  /// Alone there is nobody to wait for.
  @Test func aloneNothingIsHeld() throws {
    let pair = try Pair(silence: .seconds(2))
    defer { pair.end() }
    try shell("printf A > $1/disk", [pair.one.backing])
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    usleep(1_800_000)
    #expect(try Read("\(pair.one.mountPoint)/disk").answer(.seconds(5)) == 65)
    #expect(pair.one.events.withLock { list in !list.contains { if case .readsHeld = $0 { true } else { false } } })
  }

  /// An unmount by force ends what is held.
  @Test func heldReadsEndWithTheMount() throws {
    let pair = try Pair(silence: .seconds(2))
    defer { pair.end() }
    try shell("printf A > $1/disk", [pair.one.backing])
    _ = try pair.settled()
    pair.two.tell(.endSession)
    try held(pair.one)
    let reads = try (0..<20).map { _ in try Read("\(pair.one.mountPoint)/disk") }
    usleep(200_000)
    try pair.one.unmount(force: true)
    for read in reads { #expect((read.answer(.seconds(5)) ?? 1) < 0) }
    // Mounted anew, nothing of it is left.
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    #expect(try Read("\(pair.one.mountPoint)/disk").answer(.seconds(5)) == 65)
  }
}
