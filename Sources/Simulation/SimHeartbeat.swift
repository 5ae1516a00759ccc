import Membership
import MirrorModule
import Model

/// HeartbeatLoop: the production's `Membership` over two networks, one beat a tick on each. A beat may be lost, and an old one come again.
struct SimHeartbeat {
  private static let links = ["storage", "lan"]
  private static let tickNanoseconds = World.tick.nanoseconds
  private var membership: Membership
  /// What the peer's module said last; nil = nothing since it came up.
  private var lastBeat: PeerBeat?
  private var newestSequence: UInt64 = 0
  /// By link, one that was heard some time ago.
  private var old: [Beat?] = [nil, nil]

  init(now: Instant) {
    membership = Membership(
      settings: MembershipSettings(pulse: World.tick, detection: World.detection), links: Self.links, now: now)
  }

  var linksHeard: [String] { membership.linksHeard }

  mutating func turn(at node: SimNode) -> [Event] {
    let world = node.world
    var events = handle(.tick, world)
    let peer = world.peer(of: node)
    guard let sender = peer.daemon, peer.isOn, !peer.isFrozen else { return events }
    for (index, link) in Self.links.enumerated() {
      guard (index == 0 ? world.replicationUp : world.lanUp)[peer.index] else { continue }
      if !world.options.isCalm, world.random.below(64) == 0 {
        if world.random.chance(50) {
          world.meet(.beatLost)
          continue
        }
        if let old = old[index] {
          world.meet(.beatReplayed)
          events += handle(.beat(old), world)
        }
      }
      let beat = Beat(
        link: link, boot: peer.bootID, sequence: UInt64(world.now / 1000) + 1,
        hearsUs: sender.linksHeard.contains(link))
      if world.now / Self.tickNanoseconds % 32 == 0 { old[index] = beat }
      events += handle(.beat(beat), world)
      guard beat.sequence > newestSequence else { continue }
      newestSequence = beat.sequence
      if let event = tell(sender, world) { events.append(event) }
    }
    return events
  }

  private mutating func handle(_ event: MembershipEvent, _ world: World) -> [Event] {
    var events: [Event] = []
    for directive in membership.handle(event, at: Instant(nanoseconds: world.now)) {
      switch directive {
      case .peer(.up, _): events.append(.nodeAlive)
      case .peer(.lost, _):
        lastBeat = nil
        events.append(.nodeLost)
      case .peerRestarted:
        (lastBeat, newestSequence) = (nil, 0)
        events.append(.nodeRestarted)
      case .ownStall: world.meet(.ownStall)
      case .link(_, let state, _): if state == .oneWay { world.meet(.linkOneWay) }
      case .peer(.unknown, _), .wakeUp: break
      }
    }
    return events
  }

  private mutating func tell(_ sender: SimDaemon, _ world: World) -> Event? {
    let beat = sender.beat
    if beat != lastBeat {
      if beat.offers { world.meet(.offered) }
      if sender.core.status.isSplit { world.meet(.split) }
    }
    guard beat != lastBeat || !world.options.beatsOnChangeOnly else { return nil }
    lastBeat = beat
    return .peerBeat(beat)
  }
}
