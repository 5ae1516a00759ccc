import Glibc
import HostSystem
import Membership
import Model
import SecureLinks

/// One turn after the other of the heartbeat thread: send what is due, hear what has come, judge.
struct HeartbeatLoop {
  struct Input {
    /// nil = unchanged.
    var configuration: HeartbeatConfiguration?
    var modules: [ModuleBeat]
    var isLeaving: Bool
    var isUrgent: Bool
    var isStopping: Bool
  }

  private var configuration: HeartbeatConfiguration
  private var membership: Membership
  private var sockets: HeartbeatSockets
  private let seal: HeartbeatSeal
  private let boot: String
  private var nextBeat: Instant
  private var lastBeat: Instant
  private var wakeUp: Instant
  private var sequence: UInt64 = 0
  private var peerModules: [ModuleBeat] = []
  /// `peerModules` were told since the peer came up.
  private var areModulesTold = false
  /// Of all links: on a slow link older contents arrive after newer ones.
  private var newestSequence: UInt64 = 0
  private var peerRevision: UInt32?
  private var isPeerLeaving = false
  private var rejected: UInt64 = 0
  private var ready: [Bool] = []

  init(configuration: HeartbeatConfiguration, seal: HeartbeatSeal, boot: String, port: Int, now: Instant) {
    self.configuration = configuration
    self.seal = seal
    self.boot = boot
    membership = Membership(settings: configuration.settings, links: configuration.links.map(\.name), now: now)
    sockets = HeartbeatSockets(port: port)
    sockets.use(configuration.links, now: now)
    (nextBeat, lastBeat, wakeUp) = (now, now, now)
  }

  mutating func turn(_ input: Input) -> [HeartbeatEvent] {
    var events: [HeartbeatEvent] = []
    let now = monotonicNow()
    if let new = input.configuration { events += change(to: new, now) }
    events += sockets.open(now: now).map(Self.event)
    if input.isUrgent { nextBeat = min(nextBeat, max(now, lastBeat + HeartbeatService.extraBeatGap)) }
    if now >= nextBeat {
      events += beat(input)
      lastBeat = now
      // Not a fixed grid: after a stall one beat is enough.
      nextBeat = now + configuration.settings.pulse
    }
    // The time is judged before the datagrams are read: those that waited through an own stall count after it.
    events += handle(.tick, at: now)
    for index in sockets.sockets.indices where ready.indices.contains(index) && ready[index] {
      for datagram in sockets.receive(index) { events += take(datagram, from: index) }
    }
    return events
  }

  mutating func end() { sockets.closeAll() }

  private mutating func change(to new: HeartbeatConfiguration, _ now: Instant) -> [HeartbeatEvent] {
    let names = new.links.map(\.name)
    let isFirst = configuration.links.isEmpty
    configuration = new
    sockets.use(new.links, now: now)
    ready = []
    if isFirst {
      // There was no peer to listen to until now.
      membership = Membership(settings: new.settings, links: names, now: now)
      return []
    }
    return handle(.settingsChanged(new.settings), at: now) + handle(.linksChanged(names), at: now)
  }

  private static func event(_ change: HeartbeatSockets.Change) -> HeartbeatEvent {
    switch change {
    case .ready(let link): .socketReady(link: link)
    case .problem(let link, let why): .socketProblem(link: link, why: why)
    }
  }

  private mutating func beat(_ input: Input) -> [HeartbeatEvent] {
    // Microseconds since boot: grows also when vmhad restarts, so that the peer never takes a new beat for an old one.
    sequence = max(sequence + 1, UInt64(max(0, monotonicNow().nanoseconds / 1000)))
    let heard = membership.linksHeard.prefix(HeartbeatFrame.linkCountMax).map(HeartbeatFrame.linkID)
    var events: [HeartbeatEvent] = []
    for index in sockets.sockets.indices {
      let frame = HeartbeatFrame(
        node: configuration.node, isLeaving: input.isLeaving, revision: configuration.revision,
        link: sockets.sockets[index].identifier, sequence: sequence, boot: boot, linksHeard: heard,
        modules: input.modules)
      guard let body = frame.encode() else {
        preconditionFailure("a beat of \(input.modules.count) modules and \(heard.count) links is within its limits")
      }
      events += sockets.send(seal.seal(body), on: index).map(Self.event)
    }
    return events
  }

  private mutating func take(_ datagram: [UInt8], from index: Int) -> [HeartbeatEvent] {
    let socket = sockets.sockets[index]
    guard let body = seal.open(datagram), let frame = HeartbeatFrame(body), frame.node == configuration.node.peer,
      frame.link == socket.identifier
    else {
      rejected += 1
      return []
    }
    let before = membership.links[index].heardAt
    let beat = Beat(
      link: socket.link.name, boot: frame.boot, sequence: frame.sequence,
      hearsUs: frame.linksHeard.contains(socket.identifier))
    let now = monotonicNow()
    var events = handle(.beat(beat), at: now)
    // A replayed or overtaken beat changes nothing, so what it carries is old too.
    guard membership.links[index].heardAt != before, frame.sequence >= newestSequence else { return events }
    newestSequence = frame.sequence
    if peerRevision != frame.revision {
      peerRevision = frame.revision
      events.append(.peerRevision(frame.revision))
    }
    if peerModules != frame.modules || !areModulesTold {
      (peerModules, areModulesTold) = (frame.modules, true)
      events.append(.peerModules(frame.modules))
    }
    if frame.isLeaving, !isPeerLeaving { events.append(.peerLeaving) }
    isPeerLeaving = frame.isLeaving
    return events
  }

  private mutating func handle(_ event: MembershipEvent, at now: Instant) -> [HeartbeatEvent] {
    // Without links there is no peer yet, and nobody to lose.
    guard !configuration.links.isEmpty else {
      wakeUp = now + configuration.settings.pulse
      return []
    }
    return membership.handle(event, at: now).compactMap { directive in
      switch directive {
      case .link(let name, let state, let why): return .link(name, state, why: why)
      case .peer(let presence, let why):
        // Told again after every return, see `peerModules`.
        if presence != .up { (areModulesTold, peerRevision) = (false, nil) }
        return .peer(presence, why: why)
      case .peerRestarted(let boot):
        (areModulesTold, newestSequence) = (false, 0)
        return .peerRestarted(boot: boot)
      case .ownStall(let gap): return .ownStall(gap)
      case .wakeUp(let time):
        wakeUp = time
        return nil
      }
    }
  }

  /// Until something is due, a datagram has come, or `waker` is signalled.
  mutating func wait(_ waker: WakePipe) {
    let handles = sockets.descriptors
    var entries = handles.map { pollfd(fd: $0, events: Int16(POLLIN), revents: 0) }
    entries.append(pollfd(fd: waker.descriptor, events: Int16(POLLIN), revents: 0))
    let due = min(nextBeat, wakeUp, sockets.nextRetry ?? wakeUp)
    let count = poll(&entries, nfds_t(entries.count), (due - monotonicNow()).pollMilliseconds)
    ready = entries.dropLast().map { count > 0 && $0.revents != 0 }
    if count > 0, entries[handles.count].revents != 0 { waker.drain() }
  }

  var snapshot: HeartbeatSnapshot {
    var snapshot = HeartbeatSnapshot(since: membership.presenceSince)
    snapshot.presence = configuration.links.isEmpty ? .unknown : membership.presence
    snapshot.peerBoot = membership.peerBoot
    snapshot.peerRevision = peerRevision
    snapshot.peerModules = peerModules
    snapshot.rejected = rejected
    snapshot.links = zip(membership.links, sockets.sockets).map { link, socket in
      HeartbeatSnapshot.Link(
        name: link.name, localAddress: socket.link.localAddress, peerAddress: socket.link.peerAddress,
        state: link.state,
        since: link.since, heardAt: link.heardAt, problem: socket.problem)
    }
    return snapshot
  }
}
