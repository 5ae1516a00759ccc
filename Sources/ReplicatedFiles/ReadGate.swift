import CFuse3
import Glibc
import HostSystem
import Model
import Synchronization

/// Holds a mount's reads back when this node has lost its say for too long (R2, last line).
///
/// A lease: reads are served while the clock is before `until`, which somebody has to keep moving on. So a process that did
/// not run for a while holds the first read it finds, before any of its threads has looked at the clock.
final class ReadGate: Sendable {
  /// Reads that wait; a guest has some hundreds under way at most. Beyond it they fail with EIO.
  static let heldMax = 65_536

  /// A lease without an end: the right to be alone is held.
  static let always = Instant(nanoseconds: .max)

  struct Read: Sendable {
    let request: KernelRequest
    let serve: @Sendable () -> Void
  }

  private struct State {
    var held: [Read] = []
    var running = 0
    var isOver = false
  }

  private let until: Atomic<Int64>
  private let state = Guarded(State())

  init(until: Instant) { self.until = Atomic(until.nanoseconds) }

  var lease: Instant { Instant(nanoseconds: until.load(ordering: .acquiring)) }

  /// CLOCK_BOOTTIME: a host that slept has lost its lease too.
  var isOpen: Bool {
    let end = until.load(ordering: .acquiring)
    return end == Int64.max || monotonicNow().nanoseconds < end
  }

  /// Sets the end of the lease, earlier or later, and serves what waited if it is open again.
  func setLease(_ end: Instant) {
    until.store(end.nanoseconds, ordering: .releasing)
    if isOpen { serveHeld() }
  }

  private func serveHeld() {
    let ready = state.withLock { state -> [Read] in
      let ready = state.held
      state.held = []
      if !ready.isEmpty { state.running += 1 }
      return ready
    }
    guard !ready.isEmpty else { return }
    let work: @Sendable () -> Void = { [self] in
      for read in ready { read.serve() }
      state.withLock { $0.running -= 1 }
      state.wake()
    }
    // Not on the thread that keeps the time: these reads wait for a disk.
    do { try HostThread.start(name: "held-reads", stackBytes: 2 << 20, work) } catch {
      Log.note("held reads are served without a thread of their own: \(error)")
      work()
    }
  }

  /// Serves the read now or when the gate opens.
  func pass(_ read: Read) {
    if isOpen { return read.serve() }
    let failure = state.withLock { state -> Errno? in
      if state.isOver { return Errno(ENOTCONN) }
      if state.held.count >= Self.heldMax { return Errno(EIO) }
      state.held.append(read)
      return nil
    }
    if let failure { return read.request.fail(failure) }
    // Opened in between: nobody else would come for it.
    if isOpen { serveHeld() }
  }

  /// The mount is gone: what waits is answered (libfuse wants its memory back), and nothing is being served any more.
  func close() {
    let held = state.withLock { state -> [Read] in
      state.isOver = true
      let held = state.held
      state.held = []
      return held
    }
    for read in held { read.request.fail(Errno(ENOTCONN)) }
    _ = state.wait { $0.running == 0 ? true : nil }
  }
}

extension KernelRequest {
  fileprivate func fail(_ error: Errno) { fuse_reply_err(raw, error.code) }
}
