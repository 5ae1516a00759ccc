import HostSystem
import Model
import Synchronization

// R2, last line: a node whose writes wait for a peer it does not hear holds its guest's reads as well, by its own clock and
// whatever vmhad does. From then on the guest learns nothing that the other side may have overtaken.
extension Engine {
  struct ReadWatch {
    /// What the core was told last.
    var areHeld = false
  }

  /// Moves the lease of the mount's reads on as far as the policy and the peer allow. Called ten times a second and after
  /// every change of the policy.
  func watchReads() {
    readWatch.withLock { watch in
      let (mounted, session, configuration) = state.withLock { ($0.mounted, $0.session, $0.configuration) }
      guard let gate = mounted?.server.gate, let configuration else { return watch.areHeld = false }
      let now = monotonicNow()
      // The policy is read under this lock: whoever comes last has the latest one.
      switch mirror.policy {
      case .alone, .resyncing, .settling: set(gate, ReadGate.always)
      case .both(let id):
        guard let session, session.id == id else { break }
        // The peer's words count from when they are read: after a stop in the middle of a look at the clock they may be old.
        let looked = Instant(nanoseconds: mirror.clock.load(ordering: .acquiring))
        let heard = now + (configuration.suspendAfter - session.silence(now))
        set(gate, min(heard, looked + configuration.suspendAfter))
      case .frozen:
        // What was left when the session went; never more than a whole term.
        if gate.lease > now + configuration.suspendAfter { set(gate, now + configuration.suspendAfter) }
      }
      let areHeld = !gate.isOpen
      guard areHeld != watch.areHeld else { return }
      watch.areHeld = areHeld
      Log.note(areHeld ? "reads are held: the peer is not heard and nothing is acknowledged" : "reads are served again")
      emit(areHeld ? .readsHeld : .readsReleased)
    }
  }

  /// Kept first: should this process die in between, the next one may serve no read that this one would have held.
  private func set(_ gate: ReadGate, _ end: Instant) {
    kept.readsUntil = end
    gate.setLease(end)
  }

  /// A process that stood still finds its sessions looking alive for a moment, with words in them that are old: it must have looked
  /// at the clock since, and not have given them up then.
  func confirmSession(_ id: SessionID) throws {
    let now = monotonicNow()
    let gap = now - Instant(nanoseconds: mirror.clock.load(ordering: .acquiring))
    let (session, configuration) = state.withLock { ($0.session, $0.configuration) }
    guard let configuration, let session, session.id == id, mirror.policy == .both(id) else {
      throw EngineError(.state, "session \(id) is over, or writes do not need both copies in it")
    }
    guard gap <= configuration.silenceMax / 2 else {
      throw EngineError(.state, "this engine did not run for \(gap.milliseconds) ms")
    }
    let silence = session.silence(now)
    guard silence < configuration.suspendAfter else {
      throw EngineError(.state, "the peer was not heard for \(silence.milliseconds) ms")
    }
    emit(.sessionConfirmed(id))
  }

  var areReadsHeld: Bool { readWatch.withLock { $0.areHeld } }
}
