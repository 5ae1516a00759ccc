import MirrorModule
import Model

/// Kinds of things a run can meet. A campaign that never met one proves nothing about it.
public enum Met: Int, CaseIterable, Sendable {
  // Rights, as they became durable.
  case rightByConsent, rightByWitness, rightByFence, rightByPolicy, rightByForce
  // Faults.
  case powerCut, blackout, boot, vmhadKilled, vmhadKilledBetweenDirectives, engineKilled, engineReplaced
  case engineNotReplaced, guestCrashed, hostFrozen, hostThawed, cutReplication, cutEverything, cutOneWay
  case recordNotWritten, guestDoesNotStart, guestNotSuspended, resumedByHand, consentLost
  case witnessUnreachable, witnessSetBack, witnessEmptied, witnessRequestLost, witnessAnswerLost, witnessLate
  case witnessTwice, witnessNextEndpoint, witnessStranger, fenceFailed, fenceUnheard, recordLost, diskHung
  case beatLost, beatReplayed, linkOneWay, ownStall, handshakeBroken, handshakeHalf
  // The operator.
  case commandStart, commandStop, commandSwap, commandResolve, commandForce
  case arbiterChanged, arbiterChangedHalf, arbiterTakenOver, forcedAtEnd, forcedByTimer, splitByPolicy
  case lostRecordForced
  // Ways back.
  case guestStarted, guestSuspended, guestReleased, guestHandedOver, consentAsked, consentGranted, consentRefused
  case resyncBegun, resyncCopied, adopted, barrier, split, branchArchived, branchGivenUp, claimMade, witnessRead
  case witnessSwapped, witnessAgreed, peerFenced, pinged, engineForcedOff, filesSynced, offered
  case startByStanding, begunInSync, lostRecordTold, convergedAtEnd, splitAtEnd, restartsUsedUp
  // The data.
  case intentAwaited, intentsCleared, intentsUnknown, intentsNotWritten, intentsDamaged, overlapWaited, leftToCopy
  case flushLeftToCopy, copyWaitedForWrite, resyncByMap, resyncOfEverything, stallNoticed, writeFailed, diskSlow
  case diskError, engineKilledStoring

  /// "right by witness"
  public var words: String {
    var text = ""
    for character in "\(self)" {
      if character.isUppercase { text += " " }
      text += character.lowercased()
    }
    return text
  }

  /// What a campaign of this arbiter must meet.
  public func isExpected(of arbiter: ArbiterPolicy) -> Bool {
    switch self {
    case .rightByWitness, .witnessUnreachable, .witnessSetBack, .witnessEmptied, .witnessRequestLost,
      .witnessAnswerLost, .witnessLate, .witnessTwice, .witnessNextEndpoint, .witnessStranger, .claimMade, .witnessRead,
      .witnessSwapped, .witnessAgreed:
      arbiter.asksWitness
    case .rightByFence: arbiter == .fence
    case .fenceFailed, .fenceUnheard, .peerFenced: arbiter.fences
    case .pinged: arbiter == .ping
    case .rightByPolicy, .split, .splitByPolicy, .splitAtEnd, .branchArchived, .branchGivenUp: arbiter.isUnproven
    // Two faults at a time.
    case .lostRecordForced, .forcedAtEnd, .forcedByTimer: false
    default: true
    }
  }
}

struct Coverage {
  private(set) var times = [Int](repeating: 0, count: Met.allCases.count)
  func hasMet(_ what: Met) -> Bool { times[what.rawValue] > 0 }
  mutating func meet(_ what: Met) { times[what.rawValue] += 1 }
}

extension World {
  func meet(_ what: Met) { coverage.meet(what) }

  /// What a core has decided, and was done.
  func meet(_ directive: Directive) {
    switch directive {
    case .startGuest: meet(.guestStarted)
    case .suspendGuest: meet(.guestSuspended)
    case .resumeGuest: meet(.guestReleased)
    case .archiveBranch: meet(.branchArchived)
    case .askConsent: meet(.consentAsked)
    case .replyConsent(_, .granted): meet(.consentGranted)
    case .replyConsent(_, .refused): meet(.consentRefused)
    case .readWitness: meet(.witnessRead)
    case .swapWitness: meet(.witnessSwapped)
    case .ping: meet(.pinged)
    case .killEngine: meet(.engineForcedOff)
    case .resolveSplit: meet(.splitByPolicy)
    case .journal(_, let reason):
      if options.forceAfter != nil, reason.sentence.contains("(force-after): started") { meet(.forcedByTimer) }
    case .sendPeer(_, let message):
      switch message {
      case .token: meet(.guestHandedOver)
      case .adopted: meet(.adopted)
      case .witnessAdopted: meet(.witnessAgreed)
      case .gaveUp: meet(.restartsUsedUp)
      case .hello(let hello): if hello.recordLost == true { meet(.lostRecordTold) }
      case .targetReady, .adopt, .giveUp, .goOn, .adoptWitness: break
      }
    case .engine(let command):
      switch command {
      case .startResync: meet(.resyncBegun)
      case .flushBarrier: meet(.barrier)
      case .syncFiles: meet(.filesSynced)
      default: break
      }
    default: break
    }
  }

  /// What a record says that the one before did not.
  func meet(_ old: DurableRecord, _ next: DurableRecord) {
    if old.claim == nil, next.claim != nil { meet(.claimMade) }
    if old.generation.branch != .empty, next.generation.branch == .empty { meet(.branchGivenUp) }
    guard old.generation != next.generation, let right = next.peerOutdated else { return }
    switch right {
    case .consent: meet(.rightByConsent)
    case .witness: meet(.rightByWitness)
    case .fence: meet(.rightByFence)
    case .policy: meet(.rightByPolicy)
    case .force: meet(.rightByForce)
    }
  }
}
