import Model

/// Who is alive on which link, from the peer's beats and the time. Pure: the same events at the same times give the
/// same directives.
public struct Membership: Sendable {
  /// A link is late after so many pulses without a beat.
  public static let latePulses = 3
  /// Boots of the peer that are over; their beats can only be replays. The oldest is forgotten first.
  public static let pastBootsMax = 16

  public struct Link: Sendable, Hashable {
    public let name: String
    public internal(set) var state = LinkState.late
    public internal(set) var since: Instant
    /// When the last beat came; nil = never.
    public internal(set) var heardAt: Instant?
    /// Silence is counted from here: the last beat, the start, or the end of a stall of this node.
    var silentSince: Instant
    /// Since when the peer says that it does not hear this node.
    var unheardSince: Instant?
    var sequence: UInt64 = 0
  }

  public private(set) var links: [Link]
  public private(set) var presence = PeerPresence.unknown
  public private(set) var presenceSince: Instant
  /// The peer's boot id, once heard.
  public private(set) var peerBoot: String?
  public private(set) var settings: MembershipSettings { didSet { lateAfter = Self.lateAfter(settings) } }
  private var lateAfter: Duration
  private var pastBoots: [String] = []
  private var ranAt: Instant

  /// `links` are the names of the configured links, at least one.
  public init(settings: MembershipSettings, links: [String], now: Instant) {
    self.settings = settings
    lateAfter = Self.lateAfter(settings)
    self.links = links.map { Link(name: $0, since: now, silentSince: now) }
    presenceSince = now
    ranAt = now
  }

  /// Links on which the peer was heard lately; the own beats carry them, so that the peer can tell a one-way link.
  public var linksHeard: [String] {
    links.compactMap { $0.heardAt != nil && ($0.state == .up || $0.state == .oneWay) ? $0.name : nil }
  }

  public mutating func handle(_ event: MembershipEvent, at now: Instant) -> [MembershipDirective] {
    var directives = noticeGap(event, now)
    switch event {
    case .beat(let beat): directives += take(beat, now)
    case .tick, .stalled: break
    case .linksChanged(let names): change(to: names, now)
    case .settingsChanged(let new): settings = new
    }
    directives += judge(now)
    directives.append(.wakeUp(at: nextWakeUp(now)))
    return directives
  }

  /// Timing relations: a node that stood still has not listened either, so it must not take its own deafness for the
  /// peer's silence.
  private mutating func noticeGap(_ event: MembershipEvent, _ now: Instant) -> [MembershipDirective] {
    var gap = now - ranAt - settings.pulse
    if case .stalled(let reported) = event { gap = max(gap, reported) }
    ranAt = now
    guard gap + gap > settings.detection else { return [] }
    for index in links.indices where links[index].state != .lost {
      links[index].silentSince = now
      if links[index].unheardSince != nil { links[index].unheardSince = now }
    }
    return [.ownStall(gap)]
  }

  private mutating func take(_ beat: Beat, _ now: Instant) -> [MembershipDirective] {
    guard let index = links.firstIndex(where: { $0.name == beat.link }), !pastBoots.contains(beat.boot) else {
      return []
    }
    var directives: [MembershipDirective] = []
    if let boot = peerBoot, boot != beat.boot {
      pastBoots.append(boot)
      if pastBoots.count > Self.pastBootsMax { pastBoots.removeFirst() }
      for other in links.indices { links[other].sequence = 0 }
      directives.append(.peerRestarted(boot: beat.boot))
    } else if beat.sequence <= links[index].sequence {
      // A replay, or overtaken by a younger one.
      return []
    }
    peerBoot = beat.boot
    links[index].sequence = beat.sequence
    links[index].heardAt = now
    links[index].silentSince = now
    links[index].unheardSince = beat.hearsUs ? nil : links[index].unheardSince ?? now
    return directives
  }

  private mutating func change(to names: [String], _ now: Instant) {
    let old = links
    links = names.map { name in
      old.first { $0.name == name } ?? Link(name: name, since: now, silentSince: now)
    }
  }

  /// Brings every state up to date and tells what changed.
  private mutating func judge(_ now: Instant) -> [MembershipDirective] {
    var directives: [MembershipDirective] = []
    for index in links.indices {
      let state = state(of: index, now)
      guard state != links[index].state else { continue }
      links[index].state = state
      links[index].since = now
      directives.append(.link(links[index].name, state, why: sentence(links[index], now)))
    }
    let isAnyHeard = links.contains { $0.heardAt != nil && $0.state != .lost }
    let areAllLost = links.allSatisfy { $0.state == .lost }
    if isAnyHeard, presence != .up {
      let names = links.filter { $0.heardAt != nil && $0.state != .lost }.map(\.name).joined(separator: ", ")
      directives.append(become(.up, now, why: "heard on \(names)"))
    } else if areAllLost, presence != .lost {
      let time = shortText(settings.detection)
      let why = presence == .up ? "no beat on any link for \(time)" : "no beat on any link within \(time) of the start"
      directives.append(become(.lost, now, why: why))
    }
    return directives
  }

  private mutating func become(_ new: PeerPresence, _ now: Instant, why: String) -> MembershipDirective {
    presence = new
    presenceSince = now
    return .peer(new, why: why)
  }

  private static func lateAfter(_ settings: MembershipSettings) -> Duration {
    min(settings.pulse * latePulses, settings.detection)
  }

  private func state(of index: Int, _ now: Instant) -> LinkState {
    let link = links[index]
    let silence = now - link.silentSince
    if silence >= settings.detection { return .lost }
    // Lost, and not heard since: a stall or a longer detection time does not bring it back.
    if link.state == .lost, link.heardAt.map({ $0 < link.since }) ?? true { return .lost }
    if link.heardAt == nil || silence >= lateAfter { return .late }
    if let unheard = link.unheardSince, now - unheard >= settings.detection { return .oneWay }
    return .up
  }

  private func sentence(_ link: Link, _ now: Instant) -> String {
    switch link.state {
    case .up: "the peer is heard"
    case .late: "no beat for \(shortText(now - link.silentSince))"
    case .lost: link.heardAt == nil ? "never heard" : "no beat for \(shortText(settings.detection))"
    case .oneWay: "the peer is heard, but does not hear this node here"
    }
  }

  /// The next moment at which a state changes by time alone, and at least every pulse, so that an own stall is noticed.
  private func nextWakeUp(_ now: Instant) -> Instant {
    var next = now + settings.pulse
    func consider(_ time: Instant) {
      if time > now { next = min(next, time) }
    }
    for link in links where link.state != .lost {
      consider(link.silentSince + lateAfter)
      consider(link.silentSince + settings.detection)
      if let unheard = link.unheardSince { consider(unheard + settings.detection) }
    }
    return next
  }

  /// "3 s", "2.5 s", "750 ms".
  private func shortText(_ duration: Duration) -> String {
    let milliseconds = duration.milliseconds
    guard milliseconds >= 1000 else { return "\(milliseconds) ms" }
    let tenths = milliseconds / 100
    return tenths % 10 == 0 ? "\(tenths / 10) s" : "\(tenths / 10).\(tenths % 10) s"
  }
}
