import MirrorModule
import Model
import Replication

/// Two nodes with one module in virtual time: real cores, simulated engines, guests, links, disks and power.
/// Every step is checked (`Checks.swift`); the run is a function of its seed.
final class World {
  struct Options {
    var seed: UInt64 = 1
    var arbiter = ArbiterPolicy.wait
    var preferred = NodeID.first
    var forceAfter: Duration?
    var splitPolicy = SplitPolicy.ask
    /// Beats reach the core only when they say something new: nothing wakes it by accident.
    var beatsOnChangeOnly = true
    /// The engine's own exit is reported to the core.
    var reportsExit = true
    /// Fixed delays and consent always answered at once, for transcripts.
    var isCalm = true
    var hasPowerCuts = false
    /// As after a blackout of nodes that were in sync and quiet, instead of as `vmha add` leaves them.
    var beginsInSync = false
  }

  /// As `HTTPSCalls.callMax`.
  static let witnessCallMax: Duration = .seconds(2)
  static let tick: Duration = .milliseconds(250)
  static let detection: Duration = .seconds(3)
  static let bootWait: Duration = .seconds(10)
  static let stopTimeout: Duration = .seconds(5)
  /// No byte from the peer's engine for this long = the session is lost.
  static let silenceMax: Duration = .seconds(2)
  static let suspendAfter: Duration = .milliseconds(1200)
  /// From one clearing of the write-intent map to the next.
  static let clearInterval: Duration = .seconds(5)
  static let acknowledgeStallMax: Duration = .seconds(10)
  static let consentTimeout: Duration = .seconds(2)

  private(set) var options: Options
  /// Two branches may come about by what the operator chose or did.
  private(set) var maySplit: Bool
  var random: Random
  private(set) var now: Int64 = 0
  private var agenda = Agenda()
  private(set) var nodes: [SimNode] = []
  /// Nothing is lost any more, and whoever loses its power gets it back.
  private(set) var isHealed = false
  /// By sender.
  var replicationUp = [true, true]
  var lanUp = [true, true]
  private(set) lazy var witness = SimWitness(world: self)
  var ledger = Ledger()
  /// Sessions in which both nodes have flushed, whichever of them asked for it: it is gone with neither engine.
  var jointlyFlushed: Set<SessionID> = []
  var violations: [Violation] = []
  var coverage = Coverage()
  /// Receives (node, line) of everything a core decides.
  var recorder: ((SimNode, String) -> Void)?
  /// Receives every fault of a random run.
  var faultRecorder: ((String) -> Void)?
  var names = Names()
  var connectionPlanned = false
  private var lastNonce: UInt64 = 0
  /// Of the one image.
  let identity: FileIdentity

  init(_ options: Options) {
    self.options = options
    maySplit = options.arbiter.isUnproven || options.forceAfter != nil
    random = Random(state: options.seed)
    guard let identity = FileIdentity(high: 1, low: options.seed) else { preconditionFailure("it is not zero") }
    self.identity = identity
    nodes = [
      SimNode(world: self, id: .first, name: "a"), SimNode(world: self, id: .second, name: "b"),
    ]
    for node in nodes { node.arbiter = options.arbiter }
    // As `vmha add` leaves it: the first node holds the disks, the second holds nothing.
    nodes[0].record = DurableRecord(
      generation: Generation(number: 1, branch: BranchID(rawValue: random.next() | 1)), standing: .uptodate)
    nodes[1].record = .empty
    if options.beginsInSync { pair() }
    ticked()
  }

  /// Both maps say that nothing differs: what a resync copies is what was marked since (R3).
  private func pair() {
    let pairing = random.next()
    let generation = nodes[0].record?.generation
    for node in nodes {
      node.record = generation.map { DurableRecord(generation: $0, standing: .uptodate) }
      node.record?.pairing = pairing
      node.record?.bootAtLastSync = "\(node.name)0"
      node.record?.wroteLast = node.id == .first
      node.hasFile = true
      node.intentFile.replace(by: SimIntents.file(IntentSnapshot(), nonce: newNonce()))
      node.intentFile.sync()
    }
    meet(.begunInSync)
  }

  /// For files: never used before, and not taken from the seed's choices.
  func newNonce() -> UInt64 {
    lastNonce += 1
    return lastNonce
  }

  func node(_ id: NodeID) -> SimNode { nodes[id.rawValue - 1] }
  func peer(of node: SimNode) -> SimNode { self.node(node.id.peer) }

  func after(_ delay: Duration, _ run: @escaping () -> Void) { after(delay, Agenda.Action(run: run)) }

  func after(_ delay: Duration, _ action: consuming Agenda.Action) {
    agenda.add(now + delay.nanoseconds, action)
  }

  func run(for time: Duration) {
    let end = now + time.nanoseconds
    while violations.isEmpty, let at = agenda.nextAt, at <= end {
      let action = agenda.removeFirst()
      now = at
      if let (node, boot) = action.host { node.run(action.run, plannedIn: boot) } else { action.run() }
      checkStep()
    }
    now = max(now, end)
  }

  /// Runs until `holds`, at most `limit`; true if it came to hold.
  func run(upTo limit: Duration, until holds: () -> Bool) -> Bool {
    let end = now + limit.nanoseconds
    while violations.isEmpty, now < end {
      if holds() { return true }
      run(for: .milliseconds(100))
    }
    return holds()
  }

  func delay(_ calm: Int, _ wild: ClosedRange<Int>) -> Duration {
    options.isCalm ? .milliseconds(calm) : random.milliseconds(wild)
  }

  // MARK: links

  func replicates(from node: SimNode) -> Bool { replicationUp[node.index] }
  /// Heartbeats and control use both networks.
  func reaches(from node: SimNode) -> Bool { replicationUp[node.index] || lanUp[node.index] }

  private func ticked() {
    let (a, b) = (nodes[0], nodes[1])
    a.daemon?.hear()
    b.daemon?.hear()
    a.engine?.lookForSilence()
    b.engine?.lookForSilence()
    shareWish(from: a, to: b)
    shareWish(from: b, to: a)
    shareArbiter()
    if isConverged, isStill { checkEqualCopies() }
    planConnection()
    after(Self.tick) { [unowned self] in ticked() }
  }

  private func shareWish(from node: SimNode, to peer: SimNode) {
    guard node.wish.version > peer.wish.version, reaches(from: node), reaches(from: peer), !node.isFrozen,
      !peer.isFrozen, node.daemon != nil, let daemon = peer.daemon
    else { return }
    daemon.deliver(.wish(node.wish))
  }

  func planConnection() {
    guard !connectionPlanned, mayConnect else { return }
    connectionPlanned = true
    after(delay(30, 5...300)) { [unowned self] in
      connectionPlanned = false
      guard mayConnect, let a = nodes[0].engine, let b = nodes[1].engine else { return }
      shakeHands([a, b])
    }
  }

  private var mayConnect: Bool {
    nodes.allSatisfy { $0.engine.map { $0.wantsConnection && $0.session == nil } ?? false && !$0.isFrozen }
      && replicationUp == [true, true]
  }

  /// Virtual time in seconds.
  var stamp: String {
    let fraction = "\(now / 1_000_000 % 1000)"
    return "\(now / 1_000_000_000)." + String(repeating: "0", count: 3 - fraction.count) + fraction
  }

  // MARK: power and operators

  func powerOn(_ node: SimNode) {
    guard !node.isOn else { return }
    meet(.boot)
    node.boot += 1
    node.isOn = true
    node.startDaemon()
  }

  func heal() {
    isHealed = true
    replicationUp = [true, true]
    lanUp = [true, true]
    witness.heal()
    for node in nodes {
      node.persistFails = false
      node.fenceFails = false
      node.guestStartFails = false
      node.suspendFails = false
      node.isDiskSlow = false
      node.isDiskHung = false
      node.writesFail = false
      node.intentsFail = false
      node.engineDiesStoring = false
      node.daemonDiesAfter = nil
      if node.daemon?.core.durableRecord == nil { node.killDaemon() }
      node.thaw()
      powerOn(node)
      node.startDaemon()
    }
  }

  func command(_ verb: Command.Verb, at node: SimNode) {
    guard let daemon = node.daemon, !node.isFrozen else { return }
    var version = max(nodes[0].wish.version, nodes[1].wish.version)
    switch verb {
    case .start(let force):
      meet(force ? .commandForce : .commandStart)
      version += 1
    case .stop:
      meet(.commandStop)
      version += 1
    case .swap: meet(.commandSwap)
    case .resolve: meet(.commandResolve)
    }
    daemon.deliver(.command(Command(id: random.next(), verb: verb, wishVersion: version)))
  }

  /// From now on two branches may come about, and only what a copy descends from is promised of it.
  func allowSplit() { maySplit = true }

  /// A fence is one.
  func allowPowerCuts() { options.hasPowerCuts = true }

  /// The operator keeps the other node's copy.
  func giveUp(_ node: SimNode) {
    guard let mine = status(node)?.generation, let theirs = status(peer(of: node))?.generation else { return }
    command(.resolve(mine: mine, theirs: theirs), at: node)
  }

  func status(_ node: SimNode) -> MirrorStatus? { node.daemon?.core.status }

  var isConverged: Bool {
    guard let a = nodes[0].daemon?.beat, let b = nodes[1].daemon?.beat, a.readiness == .ready, b.readiness == .ready
    else { return false }
    return a.state == .prim && b.state == .second || a.state == .second && b.state == .prim
  }

  /// No request is on its way to either copy.
  var isStill: Bool { nodes.allSatisfy { $0.engine?.isStill ?? false } }

  var isSplit: Bool { nodes.allSatisfy { status($0)?.isSplit ?? false } }
}

/// Short names for ids, in the order in which they appear.
struct Names {
  private var known: [String: String] = [:]
  private var counts: [String: Int] = [:]
  mutating func name(_ kind: String, _ value: UInt64) -> String {
    if let name = known["\(kind) \(value)"] { return name }
    counts[kind, default: 0] += 1
    let name = "\(kind)\(counts[kind] ?? 0)"
    known["\(kind) \(value)"] = name
    return name
  }
}
