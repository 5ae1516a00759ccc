import Glibc
import HostSystem
import Model
import Replication
import SecureLinks
import Synchronization

/// One connection with the peer's engine after its handshake, with its queue, its sender and its receiver (R1: what was
/// queued for a session dies with it).
final class PeerSession: @unchecked Sendable {
  /// Bytes that may wait for the connection, those on their way apart; a peer that lets more pile up has failed. Guest writes that
  /// wait for the peer are bounded before (`Mirror.payloadBytesMax`).
  static let queueBytesMax = 80 << 20
  /// Payloads up to this size are copied behind their head, so that they share TLS records.
  static let copyBytesMax = 16 << 10
  /// What a thread of the kernel's requests sends by itself, instead of waking the sender.
  static let inlineBytesMax = 64 << 10

  let id: SessionID
  let link: String
  let stream: SecureStream
  private let receiver: FrameReceiver
  private let queue = Guarded(Batch())
  /// Held while a batch is on its way: batches leave in the order they were taken.
  private let sending = Mutex(Batch())
  private let isOver = Atomic<Bool>(false)
  private let isHalted = Atomic<Bool>(false)
  private let received: Atomic<Int64>
  private let sent: Atomic<Int64>
  private let handling = Atomic<Bool>(false)
  let bytesSent = Atomic<UInt64>(0)
  let bytesReceived = Atomic<UInt64>(0)

  /// Bytes of heads and small payloads, and where a large payload has to go between them.
  private struct Batch {
    var bytes: [UInt8] = []
    var large: [(position: Int, payload: Payload)] = []
    var largeBytes = 0
    var isEmpty: Bool { bytes.isEmpty && large.isEmpty }
    var count: Int { bytes.count + largeBytes }
    mutating func removeAll() {
      bytes.removeAll(keepingCapacity: bytes.capacity < 4 << 20)
      large.removeAll(keepingCapacity: true)
      largeBytes = 0
    }
  }

  init(id: SessionID, link: String, stream: SecureStream, receiver: FrameReceiver) {
    self.id = id
    self.link = link
    self.stream = stream
    self.receiver = receiver
    let now = monotonicNow().nanoseconds
    received = Atomic(now)
    sent = Atomic(now)
  }

  /// How long nothing has come from the peer. Zero while what came is being handled: a slow disk here is not its silence.
  func silence(_ now: Instant) -> Duration {
    guard !handling.load(ordering: .acquiring) else { return .zero }
    return now - Instant(nanoseconds: received.load(ordering: .relaxed))
  }
  var lastSent: Instant { Instant(nanoseconds: sent.load(ordering: .relaxed)) }
  var hasEnded: Bool { isOver.load(ordering: .acquiring) || isHalted.load(ordering: .acquiring) }

  // MARK: sending

  /// Queues a frame; never blocks. Its place in the stream is that of this call. Call `push` after leaving all locks.
  func enqueue(_ head: [UInt8]) { queue.withLock { $0.bytes += head } }

  func enqueue(headBytesMax: Int, _ fill: (UnsafeMutableRawBufferPointer) -> Int, payload: Payload? = nil) {
    withUnsafeTemporaryAllocation(byteCount: headBytesMax, alignment: 8) { head in
      let count = fill(head)
      queue.withLock { batch in
        batch.bytes.append(contentsOf: UnsafeRawBufferPointer(rebasing: head[..<count]))
        guard let payload else { return }
        if payload.count <= Self.copyBytesMax {
          batch.bytes.append(contentsOf: payload.bytes)
        } else {
          batch.large.append((batch.bytes.count, payload))
          batch.largeBytes += payload.count
        }
      }
    }
  }

  func keepAlive() {
    enqueue(headBytesMax: FrameLimits.smallHeadBytesMax) { FrameHead.keepalive(into: $0, session: id) }
    // The sender's own work: a connection that takes nothing must not hold the clock up.
    queue.wake()
  }

  var queuedBytes: Int { queue.withLock { $0.count } }

  /// Sends what is queued from this thread if that is little and nobody else is at it: saves a wake-up.
  func push() {
    _ = sending.withLockIfAvailable { batch in
      let isLittle = queue.withLock { queued in
        guard !queued.isEmpty, queued.count <= Self.inlineBytesMax else { return false }
        swap(&queued, &batch)
        return true
      }
      if isLittle { transmit(&batch) }
    }
    // Looked at after the lock was left: whoever finds something left sees to it that it goes.
    if queue.withLock({ !$0.isEmpty }) { queue.wake() }
  }

  private func transmit(_ batch: inout Batch) {
    defer { batch.removeAll() }
    guard !hasEnded else { return }
    do {
      if batch.large.isEmpty {
        try batch.bytes.withUnsafeBytes { try stream.write($0) }
      } else {
        try transmitPieces(batch)
      }
      bytesSent.add(UInt64(batch.count), ordering: .relaxed)
      sent.store(monotonicNow().nanoseconds, ordering: .relaxed)
    } catch {
      // The stream is shut: the receiver ends and reports.
      failure.withLock { $0 = $0 ?? "\(error)" }
    }
  }

  private func transmitPieces(_ batch: Batch) throws {
    try batch.bytes.withUnsafeBytes { bytes in
      var pieces: [UnsafeRawBufferPointer] = []
      var start = 0
      for (position, payload) in batch.large {
        pieces.append(UnsafeRawBufferPointer(rebasing: bytes[start..<position]))
        pieces.append(payload.bytes)
        start = position
      }
      pieces.append(UnsafeRawBufferPointer(rebasing: bytes[start...]))
      try stream.writeAll(pieces)
    }
  }

  private let failure = Mutex<String?>(nil)
  /// Why sending failed, if that was first.
  var sendFailure: String? { failure.withLock { $0 } }

  private func sendLoop() {
    while true {
      let goesOn = queue.wait { batch -> Bool? in
        if isOver.load(ordering: .acquiring) { return false }
        return batch.isEmpty ? nil : true
      }
      guard goesOn == true else { return }
      sending.withLock { batch in
        queue.withLock { swap(&$0, &batch) }
        if !batch.isEmpty { transmit(&batch) }
      }
    }
  }

  // MARK: receiving

  /// Starts both threads. `handle` gets every frame in order, on the receiver's thread; `idle` is called when everything
  /// that had arrived is handled; `ended` once, at the end, with the reason.
  func start(
    handle: @escaping @Sendable (FrameView) throws -> Void, idle: @escaping @Sendable () -> Void,
    ended: @escaping @Sendable (String) -> Void
  ) throws {
    try HostThread.start(name: "peer-send") { [self] in sendLoop() }
    try HostThread.start(name: "peer-receive") { [self] in
      let why = receiveLoop(handle, idle)
      end()
      ended(why)
    }
  }

  private func receiveLoop(_ handle: (FrameView) throws -> Void, _ idle: () -> Void) -> String {
    do {
      // Frames may have come with the end of the handshake.
      while let frame = try receiver.next() { try handle(frame) }
      while !hasEnded {
        let count = try stream.read(into: receiver.space())
        guard count > 0 else { return sendFailure ?? "the peer's engine closed the connection" }
        handling.store(true, ordering: .relaxed)
        bytesReceived.add(UInt64(count), ordering: .relaxed)
        receiver.commit(count)
        while let frame = try receiver.next() {
          guard !hasEnded else { break }
          guard frame.header.session == id else {
            // R1
            return "the peer sent a \(frame.header.kind) frame of session \(frame.header.session) in session \(id)"
          }
          try handle(frame)
        }
        idle()
        received.store(monotonicNow().nanoseconds, ordering: .relaxed)
        handling.store(false, ordering: .releasing)
      }
      return "ended here"
    } catch { return "\(error)" }
  }

  /// Frames that are being handled or come after this have no effect any more, and no complaint about them is sent.
  func halt() { isHalted.store(true, ordering: .releasing) }

  /// From any thread; both loops end. What is queued is lost.
  func end() {
    guard !isOver.exchange(true, ordering: .acquiringAndReleasing) else { return }
    queue.withLock { $0.removeAll() }
    queue.wake()
    stream.shutdown()
  }

  /// Sends one last frame if the connection takes it at once, then ends.
  func end(saying frame: [UInt8]) {
    stream.writeTimeout = .milliseconds(200)
    _ = sending.withLockIfAvailable { _ in
      // The reason is for the peer's log only; the end itself is seen either way.
      try? frame.withUnsafeBytes { try stream.write($0) }
    }
    end()
  }
}
