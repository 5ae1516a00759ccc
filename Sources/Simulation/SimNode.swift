import MirrorModule
import Model

/// One host: what its disks hold survives `powerCut`, its processes do not.
final class SimNode {
  unowned let world: World
  let id: NodeID
  let name: String
  var index: Int { id.rawValue - 1 }
  var isOn = true
  var isFrozen = false
  var boot = 1 { didSet { bootID = Self.bootID(name, boot) } }
  private(set) var bootID: String
  private(set) var thawedAt: Int64 = 0
  private var deferred: [() -> Void] = []
  private var incarnations: UInt64 = 0

  // Durable.
  var record: DurableRecord?
  /// Under which the engine was told to serve, when the record was found to be lost; nil = it was told anew since.
  var servedUnder: DurableRecord?
  /// Both copies of the record are unreadable, as whoever reads it next will find.
  var isRecordLost = false
  var arbiter = ArbiterPolicy.wait
  /// Of the configuration that names it.
  var revision = 0
  var wish = Wish(started: false, version: 0)
  var limits = ModuleLimits()
  var copy = Copy()
  /// R12.
  var archives: [BranchID: Contents] = [:]
  var intentFile = SimIntentFile()
  /// The image has been made here, with its identity.
  var hasFile: Bool

  var daemon: SimDaemon?
  var engine: SimEngine?
  var guest: SimGuest?
  /// What waits for this node's consent, by token.
  var replies: [UInt64: (ConsentReply) -> Void] = [:]
  private var lastToken: UInt64 = 0

  // Faults.
  var persistFails = false
  var archiveFails = false
  var guestStartFails = false
  var suspendFails = false { didSet { if oldValue { suspendsSince = world.now } } }
  private(set) var suspendsSince: Int64 = 0
  var fenceFails = false
  var isDiskSlow = false
  /// Nothing that is asked of the disks is answered, and nothing fails.
  var isDiskHung = false { didSet { if !isDiskHung { runHung() } } }
  private var hung: [() -> Void] = []
  var writesFail = false
  var intentsFail = false
  /// The next write of the intent map is the engine's last: it is not synced.
  var engineDiesStoring = false
  /// The next daemon activity stops dead behind this many directives.
  var daemonDiesAfter: Int?
  /// It is the power that goes then.
  var diesWithHost = false

  init(world: World, id: NodeID, name: String) {
    hasFile = id == .first
    self.world = world
    self.id = id
    self.name = name
    bootID = Self.bootID(name, boot)
  }

  private static func bootID(_ name: String, _ boot: Int) -> String { "\(name)\(boot)" }

  var settings: MirrorSettings {
    incarnations += 1
    guard let module = ModuleName("vm") else { preconditionFailure("the name is fixed") }
    var settings = MirrorSettings(
      module: module, node: id, nodeName: name, peerName: name == "a" ? "b" : "a", preferred: world.options.preferred,
      arbiter: arbiter, detection: World.detection, bootWait: World.bootWait,
      stopTimeout: World.stopTimeout, restartsMax: 3, restartWindow: .seconds(3600), bootID: bootID,
      seed: world.options.seed &* 31 &+ incarnations &* 2 &+ UInt64(index))
    settings.forceAfter = world.options.forceAfter
    settings.splitPolicy = world.options.splitPolicy
    return settings
  }

  /// Runs on this host: not after a power cut, and only after the thaw while it is frozen.
  /// What is planned for a process holds it and asks whether it is over: a weak reference would slow down every use of the object.
  func after(_ delay: Duration, _ run: @escaping () -> Void) {
    world.after(delay, Agenda.Action(run: run, host: (self, boot)))
  }

  /// Its time has come.
  func run(_ action: @escaping () -> Void, plannedIn planned: Int) {
    guard isOn, boot == planned else { return }
    isFrozen ? deferred.append(action) : action()
  }

  /// For a disk that hangs, which may not come to it for a long time.
  func waitForDisk(_ run: @escaping () -> Void) {
    world.meet(.diskHung)
    hung.append(run)
  }

  private func runHung() {
    let waiting = hung
    hung = []
    for run in waiting { after(.zero, run) }
  }

  /// Answers the token under which `daemon` is to reply.
  func expectReply(_ reply: @escaping (ConsentReply) -> Void) -> UInt64 {
    lastToken += 1
    replies[lastToken] = reply
    return lastToken
  }

  func startDaemon() {
    guard isOn, daemon == nil else { return }
    if isRecordLost {
      world.meet(.recordLost)
      servedUnder = engine == nil ? nil : servedUnder ?? record
      record = nil
      isRecordLost = false
    }
    if record?.standing == .uptodate, record?.peerOutdated != nil, wish.started { world.meet(.startByStanding) }
    replies = [:]
    daemon = SimDaemon(node: self)
    daemon?.start()
  }

  func killDaemon() {
    daemon = nil
    daemonDiesAfter = nil
  }

  func killEngine(_ why: String = "killed by signal 9") {
    guard let gone = engine else { return }
    world.meet(.engineKilled)
    gone.leave()
    let watcher = daemon
    after(.milliseconds(2)) { [unowned self] in
      if let watcher, daemon === watcher { watcher.deliver(.engineGone(why: why)) }
    }
  }

  func replaceEngine() { engine?.beReplaced() }

  func powerCut() {
    guard isOn else { return }
    world.meet(.powerCut)
    if !world.peer(of: self).isOn { world.meet(.blackout) }
    isOn = false
    isFrozen = false
    deferred = []
    daemon = nil
    daemonDiesAfter = nil
    engine?.loseSessionSilently()
    engine = nil
    servedUnder = nil
    hung = []
    guest = nil
    var random = Random(state: world.random.next())
    copy.losePower(&random)
    intentFile.losePower(&random)
  }

  /// Off, and on again by somebody.
  func powerCut(andOnIn delay: Duration) {
    powerCut()
    world.after(delay) { [unowned self] in world.powerOn(self) }
  }

  func freeze() {
    guard isOn, !isFrozen else { return }
    world.meet(.hostFrozen)
    isFrozen = true
  }

  func thaw() {
    guard isFrozen else { return }
    world.meet(.hostThawed)
    isFrozen = false
    thawedAt = world.now
    let late = deferred
    deferred = []
    for run in late { after(.zero, run) }
  }

  /// What libvirt says of the guest goes to the daemon that is there when it happens.
  func tellGuest(_ event: Event) {
    let watcher = daemon
    after(.milliseconds(1)) { [unowned self] in
      if let watcher, daemon === watcher { watcher.deliver(event) }
    }
  }
}

/// A QEMU process: some requests at a time, a flush behind every few.
final class SimGuest {
  enum State { case starting, running, stopping }
  unowned let node: SimNode
  var state = State.starting
  /// Its open files are gone for good.
  var hasLostDisks = false
  /// Its virtual CPUs stand still.
  private(set) var isSuspended = false
  private(set) var runsSince: Int64 = 0
  private let startedAt: Int64
  private static let inFlightMax = 4
  private var inFlight = 0
  private var isPausing = false
  private var requests = 0

  init(_ node: SimNode) {
    self.node = node
    startedAt = node.world.now
  }

  /// What was planned for this process finds that it has ended.
  private var isOver: Bool { node.guest !== self }

  func started() {
    state = .running
    runsSince = node.world.now
    // A host that stood still meanwhile brings its guest back as one that ran already: until the host has moved, the engine holds its
    // reads, and nothing it writes is acknowledged (docs/protocol.md).
    if node.thawedAt <= startedAt { node.world.checkGuestStart(node) }
    node.tellGuest(.guestStarted)
    work()
  }

  /// A burst of requests; when all are answered, a pause, and the next.
  private func work() {
    guard !isOver, inFlight == 0 else { return }
    let world = node.world
    for number in 0..<(world.options.isCalm ? 1 : 1 + world.random.below(Self.inFlightMax)) {
      guard number > 0 else {
        issue()
        continue
      }
      node.after(world.random.milliseconds(0...20)) { [self] in issue() }
    }
  }

  private func issue() {
    guard !isOver, !hasLostDisks, inFlight < Self.inFlightMax else { return }
    guard let engine = node.engine, engine.isMounted, state != .starting, !isSuspended else { return }
    let world = node.world
    requests += 1
    inFlight += 1
    let request = SimRequest(kind: nextKind()) { [self] _ in
      guard !isOver else { return }
      inFlight -= 1
      guard inFlight == 0, !isPausing else { return }
      isPausing = true
      node.after(world.delay(200, 50...1200)) { [self] in
        isPausing = false
        work()
      }
    }
    if case .flush = request.kind {
      request.acknowledgedBefore = world.ledger.acknowledgements
      request.contentsBefore = node.copy.contents
    }
    engine.accept(request)
  }

  private func nextKind() -> SimRequest.Kind {
    let world = node.world
    if requests % 4 == 0 { return .flush }
    if world.options.isCalm {
      let block = requests % Contents.blockCount
      return .write(world.ledger.newWrite(), block..<block + 1)
    }
    if world.random.chance(15) { return .name(world.ledger.newWrite()) }
    // Few blocks are hot, so that writes overlap.
    let first = world.random.below(world.random.chance(50) ? 3 : Contents.blockCount)
    let end = min(first + 1 + world.random.below(3), Contents.blockCount)
    return .write(world.ledger.newWrite(), first..<end)
  }

  func suspend() {
    guard !isOver, state == .running else { return }
    isSuspended = true
    node.tellGuest(.guestSuspended)
  }

  /// `byHand`: somebody else's `virsh resume`.
  func resume(byHand: Bool = false) {
    guard !isOver, isSuspended else { return }
    if byHand { node.world.meet(.resumedByHand) }
    isSuspended = false
    runsSince = node.world.now
    node.tellGuest(byHand ? .guestResumed : .guestReleased)
    work()
  }

  /// A request hangs in the kernel: the process cannot die before it is answered or aborted.
  var isStuck: Bool { !hasLostDisks && node.engine?.hasStuckRequest ?? false }

  func end(_ end: GuestEnd) {
    guard !isOver else { return }
    node.guest = nil
    node.engine?.forgetRequests()
    node.tellGuest(.guestOff(end))
  }

  func destroy() {
    state = .stopping
    node.after(.milliseconds(100)) { [self] in
      guard !isOver else { return }
      guard isStuck else { return end(.destroyed) }
      die(patience: node.world.now + 1_000_000_000)
    }
  }

  /// Killed: gone as soon as nothing holds it in the kernel.
  private func die(patience: Int64) {
    node.after(.milliseconds(100)) { [self] in
      guard !isOver else { return }
      guard isStuck else { return end(.destroyed) }
      guard node.world.now >= patience else { return die(patience: patience) }
      node.tellGuest(.guestStuck(why: "it waits for its disk"))
      die(patience: node.world.now + 60_000_000_000)
    }
  }

  func shutDown() {
    state = .stopping
    let patience = node.world.now + World.stopTimeout.nanoseconds
    func poll() {
      guard !isOver else { return }
      if !isStuck, !isSuspended { return end(.shutdown) }
      if node.world.now >= patience { return destroy() }
      node.after(.milliseconds(250)) { poll() }
    }
    node.after(node.world.delay(500, 100...1500)) { poll() }
  }
}
