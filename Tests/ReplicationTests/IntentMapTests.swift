import Model
import Testing

@testable import Replication

private let mebibyte = ResyncPlan.zoneBytes
private let toTheEnd = 5 * mebibyte..<UInt64.max

private func identity(_ number: UInt64) -> FileIdentity {
  guard let made = FileIdentity(high: 7, low: number) else { preconditionFailure("seven is not zero") }
  return made
}

private func bytes(_ zone: UInt64, _ count: UInt64 = 1) -> Range<UInt64> {
  zone * mebibyte + 5..<(zone + count) * mebibyte - 5
}

/// A map and the disk below it, which takes what it gets at once.
private struct Rig {
  var map: IntentMap
  var disk: IntentSnapshot
  init(_ disk: IntentSnapshot = IntentSnapshot(), pagesMax: Int = IntentMap.pagesMax) {
    map = IntentMap(disk, pagesMax: pagesMax)
    self.disk = disk
  }
  mutating func store() {
    while let batch = map.takeBatch() {
      for change in batch.changes { disk.apply(change) }
      map.stored(batch.number)
    }
  }
  /// As the mirror does it, with a disk that is quick. Answers whether the write had to wait.
  mutating func write(_ slot: Int, _ range: Range<UInt64>) -> Bool {
    if map.touch(slot, bytes: range) { return false }
    map.want(slot, bytes: range)
    store()
    #expect(map.touch(slot, bytes: range) == true)
    return true
  }
  mutating func round(busy: [(Int, Range<UInt64>)] = []) {
    map.endRound(map.beginRound(busy: busy))
    store()
  }
}

@Suite struct IntentMapTests {
  let file = identity(1)

  @Test func nothingIsSetBeforeItIsStored() {
    var map = IntentMap(IntentSnapshot())
    let slot = map.slot(for: file)
    #expect(map.slot(for: file) == slot && !map.hasPending && map.takeBatch() == nil)
    #expect(!map.touch(slot, bytes: bytes(3)) && !map.hasPending)
    map.want(slot, bytes: bytes(3))
    map.want(slot, bytes: bytes(3))
    #expect(!map.touch(slot, bytes: bytes(3)) && map.hasPending)
    let batch = map.takeBatch()
    #expect(batch == IntentBatch(number: 1, changes: [.set(file, 3..<4)]))
    #expect(!map.touch(slot, bytes: bytes(3)) && !map.hasPending && map.takeBatch() == nil)
    map.stored(1)
    #expect(map.touch(slot, bytes: bytes(3)) && map.touch(slot, bytes: bytes(3)))
    #expect(!map.touch(slot, bytes: bytes(3, 2)) && !map.touch(slot, bytes: bytes(2)))
    #expect(map.zones(of: file) == .zones([3..<4]) && map.zonesSet == 1)
    #expect(map.zones(of: identity(2)) == .zones([]))
    #expect(map.touch(slot, bytes: 9..<9) == true, "an empty range is always set")
  }

  @Test func clearedOnlyAfterAFullQuietRound() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    #expect(rig.write(slot, bytes(3)) == true)
    rig.round()
    #expect(rig.disk.zones(of: file) == .zones([3..<4]), "touched in the round before")
    rig.round()
    #expect(rig.disk.zones(of: file) == .zones([]) && rig.map.zonesSet == 0)
    #expect(rig.disk.files.isEmpty)
    #expect(rig.write(slot, bytes(3)) == true, "set again: it has to wait for its own store")
  }

  @Test(arguments: [false, true]) func busyOrWrittenSinceIsNotCleared(isBusy: Bool) {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    _ = rig.write(slot, bytes(3))
    _ = rig.write(slot, bytes(9))
    rig.round()
    let round = rig.map.beginRound(busy: isBusy ? [(slot, bytes(3))] : [])
    #expect(round.candidates == (isBusy ? 1 : 2))
    if !isBusy { #expect(rig.write(slot, bytes(3)) == false) }
    rig.map.endRound(round)
    rig.store()
    #expect(rig.disk.zones(of: file) == .zones([3..<4]))
    // Being busy at the beginning counts as a touch: one more full round.
    rig.round()
    #expect(rig.disk.zones(of: file) == .zones([3..<4]))
    rig.round()
    #expect(rig.disk.files.isEmpty)
  }

  @Test func aRoundClearsOnlyForItself() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    _ = rig.write(slot, bytes(3))
    rig.round()
    let dropped = rig.map.beginRound(busy: [])
    #expect(rig.write(slot, bytes(3)) == false)
    let next = rig.map.beginRound(busy: [(slot, bytes(3))])
    rig.map.endRound(dropped)
    rig.map.endRound(next)
    rig.map.endRound(next)
    #expect(!rig.map.hasPending && rig.map.zonesSet == 1)
    let last = rig.map.beginRound(busy: [])
    #expect(last.candidates == 0)
    rig.map.endRound(last)
    let real = rig.map.beginRound(busy: [])
    rig.map.endRound(real)
    rig.map.endRound(real)
    #expect(rig.map.takeBatch()?.changes == [.clear(file, 3..<4)])
  }

  /// A mark that is a candidate at once: the flush of a round before says nothing about what came after it.
  @Test func theFlushOfAnEarlierRoundIsNotEnough() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    let dropped = rig.map.beginRound(busy: [])
    _ = rig.write(slot, toTheEnd)
    let next = rig.map.beginRound(busy: [])
    rig.map.endRound(dropped)
    #expect(rig.map.zones(of: file) == .whole)
    rig.map.endRound(next)
    #expect(rig.map.zones(of: file) == .zones([]))
  }

  @Test func clearAndSetInOneBatchAreInOrder() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    _ = rig.write(slot, bytes(3))
    rig.round()
    rig.map.endRound(rig.map.beginRound(busy: []))
    #expect(
      rig.map.touch(slot, bytes: bytes(3)) == false, "the clear is not stored yet, and yet the zone is not set any more"
    )
    rig.map.want(slot, bytes: bytes(3))
    #expect(rig.map.snapshot().zones(of: file) == .zones([3..<4]))
    let batch = rig.map.takeBatch()
    #expect(batch?.changes == [.clear(file, 3..<4), .set(file, 3..<4)])
    #expect(rig.map.touch(slot, bytes: bytes(3)) == false)
    if let batch { rig.map.stored(batch.number) }
    #expect(rig.map.touch(slot, bytes: bytes(3)) == true)
  }

  @Test func aZoneStoredWhileARoundRunsIsNotCleared() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    rig.map.want(slot, bytes: bytes(3))
    let batch = rig.map.takeBatch()
    let round = rig.map.beginRound(busy: [(slot, bytes(3))])
    if let batch { rig.map.stored(batch.number) }
    rig.map.endRound(round)
    #expect(rig.map.touch(slot, bytes: bytes(3)) == true)
  }

  @Test func aFailedBatchGoesFirstAgain() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    rig.map.want(slot, bytes: bytes(3))
    let batch = rig.map.takeBatch()
    rig.map.want(slot, bytes: bytes(8))
    if let batch { rig.map.failed(batch.number) }
    #expect(!rig.map.touch(slot, bytes: bytes(3)) && rig.map.hasPending)
    rig.map.want(slot, bytes: bytes(3))
    #expect(rig.map.takeBatch() == IntentBatch(number: 2, changes: [.set(file, 3..<4), .set(file, 8..<9)]))
    rig.map.stored(2)
    #expect(rig.map.touch(slot, bytes: bytes(3)) && rig.map.touch(slot, bytes: bytes(8)))
  }

  @Test func rangesWithoutEndMeanTheWholeFile() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    _ = rig.write(slot, bytes(1))
    let limit = UInt64(IntentMap.zonesMax) * mebibyte
    for range in [toTheEnd, limit - 1..<limit + 1, 0..<(UInt64(IntentMap.rangeZonesMax) + 1) * mebibyte] {
      #expect(rig.write(slot, range) && !rig.write(slot, range))
      #expect(rig.map.zones(of: file) == .whole && rig.disk.zones(of: file) == .whole)
      #expect(
        rig.write(slot, bytes(200)) == true, "a zone does not rely on the mark of the file, or that would never go")
      // At once when not busy, but not while it is.
      rig.round(busy: [(slot, range)])
      #expect(rig.disk.zones(of: file) == .whole)
      let round = rig.map.beginRound(busy: [])
      #expect(rig.map.touch(slot, bytes: range) == true)
      rig.map.endRound(round)
      #expect(rig.map.zones(of: file) == .whole)
      rig.round()
      #expect(rig.map.zones(of: file) != .whole && rig.disk.files[file]?.isWhole != true)
      rig.round()
      #expect(rig.disk.files.isEmpty)
    }
    let last = limit - 1..<limit
    #expect(rig.write(slot, last) && rig.map.zones(of: file) == .zones([UInt32(IntentMap.zonesMax) - 1..<1 << 24]))
  }

  @Test func everythingIsClearedByARoundAndNotByTheWrongOne() {
    var rig = Rig(.everything)
    #expect(rig.map.isEverything && rig.map.zones(of: file) == .whole && rig.map.snapshot() == .everything)
    // It may come from a file that could not be read, and that says less when it can be read again: stored anew first.
    rig.round()
    #expect(rig.map.isEverything)
    let round = rig.map.beginRound(busy: [])
    #expect(round.candidates == 1)
    rig.map.markEverything()
    rig.map.endRound(round)
    #expect(rig.map.isEverything)
    rig.round()
    #expect(!rig.map.isEverything && !rig.disk.isEverything)
    rig.map.markEverything()
    rig.map.markEverything()
    #expect(rig.map.takeBatch()?.changes == [.everything(true)])
  }

  @Test func clearAllClearsAllAndNothingLater() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    _ = rig.write(slot, bytes(3))
    _ = rig.write(slot, toTheEnd)
    rig.map.markEverything()
    rig.map.want(slot, bytes: bytes(9))
    let batch = rig.map.takeBatch()
    rig.map.want(slot, bytes: bytes(11))
    rig.map.clearAll()
    #expect(rig.map.zonesSet == 0 && rig.map.snapshot() == IntentSnapshot() && rig.map.slot(for: file) == slot)
    rig.map.want(slot, bytes: bytes(9))
    rig.map.markEverything()
    if let batch {
      for change in batch.changes { rig.disk.apply(change) }
      rig.map.stored(batch.number)
    }
    #expect(rig.map.touch(slot, bytes: bytes(9)) == false)
    rig.store()
    #expect(rig.map.touch(slot, bytes: bytes(9)) == true)
    var expected = IntentSnapshot(isEverything: true)
    expected.apply(.set(file, 9..<10))
    #expect(rig.disk == expected)
  }

  @Test(arguments: [4096, 65536, 1 << 20]) func aStreamWaitsTwice(step: Int) {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    var waits = 0
    var batches = 0
    var setMax = 0
    for offset in stride(from: UInt64(0), to: 500 * mebibyte, by: step) {
      if rig.write(slot, offset..<offset + UInt64(step)) { waits += 1 }
      if rig.map.hasPending {
        batches += 1
        rig.store()
      }
      setMax = max(setMax, rig.map.zonesSet - Int(offset / mebibyte))
    }
    #expect(waits == 2, "the first zone, and the second, which shows that it is a stream")
    #expect(batches < 500 / 12)
    #expect(setMax <= IntentMap.readAheadZones + 2)
  }

  @Test func hotZonesDoNotAskAheadForEver() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    for round in 0..<20 {
      for zone in UInt64(0)..<16 { _ = rig.write(slot, bytes(zone * 5 % 16)) }
      rig.store()
      if round >= 4 { #expect(rig.disk.zones(of: file) == .zones([0..<16])) }
      rig.round()
    }
  }

  @Test func largeMapsAreTakenInBatchesAndClearedInSteps() {
    var rig = Rig()
    let slot = rig.map.slot(for: file)
    for zone in UInt64(0)..<5000 { rig.map.want(slot, bytes: bytes(zone * 2)) }
    let batch = rig.map.takeBatch()
    #expect(batch?.changes.count == IntentBatch.changesMax && rig.map.hasPending)
    if let batch { rig.map.stored(batch.number) }
    #expect(rig.map.touch(slot, bytes: bytes(8190)) && !rig.map.touch(slot, bytes: bytes(8192)))
    rig.store()
    rig.round()
    rig.map.endRound(rig.map.beginRound(busy: []))
    #expect(rig.map.zonesSet == 5000 - IntentMap.clearRangesPerRoundMax)
    for _ in 0..<3 { rig.round() }
    #expect(rig.map.zonesSet == 0 && rig.map.cells.isEmpty)
  }

  @Test func withoutRoomAFileCountsAsAWhole() {
    var rig = Rig(pagesMax: 1)
    let slot = rig.map.slot(for: file)
    _ = rig.write(slot, bytes(3))
    #expect(rig.write(slot, bytes(5000)) && !rig.write(slot, bytes(9000)))
    #expect(rig.disk.zones(of: file) == .whole)
    rig.round(busy: [(slot, bytes(5000))])
    #expect(rig.map.touch(slot, bytes: bytes(5000)) == true)
    rig.round(busy: [(slot, bytes(5000))])
    #expect(rig.disk.zones(of: file) == .whole)
    rig.round()
    #expect(rig.disk.files.isEmpty)
    #expect(rig.write(slot, bytes(9000)) && rig.disk.zones(of: file) == .zones([9000..<9001]))
    // What is read needs more room than there is: the mark that stands for it is not on the disk yet.
    var wide = IntentSnapshot()
    wide.apply(.set(file, 3..<4))
    wide.apply(.set(file, 9000..<9001))
    var again = Rig(wide, pagesMax: 1)
    let same = again.map.slot(for: file)
    #expect(again.map.zones(of: file) == .whole && !again.map.touch(same, bytes: bytes(20)))
    #expect(again.write(same, bytes(20)) && again.disk.zones(of: file) == .whole)
  }

  /// R3: read out of the page cache, perhaps: set for whoever asks what differs, and no write relies on it.
  @Test func whatWasReadIsDurableOnlyWhenItWasStored() {
    var disk = IntentSnapshot()
    disk.apply(.set(file, 3..<6))
    disk.apply(.whole(identity(2), true))
    var map = IntentMap(disk)
    let (slot, other) = (map.slot(for: file), map.slot(for: identity(2)))
    func isRelied() -> Bool {
      let (zones, whole) = (map.touch(slot, bytes: bytes(4)), map.touch(other, bytes: toTheEnd))
      #expect(zones == whole)
      return zones
    }
    #expect(!isRelied() && map.hasPending && map.snapshot() == disk)
    // Wanting them adds nothing: whatever is stored first holds them.
    map.want(slot, bytes: bytes(4))
    map.want(other, bytes: toTheEnd)
    #expect(map.takeBatch() == IntentBatch(number: 1, changes: []) && map.takeBatch() == nil)
    #expect(!isRelied())
    map.failed(1)
    #expect(!isRelied() && map.hasPending)
    // Nor is anything of it cleared before.
    for _ in 0..<3 { map.endRound(map.beginRound(busy: [])) }
    #expect(map.snapshot() == disk)
    map.want(slot, bytes: bytes(9))
    #expect(map.takeBatch() == IntentBatch(number: 2, changes: [.set(file, 9..<10)]))
    // It waits for a batch of its own, the snapshot that stored the one under way may not have it.
    map.want(slot, bytes: bytes(20))
    map.stored(2)
    #expect(isRelied() && map.touch(slot, bytes: bytes(9)) && !map.touch(slot, bytes: bytes(20)))
    #expect(map.takeBatch()?.changes == [.set(file, 20..<21)])
  }

  @Test func whatWasReadIsSet() {
    var disk = IntentSnapshot()
    disk.apply(.set(file, 3..<6))
    disk.apply(.set(file, 1020..<1030))
    disk.apply(.whole(identity(2), true))
    var rig = Rig(disk)
    #expect(rig.map.snapshot() == disk && rig.map.zonesSet == 13)
    rig.store()
    #expect(rig.map.snapshot() == disk && rig.disk == disk && !rig.map.hasPending)
    #expect(rig.map.zones(of: file) == .zones([3..<6, 1020..<1030]))
    #expect(rig.map.zones(of: identity(2)) == .whole)
    #expect(rig.map.touch(rig.map.slot(for: file), bytes: bytes(1020, 10)) == true)
    rig.round()
    #expect(rig.disk.zones(of: file) == .zones([1020..<1030]))
    rig.round()
    #expect(rig.disk == IntentSnapshot())
  }

  @Test func identities() throws {
    let made = try #require(FileIdentity(bytes: (1...16).map { UInt8($0) }))
    #expect(made.description == "0102030405060708090a0b0c0d0e0f10")
    #expect(FileIdentity(bytes: made.bytes) == made && identity(1) < made)
    #expect(FileIdentity(bytes: [UInt8](repeating: 0, count: 16)) == nil)
    #expect(FileIdentity(bytes: [1]) == nil && FileIdentity(high: 0, low: 0) == nil)
  }
}
