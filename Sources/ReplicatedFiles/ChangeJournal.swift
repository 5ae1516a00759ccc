import CKeeper
import Glibc
import Synchronization

/// A request that must not be carried out twice, as the next process has to know it.
struct KeptChange {
  enum Kind: UInt32 {
    /// create, mkdir, mknod, symlink: `name` in `folder` was free.
    case make = 1
    /// `name` in `folder` was free and becomes `object`.
    case link = 2
    /// `name` in `folder` was `object`.
    case remove = 3
    /// `name` in `folder` was `object`.
    case rename = 4
    /// Attribute `name` of `object` was not there.
    case addAttribute = 5
    /// Attribute `name` of `object` was there.
    case removeAttribute = 6
    case resize = 7
    case lookUp = 8
  }
  var kind: Kind
  var folder: UInt64 = 0
  var newFolder: UInt64 = 0
  var object: UInt64 = 0
  /// `make`: type of the new object.
  var type: mode_t = 0
  var name: [UInt8] = []
  var newName: [UInt8] = []
}

/// Requests that are not idempotent and not answered yet. The kernel hands every unanswered request out again when the process
/// that had it dies; what is on record here as done is then only answered. A record is `begun` before the change, `done` behind
/// it, and gone when the kernel has its answer (it repeats nothing it has an answer to). What was only `begun` is decided by
/// looking (`FileServer.resolveBegun`), before anything else happens to the tree.
final class ChangeJournal: @unchecked Sendable {
  struct Outcome {
    /// The object a new name belongs to.
    var object: UInt64
    /// The kernel's lookup count does not hold this answer yet.
    var isUncounted: Bool
  }

  private struct State {
    var slots: [UInt64: Int] = [:]
    var free: [Int] = []
    /// Slots from here on were never used by this process.
    var next = 0
  }

  private let kept: Kept
  private let state = Mutex(State())
  /// So that the many requests that are never on record cost nothing.
  private let count = Atomic<Int>(0)

  init(_ kept: Kept) {
    self.kept = kept
    state.withLock { state in
      for slot in 0..<Int(VMHA_KEPT_CHANGES_MAX) where entry(slot).pointee.state != UInt32(VMHA_CHANGE_FREE) {
        state.slots[entry(slot).pointee.unique] = slot
        state.next = slot + 1
      }
      let used = Set(state.slots.values)
      state.free = (0..<state.next).filter { !used.contains($0) }
      count.store(state.slots.count, ordering: .relaxed)
    }
  }

  private func entry(_ slot: Int) -> UnsafeMutablePointer<vmha_kept_change> { vmha_kept_changes(kept.memory) + slot }

  // MARK: writing

  func begin(_ unique: UInt64, _ change: KeptChange) { write(unique, change, VMHA_CHANGE_BEGUN) }

  /// A lookup that was counted: its repetition must not be counted again.
  func lookedUp(_ unique: UInt64, _ object: UInt64) {
    write(unique, KeptChange(kind: .lookUp, object: object), VMHA_CHANGE_DONE)
  }

  private func write(_ unique: UInt64, _ change: KeptChange, _ phase: Int) {
    guard kept.isAdoptable else { return }
    state.withLock { state in
      guard let slot = state.slots[unique] ?? take(&state) else {
        return kept.giveUp("more than \(VMHA_KEPT_CHANGES_MAX) changes of names wait for their answer")
      }
      state.slots[unique] = slot
      let entry = entry(slot)
      vmha_store32(&entry.pointee.state, UInt32(VMHA_CHANGE_FREE))
      entry.pointee.kind = change.kind.rawValue
      entry.pointee.unique = unique
      entry.pointee.folder = change.folder
      entry.pointee.new_folder = change.newFolder
      entry.pointee.object = change.object
      entry.pointee.is_uncounted = 0
      entry.pointee.mode = change.type
      entry.pointee.era = kept.era
      Self.put(change.name, vmha_change_name(entry))
      Self.put(change.newName, vmha_change_new_name(entry))
      vmha_store32(&entry.pointee.state, UInt32(phase))
      count.store(state.slots.count, ordering: .releasing)
    }
  }

  private func take(_ state: inout State) -> Int? {
    if let slot = state.free.popLast() { return slot }
    if state.next < Int(VMHA_KEPT_CHANGES_MAX) {
      state.next += 1
      return state.next - 1
    }
    // What an earlier process left and no repetition has asked for was answered by it in its last moment: the kernel hands
    // repetitions out before anything else, so they have all come long before this many others.
    for (unique, slot) in state.slots where entry(slot).pointee.era != kept.era {
      vmha_store32(&entry(slot).pointee.state, UInt32(VMHA_CHANGE_FREE))
      state.slots[unique] = nil
      state.free.append(slot)
    }
    return state.free.popLast()
  }

  private static func put(_ name: [UInt8], _ place: UnsafeMutablePointer<CChar>?) {
    // Names are checked before: at most 255 bytes.
    let count = min(name.count, Int(VMHA_KEPT_NAME_BYTES_MAX) - 1)
    for index in 0..<count { place?[index] = CChar(bitPattern: name[index]) }
    place?[count] = 0
  }

  func done(_ unique: UInt64, object: UInt64, isUncounted: Bool = false) {
    state.withLock { state in
      guard let slot = state.slots[unique] else { return }
      entry(slot).pointee.object = object
      entry(slot).pointee.is_uncounted = isUncounted ? 1 : 0
      vmha_store32(&entry(slot).pointee.state, UInt32(VMHA_CHANGE_DONE))
    }
  }

  /// It failed, or the kernel has its answer.
  func forget(_ unique: UInt64) {
    guard count.load(ordering: .acquiring) > 0 else { return }
    state.withLock { state in
      guard let slot = state.slots.removeValue(forKey: unique) else { return }
      vmha_store32(&entry(slot).pointee.state, UInt32(VMHA_CHANGE_FREE))
      state.free.append(slot)
      count.store(state.slots.count, ordering: .releasing)
    }
  }

  // MARK: reading what an earlier process did

  /// nil = it was not done.
  func outcome(_ unique: UInt64) -> Outcome? {
    state.withLock { state in
      guard let slot = state.slots[unique], entry(slot).pointee.state == UInt32(VMHA_CHANGE_DONE) else { return nil }
      entry(slot).pointee.era = kept.era
      return Outcome(object: entry(slot).pointee.object, isUncounted: entry(slot).pointee.is_uncounted != 0)
    }
  }

  /// What was begun and has to be decided by looking. A record of an unknown kind answers a change of nil.
  func begun() -> [(unique: UInt64, change: KeptChange?)] {
    state.withLock { state in
      state.slots.filter { entry($0.value).pointee.state == UInt32(VMHA_CHANGE_BEGUN) }.map { unique, slot in
        (unique, read(entry(slot)))
      }
    }
  }

  private func read(_ entry: UnsafeMutablePointer<vmha_kept_change>) -> KeptChange? {
    guard let kind = KeptChange.Kind(rawValue: entry.pointee.kind) else { return nil }
    func bytes(_ text: UnsafeMutablePointer<CChar>?) -> [UInt8] {
      guard let text else { return [] }
      return Array(UnsafeRawBufferPointer(start: text, count: strnlen(text, Int(VMHA_KEPT_NAME_BYTES_MAX))))
    }
    return KeptChange(
      kind: kind, folder: entry.pointee.folder, newFolder: entry.pointee.new_folder, object: entry.pointee.object,
      type: entry.pointee.mode, name: bytes(vmha_change_name(entry)),
      newName: bytes(vmha_change_new_name(entry)))
  }
}
