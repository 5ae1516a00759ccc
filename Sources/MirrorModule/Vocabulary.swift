import Model

/// What the operator wants of a module; durable, and the same on both nodes (the higher `version` wins).
public struct Wish: Sendable, Codable, Hashable {
  public var started: Bool
  public var version: UInt64
  public init(started: Bool, version: UInt64) {
    self.started = started
    self.version = version
  }
}

/// The guest as libvirt reports it.
public enum GuestState: String, Sendable, Codable, Hashable {
  case unknown, off, starting, running, stopping, paused
  /// Paused by this core: it waits for the peer or for a right (R2).
  case suspended
  /// May still write to its disks.
  public var isLive: Bool { self != .off }
  /// There is a guest that is meant to go on.
  public var isPresent: Bool {
    switch self {
    case .starting, .running, .paused, .suspended: true
    case .unknown, .off, .stopping: false
    }
  }
}

/// Why a guest is off.
public enum GuestEnd: String, Sendable, Codable, Hashable {
  /// It shut itself down, or did as vmha asked.
  case shutdown
  /// It was destroyed.
  case destroyed
  /// QEMU died, or libvirt gave up on it.
  case failed
}

/// What one node tells the other about a module when a session begins (R7).
public struct Hello: Sendable, Codable, Hashable {
  public var node: NodeID
  public var generation: Generation
  public var history: [BranchID]
  public var standing: Standing
  public var claim: BranchID?
  public var isAlone: Bool
  public var guestRunning: Bool
  /// In sync in this boot: the page cache was kept.
  public var continuous: Bool
  public var wroteLast: Bool
  public var pairing: UInt64?
  /// R0: its record was lost, and may have said that it was alone. nil = no.
  public var recordLost: Bool?
  /// Whatever the other node's record said before it was lost, this copy is the newest. nil = a version that does not say: it can
  /// show it only by being alone.
  public var provesNewest: Bool?

  public init(
    node: NodeID, record: DurableRecord, isAlone: Bool, guestRunning: Bool, continuous: Bool,
    provesNewest: Bool? = nil
  ) {
    self.node = node
    generation = record.generation
    history = record.history
    standing = record.standing
    claim = record.claim
    self.isAlone = isAlone
    self.guestRunning = guestRunning
    self.continuous = continuous
    wroteLast = record.wroteLast
    pairing = record.pairing
    recordLost = record.recordLost
    self.provesNewest = provesNewest
  }
}

/// Messages between the two cores of a module, in order with the data of their session.
public enum PeerMessage: Sendable, Codable, Hashable {
  case hello(Hello)
  /// R7: the target's guest is off and it is durably inconsistent; this is its consent.
  case targetReady(claim: BranchID?)
  /// R8.4. Repeatable in its session.
  case adopt(Generation, history: [BranchID], pairing: UInt64?)
  /// R8.5
  case adopted
  /// R10: the sender's restarts of the guest are used up; the token follows, and the receiver is the last to try.
  case gaveUp
  /// R10: the writer token.
  case token
  /// R12: the sender would give its branch up for the receiver's, and waits for `goOn`.
  case giveUp(Generation, kept: Generation)
  /// R12: the receiver of `giveUp` keeps this branch.
  case goOn(Generation)
  /// R5: the primary found a register that one of the nodes does not know, and has read it; the secondary, in sync in this session,
  /// takes this witness as the one it knows.
  case adoptWitness(WitnessMark)
  /// It is durable there.
  case witnessAdopted(WitnessMark)
}

/// R5, over the control link, outside any session.
public struct ConsentRequest: Sendable, Codable, Hashable {
  public var nonce: UInt64
  public var node: NodeID
  public var generation: Generation
  public var history: [BranchID]
  public var guestRunning: Bool
  /// The asker stops cleanly: the granter follows it.
  public var stopping: Bool

  public init(
    nonce: UInt64, node: NodeID, generation: Generation, history: [BranchID], guestRunning: Bool, stopping: Bool
  ) {
    self.nonce = nonce
    self.node = node
    self.generation = generation
    self.history = history
    self.guestRunning = guestRunning
    self.stopping = stopping
  }
}

public enum ConsentReply: Sendable, Codable, Hashable {
  case granted(nonce: UInt64, generation: Generation, claim: BranchID?)
  case refused(nonce: UInt64, why: String)
}

/// The peer's module as its heartbeat tells it.
public struct PeerBeat: Sendable, Codable, Hashable {
  public var state: ModuleState
  public var readiness: Readiness
  public var standing: Standing
  public var generation: Generation
  public var guestRunning: Bool
  /// It cannot go on and asks this node to take the module.
  public var offers: Bool
  public init(
    state: ModuleState, readiness: Readiness, standing: Standing, generation: Generation, guestRunning: Bool,
    offers: Bool
  ) {
    self.state = state
    self.readiness = readiness
    self.standing = standing
    self.generation = generation
    self.guestRunning = guestRunning
    self.offers = offers
  }

  /// It serves a guest, or is about to.
  var isPrimary: Bool { state == .alone || state == .prim || guestRunning }
}

/// An operator's command; `id` comes back in the answer.
public struct Command: Sendable, Codable, Hashable {
  public enum Verb: Sendable, Codable, Hashable {
    case start(force: Bool)
    case stop
    case swap
    /// R12, given to the node whose copy is given up: `mine` and `theirs` are the generations the operator saw.
    case resolve(mine: Generation, theirs: Generation)
  }
  public var id: UInt64
  public var verb: Verb
  /// The wish this command leaves behind, made by the node that took it (swap: the present one).
  public var wishVersion: UInt64
  public init(id: UInt64, verb: Verb, wishVersion: UInt64) {
    self.id = id
    self.verb = verb
    self.wishVersion = wishVersion
  }
}

public enum Answer: Sendable, Codable, Hashable {
  case accepted(String)
  case refused(what: String, why: String, next: String)
}

public enum Event: Sendable, Codable, Hashable {
  /// First event of a core's life, once the shell has read what is on disk. No record = it is lost (R0).
  case loaded(record: DurableRecord?, wish: Wish, guest: GuestState, limits: ModuleLimits = ModuleLimits())
  /// Instead of `loaded`, and before it: what is on disk cannot be read now, so that nothing is known; the shell goes on trying. May
  /// come again with another reason.
  case loadFailed(why: String)
  case command(Command)
  /// A newer wish of the peer's operator, learned when the nodes met again.
  case wish(Wish)
  case nodeAlive
  case nodeLost
  /// The peer's boot id changed: whatever it held in memory is gone.
  case nodeRestarted
  case peerBeat(PeerBeat)
  case engine(EngineEvent)
  case engineGone(why: String)
  /// The engine died under its mount, or made room, and another one goes on with it: frozen, in no session. What the old one was
  /// told and had not answered is lost.
  case engineReplaced(EngineReport, why: String)
  case peerMessage(SessionID, PeerMessage)
  /// The peer's core said something in this session that the shell cannot read.
  case peerMessageUnreadable(SessionID, why: String)
  case guestStarted
  case guestStartFailed(why: String)
  case guestOff(GuestEnd)
  case guestPaused(why: String)
  /// The guest runs again, and this core did not ask for it.
  case guestResumed
  /// Answers to `suspendGuest` and `resumeGuest`.
  case guestSuspended
  case guestSuspendFailed(why: String)
  case guestReleased
  case guestReleaseFailed(why: String)
  /// Answers to `archiveBranch`.
  case branchArchived(BranchID)
  case branchArchiveFailed(BranchID, why: String)
  /// The guest could not be stopped or destroyed in time.
  case guestStuck(why: String)
  case consentRequested(ConsentRequest, token: UInt64)
  case consentReplied(ConsentReply)
  case consentFailed(nonce: UInt64, why: String)
  case witnessRead(id: UInt64, WitnessReading)
  /// The witness answered a swap, whatever it said: only a later read grants (R5).
  case witnessSwapped(id: UInt64)
  /// The fence agent said "off" and its status confirmed it.
  case peerFenced(id: UInt64)
  /// One of the addresses of the policy `ping` answered.
  case pingAnswered(id: UInt64)
  /// No answer to a `readWitness`, `swapWitness`, `fencePeer` or `ping`, or a negative one.
  case arbiterFailed(id: UInt64, why: String)
  /// Nothing after the failed `persist` of that list was executed. Comes before any other event: until it is handled the
  /// core believes what it wrote. Only a fresh core and `loaded` end the state it leads to.
  case persistFailed(why: String)
  /// Changed configuration, re-read without a restart.
  case settings(MirrorSettings)
  case timer
}

public enum Severity: String, Sendable, Codable, Hashable {
  case info, notice, warning, alarm
}

/// Executed strictly in order. `persist` is a barrier: what follows it in the list runs only when it is durable.
public enum Directive: Sendable, Codable, Hashable {
  case persist(DurableRecord)
  case persistWish(Wish)
  /// Kept over restarts of the shell and the host as well as it can; no barrier.
  case keepLimits(ModuleLimits)
  case startEngine
  /// SIGKILL, for an engine that must not act any more.
  case killEngine
  case engine(EngineCommand)
  case sendPeer(SessionID, PeerMessage)
  case startGuest
  /// ACPI, then forced after `stopTimeout`. Answered by `guestOff` or `guestStuck`.
  case stopGuest
  /// Answered by `guestOff` or `guestStuck`.
  case destroyGuest
  /// The virtual CPUs stand still until `resumeGuest`. Answered by `guestSuspended` or `guestSuspendFailed`.
  case suspendGuest
  /// Answered by `guestReleased` or `guestReleaseFailed`; a guest that is off by then answers nothing.
  case resumeGuest
  /// R12: keep the whole copy as it is now, durably. Nothing writes to it until the answer: `branchArchived` or
  /// `branchArchiveFailed`. The second generation is the one that goes on.
  case archiveBranch(Generation, kept: Generation)
  /// R12, by the site's policy: what `vmha resolve` does on the node whose copy is given up, up to and with `Command.Verb.resolve`.
  case resolveSplit(mine: Generation, theirs: Generation)
  case askConsent(ConsentRequest)
  case replyConsent(token: UInt64, ConsentReply)
  /// R5: a linearizable read of this module's register. Answered by `witnessRead` or `arbiterFailed`.
  case readWitness(id: UInt64)
  /// R5: write the register if its last change is still `expect` (0 = there is none). Answered by `witnessSwapped` or `arbiterFailed`;
  /// either way it may have happened, or may still happen.
  case swapWitness(id: UInt64, expect: Int64, WitnessRegister)
  /// R5: power the peer off and have that confirmed. Answered by `peerFenced` or `arbiterFailed`.
  case fencePeer(id: UInt64)
  /// Answered by `pingAnswered` if one of the policy's addresses answers, else by `arbiterFailed`.
  case ping(id: UInt64)
  case answer(commandID: UInt64, Answer)
  case journal(Severity, Reason)
  case wake(at: Instant)
}
