import Model
import Testing

@testable import Replication

@Suite struct VerifyRunTests {
  private static let piece = VerifyRun.pieceBytes
  private static let block = ResyncPlan.blockBytes
  private let file = FileID(rawValue: 7)

  private func at(_ milliseconds: Int64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }

  private func run(repairs: Bool = false, rate: UInt64 = 0, total: UInt64 = 0) -> VerifyRun {
    var run = VerifyRun(
      VerifyRequest(id: 1, session: SessionID(rawValue: 9), repairs: repairs, bytesPerSecondMax: rate),
      firstSequence: 100, bytesTotal: total, now: at(0))
    run.begin("disk.img")
    return run
  }

  private func data(_ offset: UInt64, _ length: UInt64 = VerifyRun.pieceBytes) -> VerifyPiece {
    VerifyPiece(file, .data, offset: offset, length: length)
  }

  /// The answer "the same" to the whole of a piece of data.
  private func same(_ piece: VerifyPiece, differing: UInt32 = 0, unreadable: UInt32 = 0) -> VerifyAnswer {
    .compared(start: piece.offset, end: piece.end, differing: differing, unreadable: unreadable)
  }

  @Test func theWindowIsKept() throws {
    var run = run()
    for number in 0..<VerifyRun.windowPieces {
      #expect(run.turn(isBusy: false, now: at(0)) == .go)
      #expect(run.turn(isBusy: true, now: at(0)) == (number < VerifyRun.busyWindowPieces ? .go : .wait(nil)))
      #expect(run.ask(data(UInt64(number) * Self.piece), now: at(0)) == 100 + UInt64(number))
    }
    #expect(run.turn(isBusy: false, now: at(0)) == .wait(nil))
    try run.answered(103, same(data(3 * Self.piece)), now: at(1))
    #expect(run.turn(isBusy: false, now: at(1)) == .go)
    #expect(!run.isIdle)
  }

  @Test func theRateIsKept() throws {
    var run = run(rate: 4 * Self.piece)
    _ = run.ask(data(0), now: at(0))
    #expect(run.turn(isBusy: false, now: at(0)) == .wait(.milliseconds(250)))
    #expect(run.turn(isBusy: false, now: at(250)) == .go)
    // Time that was not used is not made up for.
    _ = run.ask(data(Self.piece), now: at(5000))
    #expect(run.turn(isBusy: false, now: at(5001)) == .wait(.milliseconds(249)))
    // What the peer had to read behind a hole counts too.
    let hole = VerifyPiece(file, .zeros, offset: 0, length: 1 << 30)
    #expect(run.ask(hole, now: at(6000)) == 102)
    try run.answered(102, .compared(start: 0, end: Self.piece, differing: 0, unreadable: 0), now: at(6000))
    #expect(run.turn(isBusy: false, now: at(6000)) == .wait(.milliseconds(250)))
    #expect(
      run.nextFollowUp() == .look(VerifyPiece(file, .zeros, offset: Self.piece, length: (1 << 30) - Self.piece)))
  }

  @Test func placesSideBySideAreOne() throws {
    var run = run()
    for number in 0..<3 { _ = run.ask(data(UInt64(number) * Self.piece), now: at(0)) }
    try run.answered(100, same(data(0), differing: 0b1000), now: at(0))
    try run.answered(101, same(data(Self.piece), differing: 0b1001, unreadable: 0b10), now: at(0))
    try run.answered(102, same(data(2 * Self.piece), differing: 0b1), now: at(0))
    #expect(
      run.findings.map { "\($0.kind) \($0.offset / Self.block) \($0.length / Self.block)" } == [
        "differs 3 2", "unreadableThere 5 1", "differs 7 2",
      ])
    #expect(run.findingsCount == 3 && run.nextFollowUp() == nil)
  }

  @Test func aRepairIsLookedAtAgain() throws {
    var run = run(repairs: true)
    _ = run.ask(data(0), now: at(0))
    try run.answered(100, same(data(0), differing: 0b110), now: at(0))
    guard case .repair(let piece, nil)? = run.nextFollowUp() else {
      Issue.record("no repair")
      return
    }
    #expect(piece.offset == Self.block && piece.length == 2 * Self.block)
    #expect(run.findings.map(\.isRepaired) == [false])
    run.repaired(piece)
    guard case .look(let again)? = run.nextFollowUp() else {
      Issue.record("not looked at again")
      return
    }
    #expect(again.isSecondLook)
    let sequence = run.ask(again, now: at(0))
    // Still not the same: it is no new finding, and no further repair.
    try run.answered(sequence, same(again, differing: 1), now: at(0))
    #expect(run.findingsCount == 1 && run.repairedCount == 0 && run.isIdle)
    let next = run.ask(again, now: at(0))
    try run.answered(next, same(again), now: at(0))
    #expect(run.repairedCount == 1 && run.findings.map(\.isRepaired) == [true])
  }

  @Test func aFolderMustLookDifferentTwice() throws {
    var run = run()
    _ = run.ask(VerifyPiece(file, .folder), now: at(0))
    try run.answered(100, .folder(isSame: false), now: at(0))
    #expect(run.findingsCount == 0)
    guard case .look(let again)? = run.nextFollowUp() else {
      Issue.record("not looked at again")
      return
    }
    _ = run.ask(again, now: at(0))
    try run.answered(101, .folder(isSame: false), now: at(0))
    #expect(run.findings == [VerifyFinding(path: "disk.img", kind: .names)])
  }

  @Test func onlyTheFirstPlacesAreListed() throws {
    var run = run(repairs: true)
    for number in 0..<100 {
      let piece = data(UInt64(number) * 2 * Self.piece)
      let sequence = run.ask(piece, now: at(0))
      try run.answered(sequence, same(piece, differing: 1), now: at(0))
    }
    #expect(run.findings.count == VerifyReport.findingsMax && run.findingsCount == 100)
    while case .repair(let piece, _)? = run.nextFollowUp() {
      var again = piece
      again.isSecondLook = true
      let sequence = run.ask(again, now: at(0))
      try run.answered(sequence, same(again), now: at(0))
    }
    #expect(run.repairedCount == 100)
  }

  @Test func wrongAnswersEndTheSession() throws {
    let hole = VerifyPiece(file, .zeros, offset: Self.piece, length: 4 * Self.piece)
    let wrong: [(VerifyPiece, VerifyAnswer)] = [
      (data(0), .size(4)), (data(0), .compared(start: 0, end: Self.piece - 1, differing: 0, unreadable: 0)),
      (data(0), .compared(start: 0, end: Self.piece, differing: 0b10000, unreadable: 0)),
      (hole, .compared(start: 0, end: Self.piece + 1, differing: 0, unreadable: 0)),
      (hole, .compared(start: Self.piece, end: Self.piece, differing: 0, unreadable: 0)),
      (hole, .compared(start: Self.piece, end: 6 * Self.piece, differing: 0, unreadable: 0)),
      (VerifyPiece(file, .size, offset: 1), .folder(isSame: true)),
    ]
    for (piece, answer) in wrong {
      var run = run()
      let sequence = run.ask(piece, now: at(0))
      #expect(throws: AcknowledgeError.self, "\(answer)") { try run.answered(sequence, answer, now: at(0)) }
    }
    var run = run()
    _ = run.ask(data(0), now: at(0))
    // Of a verification before this one.
    try run.answered(99, .size(1), now: at(0))
    #expect(throws: AcknowledgeError.self) { try run.answered(101, .missing, now: at(0)) }
    try run.answered(100, .missing, now: at(0))
    #expect(run.isMissing)
    #expect(throws: AcknowledgeError.self) { try run.answered(100, .missing, now: at(0)) }
  }

  @Test func progressCountsData() throws {
    var run = run(total: 4 * Self.piece)
    for number in 0..<3 { _ = run.ask(data(UInt64(number) * Self.piece), now: at(0)) }
    run.skip(data(3 * Self.piece))
    for number in 0..<3 {
      try run.answered(100 + UInt64(number), same(data(UInt64(number) * Self.piece)), now: at(1000))
    }
    var report = VerifyReport(id: 1, repairs: false, startedAtMs: 0)
    run.fill(&report, now: at(2000))
    #expect(report.bytesDone == 4 * Self.piece && report.bytesTotal == report.bytesDone && report.secondsLeft == 0)
  }
}
