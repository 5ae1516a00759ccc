import ControlAPI
import FoundationEssentials
import HostSystem
import Membership
import MirrorModule
import Model
import ModuleConfig
import Synchronization

/// What runs while this host is a member of a cluster: heartbeat, the channel to the peer, the listener for it. Follows
/// changes of cluster.xml without a restart.
final class ClusterServices: Sendable {
  static let eventsMax = 10_000

  let channel: PeerChannel
  private let heartbeat: HeartbeatService
  private let listener: Mutex<PeerListener?> = Mutex(nil)
  private let events: Worker<HeartbeatEvent>

  /// Starts the heartbeat; the peer is answered from `listen` on.
  init(_ membership: ClusterMembership, daemon: Daemon) throws {
    let worker = try Worker<HeartbeatEvent>(name: "membership", eventsMax: Self.eventsMax) { [weak daemon] event in
      daemon?.heartbeatSaid(event)
    }
    events = worker
    let heartbeat = try HeartbeatService(
      configuration: membership.heartbeat, seal: membership.seal, boot: HostSystem.bootID(),
      port: ClusterPorts.heartbeat
    ) { [weak daemon] event in
      if !worker.push(event) {
        daemon?.record(.daemon, .error, "an event of the heartbeat was lost: the queue is full")
      }
    }
    self.heartbeat = heartbeat
    channel = PeerChannel(membership.channel, port: ClusterPorts.control) { link in
      heartbeat.snapshot().links.first { $0.name == link }.map { $0.state == .up } ?? false
    }
  }

  func listen(_ membership: ClusterMembership, daemon: Daemon) throws {
    let setup = daemon.clusterSetup
    let listener = try PeerListener(
      context: membership.context, addresses: membership.localAddresses, port: ClusterPorts.control,
      handler: { [weak daemon] request, _ in daemon?.servePeer(request) ?? Data() },
      allowsJoin: { setup.allowsJoin }, joinHandler: { setup.admit($0, from: $1) },
      report: { [weak daemon] in daemon?.listenerSaid($0) })
    self.listener.withLock { $0 = listener }
  }

  /// cluster.xml changed, or the other host has joined.
  func use(_ membership: ClusterMembership) {
    heartbeat.use(membership.heartbeat)
    channel.use(membership.channel)
    listener.withLock { $0 }?.use(context: membership.context, addresses: membership.localAddresses)
  }

  func setModules(_ beats: [ModuleBeat]) { heartbeat.setModules(beats) }

  var heartbeatSnapshot: HeartbeatSnapshot { heartbeat.snapshot() }

  func stop() {
    listener.withLock { $0 }?.close()
    channel.close()
    heartbeat.stop()
    events.stop()
  }
}

extension Daemon {
  /// On the membership worker: may take its time.
  func heartbeatSaid(_ event: HeartbeatEvent) {
    switch event {
    case .peer(.up, _): peerChanged(alive: true)
    case .peer(.lost, _): peerChanged(alive: false)
    case .peer(.unknown, _): break
    case .link(let name, let state, let why):
      linkChanged(name, ControlAPI.LinkState(rawValue: state.rawValue) ?? .lost, why)
    case .peerRestarted(let boot): peerRestarted(boot: boot)
    case .ownStall(let gap):
      record(.daemon, .warning, "this node stood still for \(gap.milliseconds) ms; the peer's silence is counted anew")
    case .peerModules(let beats): peerBeats(beats)
    case .peerRevision(let revision): peerRevision(revision)
    case .peerLeaving: record(.daemon, .notice, "\(peerName) is going down in order")
    case .socketReady(let link): record(.link, .info, "link \(link): heartbeat socket ready", details: ["link": link])
    case .socketProblem(let link, let why):
      record(.link, .warning, "link \(link): \(why)", details: ["link": link])
    case .warning(let text):
      state.withLock {
        $0.heartbeatWarnings.append(StatusWarning(text, whatToDo: "see docs/operating/failures.md, CPU starvation"))
      }
      record(.daemon, .warning, text)
    }
  }

  private func peerBeats(_ beats: [ModuleBeat]) {
    let runners = snapshot().runners.values
    for beat in beats {
      guard let runner = runners.first(where: { $0.configuration.number == beat.number }) else { continue }
      runner.push(
        .peerBeat(
          PeerBeat(
            // R0: without a usable record its copy is not up to date. Its state must be heard all the same: it serves nobody.
            state: beat.state, readiness: beat.readiness, standing: beat.standing ?? .inconsistent,
            generation: beat.generation,
            guestRunning: beat.flags.contains(.guestRunning), offers: beat.flags.contains(.offers))))
    }
  }

  /// What the next beats say of this node's modules.
  func publishBeats() {
    let view = snapshot()
    let beats = view.runners.values.filter(\.speaks).map { runner -> ModuleBeat in
      let status = runner.status
      // R11: it can neither consent nor use a right, and says so: the peer asks its arbiter. What it acknowledged needs no word of it.
      if runner.isStuck {
        return ModuleBeat(
          number: runner.configuration.number, state: .wait, readiness: .blocked, flags: [], standing: nil,
          generation: Generation(number: 0, branch: .empty))
      }
      var flags: ModuleBeat.Flags = []
      if status.guest.isPresent { flags.insert(.guestRunning) }
      if status.offers { flags.insert(.offers) }
      if status.inSync { flags.insert(.inSync) }
      if status.isAlone { flags.insert(.isAlone) }
      if runner.wish.started { flags.insert(.isWanted) }
      return ModuleBeat(
        number: runner.configuration.number, state: status.state, readiness: status.readiness, flags: flags,
        standing: status.standing, generation: status.generation ?? Generation(number: 0, branch: .empty))
    }
    view.services?.setModules(beats.sorted { $0.number < $1.number })
  }

  func listenerSaid(_ event: PeerListener.Event) {
    switch event {
    case .listening(let address, let port): record(.daemon, .info, "answers the peer on \(address):\(port)")
    case .cannotListen(let address, let why): record(.daemon, .warning, "cannot answer the peer on \(address): \(why)")
    case .refused(let address, let why):
      record(.daemon, .warning, "a connection from \(address) was turned away: \(why)")
    }
  }
}
