import Model

/// One question of a verification. Look at this node's copy, and queue the question, while nothing can change this range: under
/// `RangeOrder` as for a resync. So it has one place in the stream, and an answer "differs" is never caused by a write on its way.
public struct VerifyPiece: Hashable, Sendable {
  public enum Subject: Hashable, Sendable {
    case data
    case zeros
    /// `offset` is the size here.
    case size
    case folder
  }
  public let file: FileID
  public let subject: Subject
  public let offset: UInt64
  public let length: UInt64
  /// Asked once more: after a repair, or (a folder) because attributes that come with a new size are not ordered with names.
  public var isSecondLook = false
  /// Which finding it is about, once it is about one; counted from 0, also beyond those that are listed.
  var finding: Int?

  public init(_ file: FileID, _ subject: Subject, offset: UInt64 = 0, length: UInt64 = 0) {
    self.file = file
    self.subject = subject
    self.offset = offset
    self.length = length
  }
  public var end: UInt64 { offset + length }
  /// A data piece whose file ends before it.
  public func shortened(_ bytes: UInt64) -> VerifyPiece { changed(offset, min(bytes, length)) }
  /// A size piece of a file that has this size by now.
  public func resized(_ bytes: UInt64) -> VerifyPiece { changed(bytes, 0) }

  private func changed(_ offset: UInt64, _ length: UInt64) -> VerifyPiece {
    var piece = VerifyPiece(file, subject, offset: offset, length: length)
    piece.isSecondLook = isSecondLook
    piece.finding = finding
    return piece
  }
}

/// The account of one verification on the primary: what was asked, what came back, what follows, how fast. Pure: its user walks the
/// tree one object after the other, reads, sends, and passes the clock in.
public struct VerifyRun: Sendable {
  /// Largest piece of data: while it is read no overlapping write is carried out here, and nothing is applied there.
  public static let pieceBytes: UInt64 = 256 * 1024
  public static let holeBytesMax: UInt64 = 1024 * 1024 * 1024
  /// Questions without an answer, while no guest waits for anything.
  public static let windowPieces = 8
  /// The same while a guest waits.
  public static let busyWindowPieces = 1

  public enum Turn: Hashable, Sendable {
    case go
    /// For an answer, or for so long; nil = for an answer only.
    case wait(Duration?)
  }

  /// What has to be done before the walk goes on.
  public enum FollowUp: Hashable, Sendable {
    case look(VerifyPiece)
    /// Send this node's contents, then say `repaired`. `theirs`: the size on the other node, of a `size` piece.
    case repair(VerifyPiece, theirs: UInt64?)
  }

  public let session: SessionID
  public let repairs: Bool
  private let bytesPerSecondMax: UInt64
  public private(set) var nextSequence: UInt64
  private let firstSequence: UInt64
  private var sent: [UInt64: VerifyPiece] = [:]
  private var followUps: [FollowUp] = []
  private var path = ""
  /// The replica does not know the object that is being looked at.
  public private(set) var isMissing = false
  /// The next piece is not due before.
  private var dueAt: Instant
  public private(set) var lastAnswerAt: Instant
  private var rate: RateMeter

  public let bytesTotal: UInt64
  public private(set) var bytesDone: UInt64 = 0
  public private(set) var findings: [VerifyFinding] = []
  public private(set) var findingsCount = 0
  public private(set) var repairedCount = 0

  /// `firstSequence`: behind every number used in this session before. `bytesTotal`: an estimate, for the progress only.
  public init(_ request: VerifyRequest, firstSequence: UInt64, bytesTotal: UInt64, now: Instant) {
    session = request.session
    repairs = request.repairs
    bytesPerSecondMax = request.bytesPerSecondMax
    self.firstSequence = firstSequence
    nextSequence = firstSequence
    self.bytesTotal = bytesTotal
    dueAt = now
    lastAnswerAt = now
    rate = RateMeter(now: now)
  }

  // MARK: - asking

  /// The next object; the one before is finished (`isIdle`).
  public mutating func begin(_ path: String) {
    self.path = path
    isMissing = false
  }

  /// Everything that was asked is answered, and nothing follows from it.
  public var isIdle: Bool { sent.isEmpty && followUps.isEmpty }

  public func turn(isBusy: Bool, now: Instant) -> Turn {
    if sent.count >= (isBusy ? VerifyRun.busyWindowPieces : VerifyRun.windowPieces) { return .wait(nil) }
    return dueAt > now ? .wait(dueAt - now) : .go
  }

  public mutating func nextFollowUp() -> FollowUp? { followUps.isEmpty ? nil : followUps.removeFirst() }

  /// The question is queued with this number, while its range is still held.
  public mutating func ask(_ piece: VerifyPiece, now: Instant) -> UInt64 {
    let sequence = nextSequence
    nextSequence += 1
    if sent.isEmpty { lastAnswerAt = now }
    sent[sequence] = piece
    if piece.subject == .data { pace(piece.length, now) }
    return sequence
  }

  /// The piece is not there any more: its file ends before it, or is gone.
  public mutating func skip(_ piece: VerifyPiece) {
    if piece.subject == .data, !piece.isSecondLook { bytesDone += piece.length }
    if piece.isSecondLook, piece.subject != .folder { settle(piece) }
  }

  private mutating func pace(_ bytes: UInt64, _ now: Instant) {
    guard bytesPerSecondMax > 0 else { return }
    let nanoseconds = Double(bytes) / Double(bytesPerSecondMax) * 1e9
    dueAt = max(dueAt, now) + .nanoseconds(Int64(nanoseconds))
  }

  // MARK: - answers

  /// An answer to an earlier verification counts no more. One to a question never asked, or one that does not fit it, is the peer's
  /// error: end the session.
  public mutating func answered(_ sequence: UInt64, _ answer: VerifyAnswer, now: Instant) throws(AcknowledgeError) {
    guard sequence >= firstSequence else { return }
    guard let piece = sent.removeValue(forKey: sequence) else {
      throw AcknowledgeError(.unknownSequence, "the peer answered a question \(sequence) that was not asked")
    }
    lastAnswerAt = now
    switch (piece.subject, answer) {
    case (_, .missing): isMissing = true
    case (.size, .size(let theirs)): compareSizes(piece, theirs)
    case (.folder, .folder(let isSame)): compareFolder(piece, isSame)
    case (.data, .compared(let start, let end, let differing, let unreadable)),
      (.zeros, .compared(let start, let end, let differing, let unreadable)):
      try check(piece, start, end, differing | unreadable, sequence)
      note(piece, start, end, differing, unreadable)
      if piece.subject == .zeros { pace(end - start, now) }
      if end < piece.end { lookOn(piece, from: end) }
    default:
      throw AcknowledgeError(.wrongKind, "the peer's answer to question \(sequence) does not fit it")
    }
    if piece.subject == .data, !piece.isSecondLook { bytesDone += piece.length }
    rate.note(bytesDone, now)
  }

  private func check(
    _ piece: VerifyPiece, _ start: UInt64, _ end: UInt64, _ bits: UInt32, _ sequence: UInt64
  ) throws(AcknowledgeError) {
    let isWhole = start == piece.offset && end == piece.end
    let isPart = start >= piece.offset && end <= piece.end && (end > piece.offset || end == piece.end)
    let blocks = (end - min(start, end) + ResyncPlan.blockBytes - 1) / ResyncPlan.blockBytes
    guard piece.subject == .data ? isWhole : isPart, start <= end, blocks <= 32,
      blocks == 32 || UInt64(bits) >> blocks == 0
    else {
      throw AcknowledgeError(.unknownSequence, "the peer's answer to question \(sequence) names other bytes")
    }
  }

  /// Behind what follows already.
  public mutating func lookLater(_ piece: VerifyPiece) { followUps.append(.look(piece)) }

  private mutating func lookOn(_ piece: VerifyPiece, from offset: UInt64) {
    lookLater(VerifyPiece(piece.file, .zeros, offset: offset, length: piece.end - offset))
  }

  private mutating func note(
    _ piece: VerifyPiece, _ start: UInt64, _ end: UInt64, _ differing: UInt32, _ unreadable: UInt32
  ) {
    let bits = differing | unreadable
    if piece.isSecondLook {
      // Still not the same after its repair: it stays a finding.
      if bits == 0 { settle(piece) }
      return
    }
    var block: UInt32 = 0
    while block < 32 {
      guard bits >> block & 1 == 1 else {
        block += 1
        continue
      }
      let first = block
      let isUnreadable = unreadable >> first & 1 == 1
      while block < 32, bits >> block & 1 == 1, (unreadable >> block & 1 == 1) == isUnreadable { block += 1 }
      let offset = start + UInt64(first) * ResyncPlan.blockBytes
      let length = min(end, start + UInt64(block) * ResyncPlan.blockBytes) - offset
      let kind = isUnreadable ? VerifyFinding.Kind.unreadableThere : .differs
      found(VerifyPiece(piece.file, .data, offset: offset, length: length), kind, offset, length)
    }
  }

  private mutating func compareSizes(_ piece: VerifyPiece, _ theirs: UInt64) {
    let own = piece.offset
    if piece.isSecondLook {
      if theirs == own { settle(piece) }
    } else if theirs != own {
      found(piece, .size, min(own, theirs), max(own, theirs) - min(own, theirs), theirs: theirs)
    }
  }

  private mutating func compareFolder(_ piece: VerifyPiece, _ isSame: Bool) {
    guard !isSame else { return }
    if piece.isSecondLook { return add(.names) }
    var again = piece
    again.isSecondLook = true
    followUps.append(.look(again))
  }

  // MARK: - findings

  private mutating func found(
    _ piece: VerifyPiece, _ kind: VerifyFinding.Kind, _ offset: UInt64, _ length: UInt64, theirs: UInt64? = nil
  ) {
    var piece = piece
    piece.finding = findingsCount
    add(kind, offset, length)
    if repairs { followUps.append(.repair(piece, theirs: theirs)) }
  }

  /// Something that cannot be repaired here.
  public mutating func add(_ kind: VerifyFinding.Kind, _ offset: UInt64 = 0, _ length: UInt64 = 0) {
    let isListed = findings.count == findingsCount
    if isListed, !repairs, let last = findings.last, last.path == path, last.kind == kind, length > 0,
      last.offset + last.length == offset
    {
      findings[findings.count - 1].length += length
      return
    }
    if findings.count < VerifyReport.findingsMax {
      findings.append(VerifyFinding(path: path, kind: kind, offset: offset, length: length))
    }
    findingsCount += 1
  }

  /// This node's contents were sent and acknowledged: asks again.
  public mutating func repaired(_ piece: VerifyPiece) {
    var again = piece
    again.isSecondLook = true
    followUps.append(.look(again))
  }

  private mutating func settle(_ piece: VerifyPiece) {
    guard let finding = piece.finding else { return }
    repairedCount += 1
    if finding < findings.count { findings[finding].isRepaired = true }
  }

  // MARK: - how far

  public func fill(_ report: inout VerifyReport, now: Instant) {
    report.bytesTotal = max(bytesTotal, bytesDone)
    report.bytesDone = bytesDone
    report.bytesPerSecond = rate.bytesPerSecond(now) ?? 0
    let left = report.bytesTotal - bytesDone
    report.secondsLeft =
      left == 0 ? 0 : report.bytesPerSecond > 0 ? Int((left + report.bytesPerSecond - 1) / report.bytesPerSecond) : nil
    report.findings = findings
    report.findingsCount = findingsCount
    report.repairedCount = repairedCount
  }
}
