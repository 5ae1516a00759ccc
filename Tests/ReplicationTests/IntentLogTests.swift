import Testing

@testable import Replication

private let block = IntentLog.blockBytes

private func identity(_ number: UInt64) -> FileIdentity {
  guard let made = FileIdentity(high: 7, low: number) else { preconditionFailure("seven is not zero") }
  return made
}

private func read(_ bytes: [UInt8]) -> IntentReading { bytes.withUnsafeBytes { IntentLog.read($0) } }

/// `large` says at least what `small` says.
private func covers(_ large: IntentSnapshot, _ small: IntentSnapshot) -> Bool {
  if large.isEverything { return true }
  return !small.isEverything
    && small.files.allSatisfy { entry in
      guard let found = large.files[entry.key] else { return false }
      if entry.value.isWhole, !found.isWhole { return false }
      return entry.value.zones.ranges.allSatisfy { $0.allSatisfy(found.zones.contains) }
    }
}

/// A file as it is written, with what was durable after each batch.
private struct Sample {
  var bytes: [UInt8]
  var snapshot: IntentSnapshot
  var appender: IntentAppender
  /// `bytes.count` of the used part and what it means, from the start on.
  var states: [(end: Int, meaning: IntentSnapshot)]
  let nonce: UInt64

  init(_ snapshot: IntentSnapshot, logBytes: Int = 16 * block, nonce: UInt64 = 0x1122_3344_5566_7788) {
    let start = IntentLog.start(snapshot, nonce: nonce, logBytes: logBytes)
    bytes = start + [UInt8](repeating: 0, count: logBytes)
    self.snapshot = snapshot
    self.nonce = nonce
    appender = IntentAppender(startBytes: start.count, nonce: nonce, logBytes: logBytes)
    states = [(start.count, snapshot)]
  }

  mutating func append(_ changes: [IntentChange]) -> Bool {
    guard let piece = appender.append(IntentBatch(number: 1, changes: changes)) else { return false }
    bytes.replaceSubrange(piece.offset..<piece.offset + piece.bytes.count, with: piece.bytes)
    for change in changes { snapshot.apply(change) }
    states.append((piece.offset + piece.bytes.count, snapshot))
    return true
  }

  static func usual() -> Sample {
    var start = IntentSnapshot()
    start.apply(.set(identity(1), 3..<9))
    start.apply(.set(identity(1), 12..<13))
    start.apply(.whole(identity(2), true))
    var sample = Sample(start)
    _ = sample.append([.set(identity(3), 5..<6), .clear(identity(1), 4..<6)])
    _ = sample.append([.whole(identity(2), false), .set(identity(1), 4..<5), .everything(true)])
    _ = sample.append([.everything(false), .clear(identity(3), 5..<6)])
    return sample
  }

  /// A batch of more than one block.
  static func large() -> [IntentChange] { (0..<400).map { .set(identity(9), $0 * 2..<$0 * 2 + 1) } }
}

@Suite struct IntentLogTests {
  @Test func whatIsWrittenIsRead() {
    var sample = Sample.usual()
    #expect(read(sample.bytes) == IntentReading(snapshot: sample.snapshot, note: nil))
    #expect(sample.append(Sample.large()) == true)
    #expect(read(sample.bytes) == IntentReading(snapshot: sample.snapshot, note: nil))
    #expect(sample.append([.reset]) && !sample.appender.isFull)
    #expect(read(sample.bytes) == IntentReading(snapshot: IntentSnapshot(), note: nil))
    #expect(sample.append([.set(identity(1), 0..<1 << 24)]) == true && sample.appender.isFull)
    #expect(sample.append([.reset]) == false, "eight blocks in two copies")
    #expect(read(sample.bytes) == IntentReading(snapshot: sample.snapshot, note: nil))
    let empty = Sample(.everything, logBytes: 0)
    #expect(read(empty.bytes) == IntentReading(snapshot: .everything, note: nil))
  }

  @Test func headHasItsGoldenBytes() {
    let sample = Sample(IntentSnapshot(), logBytes: 2 * block)
    #expect(Array(sample.bytes[..<8]) == Array("VMHAINT1".utf8))
    #expect(
      Array(sample.bytes[8..<28]) == [
        1, 0, 0, 0, 0, 0, 0, 0, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 5, 0, 0, 0,
      ])
    let log = IntentLog.blocks(
      IntentBatch(number: 9, changes: [.set(identity(0x0A0B), 5..<0x102)]), nonce: 3, sequence: 4)
    #expect(log.count == 2 * block && log[..<block] == log[block...])
    let head =
      "56" + "4d48414c4f4731" + "0300000000000000" + "0400000000000000" + "0400000000000000" + "0100000019000000"
    #expect(text(log[..<40]) == head)
    #expect(text(log[44..<70]) == "01" + "0000000000000007" + "0000000000000a0b" + "05000000" + "02010000" + "00")
  }

  @Test func everyFlippedBitIsFoundOrMadeGood() {
    let sample = Sample.usual()
    for index in sample.bytes.indices {
      // Every bit where there is something, one bit of the padding.
      let bits: [UInt8] = sample.bytes[index] != 0 || index % block < 48 ? [1, 2, 4, 8, 16, 32, 64, 128] : [32]
      for bit in bits where !(index % block >= 48 && sample.bytes[index] == 0 && index % 16 != 0) {
        var bad = sample.bytes
        bad[index] ^= bit
        let reading = read(bad)
        guard reading.snapshot == sample.snapshot else {
          Issue.record("bit \(bit) of byte \(index): \(reading)")
          return
        }
      }
    }
  }

  @Test func anyByteReplacedInBothCopiesIsASuperset() {
    let sample = Sample.usual()
    var everythings = 0
    for index in stride(from: 0, to: sample.bytes.count, by: 1) where index % block < 80 || index % 97 == 0 {
      for other in [index + block, index - block] where sample.bytes.indices.contains(other) {
        var bad = sample.bytes
        bad[index] ^= 0x5A
        bad[other] ^= 0x5A
        let found = read(bad).snapshot
        if found.isEverything { everythings += 1 }
        // Damage of both copies of the last block looks like a batch that was never written.
        let isLast = index >= sample.states[2].end
        guard covers(found, sample.snapshot) || (isLast && found == sample.states[2].meaning) else {
          Issue.record("bytes \(index) and \(other): \(found)")
          return
        }
      }
    }
    #expect(everythings > 100)
  }

  @Test func copiesDamagedAlternately() {
    var sample = Sample.usual()
    #expect(sample.append(Sample.large()) == true)
    let blocks = sample.bytes.count / block
    for first in [0, 1] {
      var bad = sample.bytes
      for (pair, start) in stride(from: 0, to: blocks - 1, by: 2).enumerated() {
        bad[(start + (pair + first) % 2) * block + 50] ^= 1
      }
      let reading = read(bad)
      #expect(reading.snapshot == sample.snapshot && reading.note != nil)
    }
  }

  @Test func cutAtEveryByte() {
    let sample = Sample.usual()
    for end in 0..<sample.bytes.count {
      let found = sample.bytes[..<end].withUnsafeBytes { IntentLog.read($0) }.snapshot
      if found != .everything { Issue.record("cut at \(end): \(found)") }
    }
    #expect(read(sample.bytes + [0]).snapshot == .everything)
  }

  /// A power cut in the middle of an append: a part of it is there, from the front, from the back, or any sectors.
  @Test func tornAtEveryByte() {
    for (number, state) in Sample.usual().states.enumerated().dropFirst() {
      let sample = Sample.usual()
      let before = sample.states[number - 1]
      for cut in before.end...state.end {
        for isFront in [true, false] {
          // The same bytes as with the cut before.
          if cut > before.end, sample.bytes[cut - 1] == 0 { continue }
          var torn = sample.bytes
          for index in state.end..<torn.count { torn[index] = 0 }
          for index in isFront ? cut..<state.end : before.end..<cut { torn[index] = 0 }
          let found = read(torn).snapshot
          guard found == before.meaning || found == state.meaning else {
            Issue.record("batch \(number) cut at \(cut): \(found)")
            return
          }
        }
      }
    }
  }

  @Test(arguments: 0..<200 as Range<UInt64>) func tornInSectors(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    var sample = Sample.usual()
    let before = sample.bytes
    let start = sample.states[3].end
    #expect(sample.append(Sample.large()) == true)
    let end = sample.states[4].end
    // The others first: the first block comes when they are durable.
    var torn = before
    let restStart = start + IntentAppender.Piece.lastBytes
    let isRestDurable = random.chance(30)
    for sector in stride(from: isRestDurable ? start : restStart, to: end, by: 512)
    where (isRestDurable && sector >= restStart) || random.chance(50) {
      torn.replaceSubrange(sector..<sector + 512, with: sample.bytes[sector..<sector + 512])
    }
    let found = read(torn).snapshot
    #expect(found == sample.states[3].meaning || (isRestDurable && found == sample.snapshot))
  }

  @Test func lostBlocksAreNoticed() {
    let sample = Sample.usual()
    for number in 1..<3 {
      var bad = sample.bytes
      for index in sample.states[number - 1].end..<sample.states[number].end { bad[index] = 0 }
      let reading = read(bad)
      #expect(reading.snapshot == .everything && reading.note?.contains("later ones are there") == true)
    }
    var sampleWithLarge = Sample.usual()
    #expect(sampleWithLarge.append(Sample.large()) == true)
    var bad = sampleWithLarge.bytes
    let second = sampleWithLarge.states[3].end + 2 * block
    for index in second..<second + 2 * block { bad[index] = 0 }
    #expect(read(bad).snapshot == .everything)
    var swapped = sample.bytes
    let start = sample.states[0].end
    swapped.replaceSubrange(start..<start + 2 * block, with: sample.bytes[start + 2 * block..<start + 4 * block])
    #expect(read(swapped).snapshot == .everything)
  }

  @Test func blocksOfAnotherFileAreNotThere() {
    let old = Sample.usual()
    var new = Sample(IntentSnapshot(), nonce: 99)
    let start = new.states[0].end
    let stale = old.states[0].end
    new.bytes.replaceSubrange(start..<start + 6 * block, with: old.bytes[stale..<stale + 6 * block])
    #expect(read(new.bytes) == IntentReading(snapshot: IntentSnapshot(), note: nil))
    #expect(new.append([.set(identity(1), 1..<2)]) == true)
    #expect(read(new.bytes) == IntentReading(snapshot: new.snapshot, note: nil))
  }

  @Test func anUnknownVersionIsEverything() {
    var sample = Sample.usual()
    sample.bytes[8] = 2
    #expect(read(sample.bytes).snapshot == sample.snapshot)
    sample.bytes[block + 8] = 2
    let reading = read(sample.bytes)
    #expect(reading.snapshot == .everything && reading.note?.contains("version 2") == true)
    #expect(read([]).snapshot == .everything && read([UInt8](repeating: 0, count: 4 * block)).snapshot == .everything)
  }

  @Test func tooMuchSaysMoreNotLess() {
    var many = IntentSnapshot()
    for number in 0...UInt64(IntentSnapshot.filesMax) { many.files[identity(number)] = .init() }
    let sample = Sample(many)
    #expect(read(sample.bytes).snapshot == .everything)
    var wide = IntentSnapshot()
    for file in 1...5 as ClosedRange<UInt64> {
      wide.files[identity(file)] = .init()
      for zone in 0..<250_000 as Range<UInt32> {
        wide.files[identity(file)]?.zones.append(zone * 4..<zone * 4 + 1)
      }
    }
    let bytes = Sample(wide).bytes
    #expect(bytes.count <= IntentLog.fileBytesMax)
    let reading = read(bytes)
    #expect(!reading.snapshot.isEverything && reading.note == nil && covers(reading.snapshot, wide))
  }

  /// Nothing, however wild, is taken for a whole map that says less; and reading it ends.
  @Test(arguments: 0..<300 as Range<UInt64>) func survivesRandomDamage(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    var bytes = Sample.usual().bytes
    for _ in 0..<Int.random(in: 1...40, using: &random) {
      let index =
        Int.random(in: 0..<bytes.count, using: &random) / block * block + Int.random(in: 0..<90, using: &random)
      bytes[index] = random.chance(50) ? UInt8.random(in: 0...255, using: &random) : 0xFF
    }
    // With checksums that fit, so that what lies behind them is reached.
    for start in stride(from: 0, to: bytes.count, by: block) where random.chance(70) {
      let offset = start < 2 * block ? IntentLog.headerChecksumOffset : IntentLog.blockChecksumOffset
      bytes.replaceSubrange(start + offset..<start + offset + 4, with: [0, 0, 0, 0])
      let sum = bytes[start..<start + block].withUnsafeBytes { CRC32C.checksum($0) }
      withUnsafeBytes(of: sum.littleEndian) { bytes.replaceSubrange(start + offset..<start + offset + 4, with: $0) }
    }
    let reading = read(bytes)
    _ = IntentMap(reading.snapshot, pagesMax: 8).snapshot()
    #expect(reading.snapshot.files.count <= 1000)
  }
}
