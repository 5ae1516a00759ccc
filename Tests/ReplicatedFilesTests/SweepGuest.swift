import CFuse3
import CPosixCalls
import Glibc
import HostSystem
import Model
import Synchronization
import Testing

/// A guest that writes to a mount until its first error, and remembers what it was told.
///
/// `disk` consists of blocks that hold their own place and a version number, over and over: a torn one is seen. Beside it names are
/// made, changed and removed. Two threads write the blocks of one half each, a third one changes names.
final class SweepGuest: Sendable {
  static let blockBytes = 4096
  static let blocks = 1536

  private struct Block {
    var flushed: UInt64
    var acknowledged: UInt64
    var attempted: UInt64
  }
  private struct State {
    var blocks: [Block]
    /// Files that were made, filled and flushed with their folder: name and contents.
    var flushedFiles: [String: String] = [:]
    var isStopped = false
    var running = 3
    var error: Int32?
  }

  private let state: Mutex<State>
  private let folder: String
  private let seed: UInt64
  private let threads = Mutex<[HostThread]>([])

  /// Starts from what `backing` holds.
  init(folder: String, backing: String, seed: UInt64) throws {
    self.folder = folder
    self.seed = seed
    let found = try Self.read(backing)
    state = Mutex(State(blocks: found.map { Block(flushed: $0, acknowledged: $0, attempted: $0) }))
  }

  static func make(_ backing: String) throws {
    let file = open("\(backing)/disk", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    defer { close(file) }
    for number in 0..<blocks {
      let bytes = contents(number, 1)
      guard pwrite(file, bytes, bytes.count, off_t(number * blockBytes)) == bytes.count else {
        throw TestFailure("cannot make \(backing)/disk: \(errno)")
      }
    }
    mkdir("\(backing)/names", 0o755)
  }

  private static func contents(_ number: Int, _ version: UInt64) -> [UInt8] {
    [UInt8](unsafeUninitializedCapacity: blockBytes) { buffer, count in
      let words = UnsafeMutableRawBufferPointer(buffer)
      words.storeBytes(of: UInt64(number), as: UInt64.self)
      words.storeBytes(of: version, toByteOffset: 8, as: UInt64.self)
      for filled in [16, 32, 64, 128, 256, 512, 1024, 2048] {
        if let start = words.baseAddress { memcpy(start + filled, start, filled) }
      }
      count = blockBytes
    }
  }

  /// The versions in it. Throws if a block is torn or lies at another place.
  private static func read(_ backing: String) throws -> [UInt64] {
    let bytes = try DurableFile.read("\(backing)/disk")
    guard bytes.count == blocks * blockBytes else { throw TestFailure("\(backing)/disk has \(bytes.count) bytes") }
    return try bytes.withUnsafeBytes { whole in
      try (0..<blocks).map { number in
        let block = UnsafeRawBufferPointer(rebasing: whole[number * blockBytes..<(number + 1) * blockBytes])
        let version = block.load(fromByteOffset: 8, as: UInt64.self)
        // The same sixteen bytes over and over.
        guard let start = block.baseAddress, block.load(as: UInt64.self) == UInt64(number),
          memcmp(start, start + 16, blockBytes - 16) == 0
        else { throw TestFailure("block \(number) of \(backing) is torn") }
        return version
      }
    }
  }

  // MARK: writing

  func start(steps: Int) throws {
    for half in 0..<2 {
      let thread = try HostThread.start(name: "blocks", detached: false) { [self] in
        writeBlocks(half, steps: steps)
        state.withLock { $0.running -= 1 }
      }
      threads.withLock { $0.append(thread) }
    }
    let thread = try HostThread.start(name: "names", detached: false) { [self] in
      changeNames(steps: steps / 8)
      state.withLock { $0.running -= 1 }
    }
    threads.withLock { $0.append(thread) }
  }

  /// Returns when every thread has ended, by itself or at an error.
  func join() { for thread in threads.withLock({ $0 }) { thread.join() } }

  var isDone: Bool { state.withLock { $0.running == 0 } }
  func stop() { state.withLock { $0.isStopped = true } }

  private func goesOn(_ result: Int, _ wanted: Int = 0) -> Bool {
    let code = errno
    return state.withLock { state in
      if result < wanted { state.error = state.error ?? code }
      return result >= wanted && !state.isStopped
    }
  }

  private func writeBlocks(_ half: Int, steps: Int) {
    var random = Dice(seed: seed &+ UInt64(half))
    let file = open("\(folder)/disk", O_RDWR)
    defer { close(file) }
    for step in 0..<steps {
      let count = Int.random(in: 0..<4, using: &random) == 0 ? 24 : 1
      let first = half * Self.blocks / 2 + Int.random(in: 0...Self.blocks / 2 - count, using: &random)
      let range = first..<first + count
      let versions = state.withLock { state in
        range.map { number -> UInt64 in
          state.blocks[number].attempted += 1
          return state.blocks[number].attempted
        }
      }
      let bytes = Array(zip(range, versions).map { Self.contents($0, $1) }.joined())
      guard goesOn(pwrite(file, bytes, bytes.count, off_t(first * Self.blockBytes)), bytes.count) else { return }
      state.withLock { state in
        for (number, version) in zip(range, versions) { state.blocks[number].acknowledged = version }
      }
      guard step % 12 == 11 else { continue }
      // What this thread has written so far is flushed; the other half's may be.
      let acknowledged = state.withLock { state in state.blocks.map(\.acknowledged) }
      guard goesOn(Int(step % 24 == 11 ? fdatasync(file) : fsync(file))) else { return }
      state.withLock { state in
        for number in half * Self.blocks / 2..<(half + 1) * Self.blocks / 2 {
          state.blocks[number].flushed = acknowledged[number]
        }
      }
    }
  }

  private func changeNames(steps: Int) {
    for step in 0..<steps {
      let base = "\(folder)/names"
      let (name, text) = ("\(base)/f\(seed % 1000)-\(step)", "contents of \(step)")
      let file = open(name, O_RDWR | O_CREAT | O_EXCL, 0o600)
      guard goesOn(Int(file)) else { return }
      defer { close(file) }
      guard goesOn(write(file, text, text.utf8.count), text.utf8.count), goesOn(Int(fsync(file))) else { return }
      let directory = open(base, O_RDONLY | O_DIRECTORY)
      let isSynced = directory >= 0 && fsync(directory) == 0
      close(directory)
      guard goesOn(isSynced ? 0 : -1) else { return }
      state.withLock { $0.flushedFiles["f\(seed % 1000)-\(step)"] = text }
      guard others(base, step, file) else { return }
    }
  }

  /// One of every other kind of change, on objects that are removed again, some of them.
  private func others(_ base: String, _ step: Int, _ file: Int32) -> Bool {
    let own = "\(base)/o\(seed % 1000)-\(step)"
    let second = open("\(own).b", O_RDWR | O_CREAT, 0o600)
    defer { close(second) }
    var zeros = [UInt8](repeating: 7, count: 100_000)
    let times = [timespec(tv_sec: 1, tv_nsec: 2), timespec(tv_sec: 3, tv_nsec: 4)]
    let calls: [() -> Int] = [
      { Int(second) }, { write(second, zeros, zeros.count) }, { Int(mkdir("\(own).d", 0o755)) },
      { Int(symlink("nowhere", "\(own).l")) }, { Int(link("\(own).b", "\(own).h")) },
      { Int(mkfifo("\(own).p", 0o600)) }, { Int(rename("\(own).b", "\(own).d/r")) },
      { Int(fsetxattr(second, "user.a", &zeros, 20, 0)) }, { Int(fremovexattr(second, "user.a")) },
      { Int(fsetxattr(second, "user.b", &zeros, 10, 0)) }, { Int(fchmod(second, 0o640)) },
      { Int(fchown(second, 7, 8)) }, { Int(ftruncate(second, 50_000)) },
      { Int(posix_fallocate(second, 0, 200_000)) == 0 ? 0 : -1 },
      { Int(futimens(second, times)) }, { Int(unlink("\(own).p")) }, { Int(unlink("\(own).h")) },
      { Int(unlink("\(own).l")) },
    ]
    return calls.allSatisfy { goesOn($0()) }
  }

  // MARK: judging

  /// What `backing` must hold. `keepsAcknowledged`: also what was not flushed; else every flushed block or a later one.
  func check(_ backing: String, keepsAcknowledged: Bool) throws {
    let found = try Self.read(backing)
    let (blocks, files) = state.withLock { ($0.blocks, $0.flushedFiles) }
    for (number, block) in blocks.enumerated() {
      let least = keepsAcknowledged ? block.acknowledged : block.flushed
      guard (least...block.attempted).contains(found[number]) else {
        throw TestFailure(
          "block \(number) of \(backing): version \(found[number]), allowed \(least) to \(block.attempted)")
      }
    }
    for (name, text) in files {
      let bytes = try DurableFile.read("\(backing)/names/\(name)")
      guard bytes == Array(text.utf8) else { throw TestFailure("\(backing)/names/\(name) has other contents") }
    }
  }
}
