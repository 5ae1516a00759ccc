import Model
import Testing

@testable import Replication

/// A mirror, its disk and its peer, as simple as can be: which zones really may differ is kept beside the map, from
/// the wording of R3. At every step the disk, in any state a power cut may leave it in, must say at least that; a process that
/// ends leaves to the next one what it has written, synced or not.
private struct IntentWorld {
  struct Write {
    let slot: Int
    let file: FileIdentity
    let range: Range<UInt64>
    /// Zones, or nil for the whole file.
    let zones: Range<Int>?
  }
  struct Truth: Equatable {
    var zones: Set<Int> = []
    var isWhole = false
  }

  static let zoneChoices: [UInt64] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 40, 1022, 1023, 1024, 1025, 5000, 9000]

  var random: SeededGenerator
  var map = IntentMap(IntentSnapshot(), pagesMax: 4)
  var disk = IntentSnapshot()
  /// What a process reads: of the disk, or only of the page cache.
  var cache = IntentSnapshot()
  /// What a write to the disk that is going on leads to, and the batch it is for.
  var underWay: (number: UInt64, result: IntentSnapshot)?
  var mustCheckpoint = false
  var isInSync = true
  var truth: [FileIdentity: Truth] = [:]
  var open: [FileIdentity] = []
  var identities: UInt64 = 0
  var waiting: [Write] = []
  var unacknowledged: [Write] = []
  /// With a round, what was written since it began: what its flush says nothing about.
  var round: (IntentRound, since: [Write])?
  var droppedRound: IntentRound?

  init(seed: UInt64) { random = SeededGenerator(seed: seed) }

  mutating func step() {
    switch Int.random(in: 0..<100, using: &random) {
    case 0..<35: newWrite()
    case 35..<50: retryWaiting()
    case 50..<62: acknowledge()
    case 62..<72: beginStore()
    case 72..<84: endStore()
    case 84..<96: clearingRound()
    case 96: isInSync ? loseSession() : resync()
    case 97: if random.chance(30) { crash() }
    case 98: if random.chance(20) { map.markEverything() }
    default: if isInSync, unacknowledged.isEmpty, waiting.isEmpty, random.chance(30) { adopt() }
    }
    check()
  }

  private mutating func newWrite() {
    if open.count < 3 {
      identities += 1
      if let made = FileIdentity(high: 1, low: identities) { open.append(made) }
    }
    guard let file = open.randomElement(using: &random),
      let zone = IntentWorld.zoneChoices.randomElement(using: &random)
    else { return }
    let start = zone * IntentMap.zoneBytes + UInt64.random(in: 0..<IntentMap.zoneBytes, using: &random)
    let length = UInt64.random(in: 1...3 * IntentMap.zoneBytes, using: &random)
    let range = start..<(random.chance(6) ? UInt64.max : start + length)
    let write = Write(slot: map.slot(for: file), file: file, range: range, zones: IntentMap.zones(of: range))
    attempt(write)
  }

  private mutating func attempt(_ write: Write) {
    guard map.touch(write.slot, bytes: write.range) else {
      map.want(write.slot, bytes: write.range)
      waiting.append(write)
      return
    }
    if let zones = write.zones {
      truth[write.file, default: Truth()].zones.formUnion(zones)
    } else {
      truth[write.file, default: Truth()].isWhole = true
    }
    unacknowledged.append(write)
    round?.since.append(write)
  }

  private mutating func retryWaiting() {
    let writes = waiting
    waiting = []
    for write in writes { attempt(write) }
  }

  private mutating func acknowledge() {
    guard !unacknowledged.isEmpty else { return }
    unacknowledged.remove(at: Int.random(in: 0..<unacknowledged.count, using: &random))
  }

  // MARK: the disk

  private mutating func beginStore() {
    guard underWay == nil, let batch = map.takeBatch() else { return }
    if mustCheckpoint || random.chance(15) {
      underWay = (batch.number, map.snapshot())
    } else {
      var result = disk
      for change in batch.changes { result.apply(change) }
      underWay = (batch.number, result)
    }
  }

  private mutating func endStore() {
    guard let (number, result) = underWay else { return }
    underWay = nil
    if random.chance(20) {
      leaveHalfDone(result)
      mustCheckpoint = true
      map.failed(number)
    } else {
      (disk, cache) = (result, result)
      mustCheckpoint = false
      map.stored(number)
    }
  }

  /// Written, perhaps, and on the disk, perhaps.
  private mutating func leaveHalfDone(_ result: IntentSnapshot) {
    if random.chance(50) { cache = result }
    if random.chance(50) { (disk, cache) = (result, result) }
  }

  // MARK: clearing and coming back

  private mutating func clearingRound() {
    guard isInSync else { return }
    guard let (begun, since) = round else {
      // Requests that wait were not touched; naming them as busy is allowed.
      let others = random.chance(50) ? waiting : []
      let held = unacknowledged
      round = (map.beginRound(busy: (held + others).map { ($0.slot, $0.range) }), since: held)
      // Its answer comes late.
      if let droppedRound { map.endRound(droppedRound) }
      droppedRound = nil
      return
    }
    round = nil
    if random.chance(20) {
      droppedRound = begun
      return
    }
    map.endRound(begun)
    // The flush made everything the same but what was not acknowledged before it, or came after it.
    truth = [:]
    for write in since {
      if let zones = write.zones {
        truth[write.file, default: Truth()].zones.formUnion(zones)
      } else {
        truth[write.file, default: Truth()].isWhole = true
      }
    }
  }

  private mutating func loseSession() {
    isInSync = false
    round = nil
    unacknowledged = []
  }

  private mutating func resync() {
    for (file, truth) in truth { expect(map.zones(of: file), covers: truth, "the map, at a resync") }
    truth = [:]
    isInSync = true
    for write in unacknowledged { mark(write) }
  }

  private mutating func mark(_ write: Write) {
    if let zones = write.zones {
      truth[write.file, default: Truth()].zones.formUnion(zones)
    } else {
      truth[write.file, default: Truth()].isWhole = true
    }
  }

  private mutating func crash() {
    if let (_, result) = underWay { leaveHalfDone(result) }
    underWay = nil
    mustCheckpoint = true
    // Of the process, or of the whole node.
    if random.chance(50) { cache = disk }
    // The file may be unreadable this time only.
    map = IntentMap(random.chance(10) ? .everything : cache, pagesMax: 4)
    droppedRound = nil
    isInSync = false
    round = nil
    waiting = []
    unacknowledged = []
    for (file, truth) in truth { expect(map.zones(of: file), covers: truth, "the map after a crash") }
  }

  /// R8.4: this node became the target, and has what the source has.
  private mutating func adopt() {
    map.clearAll()
    truth = [:]
    round = nil
  }

  // MARK: checks

  private func check() {
    for (file, truth) in truth {
      expect(map.zones(of: file), covers: truth, "the map")
      expect(disk.zones(of: file), covers: truth, "the disk")
      if let underWay { expect(underWay.result.zones(of: file), covers: truth, "the disk after the write under way") }
    }
  }

  private func expect(_ intents: FileContent, covers truth: Truth, _ what: String) {
    guard case .zones(let ranges) = intents else { return }
    let set = ZoneSet(ranges)
    #expect(!truth.isWhole && truth.zones.allSatisfy { set.contains(UInt32($0)) }, "\(what) forgot something")
  }

  /// Nothing is written any more: everything gets stored, and then cleared.
  mutating func settle() {
    if !isInSync { resync() }
    for _ in 0..<20 {
      retryWaiting()
      unacknowledged = []
      round = nil
      if let batch = map.takeBatch() {
        disk = map.snapshot()
        map.stored(batch.number)
      }
      clearingRound()
      if let (begun, _) = round { map.endRound(begun) }
      round = nil
      truth = [:]
      endStore()
    }
    #expect(waiting.isEmpty && map.zonesSet == 0 && map.cells.isEmpty && map.snapshot() == IntentSnapshot())
    #expect(disk == IntentSnapshot())
  }
}

@Suite struct IntentModelTests {
  @Test(arguments: 0..<300 as Range<UInt64>) func neverForgets(seed: UInt64) {
    var world = IntentWorld(seed: seed)
    for _ in 0..<600 { world.step() }
    world.settle()
  }
}
