import Model

/// What a module says of itself; the heartbeat, the API and the console show nothing else.
public struct MirrorStatus: Sendable, Codable, Hashable {
  public var state: ModuleState
  public var readiness: Readiness
  public var standing: Standing?
  public var generation: Generation?
  public var peerOutdated: RightKind?
  public var guest: GuestState
  public var isAlone: Bool
  public var inSync: Bool
  public var offers: Bool
  public var isSplit: Bool
  public var splitGeneration: Generation?
  public var sentence: String
  public var since: Instant
  public var resync: ResyncProgress?
  /// The witness would give no right now, and why: DEGRADED before the day it is needed. nil = it would, or is not used.
  public var arbiterTrouble: String?
  /// The arbiter that this core would ask: what it was told before is answered or void (R5). nil = a version that does not say.
  public var arbiter: ArbiterPolicy?
  /// R0: this node lost its record, and nobody knows what its copy is worth. nil = no.
  public var recordLost: Bool?
}

extension MirrorModule {
  public var status: MirrorStatus {
    let (state, readiness) = stateAndReadiness
    return MirrorStatus(
      state: state, readiness: splitWith != nil && !isGivingUp ? .blocked : readiness, standing: record?.standing,
      generation: record?.generation, peerOutdated: record?.peerOutdated, guest: guest, isAlone: isAlone,
      inSync: isInSync, offers: offers && !guest.isLive, isSplit: splitWith != nil,
      splitGeneration: splitWith?.generation,
      sentence: splitWith != nil
        ? splitSentence : guestSentence,
      since: sentenceSince, resync: resync, arbiterTrouble: watch.trouble, arbiter: settings.arbiter,
      recordLost: record?.recordLost)
  }

  /// R12: the operator has chosen; this end of the split comes by itself, however long the archive takes.
  private var isGivingUp: Bool {
    if case .closing(let closing) = phase, case .giveUp = closing.goal { true } else { false }
  }

  private var splitSentence: String {
    "SPLIT: both nodes wrote without the other and both copies are kept; \(sentence)"
  }

  private var guestSentence: String {
    // What keeps the guest off says more than what the copies do.
    if let blockedBy, !guest.isLive, phase == .alone || isInSync { return blockedBy }
    if let diskTrouble, ownsGuest { return "\(sentence); \(diskTrouble)" }
    if guest == .suspended { return "\(sentence); the guest is suspended meanwhile" }
    return guestNote.map { "\(sentence); the guest is paused: \($0)" } ?? sentence
  }

  private var isInSync: Bool {
    switch phase {
    case .prim, .second: true
    default: false
    }
  }

  private var stateAndReadiness: (ModuleState, Readiness) {
    let guestUp: Readiness =
      blockedBy != nil ? .blocked : guest == .running ? .ready : guest == .paused ? .blocked : .transient
    return switch phase {
    case .stopped: (.stop, .ready)
    case .waiting:
      isContinuous && arbiterRefusal == nil && !facesLostRecord
        ? (.second, .transient) : (.wait, waitsForOthers ? .blocked : .transient)
    case .frozen: (.prim, isStuckBesideLostRecord || peerAlive == false && arbiterGivesNothing ? .blocked : .transient)
    case .alone: (.alone, guestUp)
    case .adopting: (.prim, .transient)
    case .prim: (.prim, guestUp)
    case .yielding: (.wait, .transient)
    case .target: (.second, .transient)
    case .second: (.second, .ready)
    case .closing(let closing): (closing.wasAlone ? .alone : .prim, .transient)
    case .failed: (.wait, .blocked)
    }
  }

  private var waitsForOthers: Bool {
    if hasLostRecord || isStuckBesideLostRecord || hasNoSource { return true }
    guard let record, engineReady, peerAlive == false else { return false }
    return record.standing != .uptodate || arbiterGivesNothing || settings.arbiter.fences && !isContinuous
  }

  private var arbiterGivesNothing: Bool { settings.arbiter == .wait || arbiterRefusal != nil }

  /// True while this node's engine serves, or may soon serve, a guest's writes: its disks must not be touched by others.
  public var ownsGuest: Bool {
    switch phase {
    case .frozen, .alone, .adopting, .prim, .closing: true
    default: false
    }
  }

  /// Why a register that reads so would give this node no right; nil = it would.
  public func witnessObjection(to reading: WitnessReading) -> String? {
    guard let record else { return "this node has no usable record of the module" }
    return objection(to: reading, record)
  }

  /// The durable record as this core last wrote it.
  public var durableRecord: DurableRecord? { record }
}
