import Model
import Testing

@testable import Replication

@Suite struct AcknowledgeBatchTests {
  private func taken(_ batch: inout AcknowledgeBatch) throws -> [SequenceRange] {
    var ranges: [SequenceRange] = []
    let session = SessionID(rawValue: 9)
    try withUnsafeTemporaryAllocation(byteCount: FrameLimits.acknowledgeHeadBytesMax, alignment: 8) { buffer in
      while !batch.isEmpty {
        let count = batch.take(into: buffer, kind: .acknowledge, session: session)
        let frame = UnsafeRawBufferPointer(rebasing: buffer[..<count])
        guard case .frame(let view) = try FrameView.first(in: frame) else { return }
        try view.forEachRange { ranges.append($0) }
      }
    }
    return ranges
  }

  @Test func inOrderIsOneRange() throws {
    var batch = AcknowledgeBatch()
    for sequence in 5...900 as ClosedRange<UInt64> { batch.add(sequence) }
    #expect(batch.rangeCount == 1)
    #expect(try taken(&batch) == [SequenceRange(5, through: 900)])
    #expect(batch.isEmpty)
  }

  @Test(arguments: 0..<10) func anyOrderCoversExactlyWhatWasAdded(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    var batch = AcknowledgeBatch()
    let numbers = (1...3000 as ClosedRange<UInt64>).filter { _ in random.chance(60) }
    for sequence in numbers.shuffled(using: &random) { batch.add(sequence) }
    let ranges = try taken(&batch)
    #expect(ranges.flatMap { Array($0.first...$0.last) } == numbers)
    for (a, b) in zip(ranges, ranges.dropFirst()) { #expect(a.last + 1 < b.first) }
  }

  /// The peer's error must not end this process.
  @Test func aNumberThatWaitsAlreadyIsRefused() throws {
    var batch = AcknowledgeBatch()
    let numbers: [UInt64] = [3, 4, 9]
    for isFirst in [true, false] {
      for number in numbers {
        let isTaken = batch.add(number)
        #expect(isTaken == isFirst)
      }
    }
    #expect(try taken(&batch) == [SequenceRange(3, through: 4), SequenceRange(9)])
  }

  @Test func windowLetsOneLargeFrameThrough() {
    var window = SendWindow(bytesMax: 100)
    #expect(window.reserve(500) == true)
    #expect(window.reserve(1) == false)
    window.release(500)
    #expect(window.reserve(60) == true)
    #expect(window.reserve(40) == true)
    #expect(window.reserve(1) == false)
    window.reset()
    #expect(window.reserve(100) == true)
  }
}
