import CFuse3
import Glibc
import Replication
import Synchronization

/// A request of the kernel that waits for its one reply. libfuse allows the reply from any thread.
struct KernelRequest: @unchecked Sendable {
  let raw: fuse_req_t
  /// The kernel's number of it, the same when it is handed out again.
  let unique: UInt64
  /// Handed out again, because the process that had it died.
  let isRepeated: Bool

  /// FUSE_UNIQUE_RESEND of Linux 6.9.
  private static let repetition: UInt64 = 1 << 63

  init(raw: fuse_req_t, number: UInt64) {
    self.raw = raw
    unique = number & ~Self.repetition
    isRepeated = number & Self.repetition != 0
  }
}

/// How long, in seconds, the kernel may cache attributes and names: nobody else changes the tree while it is mounted.
let kernelCacheSeconds: UInt32 = 1

/// A private copy of a write's bytes: it feeds the local file and the peer, and outlives the kernel's buffer.
final class Payload: @unchecked Sendable {
  private let memory: UnsafeMutableRawBufferPointer
  var bytes: UnsafeRawBufferPointer { UnsafeRawBufferPointer(memory) }
  var count: Int { memory.count }

  init(copying bytes: UnsafeRawBufferPointer) {
    memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 16)
    memory.copyMemory(from: bytes)
  }
  init(byteCount: Int, fill: (UnsafeMutableRawBufferPointer) throws(Errno) -> Void) throws(Errno) {
    memory = UnsafeMutableRawBufferPointer.allocate(byteCount: byteCount, alignment: 4096)
    try fill(memory)
  }
  deinit { memory.deallocate() }
}

/// What a finished request tells the kernel.
enum GuestReply: Sendable {
  case done
  case error(Errno)
  case written(Int)
  case attributes(UInt64, stat)
  case entry(Node, stat)
  case created(Node, stat)
}

/// What a change of the tree leads to once it is applied here.
struct AppliedChange: Sendable {
  var operation: FileOperation?
  var reply: GuestReply
  /// The bytes of an operation that is a write.
  var payload: Payload?
}

/// One request of a guest that changes something or asks for durability; answered by the rule R2.
final class GuestRequest: @unchecked Sendable {
  typealias Change = @Sendable () throws(Errno) -> AppliedChange

  enum Action: Sendable {
    /// Applied and sent at the same time; ordered against overlapping ranges of the same file.
    case write(file: OwnedDescriptor, offset: UInt64, payload: Payload)
    /// Truncate and fallocate: ordered like a write, but applied first and sent only if that worked. `intent`: the bytes whose
    /// contents may change.
    case range(Range<UInt64>, intent: Range<UInt64>, Change)
    /// Names and attributes: one at a time, applied first and sent only if that worked.
    case name(Change)
    case flush(file: OwnedDescriptor, dataOnly: Bool)
    /// Our own, of a verification: what these bytes are here (or the size, which decides over them) goes to the peer, as if it were
    /// written anew. Nothing changes here.
    case repair(verification: UInt64, OwnedDescriptor, Range<UInt64>, isSize: Bool)
  }

  /// nil = our own request, which no guest waits for.
  let kernel: KernelRequest?
  let file: FileID
  let action: Action
  /// Called once when the request completes, with 0 or an errno.
  let whenDone: (@Sendable (Int32) -> Void)?
  /// The fields below belong to the mirror and its lock. The reply is set after the local apply.
  var reply: GuestReply = .done
  var token: AcknowledgeMachine.Token?
  var ticket: RangeOrder.Ticket?
  /// Since when this node's disk has it, by `Mirror.clock`; 0 = it has not, or is done. Whoever carries it out holds no lock.
  let onDiskSince = Atomic<Int64>(0)
  /// Answered already, when its mount was torn away.
  var isAbandoned = false

  init(_ kernel: KernelRequest, file: FileID, _ action: Action) {
    self.kernel = kernel
    self.file = file
    self.action = action
    whenDone = nil
  }

  convenience init(file: FileID, _ change: @escaping Change, whenDone: @escaping @Sendable (Int32) -> Void) {
    self.init(file: file, .name(change), whenDone: whenDone)
  }

  init(file: FileID, _ action: Action, whenDone: @escaping @Sendable (Int32) -> Void) {
    kernel = nil
    self.file = file
    self.action = action
    self.whenDone = whenDone
  }

  /// What is left to do of `request`; `answers`: the kernel's reply is this one's.
  init(after request: GuestRequest, answers: Bool, _ action: Action) {
    kernel = answers && !request.isAbandoned ? request.kernel : nil
    file = request.file
    self.action = action
    whenDone = nil
  }

  /// The bytes whose contents it may change (R3).
  var intent: Range<UInt64>? {
    switch action {
    case .write(_, let offset, let payload): offset..<offset + UInt64(payload.count)
    case .range(_, let intent, _): intent.isEmpty ? nil : intent
    case .repair(_, _, let range, _): range
    case .name, .flush: nil
    }
  }

  var bytes: Int {
    guard case .write(_, _, let payload) = action else { return 0 }
    return payload.count
  }

  // The machine and the range order know a request as 64 bits: its address, kept alive from `admit` to its completion.

  var key: UInt { UInt(bitPattern: Unmanaged.passUnretained(self).toOpaque()) }
  var bits: UInt64 { UInt64(key) }
  func retainForMachine() { _ = Unmanaged.passRetained(self) }
  static func take(_ bits: UInt64) -> GuestRequest { unmanaged(bits).takeRetainedValue() }
  static func borrow(_ bits: UInt64) -> GuestRequest { unmanaged(bits).takeUnretainedValue() }
  private static func unmanaged(_ bits: UInt64) -> Unmanaged<GuestRequest> {
    guard let pointer = UnsafeRawPointer(bitPattern: UInt(bits)) else {
      preconditionFailure("request 0 was never admitted")
    }
    return Unmanaged<GuestRequest>.fromOpaque(pointer)
  }
}
