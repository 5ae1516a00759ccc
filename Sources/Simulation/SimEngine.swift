import MirrorModule
import Model
import Replication

/// vmha-replicad as EngineProtocol describes it: the production's pure values (`AcknowledgeMachine`, `RangeOrder`, `IntentMap`,
/// `IntentLog`, `ResyncPlan`, `StallWatch`) called in the order in which `Mirror`, `Replica` and `Engine` call them, over
/// simulated disks and links. What is I/O in production takes random time here, and dies with its process.
final class SimEngine {
  unowned let node: SimNode
  unowned let world: World
  private var attached: SimDaemon?
  /// nil = nobody listens, or who did has ended.
  private var daemon: SimDaemon? { attached === node.daemon ? attached : nil }
  var machine = AcknowledgeMachine()
  private(set) var isMounted = false
  private(set) var session: Session?
  /// The session whose stream it applies.
  var replicaOf: SessionID?
  private(set) var wantsConnection = false
  private(set) var lastHeard: Int64 = 0
  private(set) var lastLook: Int64
  private var stallWatch = StallWatch()
  /// Until when reads are served; nil = without an end.
  private var lease: Int64?
  /// Since when they are not.
  private(set) var heldSince: Int64?
  private var commands: [(SimEngine) -> Void] = []
  /// `endSession` that were received and not obeyed yet.
  private(set) var endsAhead = 0
  private var isWorking = false
  /// Dead, and not replaced yet: counts replacements, so that an older plan finds a newer one.
  private var replacements = 0
  private(set) var isAway = false
  /// The vmhad that saw the old one die.
  private var attachedBefore: SimDaemon?
  /// What an older process had under way finds that it is over.
  private(set) var epoch = 0

  // Of the mirror (`SimMirror`).
  var order = RangeOrder()
  var live: [UInt64: SimRequest] = [:]
  var parked: [SimRequest] = []
  var unintended: [SimRequest] = []
  var waitingNames: [SimRequest] = []
  var isNaming = false
  var running = 0
  var lastRequest: UInt64 = 0
  var isDrainWanted = false
  var barriers: [UInt64: (Int32) -> Void] = [:]
  var intents: SimIntents
  var whenStored: [(SimEngine, Bool) -> Void] = []
  var lastClearing: Int64 = 0
  var isClearing = false
  var resync: SimResync?
  // Of the replica (`SimReplica`).
  var unsaid: [UInt64] = []

  var policy: AcknowledgePolicy { machine.policy }
  /// What was planned for this process finds that it has ended.
  var isOver: Bool { node.engine !== self }

  init(_ node: SimNode) {
    self.node = node
    world = node.world
    lastLook = world.now
    intents = SimIntents(node)
  }

  // MARK: towards vmhad

  func attach(_ daemon: SimDaemon) {
    attached = daemon
    // The next engine answers whoever waits.
    if isAway { return }
    enqueue { $0.tell(.ready($0.report)) }
  }

  func tell(_ event: EngineEvent) {
    guard let daemon, !isAway else { return }
    node.after(.microseconds(300)) { daemon.deliver(.engine(event)) }
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
    if command == .endSession { endsAhead += 1 }
    enqueue { $0.obey(command) }
  }

  func receive(_ message: PeerMessage, in id: SessionID, from daemon: SimDaemon) {
    guard daemon === self.daemon, !isAway else { return }
    enqueue { engine in
      guard let session = engine.session, session.id == id else { return }
      engine.world.checkLeaving(message, by: engine)
      if case .adopt = message {
        if !engine.world.jointlyFlushed.contains(id) {
          engine.world.violate("I5: \(engine.node.name) sends ADOPT without the joint flush (R8.2)")
        }
        if engine.policy != .both(id) {
          engine.world.violate("I5: \(engine.node.name) sends ADOPT before writes need both (R8.3)")
        }
      }
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
    node.after(world.delay(1, 1...8)) { [self] in
      guard !isOver else { return }
      isWorking = false
      guard !commands.isEmpty else { return }
      commands.removeFirst()(self)
      work()
    }
  }

  /// Something that takes this process time; over with it.
  func later(_ milliseconds: ClosedRange<Int>, _ body: @escaping (SimEngine) -> Void) {
    let (node, world) = (node, world)
    guard !world.options.isCalm else { return body(self) }
    let began = epoch
    let slow = node.isDiskSlow ? world.random.milliseconds(200...3000) : .zero
    node.after(world.random.milliseconds(milliseconds) + slow) { [self, unowned node] in
      guard !isOver else { return }
      guard !node.isDiskHung else {
        return node.waitForDisk { [self] in if !isOver, epoch == began { body(self) } }
      }
      if epoch == began { body(self) }
    }
  }

  private func obey(_ command: EngineCommand) {
    switch command {
    case .configure, .report: tell(.ready(report))
    case .connect:
      wantsConnection = true
      world.planConnection()
    case .endSession:
      endsAhead -= 1
      wantsConnection = false
      closeSession()
      tell(.sessionEnded)
    case .send, .verify, .stopVerify: break
    case .clearIntents(let id): forgetIntents(id)
    case .acceptReplication(let id): acceptReplication(id)
    case .mount: mount()
    case .unmount(let force): unmount(force: force)
    case .setPolicy(let policy): set(policy)
    case .startResync(let id, let comparesEverything):
      if !comparesEverything { world.checkPairing(of: node) }
      startResync(id, comparesEverything)
    case .flushBarrier(let id):
      let isBegun = barrier(id, syncsHere: true) { engine, code in
        guard code == 0 else { return }
        engine.world.jointlyFlushed.insert(id)
        engine.tell(.barrierDone(id))
      }
      guard isBegun else { return fail("flushBarrier", "the session is over") }
    case .confirmSession(let id): confirmSession(id)
    case .drain: drain()
    case .syncFiles(let request):
      sync { $0.tell(.filesSynced(request)) }
    case .exit:
      let watcher = daemon
      leave()
      if world.options.reportsExit {
        node.after(.milliseconds(5)) { watcher?.deliver(.engineGone(why: "exit status 0")) }
      }
    }
  }

  /// fsync: what was there when it began is durable when it ends.
  func sync(_ done: @escaping (SimEngine) -> Void) {
    let flush = node.copy.beginFlush()
    later(0...20) { engine in
      engine.node.copy.end(flush)
      done(engine)
    }
  }

  func breakDisk(_ errno: Int32) { tell(.diskError(operation: "pwrite", path: "disk.qcow2", errno: errno)) }
  func hangDisk() { tell(.diskHangs(milliseconds: 26_000)) }
  func fail(_ command: String, _ why: String) { tell(.failed(command: command, why: why)) }

  // MARK: mount (Engine.mount, .unmount, .acceptReplication)

  private func mount() {
    if !isMounted {
      guard reset(becomesReplica: false) else { return fail("mount", "local writes are still in progress") }
      stopReplica()
      isMounted = true
      lease = world.now + World.suspendAfter.nanoseconds
      // Engine.serve: Intents.prepare, for which the production's mount waits; no write relies on that it did.
      storeIntents()
    }
    tell(.mounted(fuseConnection: 1))
  }

  private func acceptReplication(_ id: SessionID) {
    guard !isMounted else { return fail("acceptReplication", "the file system is mounted") }
    guard session?.id == id else { return fail("acceptReplication", "the session is over") }
    if replicaOf == id { return }
    guard reset(becomesReplica: true) else { return fail("acceptReplication", "local writes are in progress") }
    stopReplica()
    replicaOf = id
  }

  private func unmount(force: Bool) {
    guard isMounted else { return tell(.unmounted) }
    if node.guest != nil {
      guard force else { return fail("unmount", "files are open") }
      node.guest?.hasLostDisks = true
    }
    takeDown()
  }

  /// Waits for what is being applied; nobody hears of the rest.
  private func takeDown() {
    for request in parked { request.done = nil }
    parked = []
    for request in live.values { request.done = nil }
    guard running == 0 else { return later(1...3) { $0.takeDown() } }
    if resync != nil { lose("the mount was removed during a resync") }
    // Also one that was started while this waited: a mount that comes later is not its own.
    node.guest?.hasLostDisks = true
    isMounted = false
    heldSince = nil
    tell(.unmounted)
  }

  private func set(_ next: AcknowledgePolicy) {
    guard isMounted else { return fail("setPolicy", "not mounted") }
    if case .both(let id) = next, machine.policy == .frozen, session?.id == id {
      // Engine.setPolicy: the replica learns this side's files again; both trees must be the same.
      session?.send(.identify(node.copy.contents.names), from: node)
    }
    var completions: [AcknowledgeMachine.Completion] = []
    do { try machine.setPolicy(next, completions: &completions) } catch { return fail("setPolicy", "\(error)") }
    isDrainWanted = false
    node.servedUnder = nil
    world.checkPolicy(next, at: node)
    conclude()
    settle(completions)
    watchReads()
    resumeParked()
  }

  /// Everything of it is gone: the peer sees the end, the guest loses its disks.
  func leave() {
    hangUp()
    if isMounted { node.guest?.hasLostDisks = true }
    epoch += 1
    attached = nil
    node.engine = nil
    node.servedUnder = nil
  }

  /// The process dies and its keeper starts another one under the mount: the guest's request waits in the kernel and is handed
  /// out again; what was applied was applied. Without a mount there is nothing to go on with.
  func beReplaced() {
    guard isMounted else { return node.killEngine() }
    hangUp()
    session = nil
    epoch += 1
    commands = []
    endsAhead = 0
    isWorking = false
    wantsConnection = false
    heldSince = nil
    isAway = true
    world.meet(.engineReplaced)
    replacements += 1
    let plan = replacements
    // The kernel hands out again what was not answered, oldest first.
    let open = (live.values + parked).filter { $0.done != nil }.sorted { $0.bits < $1.bits }
    forgetMirror()
    node.after(world.delay(60, 20...900)) { [self] in
      guard !isOver, isAway, replacements == plan else { return }
      // Sometimes it does not come back: then both end.
      if !world.options.isCalm, world.random.chance(10) {
        world.meet(.engineNotReplaced)
        return node.killEngine("it was not replaced")
      }
      goOn(open)
    }
    attachedBefore = daemon
  }

  private func forgetMirror() {
    machine = AcknowledgeMachine(needsResync: true)
    order = RangeOrder()
    live = [:]
    parked = []
    unintended = []
    waitingNames = []
    isNaming = false
    running = 0
    isDrainWanted = false
    barriers = [:]
    isClearing = false
    whenStored = []
    resync = nil
    stopReplica()
  }

  /// Engine.goOn
  private func goOn(_ open: [SimRequest]) {
    intents = SimIntents(node)
    storeIntents()
    lastLook = world.now
    // Whether reads wait is in its report.
    watchReads()
    isAway = false
    for request in open where request.done != nil {
      request.token = nil
      request.ticket = nil
      accept(request)
    }
    // A vmhad that came meanwhile waited on the keeper's socket.
    guard let daemon else { return }
    let report = self.report
    node.after(.microseconds(300)) { [self] in
      let sawItDie = daemon === attachedBefore
      daemon.deliver(sawItDie ? .engineReplaced(report, why: "killed by signal 9") : .engine(.ready(report)))
    }
  }

  // MARK: session

  /// For whoever looks into a run that does not come back.
  var text: String {
    "\(policy), \(machine.requestsInFlight) in flight, \(machine.unfinishedMutations) unfinished, \(running) running, "
      + "\(parked.count) parked, \(unintended.count) without intent\(machine.isDraining ? ", draining" : ""), order "
      + "\(order.count), storing \(intents.isStoring), naming \(isNaming) \(waitingNames.count)"
      + (resync.map { ", resync hold \($0.isHolding) known \($0.isTargetKnown) piece \($0.piece != nil)" } ?? "")
  }

  func begin(_ session: Session) {
    self.session = session
    session.isBegun[node.index] = true
    machine.sessionBegan(session.id)
    lastHeard = world.now
    tell(.connected(session.id, link: "storage"))
  }

  private func closeSession() {
    hangUp()
    fallBack()
  }

  /// The connection ends, as the kernel ends it for a dead process.
  private func hangUp() {
    guard let ended = session else { return }
    ended.isHeld[node.index] = false
    if !world.options.isCalm {
      // What was queued dies; what the network already has may still arrive.
      let kept = world.random.below(ended.queues[node.index].count + 1)
      ended.queues[node.index].removeLast(ended.queues[node.index].count - kept)
    }
    ended.send(.end, from: node)
  }

  func loseSessionSilently() { session?.isHeld[node.index] = false }

  /// R1: Engine.end. Acknowledgements are void before anyone can be told.
  private func fallBack() {
    guard let ended = session else { return }
    session = nil
    var completions: [AcknowledgeMachine.Completion] = []
    machine.sessionLost(ended.id, completions: &completions)
    stopReplica()
    if let ended = resync {
      resync = nil
      if let (_, ticket) = ended.piece { release(ticket) }
      // Mirror.releaseChanges: the policy it has anyway; only the drain ends.
      if ended.isHolding, !isDrainWanted {
        do { try machine.setPolicy(machine.policy, completions: &completions) } catch {
          world.violate("I0: \(node.name): \(error)")
        }
      }
    }
    conclude()
    settle(completions)
    // A fall to ALONE admits what a drain of the resync had held back.
    resumeParked()
  }

  func lose(_ why: String) {
    guard let lost = session else { return }
    lost.isHeld[node.index] = false
    fallBack()
    tell(.sessionLost(lost.id, policy: policy, why: why))
    world.planConnection()
  }

  /// Engine.tick
  func lookForSilence() {
    let (node, world) = (node, world)
    guard !node.isFrozen, !isAway else { return }
    defer { watchReads() }
    let gap = world.now - lastLook
    lastLook = world.now
    guard let session else { return }
    clearIntentsIfDue()
    let peer = world.peer(of: node)
    let isHeard = world.replicates(from: peer) && peer.isOn && !peer.isFrozen && peer.engine?.session === session
    if isHeard { lastHeard = world.now }
    if world.now - lastHeard > World.silenceMax.nanoseconds { return lose("nothing heard for 2 s") }
    if gap > World.silenceMax.nanoseconds / 2 { return lose("this engine did not run for \(gap / 1_000_000) ms") }
    guard let awaited = oldestAwaited else { return }
    let stall = stallWatch.look(awaited.session, oldest: awaited.sequence, now: Instant(nanoseconds: world.now))
    if stall > World.acknowledgeStallMax {
      world.meet(.stallNoticed)
      lose("the peer has not answered a change or flush: its disk hangs")
    }
  }

  /// Mirror.oldestAwaited
  private var oldestAwaited: (session: SessionID, sequence: UInt64?)? {
    switch machine.policy {
    case .settling(let session), .both(let session): return (session, machine.oldestOutstanding)
    case .resyncing(let session):
      guard let resync, resync.isTargetKnown else { return nil }
      let change = machine.oldestOutstandingChange
      guard change != nil || resync.plan.isAwaiting else { return (session, nil) }
      return (session, resync.acknowledgements &+ (change ?? 0))
    case .frozen, .alone: return nil
    }
  }

  /// R2, last line: the lease of the guest's reads, by the engine's own clock.
  private func watchReads() {
    guard isMounted else { return }
    let now = world.now
    let term = now + World.suspendAfter.nanoseconds
    switch policy {
    case .alone, .resyncing, .settling: lease = nil
    case .both: if session != nil { lease = lastHeard + World.suspendAfter.nanoseconds }
    case .frozen: lease = min(lease ?? term, term)
    }
    let isHeld = lease.map { now >= $0 } ?? false
    guard isHeld != (heldSince != nil) else { return }
    heldSince = isHeld ? now : nil
    tell(isHeld ? .readsHeld : .readsReleased)
  }

  func received(_ frame: Session.Frame) {
    guard let session else { return }
    lastHeard = world.now
    switch frame {
    case .end: lose("closed by the peer")
    case .message(let message):
      tell(.message(session.id, []))
      guard let daemon else { return }
      node.after(.microseconds(300)) { daemon.deliver(.peerMessage(session.id, message)) }
    case .acknowledged(let ranges): acknowledged(ranges, session.id)
    case .flushed(let sequence): flushed(sequence, session.id)
    case .differing(let content): targetAnswered(content, session.id)
    case .compared(let sequence, let differing): compared(sequence, differing, session.id)
    case .pieceAcknowledged(let sequence): pieceAcknowledged(sequence, session.id)
    default: replicate(frame, session)
    }
  }
}
