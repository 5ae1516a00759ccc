import MirrorModule
import Model
import Replication

/// One replication connection: a FIFO each way. A frame waits while the network is down and is lost with the session.
final class Session {
  enum Frame {
    case message(PeerMessage)
    // Of the primary.
    case write(UInt64, Int, Range<Int>), name(UInt64, Int), flush(UInt64)
    case manifest([Int]), identify([Int])
    case compare(UInt64, ResyncPiece, [Int]), data(UInt64, Int, [Int]), copyEnds
    // Of the replica.
    case acknowledged([SequenceRange]), flushed(UInt64)
    case differing(FileContent), compared(UInt64, UInt32), pieceAcknowledged(UInt64)
    /// The other side closed the connection.
    case end
  }
  let id: SessionID
  /// By the side that holds it.
  var isHeld = [true, true]
  /// By the side whose handshake is at its end: what comes before that waits.
  var isBegun = [false, false]
  var queues: [[Frame]] = [[], []]
  private var isPumping = [false, false]

  init(_ id: SessionID) { self.id = id }

  /// No frame is on its way.
  var isIdle: Bool { queues[0].isEmpty && queues[1].isEmpty }

  func send(_ frame: Frame, from node: SimNode) {
    queues[node.index].append(frame)
    pump(from: node, in: node.world.delay(1, 1...4))
  }

  private func pump(from sender: SimNode, in delay: Duration) {
    let side = sender.index
    guard !isPumping[side] else { return }
    isPumping[side] = true
    let receiver = sender.world.peer(of: sender)
    receiver.after(delay) {
      self.isPumping[side] = false
      guard self.isHeld[receiver.index], !self.queues[side].isEmpty else { return }
      guard self.isBegun[receiver.index] else { return self.pump(from: sender, in: .milliseconds(1)) }
      guard sender.world.replicates(from: sender) else { return self.pump(from: sender, in: .milliseconds(100)) }
      let frame = self.queues[side].removeFirst()
      if let engine = receiver.engine, engine.session === self { engine.received(frame) }
      if !self.queues[side].isEmpty { self.pump(from: sender, in: .microseconds(100)) }
    }
  }
}
