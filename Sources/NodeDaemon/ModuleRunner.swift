import FoundationEssentials
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Replication
import Synchronization
import VirtualMachines

/// What a module runner needs of its node; everything may be called from any thread.
protocol ModuleSurroundings: Sendable {
  var paths: HostPaths { get }
  var nodeName: String { get }
  var launcher: EngineLauncher { get }
  /// R5: blocks until the peer answered or could not be reached; throws with the reason.
  func askPeer(_ request: ConsentRequest, module: ModuleName) throws -> ConsentReply
  var arbiters: Arbiters { get }
  var resyncs: ResyncOffice { get }
  /// nil = not known yet.
  var peerAlive: Bool? { get }
  func journal(_ severity: CoreSeverity, _ reason: Reason, module: ModuleName)
  /// After each event that changed what the module says of itself.
  func moduleChanged(_ module: ModuleName, from old: MirrorStatus?, to new: MirrorStatus)
  /// R12: as `vmha resolve` on this node, without blocking.
  func resolveByPolicy(_ module: ModuleName, mine: Generation, theirs: Generation)
  func engineConfiguration(_ module: ModuleConfiguration) -> EngineConfiguration
  func mirrorSettings(_ module: ModuleConfiguration, seed: UInt64) -> MirrorSettings
}

/// Runs one module's core: one event at a time, its directives in order. Never decides.
final class ModuleRunner: Sendable {
  static let eventsMax = 10_000
  /// A command's answer comes from the core at once; this only bounds a core that is busy persisting.
  static let answerTimeout: Duration = .seconds(20)
  /// Between two tries to read what is on disk, as long as the host does not let it be read.
  static let loadRetryPause: Duration = .seconds(5)
  /// Directives that are not carried out after this: the disk of /var/lib/vmha hangs. Longer than a busy disk's worst.
  static let directivesStallMax: Duration = .seconds(10)

  private struct State {
    var core: MirrorModule
    var status: MirrorStatus
    var engineReport: EngineReport?
    var configuration: ModuleConfiguration
    var answers: [UInt64: OneShot<Answer>] = [:]
    var consents: [UInt64: OneShot<ConsentReply>] = [:]
    var nextToken: UInt64 = 1
    var recorder: FlightRecorder
    var isLoaded = false
    /// Why it is not loaded; it is tried again.
    var heldBy: String?
    /// Directives are being carried out.
    var busySince: Instant?
    /// With all its directives carried out: a node whose R4 record hangs serves nobody yet, whatever its core says.
    var isAlone = false
    var turn = ResyncTurn()
    /// What the operator wants, not on disk.
    var unkeptWish: (wish: Wish, triedAt: Instant)?
  }

  let module: ModuleName
  let store: ModuleStore
  let surroundings: any ModuleSurroundings
  private let state: Mutex<State>
  private let worker: Mutex<Worker<CoreEvent>?> = Mutex(nil)
  private let isDetached = Monitor(false)
  private let engine: Mutex<EngineConnection?> = Mutex(nil)
  private let keeper: GuestKeeper

  init(configuration: ModuleConfiguration, surroundings: any ModuleSurroundings, keeper: GuestKeeper) throws {
    module = configuration.name
    self.surroundings = surroundings
    self.keeper = keeper
    store = ModuleStore(paths: surroundings.paths, module: configuration.name)
    let core = MirrorModule(settings: surroundings.mirrorSettings(configuration, seed: randomUInt64()))
    state = Mutex(
      State(core: core, status: core.status, configuration: configuration, recorder: FlightRecorder(core)))
    let worker = try Worker<CoreEvent>(
      name: "core-\(module.text)", eventsMax: Self.eventsMax, onWakeUp: { [weak self] in self?.process(.timer) },
      handler: { [weak self] in self?.process($0) })
    self.worker.withLock { $0 = worker }
    let link = EngineConnection(
      paths: surroundings.paths, module: module, launcher: surroundings.launcher,
      onEvent: { [weak self] in self?.engineSaid($0) },
      onReplaced: { [weak self] report, why in self?.engineReplaced(report, why) },
      onGone: { [weak self] in self?.push(.engineGone(why: $0)) })
    engine.withLock { $0 = link }
    keeper.connect { [weak self] in self?.push($0) }
  }

  /// Reads what is on disk and begins. Blocks for as long as libvirt needs to say what the guest does, and until the host lets the
  /// module's state be read (R0); `told` is called when what this node says of the module has changed.
  func load(peerAlive: @Sendable () -> Bool?, told: @Sendable () -> Void) {
    while true {
      do {
        try loadOnce(peerAlive: peerAlive)
        return told()
      } catch {
        hold("\(error)")
        told()
      }
      if isDetached.wait(timeout: Self.loadRetryPause, until: { $0 ? true : nil }) != nil { return }
    }
  }

  private func hold(_ why: String) {
    let text =
      "the module's state on this node cannot be read: \(why). Nothing is started, stopped or written over here; it is tried again "
      + "every \(Self.loadRetryPause.milliseconds / 1000) s"
    let isNews = state.withLock { state in
      defer { state.heldBy = text }
      return state.heldBy != text
    }
    if isNews { push(.loadFailed(why: text)) }
  }

  /// Throws `HostError` if it is not known what is on disk; then nothing has changed.
  private func loadOnce(peerAlive: @Sendable () -> Bool?, before: () -> Void = {}) throws {
    let guest = keeper.stateAtStart()
    let loaded = try store.load(hasGuest: guest.isLive)
    before()
    for note in loaded.notes { surroundings.journal(.alarm, note, module: module) }
    push(.loaded(record: loaded.record, wish: loaded.wish, guest: guest, limits: loaded.limits))
    if let peerAlive = peerAlive() { push(peerAlive ? .nodeAlive : .nodeLost) }
    state.withLock {
      $0.isLoaded = true
      $0.heldBy = nil
    }
    keeper.watch()
  }

  /// R11: nothing that this core decides can come about before its record is durable, and that does not come. Never of a node that
  /// is alone: it may serve all the same.
  var isStuck: Bool {
    let (since, isAlone) = state.withLock { ($0.busySince, $0.isAlone) }
    return !isAlone && since.map { monotonicNow() - $0 > Self.directivesStallMax } ?? false
  }

  func push(_ event: CoreEvent) {
    let taken = worker.withLock { $0 }?.push(event) ?? false
    if !taken {
      surroundings.journal(
        .alarm, Reason("an event was lost: the module's queue of \(Self.eventsMax) is full or it stopped"),
        module: module)
    }
  }

  var status: MirrorStatus { state.withLock { $0.status } }
  /// Why this register would give this node no right; nil = it would.
  func witnessObjection(_ reading: WitnessReading) -> String? {
    state.withLock { $0.core.witnessObjection(to: reading) }
  }
  var isLoaded: Bool { state.withLock { $0.isLoaded } }
  /// It has something to say of itself: it is loaded, or cannot be.
  var speaks: Bool { state.withLock { $0.isLoaded || $0.heldBy != nil } }
  var engineReport: EngineReport? { state.withLock { $0.engineReport } }
  var configuration: ModuleConfiguration { state.withLock { $0.configuration } }
  var wish: Wish { state.withLock { $0.core.wish } }
  var durableRecord: DurableRecord? { state.withLock { $0.core.durableRecord } }
  var engineProcess: Int32? { engine.withLock { $0 }?.processID }
  var flightRecorder: FlightRecorder { state.withLock { $0.recorder } }

  /// Blocks until the core has answered.
  func command(_ verb: Command.Verb, wishVersion: UInt64) throws -> Answer {
    if case .start = verb { try reloadAfterFailedPersist() }
    let (id, promise) = state.withLock { state in
      let id = state.nextToken
      state.nextToken += 1
      let promise = OneShot<Answer>()
      state.answers[id] = promise
      return (id, promise)
    }
    push(.command(Command(id: id, verb: verb, wishVersion: wishVersion)))
    guard let answer = promise.wait(Self.answerTimeout) else {
      state.withLock { $0.answers[id] = nil }
      throw HostError(.timedOut, "module.command", path: module.text, "the module did not answer; see its log")
    }
    return answer
  }

  /// A core that could not write its record knows nothing any more (R11). The operator's start after the repair begins anew,
  /// with what is on disk.
  private func reloadAfterFailedPersist() throws {
    guard isLoaded, status.standing == nil, state.withLock({ $0.core.durableRecord == nil }) else { return }
    try loadOnce(peerAlive: { surroundings.peerAlive }) {
      state.withLock { state in
        var settings = state.core.settings
        settings.seed = randomUInt64()
        state.core = MirrorModule(settings: settings)
        state.recorder = FlightRecorder(state.core)
      }
    }
  }

  /// R5: the reply is made by the core, and is durable before it is returned; nil = it could not be made durable.
  func consent(to request: ConsentRequest) -> ConsentReply? {
    let (token, promise) = state.withLock { state in
      let token = state.nextToken
      state.nextToken += 1
      let promise = OneShot<ConsentReply>()
      state.consents[token] = promise
      return (token, promise)
    }
    push(.consentRequested(request, token: token))
    let reply = promise.wait(Self.answerTimeout)
    state.withLock { $0.consents[token] = nil }
    return reply
  }

  func reconfigure(_ configuration: ModuleConfiguration) {
    let settings = state.withLock { state in
      state.configuration = configuration
      return surroundings.mirrorSettings(configuration, seed: state.core.settings.seed)
    }
    surroundings.resyncs.prioritise(module, configuration.resyncPriority ?? .normal)
    keeper.reconfigure(configuration)
    push(.settings(settings))
    engine.withLock { $0 }?.send(.configure(surroundings.engineConfiguration(configuration)))
  }

  func askEngineForReport() {
    if status.state != .stop { engine.withLock { $0 }?.send(.report) }
  }

  /// Its result shows in `engineReport`.
  func verify(_ request: VerifyRequest) { engine.withLock { $0 }?.send(.verify(request)) }
  func stopVerify() { engine.withLock { $0 }?.send(.stopVerify) }

  /// vmhad stops; engine and guest go on.
  func detach() {
    isDetached.withLock { $0 = true }
    surroundings.resyncs.end(module)
    keeper.stop()
    engine.withLock { $0 }?.detach()
    worker.withLock { $0 }?.stop()
  }

  /// The module is removed: its engine must be gone too.
  func remove() {
    engine.withLock { $0 }?.send(.exit)
    detach()
  }

  /// The operator's own time limit for the next clean stop.
  func stopWithin(_ timeout: Duration?) { keeper.stopWithin(timeout) }

  func hypervisorSaid(_ event: HypervisorEvent) { keeper.hypervisorSaid(event) }

  // MARK: events

  private func engineSaid(_ event: EngineEvent) {
    switch event {
    case .ready(let report): take(report)
    case .message(let session, let bytes):
      return push(Self.message(of: bytes, in: session))
    default: break
    }
    push(.engine(event))
  }

  /// What the peer's core said, or that it cannot be read: the core then ends the session.
  static func message(of bytes: [UInt8], in session: SessionID) -> CoreEvent {
    do {
      return .peerMessage(session, try JSONDecoder().decode(PeerMessage.self, from: Data(bytes)))
    } catch { return .peerMessageUnreadable(session, why: "\(bytes.count) bytes") }
  }

  private func engineReplaced(_ report: EngineReport, _ why: String) {
    take(report)
    push(.engineReplaced(report, why: why))
  }

  private func take(_ report: EngineReport) {
    let isNews = state.withLock { state in
      let isWorse = report.mountOutlivesCrash == false && state.engineReport?.mountOutlivesCrash != false
      state.engineReport = report
      return isWorse
    }
    if isNews {
      surroundings.journal(
        .notice,
        Reason(
          "a crash of this mount's engine would move the module to the other node: surviving it needs Linux 6.9 or newer"
        ),
        module: module)
    }
  }

  private func process(_ event: CoreEvent) {
    let now = monotonicNow()
    let (directives, old, new) = state.withLock { state in
      let old = state.status
      let directives = state.recorder.handle(event, at: now, by: &state.core)
      state.status = state.core.status
      state.busySince = now
      return (directives, old, state.status)
    }
    for directive in directives {
      do { try execute(directive) } catch {
        // The barrier: nothing after a failed persist is done.
        return process(.persistFailed(why: "\(error)"))
      }
    }
    followTurn()
    keepWishAgain()
    // Behind the directives: a takeover does not wait for a date.
    if let branch = new.generation?.branch, branch != old.generation?.branch { noteBranch(branch) }
    if let copied = new.resync, copied.isBeyond(old.resync) { surroundings.resyncs.moved(module) }
    state.withLock {
      $0.busySince = nil
      $0.isAlone = new.isAlone
    }
    if old != new { surroundings.moduleChanged(module, from: old, to: new) }
  }

  // MARK: directives

  /// Throws only for `persist`.
  private func execute(_ directive: CoreDirective) throws {
    switch directive {
    case .persist(let record): try store.write(record)
    case .persistWish(let wish): keep(wish)
    case .keepLimits(let limits): keep(limits)
    case .startEngine: engine.withLock { $0 }?.start(surroundings.engineConfiguration(configuration))
    case .killEngine: engine.withLock { $0 }?.kill()
    case .engine(.startResync(let session, let comparesEverything)):
      state.withLock { $0.turn.hold(.startResync(session, comparesEverything: comparesEverything)) }
      followTurn()
      // The target has no guest any more. One that stood still and went on may have sent a last frame until then, behind which every
      // switch looks for this guest at the other node.
      keeper.announce()
    case .engine(let command): engine.withLock { $0 }?.send(command)
    case .sendPeer(let session, let message): send(message, in: session)
    case .startGuest: keeper.start()
    case .stopGuest: keeper.stopInOrder()
    case .destroyGuest: keeper.destroy()
    case .suspendGuest: keeper.suspend()
    case .resumeGuest: keeper.resume()
    case .archiveBranch(let generation, let kept): archive(generation, kept: kept)
    case .resolveSplit(let mine, let theirs): surroundings.resolveByPolicy(module, mine: mine, theirs: theirs)
    case .askConsent(let request): ask(request)
    case .readWitness(let id): surroundings.arbiters.readWitness(id, module) { [weak self] in self?.push($0) }
    case .swapWitness(let id, let expect, let register):
      surroundings.arbiters.swapWitness(id, module, expect: expect, register) { [weak self] in self?.push($0) }
    case .fencePeer(let id): surroundings.arbiters.fence(id) { [weak self] in self?.push($0) }
    case .ping(let id): surroundings.arbiters.ping(id) { [weak self] in self?.push($0) }
    case .replyConsent(let token, let reply): state.withLock { $0.consents[token] }?.fulfil(reply)
    case .answer(let id, let answer): state.withLock { $0.answers.removeValue(forKey: id) }?.fulfil(answer)
    case .journal(let severity, let reason): surroundings.journal(severity, reason, module: module)
    case .wake(let time): worker.withLock { $0 }?.setWakeUp(at: time)
    }
  }

  /// Nothing is decided by it that could lose a write: a node that forgets it does after its next start what it was told before, or
  /// what the other node, which was told too, says then.
  private func keep(_ wish: Wish) {
    let wasKept = state.withLock { $0.unkeptWish == nil }
    do {
      try store.write(wish)
      state.withLock { $0.unkeptWish = nil }
      guard !wasKept else { return }
      surroundings.journal(
        .notice, Reason("that the module shall be \(wish.started ? "started" : "stopped") is on this node's disk now"),
        module: module)
    } catch {
      state.withLock { $0.unkeptWish = (wish, monotonicNow()) }
      guard wasKept else { return }
      surroundings.journal(
        .alarm,
        Reason(
          "that the module shall be \(wish.started ? "started" : "stopped") cannot be written: \(error). It is carried out, and may "
            + "be forgotten if this host ends; it is tried again"), module: module)
    }
  }

  private func keepWishAgain() {
    let due = state.withLock { state in
      state.unkeptWish.flatMap { $0.triedAt + Self.loadRetryPause <= monotonicNow() ? $0.wish : nil }
    }
    if let due { keep(due) }
  }

  /// Only here, on the core's own thread, so that no command to the engine overtakes another one.
  private func followTurn() {
    while true {
      let steps = state.withLock { state in state.turn.follow(state.core.sourceSession) }
      if steps.isEmpty { return }
      let priority = configuration.resyncPriority ?? .normal
      for step in steps {
        switch step {
        case .end: surroundings.resyncs.end(module)
        case .ask(let session):
          surroundings.resyncs.ask(module, session, priority)
          if let ahead = surroundings.resyncs.ahead(of: module) {
            surroundings.journal(
              .notice,
              Reason("its resync waits for its turn: \(ahead.higherPriority + ahead.others) others come before it"),
              module: module)
          }
        case .goesOn(let session): surroundings.resyncs.goesOn(module, session, priority)
        case .send(let command): engine.withLock { $0 }?.send(command)
        }
      }
    }
  }

  /// It is this module's turn to be resynchronised. Any thread.
  func takeTurn(_ session: SessionID) {
    state.withLock { $0.turn.grant(session) }
    push(.timer)  // Any event would do: behind it the turn is followed.
  }

  private func send(_ message: PeerMessage, in session: SessionID) {
    do {
      let bytes = [UInt8](try JSONEncoder().encode(message))
      engine.withLock { $0 }?.send(.send(session, bytes))
    } catch { preconditionFailure("a message of this program must be encodable: \(error)") }
  }

  private func ask(_ request: ConsentRequest) {
    do {
      try HostThread.start(name: "consent-\(module.text)") {
        do {
          let reply = try self.surroundings.askPeer(request, module: self.module)
          self.push(.consentReplied(reply))
        } catch { self.push(.consentFailed(nonce: request.nonce, why: "\(error)")) }
      }
    } catch { push(.consentFailed(nonce: request.nonce, why: "\(error)")) }
  }
}

/// A value that one thread waits for and another one gives, once.
final class OneShot<Value: Sendable>: Sendable {
  private let monitor = Monitor<Value?>(nil)
  func fulfil(_ value: Value) { monitor.withLock { if $0 == nil { $0 = value } } }
  /// nil after `timeout`.
  func wait(_ timeout: Duration) -> Value? { monitor.wait(timeout: timeout) { $0 } }
}
