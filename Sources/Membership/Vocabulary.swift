import Model

/// How fast beats come and how long silence may last.
public struct MembershipSettings: Sendable, Hashable {
  /// The peer sends one beat per link this often.
  public var pulse: Duration
  /// Silence on every link for this long = the peer is lost.
  public var detection: Duration
  public init(pulse: Duration, detection: Duration) {
    self.pulse = pulse
    self.detection = detection
  }
}

/// What a link is worth for beats from the peer.
public enum LinkState: String, Sendable, Codable, Hashable {
  case up
  /// Silent for more than `Membership.latePulses` pulses, or not heard yet and not for long.
  case late
  /// Silent for the detection time.
  case lost
  /// The peer is heard, but says for the detection time that it does not hear this node here.
  case oneWay = "one-way"
}

/// Whether the peer's daemon gives signs of life.
public enum PeerPresence: String, Sendable, Codable, Hashable {
  /// Not heard yet, and the detection time since the start is not over.
  case unknown
  case up
  case lost
}

/// One authenticated datagram of the peer.
public struct Beat: Sendable, Hashable {
  public var link: String
  /// The peer's kernel boot id.
  public var boot: String
  /// Grows with every beat of one boot, also when the peer's daemon restarts.
  public var sequence: UInt64
  /// The peer says that it hears this node on this link.
  public var hearsUs: Bool
  public init(link: String, boot: String, sequence: UInt64, hearsUs: Bool) {
    self.link = link
    self.boot = boot
    self.sequence = sequence
    self.hearsUs = hearsUs
  }
}

public enum MembershipEvent: Sendable, Hashable {
  case beat(Beat)
  /// The time asked for by `wakeUp` has come; earlier or more often does no harm.
  case tick
  /// This process did not run for so long (also noticed by itself from the times of the events).
  case stalled(Duration)
  case linksChanged([String])
  case settingsChanged(MembershipSettings)
}

public enum MembershipDirective: Sendable, Hashable {
  case link(String, LinkState, why: String)
  case peer(PeerPresence, why: String)
  /// The peer has booted since it was last heard.
  case peerRestarted(boot: String)
  /// This node itself stood still; silence is counted anew. Whoever serves a guest must suspend first and ask later
  /// (PROTOCOL, timing relations).
  case ownStall(Duration)
  /// Call with `tick` at this time at the latest. Always the last directive; replaces the one before.
  case wakeUp(at: Instant)
}
