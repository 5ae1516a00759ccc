import HostSystem
import Glibc
import Model
import Replication

/// What bounds the memory of a resync beside the copy's own window.
extension Mirror {
  /// Bytes of a manifest that may wait for the link.
  static let manifestQueueBytesMax = 32 << 20

  /// Under the lock: whether a write need not be sent. It keeps what piles up for a target that is busy with its tree small.
  func isLeftToCopy(_ request: GuestRequest, _ token: AcknowledgeMachine.Token, _ state: inout State) -> Bool {
    guard let size = state.copy?.leftToCopy[request.file], let range = request.intent, range.upperBound <= size,
      !state.unmirrored.contains(request.file)
    else { return false }
    return state.machine.leaveToCopy(token)
  }

  /// The guest's changes wait meanwhile, so not for long.
  func awaitManifestRoom(_ session: PeerSession) throws(EngineError) {
    guard !session.hasEnded else { throw EngineError(.link, "the session was lost") }
    guard session.queuedBytes > Self.manifestQueueBytesMax else { return }
    session.push()
    let deadline = monotonicNow() + Engine.acknowledgeStallMax
    while session.queuedBytes > Self.manifestQueueBytesMax {
      guard !session.hasEnded, monotonicNow() < deadline else {
        throw EngineError(.link, "the peer takes the list of files too slowly")
      }
      usleep(1000)
    }
  }
}

/// Where the copy has dropped the cache last: not again for each piece, which would throw away what the kernel has read ahead of it, and
/// what a comparison has just read. A page that fails to be written after that is found by the flush of R8.2.
struct DroppedCache {
  private var last: (file: FileID, bytes: Range<UInt64>)?

  mutating func drop(_ piece: ResyncPiece, _ descriptor: Int32) {
    if piece.wasCompared { return }
    let folios = Backing.wholeFolios(offset: piece.offset, length: piece.length)
    if let last, last.file == piece.file, last.bytes.contains(folios) { return }
    Backing.dropClean(descriptor, offset: piece.offset, length: piece.length)
    last = (piece.file, folios)
  }
}
