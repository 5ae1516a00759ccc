import Model
import Replication

/// This node's write-intent map: `Intents` and `IntentFile`, with a simulated file.
struct SimIntents {
  var map: IntentMap
  let slot: IntentMap.Slot
  /// The file that can be appended to; nil = a checkpoint comes first.
  private var appender: IntentAppender?
  var isStoring = false
  private static let logBytes = 8 * 2 * IntentLog.blockBytes

  /// As an engine opens it: what cannot be relied on says "everything", and what is read is in the page cache, no more (R3).
  init(_ node: SimNode) {
    let reading = node.intentFile.contents.map { bytes in bytes.withUnsafeBytes { IntentLog.read($0) } }
    if reading?.snapshot.isEverything ?? true { node.world.meet(.intentsUnknown) }
    map = IntentMap(reading?.snapshot ?? .everything)
    slot = map.slot(for: node.world.identity)
  }

  /// Writes the batch, as `IntentFile` does: the first block after the others are durable; a checkpoint where there is no room.
  /// Answers the pieces that are written and synced one after the other.
  mutating func pieces(of batch: IntentBatch, nonce: UInt64) -> [(SimNode) -> Void] {
    if var next = appender, let piece = next.append(batch) {
      appender = next
      let head = IntentAppender.Piece.lastBytes
      let others: [(SimNode) -> Void] =
        piece.bytes.count > head ? [{ $0.intentFile.write(piece.bytes[head...], at: piece.offset + head) }] : []
      return others + [{ $0.intentFile.write(piece.bytes[..<head], at: piece.offset) }]
    }
    let bytes = Self.file(map.snapshot(), nonce: nonce)
    appender = IntentAppender(startBytes: bytes.count - Self.logBytes, nonce: nonce, logBytes: Self.logBytes)
    return [{ $0.intentFile.replace(by: bytes) }]
  }

  /// A checkpoint, with an empty log behind it.
  static func file(_ snapshot: IntentSnapshot, nonce: UInt64) -> [UInt8] {
    IntentLog.start(snapshot, nonce: nonce, logBytes: logBytes) + [UInt8](repeating: 0, count: logBytes)
  }

  /// After a failure nothing may follow in this file.
  mutating func abandon() { appender = nil }
}

extension SimEngine {
  enum Cover { case durable, pending }

  /// R3, Intents.covers
  func covers(_ bytes: Range<UInt64>) -> Cover {
    let isCovered = intents.map.touch(intents.slot, bytes: bytes)
    if !isCovered { intents.map.want(intents.slot, bytes: bytes) }
    return isCovered ? .durable : .pending
  }

  /// Makes durable what waits, batch by batch; `done` after all of it, at once if there is nothing.
  func storeIntents(_ done: ((SimEngine, _ isStored: Bool) -> Void)? = nil) {
    if let done { whenStored.append(done) }
    guard !intents.isStoring else { return }
    guard let batch = intents.map.takeBatch() else {
      return storesEnded(true)
    }
    intents.isStoring = true
    write(intents.pieces(of: batch, nonce: world.newNonce()), batch.number)
  }

  private func storesEnded(_ areStored: Bool) {
    let waiting = whenStored
    whenStored = []
    for done in waiting { done(self, areStored) }
  }

  private func write(_ pieces: [(SimNode) -> Void], _ number: UInt64) {
    guard let piece = pieces.first else {
      intents.isStoring = false
      intents.map.stored(number)
      intentsStored()
      return storeIntents()
    }
    piece(node)
    if node.engineDiesStoring { return dieStoring() }
    later(1...12) { engine in
      if engine.node.intentsFail {
        engine.world.meet(.intentsNotWritten)
        engine.node.intentFile.failSync(&engine.world.random)
        engine.intents.isStoring = false
        engine.intents.abandon()
        engine.intents.map.failed(number)
        engine.failUnintended(28)
        // Tried again with the next change.
        return engine.storesEnded(false)
      }
      engine.node.intentFile.sync()
      engine.write(Array(pieces.dropFirst()), number)
    }
  }

  /// The process ends between the write and its sync: the next one finds what nobody has made durable. Often the power goes soon.
  private func dieStoring() {
    node.engineDiesStoring = false
    world.meet(.engineKilledStoring)
    let began = epoch
    node.after(.zero) { [self] in
      guard !isOver, epoch == began else { return }
      world.random.chance(70) ? node.replaceEngine() : node.killEngine()
      guard world.options.hasPowerCuts, world.random.chance(60) else { return }
      node.after(world.random.milliseconds(20...5000)) { [node = self.node, world = self.world] in
        guard !world.isHealed else { return }
        node.powerCut(andOnIn: world.random.milliseconds(500...8000))
      }
    }
  }

  /// Engine.clearIntents, R8.4
  func forgetIntents(_ id: SessionID) {
    guard replicaOf == id else { return }
    intents.map.clearAll()
    storeIntents()
  }

  /// R3, Mirror.clearIntents: every few seconds, while in sync.
  func clearIntentsIfDue() {
    guard !world.options.isCalm, isMounted, !isClearing, world.now - lastClearing >= World.clearInterval.nanoseconds
    else { return }
    lastClearing = world.now
    isClearing = true
    storeIntents { engine, _ in
      guard case .both(let id) = engine.machine.policy, engine.session?.id == id, !engine.machine.isDraining else {
        engine.isClearing = false
        return
      }
      let busy = engine.live.values.compactMap { request in request.intent.map { (engine.intents.slot, $0) } }
      let round = engine.intents.map.beginRound(busy: busy)
      guard round.candidates > 0 else {
        engine.isClearing = false
        return
      }
      let isStarted = engine.barrier(id, syncsHere: true) { engine, code in
        engine.isClearing = false
        guard code == 0, engine.machine.policy == .both(id), engine.session?.id == id else { return }
        engine.world.meet(.intentsCleared)
        engine.intents.map.endRound(round)
      }
      if !isStarted { engine.isClearing = false }
    }
  }
}
