import Model
import Replication

/// What a target lacks, on its way to it (`ResyncState`).
struct SimResync {
  /// Stands for the copy where the range order knows requests by number.
  static let requestBits: UInt64 = 0
  let session: SessionID
  let comparesEverything: Bool
  var plan = ResyncPlan(files: [], now: Instant(nanoseconds: 0))
  var isTargetKnown = false
  /// From the manifest until the plan is made: writes are left to the copy.
  var isLeftToCopy = false
  /// Changes wait until the manifest is read.
  var isHolding = true
  var acknowledgements: UInt64 = 0
  var piece: (ResyncPiece, RangeOrder.Ticket)?
  /// Not before.
  var endsAt: Int64
  var isFlushing = false
}

/// The source of a resync, as in `Mirror.resync`.
extension SimEngine {
  private static let file = FileID(rawValue: 7)

  func startResync(_ id: SessionID, _ comparesEverything: Bool) {
    guard session?.id == id, machine.policy == .alone, isMounted, resync == nil else {
      return fail("startResync", "not alone in session \(id)")
    }
    // Mirror.holdChanges
    guard !machine.isDraining else { return fail("startResync", "a drain is in progress") }
    machine.beginDrain()
    resync = SimResync(
      session: id, comparesEverything: comparesEverything,
      endsAt: world.now + world.delay(1500, 300...6000).nanoseconds)
    holdIfStill()
  }

  /// Mirror.beginCopy, once every change that was admitted before is applied here.
  func holdIfStill() {
    guard let id = resync?.session, resync?.isHolding == true, machine.unfinishedMutations == 0 else { return }
    resync?.isHolding = false
    session?.send(.manifest(node.copy.contents.names), from: node)
    var completions: [AcknowledgeMachine.Completion] = []
    do { try machine.setPolicy(.resyncing(id), completions: &completions) } catch {
      return world.violate("I0: \(node.name): \(error)")
    }
    if isDrainWanted { machine.beginDrain() }
    resync?.isLeftToCopy = true
    settle(completions)
    tell(
      .resyncProgress(id, ResyncProgress(bytesTotal: 8, bytesDone: 4, bytesSent: 4, bytesPerSecond: 4, secondsLeft: 1)))
    resumeParked()
  }

  /// Mirror.differing, .differingEnd, .awaitTarget
  func targetAnswered(_ target: FileContent, _ id: SessionID) {
    guard resync?.session == id, resync?.isTargetKnown == false else { return }
    resync?.isTargetKnown = true
    // Every write is sent from here on, and then the map is read: a write that was not sent has marked its zone before.
    resync?.isLeftToCopy = false
    let own: FileContent = resync?.comparesEverything ?? true ? .whole : intents.map.zones(intents.slot)
    let file = ResyncFile(
      file: Self.file, size: Contents.bytes, allocated: Contents.bytes, content: own.union(target))
    if case .zones = file.content { world.meet(.resyncByMap) } else { world.meet(.resyncOfEverything) }
    resync?.plan = ResyncPlan(files: [file], now: Instant(nanoseconds: world.now))
    copyOn()
  }

  /// Mirror.copyAll, step by step.
  private func copyOn() {
    while resync != nil, resync?.piece == nil, let step = resync?.plan.next() {
      switch step {
      case .scan(let file, let from):
        resync?.plan.scanned(file, from: from, data: from..<Contents.bytes, size: Contents.bytes)
      case .copy(let piece):
        let (ticket, startsNow) = order.admit(piece.range, request: SimResync.requestBits)
        resync?.piece = (piece, ticket)
        if startsNow { return pieceHasTurn() } else { return world.meet(.copyWaitedForWrite) }
      case .fileSent: continue
      case .wait: return
      case .done: return flushAhead()
      }
    }
  }

  /// The range is held: what is there is read and takes its place in the stream before any later write to it.
  func pieceHasTurn() {
    guard let id = resync?.session else { return }
    later(0...20) { engine in
      guard engine.resync?.session == id, let (piece, ticket) = engine.resync?.piece else { return }
      let first = Int(piece.offset / Contents.blockBytes)
      let count = Int(piece.length / Contents.blockBytes)
      let blocks = Array(engine.node.copy.contents.blocks[first..<first + count])
      if piece.kind == .compare, let sequence = engine.resync?.plan.sendHashes(piece) {
        engine.session?.send(.compare(sequence, piece, blocks), from: engine.node)
      } else if let sequence = engine.resync?.plan.send(piece, bytes: piece.length) {
        engine.session?.send(.data(sequence, first, blocks), from: engine.node)
      }
      engine.resync?.piece = nil
      engine.release(ticket)
      engine.copyOn()
    }
  }

  func compared(_ sequence: UInt64, _ differing: UInt32, _ id: SessionID) {
    guard resync?.session == id else { return }
    do { try resync?.plan.compared(sequence, differing: differing, now: Instant(nanoseconds: world.now)) } catch {
      return world.violate("I0: \(node.name): \(error)")
    }
    resync?.acknowledgements += 1
    copyOn()
  }

  func pieceAcknowledged(_ sequence: UInt64, _ id: SessionID) {
    guard resync?.session == id else { return }
    let now = Instant(nanoseconds: world.now)
    do { try resync?.plan.acknowledged(SequenceRange(sequence), now: now) } catch {
      return world.violate("I0: \(node.name): \(error)")
    }
    resync?.acknowledgements += 1
    copyOn()
  }

  /// Mirror.flushAhead, then R8.1: from here on both must have every write.
  private func flushAhead() {
    guard let id = resync?.session, resync?.isFlushing == false else { return }
    resync?.isFlushing = true
    _ = barrier(id, syncsHere: false) { engine, code in
      guard code == 0, let ends = engine.resync?.endsAt, engine.resync?.session == id else { return }
      engine.node.after(.nanoseconds(max(0, ends - engine.world.now))) {
        guard engine.node.engine === engine, engine.resync?.session == id else { return }
        engine.endCopy(id)
      }
    }
  }

  private func endCopy(_ id: SessionID) {
    let wasDraining = machine.isDraining
    var completions: [AcknowledgeMachine.Completion] = []
    do { try machine.setPolicy(.settling(id), completions: &completions) } catch {
      return lose("the resync stopped at its end: \(error)")
    }
    if wasDraining { machine.beginDrain() }
    resync = nil
    session?.send(.copyEnds, from: node)
    world.meet(.resyncCopied)
    conclude()
    settle(completions)
    tell(.resyncCopied(id))
  }
}
