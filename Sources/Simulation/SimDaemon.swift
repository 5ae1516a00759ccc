import MirrorModule
import Model

/// The shell of one core: executes directives strictly in order and never decides.
final class SimDaemon {
  /// Few, so that runs are longer than what is kept.
  static let recordedMax = 32

  unowned let node: SimNode
  private(set) var core: MirrorModule
  private(set) var recorder: FlightRecorder
  private var wakeAt: Int64?
  private(set) var heartbeat: SimHeartbeat
  private var nextToken: UInt64 = 0
  private var replies: [UInt64: (ConsentReply) -> Void] = [:]
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

  var world: World { node.world }
  /// Events wait for a disk or a start that goes on.
  var isStuck: Bool { core.durableRecord == nil }

  init(node: SimNode) {
    self.node = node
    core = MirrorModule(settings: node.settings)
    recorder = FlightRecorder(core, entriesMax: Self.recordedMax)
    heartbeat = SimHeartbeat(now: Instant(nanoseconds: node.world.now))
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
    let directives = recorder.handle(event, at: Instant(nanoseconds: world.now), by: &core)
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
      if node.persistFails { return false }
      node.wish = wish
    case .keepLimits(let limits): if !node.persistFails { node.limits = limits }
    case .resolveSplit(let mine, let theirs):
      node.after(world.delay(20, 1...500)) { [weak self] in
        guard let self else { return }
        let verb = Command.Verb.resolve(mine: mine, theirs: theirs)
        self.deliver(.command(Command(id: self.world.random.next(), verb: verb, wishVersion: self.node.wish.version)))
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
    case .replyConsent(let token, let reply): replies.removeValue(forKey: token)?(reply)
    case .readWitness(let id): world.witness.read(id, for: self)
    case .swapWitness(let id, let expect, let register): world.witness.swap(id, expect, register, for: self)
    case .fencePeer(let id): fence(id)
    case .ping(let id):
      node.after(world.delay(20, 5...1500)) { [weak self] in
        guard let self else { return }
        let isReached = self.world.witness.isReached[self.node.index]
        self.deliver(isReached ? .pingAnswered(id: id) : .arbiterFailed(id: id, why: "10.0.0.1 does not answer"))
      }
    case .answer(_, let answer): answers.append(answer)
    case .journal: break
    case .wake(let at): wake(at.nanoseconds)
    }
    return true
  }

  private func wake(_ at: Int64) {
    wakeAt = at
    node.after(.nanoseconds(max(0, at - world.now))) { [weak self] in
      // Only the latest wake-up counts.
      guard let self, self.wakeAt == at else { return }
      self.wakeAt = nil
      self.deliver(.timer)
    }
  }

  private func startEngine() {
    node.after(world.delay(50, 20...400)) { [weak self] in
      guard let self, self.node.daemon === self else { return }
      if self.node.engine == nil { self.node.engine = SimEngine(self.node) }
      self.node.engine?.attach(self)
    }
  }

  private func startGuest() {
    guard node.guest == nil else { return }
    guard let engine = node.engine, engine.isMounted, !node.guestStartFails else {
      world.meet(.guestDoesNotStart)
      return node.after(.milliseconds(50)) { [weak self] in
        self?.deliver(.guestStartFailed(why: "cannot access its disk"))
      }
    }
    world.checkGuestStart(node)
    let guest = SimGuest(node)
    node.guest = guest
    node.after(world.delay(400, 200...900)) { [weak node] in
      if node?.guest === guest, guest.state == .starting { guest.started() }
    }
  }

  /// Durable at once at its end, as by a rename.
  private func archive(_ generation: Generation) {
    let asked = node.copy.contents
    node.after(world.delay(800, 100...4000)) { [weak self] in
      guard let self, self.node.daemon === self else { return }
      if self.node.persistFails || self.node.archiveFails {
        return self.deliver(.branchArchiveFailed(generation.branch, why: "No space left on device"))
      }
      if self.node.copy.contents != asked {
        self.world.violate("I12: \(self.node.name)'s copy changes while it is archived")
      }
      self.node.archives[generation.branch] = self.node.copy.contents
      self.deliver(.branchArchived(generation.branch))
    }
  }

  private func suspendGuest() {
    guard let guest = node.guest else { return }
    if node.suspendFails {
      world.meet(.guestNotSuspended)
      return afterCalls { [weak self] in self?.deliver(.guestSuspendFailed(why: "libvirt is busy")) }
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
    node.after(World.consentTimeout) { [weak self] in
      self?.deliver(.consentFailed(nonce: request.nonce, why: "no answer in time"))
    }
    guard world.reaches(from: node), world.reaches(from: peer) else { return }
    peer.after(world.delay(5, 1...800)) { [weak self] in
      peer.daemon?.answerConsent(request) { reply in
        guard let self else { return }
        guard self.world.reaches(from: peer), self.world.options.isCalm || !self.world.random.chance(10) else {
          return self.world.meet(.consentLost)
        }
        // The next question, with the same generation, may be open by then.
        let isLate = !self.world.options.isCalm && self.world.random.chance(15)
        self.node.after(isLate ? self.world.random.milliseconds(1000...20_000) : self.world.delay(5, 1...2500)) {
          [weak self] in self?.deliver(.consentReplied(reply))
        }
      }
    }
  }

  private func answerConsent(_ request: ConsentRequest, _ reply: @escaping (ConsentReply) -> Void) {
    nextToken += 1
    replies[nextToken] = reply
    deliver(.consentRequested(request, token: nextToken))
  }

  /// The agent: the peer's power goes, whatever it is doing; sometimes nobody hears of it.
  private func fence(_ id: UInt64) {
    let peer = world.peer(of: node)
    let works = !node.fenceFails && (world.options.isCalm || !world.random.chance(15))
    node.after(world.delay(300, 50...4000)) { [weak self] in
      guard let self else { return }
      self.world.meet(works ? .peerFenced : .fenceFailed)
      guard works else { return self.deliver(.arbiterFailed(id: id, why: "the agent failed: no route to host")) }
      let staysOff = !self.world.isHealed && (self.world.options.isCalm || self.world.random.chance(50))
      staysOff ? peer.powerCut() : peer.powerCut(andOnIn: self.world.delay(0, 1...9000))
      guard self.world.options.isCalm || !self.world.random.chance(10) else { return self.world.meet(.fenceUnheard) }
      self.node.after(self.world.delay(50, 1...3000)) { [weak self] in self?.deliver(.peerFenced(id: id)) }
    }
  }

  // MARK: the other node

  /// One turn of HeartbeatLoop: the time is judged before what has come is read.
  func hear() {
    guard node.daemon === self, !node.isFrozen else { return }
    let events = heartbeat.turn(at: node)
    for event in events { deliver(event) }
  }

  // MARK: the configuration

  func configure(_ arbiter: ArbiterPolicy) {
    var settings = core.settings
    settings.arbiter = arbiter
    deliver(.settings(settings))
  }
}
