import Model

/// The mirror module's decisions on one node: roles, the right to be alone, coming back, swap, stop (docs/protocol.md).
///
/// A value: `handle` takes one event and the time, changes the value and returns what must be done, in order. No I/O, no
/// clock, no random source outside its own seeded one. `persist` is a barrier for the shell (see `Directive`), so within
/// one list "durable first, then act" is the order of the list.
public struct MirrorModule: Sendable, Codable, Hashable {
  /// What this node does for the module.
  enum Phase: Sendable, Codable, Hashable {
    /// Off by the operator's wish; the engine is down.
    case stopped
    /// Engine idle; looking for the peer or for a right.
    case waiting
    /// Primary without a session and without a right: nothing is acknowledged (R2).
    case frozen
    /// R4 done.
    case alone
    /// R8.3 done, ADOPT sent: losing the session freezes.
    case adopting(SessionID)
    case prim(SessionID)
    /// R7: the peer is the source; the own guest goes off and the mount away before the copy is given up.
    case yielding(SessionID)
    /// Durably inconsistent, applying the source's stream.
    case target(SessionID)
    case second(SessionID)
    /// The guest goes off in order, for a stop or for a swap.
    case closing(Closing)
    /// Cannot act safely; only the operator's start leaves this.
    case failed
  }

  enum Goal: Sendable, Codable, Hashable {
    case stop
    /// R10, cold swap: the writer token goes to the peer in this session.
    case handOver(SessionID)
    /// R12: this copy is given up for the one of this generation.
    case giveUp(Generation)
  }

  enum ClosingStep: Int, Sendable, Codable, Hashable, Comparable {
    case guest, drain, barrier, unmount, consent, archive
    static func < (a: ClosingStep, b: ClosingStep) -> Bool { a.rawValue < b.rawValue }
  }

  struct Closing: Sendable, Codable, Hashable {
    var goal: Goal
    var step: ClosingStep
    /// The session in which both copies are in sync, nil when alone or once it is lost.
    var session: SessionID?
    /// R4 had been done: the mark "peer outdated" already holds.
    var wasAlone: Bool
    /// It began as PRIM: the peer has adopted.
    var wasInSync: Bool
    /// R11: this node's disk failed meanwhile.
    var hasLostDisk = false
  }

  /// A session from its handshake until a role is taken in it.
  struct Handshake: Sendable, Codable, Hashable {
    var session: SessionID
    var mine: Hello
    var theirs: Hello?
    /// This node is the source and waits for the target to be ready.
    var awaitsTarget = false
  }

  /// The steps between R4 and a running guest.
  struct BringUp: Sendable, Codable, Hashable {
    var mounted = false
    var synced = false
    var policy: AcknowledgePolicy
    /// Resync to begin as soon as the policy holds.
    var resync: SessionID?
  }

  /// R2: the engine was asked whether the session lives, before the guest starts in it.
  struct StartCheck: Sendable, Codable, Hashable {
    var session: SessionID
    var askedAt: Instant
  }

  enum TimerKind: String, Sendable, Codable, Hashable, CaseIterable {
    case peerUnknown, bootWait, ask, askAnswer, patience, offer, engineStart, reconnect, guestRetry, holdGuest, quiet,
      adopt, suspension, surrender, arbiter, arbiterAnswer, fenceStagger, witness, witnessAnswer, takeover, stable,
      force, lostRecord
  }

  public internal(set) var settings: MirrorSettings
  var isLoaded = false
  var record: DurableRecord?
  public internal(set) var wish = Wish(started: false, version: 0)
  var phase = Phase.stopped
  var guest = GuestState.unknown
  var guestNote: String?
  /// As the engine says: the guest's reads wait too (R2).
  var areReadsHeld = false
  /// `suspendGuest` was the last word about the guest's virtual CPUs.
  var isSuspensionWanted = false
  /// This core said `suspendGuest` at least once.
  var hasSuspended = false
  var suspensionTrouble: String?
  /// The disk under the guest hangs, as the engine says.
  var diskTrouble: String?
  /// The guest was shutting down when it was cut off, and is destroyed instead.
  var isCutShort = false
  var engineReady = false
  /// The peer said so in its HELLO of the present session, or of the last one.
  var hasPeerLostRecord = false
  /// What an engine that outlived an earlier vmhad holds is known, or that there is none.
  var isEngineKnown = false
  var engineStarting = false
  /// The engine was told to look for its peer.
  var isConnecting = false
  /// `sessionEnded` still to come: until then whatever the engine says of a session is about one that is over (R1).
  var endsPending = 0
  var isMounted = false
  var handshake: Handshake?
  /// When the present session came up; nil = before this process.
  var connectedAt: Instant?
  var bringUp: BringUp?
  /// Number of the last `syncFiles`; begins at random, for an engine may still answer one of an earlier vmhad.
  var lastSync: UInt64
  /// The peer both nodes differ from without descent; kept until a session tells otherwise.
  var splitWith: Hello?
  /// The operator's wish to give this node's branch up, until the peer has agreed.
  var surrender: Command?
  var resync: ResyncProgress?
  var resyncSession: SessionID?
  /// nil = not known yet, in the first moments of this process.
  var peerAlive: Bool?
  var peerBeat: PeerBeat?
  var openAsk: ConsentRequest?
  var arbitration: Arbitration?
  /// Why the arbiter gave no right when it was asked last.
  var arbiterRefusal: String?
  /// The register names a branch that this copy does not descend from: the peer went on.
  var isOverruled = false
  var watch = WitnessWatch()
  /// This node cannot go on and offers the module to its in-sync peer.
  var offers = false
  var startByOperator = false
  var startCheck: StartCheck?
  public internal(set) var limits = ModuleLimits()
  var engineDeaths: [Instant] = []
  /// When sessions were lost in which this node was the primary or the source.
  var losses: [Instant] = []
  /// It was said.
  var isFlapping = false
  /// The branch whose archive failed: no policy gives it up again.
  var unarchivable: BranchID?
  var timers: [TimerKind: Instant] = [:]
  var blockedBy: String?
  public internal(set) var sentence = "not loaded yet"
  public internal(set) var sentenceSince = Instant(nanoseconds: 0)
  /// What the resync that begins next has to look at: everything, or what the maps say.
  var comparesEverything = true
  var randomState: UInt64

  // Scratch of one `handle`.
  var out: [Directive] = []
  var now = Instant(nanoseconds: 0)

  public init(settings: MirrorSettings) {
    self.settings = settings
    randomState = settings.seed
    lastSync = settings.seed
  }

  public mutating func handle(_ event: Event, at now: Instant) -> [Directive] {
    self.now = now
    out = []
    guard isLoaded || isTakenUnloaded(event) else {
      refuseUnloaded(event)
      defer { out = [] }
      return out
    }
    step(event)
    // Whatever woke the core: a timer that has run out is not forgotten.
    fireTimers()
    consider()
    if let next = timers.values.filter({ $0 > now }).min() { out.append(.wake(at: next)) }
    defer { out = [] }
    return out
  }

  private mutating func step(_ event: Event) {
    switch event {
    case .loaded(let record, let wish, let guest, let limits): load(record, wish, guest, limits)
    case .loadFailed(let why): loadFailed(why)
    case .command(let command): obey(command)
    case .wish(let wish): follow(wish)
    case .nodeAlive: nodeAlive()
    case .nodeLost: nodeLost()
    case .nodeRestarted: nodeRestarted()
    case .peerBeat(let beat): peerBeat = beat
    case .engine(let event): engineSaid(event)
    case .engineGone(let why): engineGone(why)
    case .engineReplaced(let report, let why): engineReplaced(report, why)
    case .peerMessage(let session, let message): peerSaid(message, in: session)
    case .peerMessageUnreadable(let session, let why): peerUnreadable(session, why)
    case .guestStarted, .guestStartFailed, .guestOff, .guestPaused, .guestResumed, .guestStuck: guestSaid(event)
    case .branchArchived(let branch): archived(branch)
    case .branchArchiveFailed(let branch, let why): archiveFailed(branch, why)
    case .guestSuspended, .guestSuspendFailed, .guestReleased, .guestReleaseFailed: suspensionSaid(event)
    case .consentRequested(let request, let token):
      let reply = consent(to: request)
      out.append(.replyConsent(token: token, reply))
    case .consentReplied(let reply): consentReplied(reply)
    case .consentFailed(let nonce, let why): consentFailed(nonce, why)
    case .witnessRead(let id, let reading): witnessRead(id, reading)
    case .witnessSwapped(let id): witnessSwapped(id)
    case .peerFenced(let id): peerFenced(id)
    case .pingAnswered(let id): pingAnswered(id)
    case .arbiterFailed(let id, let why): arbiterFailed(id, why)
    case .persistFailed(let why): persistFailed(why)
    case .settings(let changed):
      let node = settings.node
      if settings.arbiter != changed.arbiter {
        forgetArbiter()
        noteArbiter(changed.arbiter)
      }
      if settings.forceAfter != changed.forceAfter { timers[.force] = nil }
      settings = changed
      precondition(node == changed.node, "a node cannot change its number")
    case .timer: break
    }
  }

  // MARK: small tools

  mutating func random() -> UInt64 {
    // SplitMix64 (Steele, Lea, Flood 2014): the state is part of the value, so a run can be replayed.
    randomState &+= 0x9e37_79b9_7f4a_7c15
    var z = randomState
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }

  mutating func say(_ sentence: String, _ severity: Severity = .info, rule: String? = nil) {
    if self.sentence == sentence { return }
    self.sentence = sentence
    sentenceSince = now
    out.append(.journal(severity, Reason(sentence, rule: rule)))
  }

  mutating func note(_ sentence: String, _ severity: Severity = .info, rule: String? = nil) {
    out.append(.journal(severity, Reason(sentence, rule: rule)))
  }

  mutating func engine(_ command: EngineCommand) {
    guard engineReady else { return }
    switch command {
    case .connect:
      // Between two tries of a primary whose link comes and goes.
      if isConnecting || phase == .alone && timers[.reconnect] != nil { return }
      isConnecting = true
    case .endSession:
      isConnecting = false
      endsPending += 1
    default: break
    }
    out.append(.engine(command))
  }

  /// Nothing the old engine knew holds for the next one.
  mutating func forgetEngine() {
    engineReady = false
    engineStarting = false
    isMounted = false
    areReadsHeld = false
    diskTrouble = nil
    isConnecting = false
    endsPending = 0
    startCheck = nil
  }

  mutating func persist(_ change: (inout DurableRecord) -> Void) {
    guard var next = record else { preconditionFailure("no record to change") }
    change(&next)
    if next == record { return }
    record = next
    out.append(.persist(next))
  }

  mutating func arm(_ timer: TimerKind, after delay: Duration) { timers[timer] = now + delay }

  /// Arms once: a timer already running keeps its time.
  mutating func armOnce(_ timer: TimerKind, after delay: Duration) {
    if timers[timer] == nil { timers[timer] = now + delay }
  }

  /// In sync in this boot, and the copy is still what it was: the page cache holds all that was acknowledged.
  var isContinuous: Bool {
    record.map {
      $0.standing == .uptodate && $0.bootAtLastSync == settings.bootID
        // R5: changed, and this core ended before it could forget that it was in sync.
        && (!settings.arbiter.fences || $0.arbiterAtLastSync ?? settings.arbiter.rawValue == settings.arbiter.rawValue)
    } ?? false
  }

  var isAlone: Bool {
    switch phase {
    case .alone: true
    case .closing(let closing): closing.wasAlone
    default: false
    }
  }

  /// The session in which this node has a role, or is taking one.
  var session: SessionID? {
    switch phase {
    case .adopting(let s), .prim(let s), .yielding(let s), .target(let s), .second(let s): s
    case .closing(let closing): closing.session
    default: handshake?.session ?? resyncSession ?? bringUp?.resync
    }
  }

  /// R1: end the session before anything that needs it to be over. Stops connecting too.
  mutating func endSession() {
    engine(.endSession)
    dropSession()
  }

  mutating func dropSession() {
    abandonSurrender("the session with \(settings.peerName) was lost")
    // R0: a peer that was to become the target may have done so: then its mark is gone, and its consent counts.
    let mayHaveYielded = handshake?.awaitsTarget == true
    handshake = nil
    if mayHaveYielded { forgetLostRecord() }
    startCheck = nil
    resyncSession = nil
    resync = nil
    bringUp?.resync = nil
  }

  /// Facts about the world stay true; whatever would decide, or write, has to wait for the record (R0).
  private func isTakenUnloaded(_ event: Event) -> Bool {
    switch event {
    case .loaded, .loadFailed, .nodeAlive, .nodeLost, .nodeRestarted, .peerBeat, .settings, .consentRequested: true
    default: false
    }
  }

  private mutating func refuseUnloaded(_ event: Event) {
    guard case .command(let command) = event else { return }
    answer(
      command,
      .refused(
        what: "\(settings.module) takes no command on \(settings.nodeName) now",
        why: blockedBy ?? "its state is still being read",
        next: "repeat it when that is mended, or give it to \(settings.peerName)"))
  }

  private mutating func loadFailed(_ why: String) {
    guard !isLoaded else { return }
    // An engine and a guest that outlived an earlier vmhad go on as they are: the engine keeps R1 to R3 by itself.
    phase = .failed
    blockedBy = why
    say(why, .alarm, rule: "R0")
  }

  mutating func load(_ record: DurableRecord?, _ wish: Wish, _ guest: GuestState, _ limits: ModuleLimits) {
    isLoaded = true
    self.record = record
    self.limits = limits
    blockedBy = limits.stopped
    self.wish = wish
    self.guest = guest
    isSuspensionWanted = guest == .suspended
    arm(.peerUnknown, after: settings.detection)
    if record == nil {
      // R0: an unreadable record = not up to date, all zones. Durable before anything is said to the peer, so that a crash from here
      // on finds this mark, or again no record.
      self.record = .lost
      out.append(.persist(.lost))
      note(
        "the durable record of this copy is missing or unreadable: this node may have gone on alone, and nobody knows any more; its copy "
          + "is rebuilt only from one that is known to be the newest", .alarm, rule: "R0")
    }
    // An engine may have outlived an earlier vmhad: it is asked also when the module should be stopped.
    phase = .waiting
    startEngine()
    say("starting: looking at the engine and for \(settings.peerName)")
  }

  mutating func startEngine() {
    guard !engineReady, !engineStarting else { return }
    engineStarting = true
    out.append(.startEngine)
  }

  mutating func persistFailed(_ why: String) {
    // R11: a node that cannot write its record sends no consent and gives up its engine; the peer uses its arbiter.
    // What the disk holds now, the old record or the new one, only a fresh `loaded` tells: until then there is none (R0).
    record = nil
    fail(
      "this node cannot write its durable record (\(why)); the module is given up here. When that is mended: "
        + "'vmha start \(settings.module)'", kill: true)
  }

  mutating func fail(_ why: String, kill: Bool) {
    phase = .failed
    blockedBy = why
    offers = false
    openAsk = nil
    dropArbitration()
    bringUp = nil
    dropSession()
    for timer in TimerKind.allCases where timer != .peerUnknown { timers[timer] = nil }
    if kill {
      forgetEngine()
      out.append(.killEngine)
    } else {
      engine(.endSession)
      // A mount that stays would make this node refuse its consent.
      if isMounted { engine(.unmount(force: true)) }
    }
    if guest.isLive {
      guest = .stopping
      out.append(.destroyGuest)
    }
    say(why, .alarm, rule: "R11")
  }
}
