import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// This node's write-intent map (R3), in memory and on disk: which zones of which files may differ from the peer's.
/// `IntentMap` decides, `IntentFile` keeps; this is their lock. Taken inside the mirror's lock, never the other way round.
final class Intents: Sendable {
  private struct State {
    var map: IntentMap
    /// nil = the file has no identity: it is compared as a whole anyway, and needs no intents.
    var slots: [FileID: IntentMap.Slot?] = [:]
  }
  private let state: Mutex<State>
  private let file: Mutex<IntentFile>
  /// Something waits to be stored, zones ahead of a stream included. A hint: `hasPending` knows.
  private let isWanting = Atomic<Bool>(false)
  /// Why everything counts as possibly different, if the file could not tell.
  let note: String?

  /// Opens the map, or begins one in which everything may differ. Throws if there is no folder for it.
  init(path: String) throws {
    let (file, snapshot, note) = try IntentFile.open(path: path)
    self.note = note
    self.file = Mutex(file)
    state = Mutex(State(map: IntentMap(snapshot)))
  }

  // MARK: the writer

  enum Cover {
    case durable
    /// What is missing waits to be stored: call `store`, then ask again.
    case pending
    /// It cannot be told which file this is: nothing may be changed.
    case failed(Errno)
  }

  /// R3: whether these bytes may be changed now. `object` is asked for once a file.
  func covers(_ id: FileID, _ bytes: Range<UInt64>, object: () throws(Errno) -> Int32) -> Cover {
    state.withLock { state -> Cover in
      let known: IntentMap.Slot?
      if let cached = state.slots[id] {
        known = cached
      } else {
        do throws(Errno) { known = try Self.lookUp(id, object, &state) } catch { return .failed(error) }
      }
      guard let slot = known else { return .durable }
      let isCovered = state.map.touch(slot, bytes: bytes)
      if !isCovered { state.map.want(slot, bytes: bytes) }
      if state.map.hasPending { isWanting.store(true, ordering: .relaxed) }
      return isCovered ? .durable : .pending
    }
  }

  var wantsStore: Bool { isWanting.load(ordering: .relaxed) }

  /// An error is not remembered, and is not "no identity": the file may have one, and then it would not be compared.
  private static func lookUp(
    _ id: FileID, _ object: () throws(Errno) -> Int32, _ state: inout State
  ) throws(Errno) -> IntentMap.Slot? {
    let slot = try FileIdentities.read(try object()).map { state.map.slot(for: $0) }
    state.slots[id] = .some(slot)
    return slot
  }

  var hasPending: Bool { state.withLock { $0.map.hasPending } }

  enum Stored { case all, failed, elsewhere }

  /// Makes durable what waits, unless another thread is at it: that one does it all. `stored` is called after each batch,
  /// with the error if it could not be stored, which ends it.
  func store(_ stored: (Errno?) -> Void) -> Stored {
    file.withLockIfAvailable { file in
      isWanting.store(false, ordering: .relaxed)
      return writeAll(file, stored) == nil ? .all : .failed
    } ?? .elsewhere
  }

  /// Ends with the first batch that could not be stored, and answers why.
  private func writeAll(_ file: IntentFile, _ stored: (Errno?) -> Void = { _ in }) -> Errno? {
    while let batch = state.withLock({ $0.map.takeBatch() }) {
      let failure = write(batch, file)
      stored(failure)
      if let failure { return failure }
    }
    return nil
  }

  private func write(_ batch: IntentBatch, _ file: IntentFile) -> Errno? {
    do {
      try file.store(batch) { state.withLock { $0.map.snapshot() } }
      state.withLock { $0.map.stored(batch.number) }
      return nil
    } catch {
      Log.note("\(error)")
      state.withLock { $0.map.failed(batch.number) }
      return Errno(error.errno == 0 ? EIO : error.errno)
    }
  }

  /// `store`, waiting for its turn.
  private func storeNow() throws(Errno) {
    if let failure = file.withLock({ writeAll($0) }) { throw failure }
  }

  /// Before a guest writes: makes durable what was read, in a new file, so that its first write does not wait for either. Not
  /// more: while this has not succeeded no mark counts (R3), and each write tries again, or fails.
  func prepare() throws {
    try storeNow()
    try file.withLock { file in
      if file.needsCheckpoint { try file.checkpoint(state.withLock { $0.map.snapshot() }) }
    }
  }

  // MARK: identities

  /// Before the manifest tells of the file: gives it an identity if it has none, or one that another file has too. Nothing
  /// changes the file meanwhile.
  func identify(_ id: FileID, _ object: Int32, seen: inout Set<FileIdentity>) throws(Errno) {
    var identity = try FileIdentities.read(object)
    if let known = identity, !seen.insert(known).inserted { identity = nil }
    if identity == nil {
      identity = try FileIdentities.give(object)
      if let identity { seen.insert(identity) }
    }
    state.withLock { state in state.slots[id] = .some(identity.map { state.map.slot(for: $0) }) }
  }

  /// The number may come back as another file.
  func forget(_ id: FileID) { state.withLock { _ = $0.slots.removeValue(forKey: id) } }
  /// Numbers may mean other files from now on.
  func forgetAll() { state.withLock { $0.slots = [:] } }

  /// What may differ from the peer's copy, as far as this node knows.
  func content(of identity: FileIdentity) -> FileContent {
    state.withLock { $0.map.zones(of: identity) }
  }

  /// The same of a file that `identify` has seen; one without an identity is looked at as a whole.
  func content(of id: FileID) -> FileContent {
    state.withLock { state in (state.slots[id] ?? nil).map { state.map.zones($0) } ?? .whole }
  }

  // MARK: the target

  /// Durably: nothing is known of these files. Before they get the source's identities.
  func markWhole(_ identities: [FileIdentity]) throws(Errno) {
    guard !identities.isEmpty else { return }
    state.withLock { state in
      for identity in identities {
        let slot = state.map.slot(for: identity)
        state.map.markWhole(slot)
      }
    }
    try storeNow()
  }

  /// R8.4: this node has adopted the source's generation, so nothing of its own differs any more.
  func clear() throws(Errno) {
    state.withLock { $0.map.clearAll() }
    try storeNow()
  }

  // MARK: clearing (R3)

  /// Before a joint flush is issued. nil = nothing could be cleared by it.
  func beginRound(busy: [(FileID, Range<UInt64>)]) -> IntentRound? {
    state.withLock { state in
      let touched = busy.compactMap { item in (state.slots[item.0] ?? nil).map { ($0, item.1) } }
      let round = state.map.beginRound(busy: touched)
      return round.candidates == 0 ? nil : round
    }
  }

  /// After that flush, under the mirror's lock, still in sync.
  func endRound(_ round: IntentRound) { state.withLock { $0.map.endRound(round) } }

  /// What a resync would have to look at by this map; nil = everything.
  var bytesMarked: UInt64? {
    state.withLock { $0.map.isEverything ? nil : UInt64($0.map.zonesSet) * ResyncPlan.zoneBytes }
  }
}
