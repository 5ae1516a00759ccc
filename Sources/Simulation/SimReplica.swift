import Model
import Replication

/// The peer's stream, applied in order and acknowledged, as in `Replica`.
extension SimEngine {
  /// R1: nothing of the session is applied any more, and nothing of it will be acknowledged.
  func stopReplica() {
    replicaOf = nil
    unsaid = []
  }

  /// A frame of the primary.
  func replicate(_ frame: Session.Frame, _ session: Session) {
    guard replicaOf == session.id else {
      // Only a replica of this session may be spoken to like this (Engine.handle: wrongRole).
      return lose("a frame for a replica, which this node is not")
    }
    let id = session.id
    switch frame {
    case .write(let sequence, let number, let blocks):
      for block in blocks { node.copy.write(block, number) }
      say(sequence, id)
    case .name(let sequence, let number):
      node.copy.append(name: number)
      say(sequence, id)
    case .flush(let sequence):
      sync { engine in
        guard engine.replicaOf == id else { return }
        engine.session?.send(.flushed(sequence), from: engine.node)
      }
    case .manifest(let names): repair(names, session)
    case .identify(let names):
      if names != node.copy.contents.names { world.violate("I8: \(node.name)'s names differ at a swap") }
    case .compare(let sequence, let piece, let blocks):
      let first = Int(piece.offset / Contents.blockBytes)
      var differing: UInt32 = 0
      let parts = Int(Contents.blockBytes / ResyncPlan.blockBytes)
      for (index, number) in blocks.enumerated() where node.copy.contents.blocks[first + index] != number {
        for part in 0..<parts { differing |= 1 << UInt32(index * parts + part) }
      }
      session.send(.compared(sequence, differing), from: node)
    case .data(let sequence, let first, let blocks):
      for (index, number) in blocks.enumerated() { node.copy.write(first + index, number) }
      session.send(.pieceAcknowledged(sequence), from: node)
    case .copyEnds: node.copy.isMixed = false
    default: break
    }
  }

  /// Replica.acknowledge: what was applied is told in batches.
  private func say(_ sequence: UInt64, _ id: SessionID) {
    unsaid.append(sequence)
    guard unsaid.count == 1 else { return }
    later(0...4) { engine in
      guard engine.replicaOf == id, !engine.unsaid.isEmpty else { return }
      var batch = engine.unsaid[...]
      var ranges: [SequenceRange] = []
      while let first = batch.first {
        let last = batch.enumerated().prefix { $0.element == first + UInt64($0.offset) }.count
        ranges.append(SequenceRange(first, through: first + UInt64(last - 1)))
        batch = batch.dropFirst(last)
      }
      engine.unsaid = []
      engine.session?.send(.acknowledged(ranges), from: engine.node)
    }
  }

  /// TreeRepair: the tree becomes the manifest's; a file that is new here is marked first.
  private func repair(_ names: [Int], _ session: Session) {
    node.copy.replace(names: names)
    node.copy.isMixed = true
    let answer: (SimEngine, Bool) -> Void = { engine, isMarked in
      guard engine.replicaOf == session.id else { return }
      guard isMarked else { return engine.lose("the write-intent map cannot be stored") }
      let content: FileContent = engine.node.hasFile ? engine.intents.map.zones(engine.intents.slot) : .fresh
      engine.node.hasFile = true
      session.send(.differing(content), from: engine.node)
    }
    guard !node.hasFile else { return answer(self, true) }
    intents.map.markWhole(intents.slot)
    storeIntents(answer)
  }
}
