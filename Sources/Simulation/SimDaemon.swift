import MirrorModule
import Model

/// The shell of one core: executes directives strictly in order and never decides.
final class SimDaemon {
  /// Few, so that runs are longer than what is kept.
  static let recordedMax = 32

  unowned let node: SimNode
  unowned let world: World
  private(set) var core: MirrorModule
  private(set) var recorder: FlightRecorder
  /// nil = the core has changed since it was asked.
  private var known: PeerBeat?
  private var wakeAt: Int64?
  private var heartbeat: SimHeartbeat
  /// As its beats say.
  private(set) var linksHeard: [String] = []
  private(set) var eventsInSecond = (second: Int64(-1), count: 0)
  private(set) var answers: [Answer] = []
  private(set) var startedAt: Int64 = 0
  private var callsEnd: Int64 = 0
  /// As the engine has told it.
  private(set) var session: SessionID?
  /// Under one mount, and since the operator's last command to either node.
  private var guestStarts = 0
  /// No guest was started since the mount.
  private var isFreshlyMounted = false

  /// What was planned for this process finds that it has ended.
  private var isOver: Bool { node.daemon !== self }
  /// Events wait for a disk or a start that goes on.
  var isStuck: Bool { core.durableRecord == nil }

  init(node: SimNode) {
    self.node = node
    world = node.world
    core = MirrorModule(settings: node.settings)
    recorder = FlightRecorder(core, entriesMax: Self.recordedMax)
    heartbeat = SimHeartbeat(now: Instant(nanoseconds: world.now))
  }

  func start() {
    startedAt = world.now
    deliver(
      .loaded(
        record: node.record, wish: node.wish, guest: node.guest.map { $0.isSuspended ? .suspended : .running } ?? .off,
        limits: node.limits))
  }

  func deliver(_ event: Event) {
    guard node.daemon === self else { return }
    switch event {
    // The operator's start may have been heard by the other node.
    case .command, .wish: guestStarts = 0
    case .engine(.connected(let id, _)): session = id
    case .engine(.ready(let report)): session = report.session
    default: break
    }
    let (node, world) = (node, world)
    let directives = recorder.handle(event, at: Instant(nanoseconds: world.now), by: &core)
    known = nil
    let second = world.now / 1_000_000_000
    eventsInSecond = eventsInSecond.second == second ? (second, eventsInSecond.count + 1) : (second, 1)
    world.checkLoad(node, events: eventsInSecond.count, directives: directives)
    for directive in directives {
      if let left = node.daemonDiesAfter {
        if left == 0 {
          world.meet(.vmhadKilledBetweenDirectives)
          return node.diesWithHost ? node.powerCut() : node.killDaemon()
        }
        node.daemonDiesAfter = left - 1
      }
      world.record(node, directive)
      guard execute(directive) else { return deliver(.persistFailed(why: "No space left on device")) }
    }
  }

  /// False when the list must stop here.
  private func execute(_ directive: Directive) -> Bool {
    world.checkBefore(directive, at: node)
    world.meet(directive)
    switch directive {
    case .persist(let record):
      if node.persistFails {
        world.meet(.recordNotWritten)
        return false
      }
      world.checkPersist(record, at: node)
      if record.peerOutdated == .force { world.allowSplit() }
      if node.record?.recordLost == true, record.peerOutdated == .force {
        world.meet(.lostRecordForced)
        world.ledger.blind.insert(record.generation.branch)
        // The operator takes it as it is, whatever it is.
        node.copy.isMixed = false
      }
      node.record = record
    case .persistWish(let wish):
      // ModuleRunner.keep: the node may forget it.
      if !node.persistFails { node.wish = wish }
    case .keepLimits(let limits): if !node.persistFails { node.limits = limits }
    case .resolveSplit(let mine, let theirs):
      node.after(world.delay(20, 1...500)) { [self] in
        guard !isOver else { return }
        let verb = Command.Verb.resolve(mine: mine, theirs: theirs)
        deliver(.command(Command(id: world.random.next(), verb: verb, wishVersion: node.wish.version)))
      }
    case .startEngine: startEngine()
    case .killEngine: node.killEngine()
    case .engine(let command):
      if command == .mount {
        guestStarts = 0
        // Under a mount that stands, the next guest sees what the one before has left, as after any crash of a guest.
        if let engine = node.engine, !engine.isMounted { isFreshlyMounted = true }
      }
      node.engine?.receive(command, from: self)
    case .sendPeer(let session, let message): node.engine?.receive(message, in: session, from: self)
    case .startGuest:
      guestStarts += 1
      world.checkRestarts(of: node, guestStarts, max: core.settings.restartsMax)
      if isFreshlyMounted { world.checkFreshCopy(node) }
      isFreshlyMounted = false
      startGuest()
    case .stopGuest: node.guest.map { $0.shutDown() } ?? node.tellGuest(.guestOff(.shutdown))
    case .destroyGuest: node.guest.map { $0.destroy() } ?? node.tellGuest(.guestOff(.destroyed))
    case .archiveBranch(let generation, _): archive(generation)
    case .suspendGuest: suspendGuest()
    case .resumeGuest: resumeGuest()
    case .askConsent(let request): askConsent(request)
    case .replyConsent(let token, let reply): node.replies.removeValue(forKey: token)?(reply)
    case .readWitness(let id): world.witness.read(id, for: self)
    case .swapWitness(let id, let expect, let register): world.witness.swap(id, expect, register, for: self)
    case .fencePeer(let id): fence(id)
    case .ping(let id):
      node.after(world.delay(20, 5...1500)) { [self] in
        let isReached = world.witness.isReached[node.index]
        deliver(isReached ? .pingAnswered(id: id) : .arbiterFailed(id: id, why: "10.0.0.1 does not answer"))
      }
    case .answer(_, let answer): answers.append(answer)
    case .journal: break
    case .wake(let at): wake(at.nanoseconds)
    }
    return true
  }

  private func wake(_ at: Int64) {
    wakeAt = at
    node.after(.nanoseconds(max(0, at - world.now))) { [self] in
      // Only the latest wake-up counts.
      guard wakeAt == at else { return }
      wakeAt = nil
      deliver(.timer)
    }
  }

  private func startEngine() {
    node.after(world.delay(50, 20...400)) { [self] in
      guard !isOver else { return }
      if node.engine == nil { node.engine = SimEngine(node) }
      node.engine?.attach(self)
    }
  }

  private func startGuest() {
    guard node.guest == nil else { return }
    guard let engine = node.engine, engine.isMounted, !node.guestStartFails else {
      world.meet(.guestDoesNotStart)
      return node.after(.milliseconds(50)) { [self] in
        deliver(.guestStartFailed(why: "cannot access its disk"))
      }
    }
    world.checkGuestStart(node)
    let guest = SimGuest(node)
    node.guest = guest
    node.after(world.delay(400, 200...900)) { [unowned node] in
      if node.guest === guest, guest.state == .starting { guest.started() }
    }
  }

  /// Durable at once at its end, as by a rename.
  private func archive(_ generation: Generation) {
    let asked = node.copy.contents
    node.after(world.delay(800, 100...4000)) { [self] in
      guard !isOver else { return }
      if node.persistFails || node.archiveFails {
        return deliver(.branchArchiveFailed(generation.branch, why: "No space left on device"))
      }
      if node.copy.contents != asked {
        world.violate("I12: \(node.name)'s copy changes while it is archived")
      }
      node.archives[generation.branch] = node.copy.contents
      deliver(.branchArchived(generation.branch))
    }
  }

  private func suspendGuest() {
    guard let guest = node.guest else { return }
    if node.suspendFails {
      world.meet(.guestNotSuspended)
      return afterCalls { [self] in deliver(.guestSuspendFailed(why: "libvirt is busy")) }
    }
    afterCalls { guest.suspend() }
  }

  /// One call of libvirt after the other, as the guest's keeper makes them.
  private func afterCalls(_ run: @escaping () -> Void) {
    callsEnd = max(callsEnd, world.now) + world.delay(50, 10...200).nanoseconds
    node.after(.nanoseconds(callsEnd - world.now), run)
  }

  private func resumeGuest() {
    guard let guest = node.guest else { return }
    afterCalls { guest.resume() }
  }

  // MARK: consent

  private func askConsent(_ request: ConsentRequest) {
    let peer = world.peer(of: node)
    node.after(World.consentTimeout) { [self] in
      deliver(.consentFailed(nonce: request.nonce, why: "no answer in time"))
    }
    guard world.reaches(from: node), world.reaches(from: peer) else { return }
    peer.after(world.delay(5, 1...800)) { [self, unowned peer] in
      peer.daemon?.answerConsent(request) { [self, unowned peer] reply in
        guard !isOver else { return }
        guard world.reaches(from: peer), world.options.isCalm || !world.random.chance(10) else {
          return world.meet(.consentLost)
        }
        // The next question, with the same generation, may be open by then.
        let isLate = !world.options.isCalm && world.random.chance(15)
        node.after(isLate ? world.random.milliseconds(1000...20_000) : world.delay(5, 1...2500)) { [self] in
          deliver(.consentReplied(reply))
        }
      }
    }
  }

  private func answerConsent(_ request: ConsentRequest, _ reply: @escaping (ConsentReply) -> Void) {
    deliver(.consentRequested(request, token: node.expectReply(reply)))
  }

  /// The agent: the peer's power goes, whatever it is doing; sometimes nobody hears of it.
  private func fence(_ id: UInt64) {
    let peer = world.peer(of: node)
    let works = !node.fenceFails && (world.options.isCalm || !world.random.chance(15))
    node.after(world.delay(300, 50...4000)) { [self, unowned peer] in
      guard !isOver else { return }
      world.meet(works ? .peerFenced : .fenceFailed)
      guard works else { return deliver(.arbiterFailed(id: id, why: "the agent failed: no route to host")) }
      let staysOff = !world.isHealed && (world.options.isCalm || world.random.chance(50))
      staysOff ? peer.powerCut() : peer.powerCut(andOnIn: world.delay(0, 1...9000))
      guard world.options.isCalm || !world.random.chance(10) else { return world.meet(.fenceUnheard) }
      node.after(world.delay(50, 1...3000)) { [self] in deliver(.peerFenced(id: id)) }
    }
  }

  // MARK: the other node

  /// What the heartbeat says of the module.
  var beat: PeerBeat {
    if let known { return known }
    let status = core.status
    let beat = PeerBeat(
      state: status.state, readiness: status.readiness, standing: status.standing ?? .inconsistent,
      generation: status.generation ?? DurableRecord.empty.generation, guestRunning: status.guest.isPresent,
      offers: status.offers)
    known = beat
    return beat
  }

  /// One turn of HeartbeatLoop: the time is judged before what has come is read.
  func hear() {
    guard node.daemon === self, !node.isFrozen else { return }
    let events = heartbeat.turn(at: node)
    linksHeard = heartbeat.linksHeard
    for event in events { deliver(event) }
  }

  // MARK: the configuration

  func configure(_ arbiter: ArbiterPolicy) {
    var settings = core.settings
    settings.arbiter = arbiter
    deliver(.settings(settings))
  }
}
