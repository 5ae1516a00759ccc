import MirrorModule
import Model

/// vmha-replicad as EngineProtocol describes it, over the tiny data of `Copy`.
final class SimEngine {
  final class Request {
    enum Kind { case write(Int), flush }
    let kind: Kind
    let done: () -> Void
    var isApplied = false
    var peerHasItIn: SessionID?
    init(kind: Kind, done: @escaping () -> Void) {
      self.kind = kind
      self.done = done
    }
  }

  unowned let node: SimNode
  private weak var daemon: SimDaemon?
  private(set) var policy = AcknowledgePolicy.frozen
  private(set) var isMounted = false
  private(set) var session: Session?
  /// The session whose stream it applies.
  private(set) var replicaOf: SessionID?
  private(set) var wantsConnection = false
  private var request: Request?
  private var isDraining = false
  private var lastHeard: Int64 = 0
  /// Until when reads are served; nil = without an end.
  private var lease: Int64?
  /// Since when they are not.
  private(set) var heldSince: Int64?
  private var commands: [(SimEngine) -> Void] = []
  private var isWorking = false
  /// Dead, and not replaced yet: counts replacements, so that an older plan finds a newer one.
  private var replacements = 0
  private var isAway = false
  /// The vmhad that saw the old one die.
  private weak var attachedBefore: SimDaemon?

  var world: World { node.world }

  init(_ node: SimNode) { self.node = node }

  // MARK: towards vmhad

  func attach(_ daemon: SimDaemon) {
    self.daemon = daemon
    // The next engine answers whoever waits.
    if isAway { return }
    enqueue { $0.tell(.ready($0.report)) }
  }

  private func tell(_ event: EngineEvent) {
    guard let daemon, !isAway else { return }
    node.after(.microseconds(300)) { [weak daemon] in daemon?.deliver(.engine(event)) }
  }

  private var report: EngineReport {
    var report = EngineReport(
      processID: 1, role: isMounted ? .primary : replicaOf != nil ? .replica : .idle, policy: policy)
    report.session = session?.id
    report.isMounted = isMounted
    report.areReadsHeld = heldSince != nil
    return report
  }

  func receive(_ command: EngineCommand, from daemon: SimDaemon) {
    guard daemon === self.daemon, !isAway else { return }
    enqueue { $0.obey(command) }
  }

  func receive(_ message: PeerMessage, in id: SessionID, from daemon: SimDaemon) {
    guard daemon === self.daemon, !isAway else { return }
    enqueue { engine in
      guard let session = engine.session, session.id == id else { return }
      engine.world.checkSent(message, by: engine.node)
      session.send(.message(message), from: engine.node)
    }
  }

  private func enqueue(_ command: @escaping (SimEngine) -> Void) {
    commands.append(command)
    work()
  }

  private func work() {
    guard !isWorking, !commands.isEmpty else { return }
    isWorking = true
    node.after(world.delay(1, 1...8)) { [weak self] in
      guard let self, self.node.engine === self else { return }
      self.isWorking = false
      guard !self.commands.isEmpty else { return }
      let next = self.commands.removeFirst()
      next(self)
      self.work()
    }
  }

  private func obey(_ command: EngineCommand) {
    switch command {
    case .configure, .report: tell(.ready(report))
    case .connect:
      wantsConnection = true
      world.planConnection()
    case .endSession:
      wantsConnection = false
      closeSession()
      tell(.sessionEnded)
    // Every resync of this world copies everything.
    case .send, .clearIntents, .verify, .stopVerify: break
    case .acceptReplication(let id):
      guard !isMounted else { return fail("acceptReplication", "the file system is mounted") }
      guard session?.id == id else { return fail("acceptReplication", "the session is over") }
      replicaOf = id
    case .mount:
      if !isMounted {
        isMounted = true
        policy = .frozen
        lease = world.now + World.suspendAfter.nanoseconds
      }
      tell(.mounted(fuseConnection: 1))
    case .unmount(let force): unmount(force: force)
    case .setPolicy(let policy): set(policy)
    case .startResync(let id, let comparesEverything):
      if !comparesEverything { world.checkPairing(of: node) }
      startResync(id)
    case .flushBarrier(let id):
      guard let session, session.id == id else { return fail("flushBarrier", "the session is over") }
      node.copy.flush()
      session.send(.barrier, from: node)
    case .drain:
      isDraining = true
      drainedIfIdle()
    case .syncFiles:
      node.copy.flush()
      tell(.filesSynced)
    case .exit:
      let watcher = daemon
      leave()
      if world.options.reportsExit {
        node.after(.milliseconds(5)) { [weak watcher] in watcher?.deliver(.engineGone(why: "exit status 0")) }
      }
    }
  }

  func breakDisk(_ errno: Int32) { tell(.diskError(operation: "pwrite", path: "disk.qcow2", errno: errno)) }

  private func fail(_ command: String, _ why: String) { tell(.failed(command: command, why: why)) }

  private func unmount(force: Bool) {
    if node.guest != nil, isMounted {
      guard force else { return fail("unmount", "files are open") }
      node.guest?.hasLostDisks = true
    }
    if force || node.guest == nil { request = nil }
    isMounted = false
    heldSince = nil
    isDraining = false
    policy = .frozen
    tell(.unmounted)
  }

  private func set(_ next: AcknowledgePolicy) {
    switch next {
    case .settling(let id), .both(let id), .resyncing(let id):
      guard session?.id == id else { return fail("setPolicy", "session \(id) is over") }
      if replicaOf == id { replicaOf = nil }
    case .alone, .frozen: break
    }
    guard isMounted else { return fail("setPolicy", "not mounted") }
    policy = next
    isDraining = false
    world.checkPolicy(next, at: node)
    watchReads()
    progress()
  }

  /// Everything of it is gone: the peer sees the end, the guest loses its disks.
  func leave() {
    closeSession()
    if isMounted { node.guest?.hasLostDisks = true }
    request = nil
    daemon = nil
    node.engine = nil
  }

  /// The process dies and its keeper starts another one under the mount: the guest's request waits in the kernel and is handed
  /// out again; what was applied was applied. Without a mount there is nothing to go on with.
  func beReplaced() {
    guard isMounted else { return node.killEngine() }
    closeSession()
    commands = []
    policy = .frozen
    isDraining = false
    wantsConnection = false
    request?.peerHasItIn = nil
    heldSince = nil
    isAway = true
    world.meet(.engineReplaced)
    replacements += 1
    let plan = replacements
    node.after(world.delay(60, 20...900)) { [weak self] in
      guard let self, self.node.engine === self, self.isAway, self.replacements == plan else { return }
      // Sometimes it does not come back: then both end.
      if !self.world.options.isCalm, self.world.random.chance(10) {
        self.world.meet(.engineNotReplaced)
        return self.node.killEngine("it was not replaced")
      }
      // Whether reads wait is in its report.
      self.watchReads()
      self.isAway = false
      // A vmhad that came meanwhile waited on the keeper's socket.
      guard let daemon = self.daemon else { return }
      let report = self.report
      self.node.after(.microseconds(300)) { [weak daemon] in
        let sawItDie = daemon === self.attachedBefore
        daemon?.deliver(sawItDie ? .engineReplaced(report, why: "killed by signal 9") : .engine(.ready(report)))
      }
    }
    attachedBefore = daemon
  }

  // MARK: session

  func begin(_ session: Session) {
    self.session = session
    lastHeard = world.now
    tell(.connected(session.id, link: "storage"))
  }

  private func closeSession() {
    guard let ended = session else { return }
    ended.isHeld[node.index] = false
    if !world.options.isCalm {
      // What was queued dies; what the network already has may still arrive.
      let kept = world.random.below(ended.queues[node.index].count + 1)
      ended.queues[node.index].removeLast(ended.queues[node.index].count - kept)
    }
    ended.send(.end, from: node)
    fallBack()
  }

  func loseSessionSilently() { session?.isHeld[node.index] = false }

  private func fallBack() {
    session = nil
    replicaOf = nil
    switch policy {
    case .resyncing, .settling: policy = .alone
    case .both: policy = .frozen
    case .frozen, .alone: break
    }
    progress()
  }

  private func lose(_ why: String) {
    guard let lost = session else { return }
    lost.isHeld[node.index] = false
    fallBack()
    tell(.sessionLost(lost.id, policy: policy, why: why))
    world.planConnection()
  }

  func forgiveSilence() {}

  func lookForSilence() {
    guard !node.isFrozen, !isAway else { return }
    defer { watchReads() }
    guard let session else { return }
    let peer = world.peer(of: node)
    let isHeard = world.replicates(from: peer) && peer.isOn && !peer.isFrozen && peer.engine?.session === session
    if isHeard { lastHeard = world.now }
    if world.now - lastHeard > World.silenceMax.nanoseconds { lose("nothing heard for 2 s") }
  }

  /// R2, last line: the lease of the guest's reads, by the engine's own clock.
  private func watchReads() {
    guard isMounted else { return }
    let term = world.now + World.suspendAfter.nanoseconds
    switch policy {
    case .alone, .resyncing, .settling: lease = nil
    case .both: if session != nil { lease = lastHeard + World.suspendAfter.nanoseconds }
    case .frozen: lease = min(lease ?? term, term)
    }
    let isHeld = lease.map { world.now >= $0 } ?? false
    guard isHeld != (heldSince != nil) else { return }
    heldSince = isHeld ? world.now : nil
    tell(isHeld ? .readsHeld : .readsReleased)
  }

  // MARK: the stream

  func received(_ frame: Session.Frame) {
    guard let session else { return }
    lastHeard = world.now
    let applies = replicaOf == session.id
    switch frame {
    case .end: lose("closed by the peer")
    case .message(let message):
      tell(.message(session.id, []))
      deliverMessage(message, session.id)
    case .write(let number):
      guard applies else { return }
      if !node.copy.isMixed { node.copy.log.append(number) }
      session.send(.acknowledged, from: node)
    case .flush, .barrier:
      guard applies else { return }
      node.copy.flush()
      if case .barrier = frame { return session.send(.barrierDone, from: node) }
      session.send(.acknowledged, from: node)
    case .acknowledged:
      request?.peerHasItIn = session.id
      progress()
    case .barrierDone: tell(.barrierDone(session.id))
    case .copyBegins: if applies { node.copy.isMixed = true }
    case .copy(let log):
      guard applies else { return }
      node.copy = Copy(log: log, flushed: 0, isMixed: false)
    }
  }

  private func deliverMessage(_ message: PeerMessage, _ id: SessionID) {
    guard let daemon else { return }
    node.after(.microseconds(300)) { [weak daemon] in daemon?.deliver(.peerMessage(id, message)) }
  }

  private func startResync(_ id: SessionID) {
    guard let session, session.id == id, policy == .alone else {
      return fail("startResync", "not alone in session \(id)")
    }
    policy = .resyncing(id)
    session.send(.copyBegins, from: node)
    tell(
      .resyncProgress(id, ResyncProgress(bytesTotal: 8, bytesDone: 4, bytesSent: 4, bytesPerSecond: 4, secondsLeft: 1)))
    node.after(world.delay(1500, 300...6000)) { [weak self] in
      guard let self, self.node.engine === self, self.policy == .resyncing(id) else { return }
      session.send(.copy(self.node.copy.log), from: self.node)
      self.policy = .settling(id)
      self.world.meet(.resyncCopied)
      self.tell(.resyncCopied(id))
    }
  }

  // MARK: guest requests

  func accept(_ next: Request) {
    request = next
    progress()
  }

  func forgetRequest() {
    request = nil
    drainedIfIdle()
  }

  /// It was not answered, and nothing under way will answer it.
  var hasStuckRequest: Bool { request != nil && (policy == .frozen || isDraining) }

  private func drainedIfIdle() {
    guard isDraining, request == nil || request?.isApplied == false else { return }
    isDraining = false
    policy = .frozen
    tell(.drained)
  }

  private func progress() {
    guard isMounted, let request else { return }
    if !request.isApplied {
      guard policy != .frozen, !isDraining else { return }
      apply(request)
    }
    let isDone: Bool
    switch policy {
    case .frozen: isDone = false
    case .alone, .resyncing: isDone = true
    case .settling(let id), .both(let id): isDone = request.peerHasItIn == id
    }
    guard isDone else { return }
    self.request = nil
    world.acknowledged(request.kind, by: node, policy)
    drainedIfIdle()
    request.done()
  }

  /// R2: applied here and sent in the session; only the answer waits for the peer.
  private func apply(_ request: Request) {
    request.isApplied = true
    let frame: Session.Frame
    switch request.kind {
    case .write(let number):
      node.copy.log.append(number)
      frame = .write(number)
    case .flush:
      node.copy.flush()
      frame = .flush
    }
    switch policy {
    case .resyncing, .settling, .both: session?.send(frame, from: node)
    case .frozen, .alone: break
    }
  }
}
