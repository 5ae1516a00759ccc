import CKeeper
import Glibc
import Model

/// What another process needs to go on with this one's mount, should it die: in memory that a keeper shares with it, and
/// descriptors that the keeper holds. Without a keeper the same, in private memory, and for nothing.
///
/// The next process reads it when this one is dead and reaped, at whatever instruction it died. So what counts is the order of
/// stores (`vmha_store32`), and that each state in between is one from which the next process can go on.
public final class Kept: @unchecked Sendable {
  let memory: UnsafeMutablePointer<vmha_kept>
  /// To the keeper; -1 = there is none.
  private let socket: Int32
  /// The process whose death ends the engine for good: the keeper, or this one.
  public let process: pid_t

  /// No keeper: the death of this process is the end of its mount.
  public init() throws(EngineError) {
    memory = try Self.map(-1)
    socket = -1
    process = getpid()
    memory.pointee.device = -1
    memory.pointee.era = 1
  }

  /// As a keeper started this process: owns both descriptors.
  public init(memory descriptor: Int32, socket: Int32) throws(EngineError) {
    memory = try Self.map(descriptor)
    self.socket = socket
    process = getppid()
    for inherited in [descriptor, socket, memory.pointee.device] { Self.closeOnExec(inherited) }
    guard memory.pointee.version == UInt32(VMHA_KEPT_VERSION) else {
      throw EngineError(
        .state,
        "the keeper is of version \(memory.pointee.version) and this program of \(VMHA_KEPT_VERSION): the mount cannot be "
          + "gone on with")
    }
  }

  deinit { vmha_kept_unmap(memory) }

  private static func map(_ descriptor: Int32) throws(EngineError) -> UnsafeMutablePointer<vmha_kept> {
    guard let memory = vmha_kept_map(descriptor) else {
      throw EngineError(.state, "cannot map the keeper's memory: \(Errno.last)")
    }
    return memory
  }

  private static func closeOnExec(_ descriptor: Int32) {
    if descriptor >= 0 { _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC) }
  }

  var hasKeeper: Bool { socket >= 0 }
  /// Another process could go on now.
  var isAdoptable: Bool { vmha_load32(&memory.pointee.adoptable) != 0 }
  /// Number of this process among those that served the mount.
  var era: UInt32 { memory.pointee.era }
  /// End of the lease of the mount's reads (`ReadGate`), CLOCK_BOOTTIME.
  var readsUntil: Instant {
    get { Instant(nanoseconds: Int64(bitPattern: vmha_load64(&memory.pointee.reads_until))) }
    set { vmha_store64(&memory.pointee.reads_until, UInt64(bitPattern: newValue.nanoseconds)) }
  }
  var connection: UInt32? { memory.pointee.has_connection != 0 ? memory.pointee.connection : nil }

  /// What the process before this one left mounted; nil = nothing. The descriptor is the caller's from now on.
  func inherited() -> (device: Int32, mountPoint: String, initRequest: [UInt8])? {
    guard isAdoptable, hasKeeper, memory.pointee.device >= 0 else { return nil }
    let count = min(Int(memory.pointee.init_bytes), Int(VMHA_KEPT_INIT_BYTES_MAX))
    return (
      memory.pointee.device, String(cString: vmha_kept_mount_point(memory)),
      Array(UnsafeBufferPointer(start: vmha_kept_init(memory), count: count))
    )
  }

  /// Objects without a name that the keeper holds; the descriptors are the caller's from now on.
  func inheritedOrphans() -> [UInt64: Int32] {
    var found: [UInt64: Int32] = [:]
    for held in UnsafeBufferPointer(start: vmha_kept_held(memory), count: Int(memory.pointee.held_count)) {
      let descriptor = Int32(held.descriptor)
      Self.closeOnExec(descriptor)
      found[held.number] = descriptor
    }
    return found
  }

  /// From now on another process can go on. Nothing is promised to the guest before it has returned.
  func begin(device: Int32, connection: UInt32?, mountPoint: String, initRequest: [UInt8]) {
    let path = Array(mountPoint.utf8CString)
    guard hasKeeper, path.count <= Int(VMHA_KEPT_PATH_BYTES_MAX),
      initRequest.count <= Int(VMHA_KEPT_INIT_BYTES_MAX)
    else { return }
    memory.pointee.has_connection = connection == nil ? 0 : 1
    memory.pointee.connection = connection ?? 0
    for (index, byte) in path.enumerated() { vmha_kept_mount_point(memory)[index] = byte }
    for (index, byte) in initRequest.enumerated() { vmha_kept_init(memory)[index] = byte }
    memory.pointee.init_bytes = UInt32(initRequest.count)
    guard vmha_kept_connection(socket, device) == 0 else {
      return Log.note("the keeper does not answer (\(Errno.last)): a crash of the engine ends the mount")
    }
    vmha_store32(&memory.pointee.adoptable, 1)
  }

  /// From now on the death of this process is the end of the mount: what it left could not be gone on with, or must not be.
  func giveUp(_ why: String? = nil) {
    guard isAdoptable else { return }
    vmha_store32(&memory.pointee.adoptable, 0)
    if let why { Log.note("\(why): from now on a crash of the engine ends the mount") }
  }

  /// The mount is gone.
  func ended() {
    vmha_store32(&memory.pointee.adoptable, 0)
    memory.pointee.device = -1
    memory.pointee.held_count = 0
    memory.pointee.nodes_used = 0
    let changes = vmha_kept_changes(memory)
    for index in 0..<Int(VMHA_KEPT_CHANGES_MAX) where changes?[index].state != UInt32(VMHA_CHANGE_FREE) {
      changes?[index].state = UInt32(VMHA_CHANGE_FREE)
    }
    // Nobody to tell: then there is nobody who holds anything either.
    if hasKeeper { _ = vmha_kept_ended(socket) }
  }

  /// Before the last name of an object that may be in use goes: the keeper holds it, as it can be found by no name then.
  func hold(_ number: UInt64, _ descriptor: Int32) {
    guard isAdoptable else { return }
    if vmha_kept_hold(socket, number, descriptor) != 0 { giveUp("the keeper does not answer (\(Errno.last))") }
  }

  func drop(_ number: UInt64) {
    guard isAdoptable else { return }
    if vmha_kept_drop(socket, number) != 0 { giveUp("the keeper does not answer (\(Errno.last))") }
  }
}

/// The kernel's lookup counts, where the next process finds them. Used under the node table's lock.
struct KeptNodes {
  private let kept: Kept
  private var free: [Int] = []

  init(_ kept: Kept) { self.kept = kept }

  private func node(_ slot: Int) -> UnsafeMutablePointer<vmha_kept_node> { vmha_kept_nodes(kept.memory) + slot }

  /// What the process before this one knew, by number.
  mutating func inherited() -> [UInt64: (slot: Int, lookups: UInt64)] {
    var found: [UInt64: (slot: Int, lookups: UInt64)] = [:]
    for slot in 0..<Int(kept.memory.pointee.nodes_used) {
      let number = node(slot).pointee.number
      if number == 0 || found[number] != nil {
        free.append(slot)
      } else {
        found[number] = (slot, node(slot).pointee.lookups)
      }
    }
    return found
  }

  /// nil = there are more than can be kept.
  mutating func add(_ number: UInt64, lookups: UInt64) -> Int? {
    let slot: Int
    if let unused = free.popLast() {
      slot = unused
    } else {
      slot = Int(kept.memory.pointee.nodes_used)
      guard slot < Int(VMHA_KEPT_NODES_MAX) else {
        kept.giveUp("the kernel knows more than \(VMHA_KEPT_NODES_MAX) files")
        return nil
      }
    }
    node(slot).pointee.lookups = lookups
    vmha_store64(&node(slot).pointee.number, number)
    if slot == Int(kept.memory.pointee.nodes_used) { vmha_store64(&kept.memory.pointee.nodes_used, UInt64(slot + 1)) }
    return slot
  }

  func set(_ slot: Int, lookups: UInt64) { vmha_store64(&node(slot).pointee.lookups, lookups) }

  mutating func remove(_ slot: Int) {
    vmha_store64(&node(slot).pointee.number, 0)
    free.append(slot)
  }
}
