import Model
import Testing

@testable import Replication

/// Two trees of small files, a stream between them and a guest that goes on writing, as the engine does it.
private struct CopyWorld {
  enum Frame {
    case write(FileID, UInt64, [UInt8])
    case truncate(FileID, UInt64)
    case forget(FileID)
    case data(UInt64, FileID, UInt64, [UInt8])
    case compare(UInt64, FileID, UInt64, [UInt8])
    case zero(UInt64, FileID, Range<UInt64>)
  }
  /// Block size of holes in this world.
  static let block: UInt64 = 64 * 1024

  var random: SeededGenerator
  var source: [FileID: [UInt8]] = [:]
  var target: [FileID: [UInt8]] = [:]
  /// What the maps of both nodes say.
  var contents: [FileID: FileContent] = [:]
  var bytesSent: UInt64 = 0
  var stream: [Frame] = []
  var handedOut: [ResyncPiece] = []
  var filesSent: [FileID] = []
  var now = seconds(0)

  init(seed: UInt64) {
    random = SeededGenerator(seed: seed)
    for number in 1...6 as ClosedRange<UInt64> {
      var bytes: [UInt8] = []
      for _ in 0..<Int.random(in: 0...40, using: &random) {
        let value: UInt8 = random.chance(50) ? 0 : UInt8.random(in: 1...255, using: &random)
        bytes += [UInt8](repeating: value, count: Int(Self.block))
      }
      if !bytes.isEmpty { bytes.removeLast(Int.random(in: 0..<5000, using: &random)) }
      let file = FileID(rawValue: number)
      source[file] = bytes
      // The target has the manifest's size.
      switch number % 3 {
      case 0:
        contents[file] = .fresh
        target[file] = [UInt8](repeating: 0, count: bytes.count)
      case 1:
        contents[file] = .whole
        target[file] = spoiled(bytes, in: 0..<bytes.count)
      default:
        let zones = UInt32((UInt64(bytes.count) + ResyncPlan.zoneBytes - 1) / ResyncPlan.zoneBytes)
        let first = UInt32.random(in: 0...zones, using: &random)
        contents[file] = .zones(first < zones ? [first..<zones] : [])
        target[file] = spoiled(bytes, in: min(bytes.count, Int(first) << 20)..<bytes.count)
      }
    }
  }

  /// Some blocks of the range are not what they were.
  private mutating func spoiled(_ bytes: [UInt8], in range: Range<Int>) -> [UInt8] {
    var bytes = bytes
    var start = range.lowerBound
    while start < range.upperBound {
      let end = min(start + Int(Self.block), range.upperBound)
      if random.chance(30) { bytes[Int.random(in: start..<end, using: &random)] ^= 0x5A }
      start = end
    }
    return bytes
  }

  /// Stands for a hash that never errs.
  static func differing(_ a: ArraySlice<UInt8>, _ b: ArraySlice<UInt8>) -> UInt32 {
    var mask: UInt32 = 0
    for index in 0..<max(a.count, b.count) {
      let same = index < a.count && index < b.count && a[a.startIndex + index] == b[b.startIndex + index]
      if !same { mask |= 1 << UInt32(index / Int(ResyncPlan.blockBytes)) }
    }
    return mask
  }

  func isData(_ bytes: [UInt8], _ block: UInt64) -> Bool {
    let start = Int(block * Self.block)
    return bytes[start..<min(start + Int(Self.block), bytes.count)].contains { $0 != 0 }
  }

  /// SEEK_DATA and SEEK_HOLE.
  func firstData(_ bytes: [UInt8], from: UInt64) -> Range<UInt64>? {
    let end = UInt64(bytes.count)
    var position = from
    while position < end, !isData(bytes, position / Self.block) { position = (position / Self.block + 1) * Self.block }
    guard position < end else { return nil }
    var stop = position
    while stop < end, isData(bytes, stop / Self.block) { stop = (stop / Self.block + 1) * Self.block }
    return position..<min(stop, end)
  }

  mutating func guestActs(_ plan: inout ResyncPlan) {
    guard let file = source.keys.sorted().randomElement(using: &random), var bytes = source[file] else { return }
    if random.chance(2) {
      source[file] = nil
      plan.remove(file)
      stream.append(.forget(file))
      return
    }
    if random.chance(5), !bytes.isEmpty {
      let size = Int.random(in: 0...bytes.count, using: &random)
      bytes.removeLast(bytes.count - size)
      stream.append(.truncate(file, UInt64(size)))
    } else {
      let data = [UInt8](repeating: UInt8.random(in: 1...255, using: &random), count: 3000)
      let offset = Int.random(in: 0...bytes.count, using: &random)
      bytes += [UInt8](repeating: 0, count: max(0, offset + data.count - bytes.count))
      bytes.replaceSubrange(offset..<offset + data.count, with: data)
      stream.append(.write(file, UInt64(offset), data))
    }
    source[file] = bytes
  }

  /// Looks again under the order, then sends.
  mutating func perform(_ piece: ResyncPiece, _ plan: inout ResyncPlan) {
    guard let bytes = source[piece.file], piece.offset < UInt64(bytes.count) else {
      plan.skip(piece)
      return
    }
    let end = min(piece.offset + piece.length, UInt64(bytes.count))
    if piece.isHole {
      if let data = firstData(bytes, from: piece.offset), data.lowerBound < piece.offset + piece.length {
        plan.stale(piece)
        return
      }
      stream.append(.zero(plan.send(piece, bytes: 0), piece.file, piece.range))
    } else {
      let content = Array(bytes[Int(piece.offset)..<Int(end)])
      guard piece.kind == .data else {
        stream.append(.compare(plan.sendHashes(piece), piece.file, piece.offset, content))
        return
      }
      bytesSent += UInt64(content.count)
      stream.append(.data(plan.send(piece, bytes: UInt64(content.count)), piece.file, piece.offset, content))
    }
  }

  /// The target applies one frame; an acknowledgement comes back at once.
  mutating func targetApplies(_ plan: inout ResyncPlan) throws {
    guard !stream.isEmpty else { return }
    func put(_ file: FileID, _ offset: UInt64, _ data: [UInt8]) {
      var bytes = target[file] ?? []
      bytes += [UInt8](repeating: 0, count: max(0, Int(offset) + data.count - bytes.count))
      bytes.replaceSubrange(Int(offset)..<Int(offset) + data.count, with: data)
      target[file] = bytes
    }
    switch stream.removeFirst() {
    case .write(let file, let offset, let data): put(file, offset, data)
    case .truncate(let file, let size): target[file] = target[file].map { Array($0.prefix(Int(size))) }
    case .forget(let file): target[file] = nil
    case .data(let sequence, let file, let offset, let data):
      #expect(target[file] != nil, "a piece of a forgotten file")
      put(file, offset, data)
      try plan.acknowledged(SequenceRange(sequence), now: now)
    case .compare(let sequence, let file, let offset, let content):
      let own = try #require(target[file], "a comparison in a forgotten file")
      let part = own[min(Int(offset), own.count)..<min(Int(offset) + content.count, own.count)]
      try plan.compared(sequence, differing: Self.differing(content[...], part), now: now)
    case .zero(let sequence, let file, let range):
      var bytes = try #require(target[file], "a hole of a forgotten file")
      for index in range where index < UInt64(bytes.count) { bytes[Int(index)] = 0 }
      target[file] = bytes
      try plan.acknowledged(SequenceRange(sequence), now: now)
    }
  }
}

@Suite struct ResyncPlanTests {
  @Test(arguments: 0..<8) func copyUnderWrites(_ seed: UInt64) throws {
    var world = CopyWorld(seed: seed)
    let files = world.source.sorted { $0.key < $1.key }.map { file, bytes in
      let data = (0..<(UInt64(bytes.count) + CopyWorld.block - 1) / CopyWorld.block).filter { world.isData(bytes, $0) }
      return ResyncFile(
        file: file, size: UInt64(bytes.count), allocated: UInt64(data.count) * CopyWorld.block,
        content: world.contents[file] ?? .whole)
    }
    var plan = ResyncPlan(files: files, now: world.now)
    plan.windowBytes = 3 * 1024 * 1024
    var isDone = false
    var steps = 0
    while !isDone {
      steps += 1
      try #require(steps < 200_000, "it never ends")
      world.now = world.now + .milliseconds(20)
      if world.random.chance(30) { world.guestActs(&plan) }
      if world.random.chance(50) { try world.targetApplies(&plan) }
      if !world.handedOut.isEmpty, world.random.chance(50) {
        let index = Int.random(in: 0..<world.handedOut.count, using: &world.random)
        let piece = world.handedOut.remove(at: index)
        world.perform(piece, &plan)
        continue
      }
      switch plan.next() {
      case .scan(let file, let from):
        let bytes = world.source[file] ?? []
        plan.scanned(file, from: from, data: world.firstData(bytes, from: from), size: UInt64(bytes.count))
      case .copy(let piece):
        #expect(piece.isHole || piece.length <= ResyncPlan.zoneBytes)
        world.handedOut.append(piece)
      case .fileSent(let file): world.filesSent.append(file)
      case .wait: try world.targetApplies(&plan)
      case .done: isDone = true
      }
      let progress = plan.progress(now: world.now)
      #expect(progress.bytesDone <= progress.bytesTotal)
    }
    let progress = plan.progress(now: world.now)
    #expect(progress.bytesDone == progress.bytesTotal)
    #expect(progress.secondsLeft == 0)
    while !world.stream.isEmpty { try world.targetApplies(&plan) }
    #expect(world.target.keys.sorted() == world.source.keys.sorted())
    for (file, bytes) in world.source { #expect(world.target[file] == bytes, "\(file) differs") }
    #expect(Set(world.filesSent).count == world.filesSent.count)
    #expect(Set(world.source.keys).isSubset(of: world.filesSent))
  }

  private let file = FileID(rawValue: 4)

  @Test func piecesEndAtZonesAndHolesCostNothing() {
    let zone = ResyncPlan.zoneBytes
    var plan = ResyncPlan(
      files: [ResyncFile(file: file, size: 10 * zone, allocated: 2 * zone, content: .whole)], now: seconds(0))
    #expect(plan.next() == .scan(file, from: 0))
    plan.scanned(file, from: 0, data: zone / 2..<2 * zone, size: 10 * zone)
    var pieces: [Range<UInt64>] = []
    while case .copy(let piece) = plan.next() { pieces.append(piece.range) }
    #expect(pieces == [0..<zone / 2, zone / 2..<zone, zone..<2 * zone])
    #expect(plan.next() == .scan(file, from: 2 * zone))
    plan.scanned(file, from: 2 * zone, data: nil, size: 10 * zone)
    guard case .copy(let hole) = plan.next() else {
      Issue.record("no hole")
      return
    }
    #expect(hole.isHole)
    #expect(hole.range == 2 * zone..<10 * zone)
    #expect(plan.next() == .wait)
  }

  @Test func onlyTheZonesOfTheMapsAreLookedAtAndOnlyWhatDiffersIsSent() throws {
    let zone = ResyncPlan.zoneBytes
    var plan = ResyncPlan(
      files: [
        ResyncFile(file: file, size: 100 * zone, allocated: 100 * zone, content: .zones([3..<4, 50..<52])),
        ResyncFile(file: FileID(rawValue: 5), size: zone, allocated: zone, content: .zones([])),
      ], now: seconds(0))
    #expect(plan.progress(now: seconds(0)).bytesTotal == 3 * zone)
    #expect(plan.next() == .scan(file, from: 3 * zone))
    plan.scanned(file, from: 3 * zone, data: 3 * zone..<100 * zone, size: 100 * zone)
    var pieces: [ResyncPiece] = []
    while case .copy(let piece) = plan.next() { pieces.append(piece) }
    #expect(pieces.map(\.range) == [3 * zone..<4 * zone, 50 * zone..<51 * zone, 51 * zone..<52 * zone])
    #expect(pieces.allSatisfy { $0.kind == .compare })
    let sequences = pieces.map { plan.sendHashes($0) }
    #expect(throws: AcknowledgeError.self) { try plan.acknowledged(SequenceRange(sequences[0]), now: seconds(1)) }
    try plan.compared(sequences[0], differing: 0, now: seconds(1))
    try plan.compared(sequences[1], differing: 0b1000_0000_0000_0110, now: seconds(1))
    #expect(throws: AcknowledgeError.self) { try plan.compared(sequences[1], differing: 0, now: seconds(1)) }
    try plan.compared(sequences[2], differing: 0, now: seconds(1))
    var again: [Range<UInt64>] = []
    while case .copy(let piece) = plan.next() {
      #expect(piece.kind == .data && piece.wasCompared)
      again.append(piece.range)
      try plan.acknowledged(SequenceRange(plan.send(piece, bytes: piece.length)), now: seconds(2))
    }
    let block = ResyncPlan.blockBytes
    let start = 50 * zone
    #expect(Set(again) == [start + block..<start + 3 * block, start + 15 * block..<start + 16 * block])
    // Each loop took one step that was no piece: the second file, which has nothing to look at, and the first.
    #expect(plan.next() == .done)
    let progress = plan.progress(now: seconds(3))
    #expect(progress.bytesDone == 3 * zone && progress.bytesSent == 3 * block)
  }

  /// A write that is left to the copy may be on its way into a hole: each is looked at again, in its turn in the file. It costs no
  /// contents.
  @Test func holesOfAFreshFileAreLookedAtAgain() {
    let zone = ResyncPlan.zoneBytes
    var plan = ResyncPlan(
      files: [ResyncFile(file: file, size: 10 * zone, allocated: zone, content: .fresh)], now: seconds(0))
    #expect(plan.next() == .scan(file, from: 0))
    plan.scanned(file, from: 0, data: 5 * zone..<6 * zone, size: 10 * zone)
    guard case .copy(let hole) = plan.next(), hole.isHole, hole.range == 0..<5 * zone else {
      Issue.record("the hole is passed over")
      return
    }
    _ = plan.send(hole, bytes: 0)
    #expect(plan.progress(now: seconds(1)).bytesSent == 0)
    guard case .copy(let piece) = plan.next() else {
      Issue.record("no piece")
      return
    }
    #expect(piece.range == 5 * zone..<6 * zone && piece.kind == .data)
  }

  /// Between the look and the send the guest wrote into the hole: its data is sent.
  @Test func aHoleThatGotDataComesAgainAsData() {
    let zone = ResyncPlan.zoneBytes
    var plan = ResyncPlan(
      files: [ResyncFile(file: file, size: zone, allocated: 0, content: .whole)], now: seconds(0))
    #expect(plan.next() == .scan(file, from: 0))
    plan.scanned(file, from: 0, data: nil, size: zone)
    guard case .copy(let hole) = plan.next(), hole.isHole else {
      Issue.record("no hole")
      return
    }
    plan.stale(hole)
    guard case .copy(let data) = plan.next() else {
      Issue.record("the hole does not come again")
      return
    }
    #expect(!data.isHole && data.range.lowerBound == hole.range.lowerBound && !data.wasCompared)
  }

  @Test func theWindowBoundsWhatIsOutstanding() throws {
    let zone = ResyncPlan.zoneBytes
    var plan = ResyncPlan(
      files: [ResyncFile(file: file, size: 100 * zone, allocated: 100 * zone, content: .fresh)],
      now: seconds(0))
    plan.windowBytes = Int(4 * zone)
    _ = plan.next()
    plan.scanned(file, from: 0, data: 0..<100 * zone, size: 100 * zone)
    var pieces: [ResyncPiece] = []
    while case .copy(let piece) = plan.next() { pieces.append(piece) }
    #expect(pieces.count == 4)
    let sequence = plan.send(pieces[0], bytes: zone)
    #expect(plan.next() == .wait)
    try plan.acknowledged(SequenceRange(sequence), now: seconds(1))
    guard case .copy = plan.next() else {
      Issue.record("no piece after an acknowledgement")
      return
    }
    #expect(throws: AcknowledgeError.self) { try plan.acknowledged(SequenceRange(sequence), now: seconds(1)) }
    #expect(throws: AcknowledgeError.self) { try plan.acknowledged(SequenceRange(50), now: seconds(1)) }
    #expect(throws: AcknowledgeError.self) {
      try plan.acknowledged(SequenceRange(1, through: UInt64.max), now: seconds(1))
    }
    plan.windowBytes = 0
    #expect(plan.next() == .wait)
  }

  /// Contents have a window and pieces of their own; comparing goes on beside it.
  @Test func contentsHaveAWindowOfTheirOwn() throws {
    let (zone, block) = (ResyncPlan.zoneBytes, ResyncPlan.blockBytes)
    var plan = ResyncPlan(
      files: [ResyncFile(file: file, size: 100 * zone, allocated: 100 * zone, content: .whole)], now: seconds(0))
    plan.contentsWindowBytes = Int(4 * block)
    plan.contentsPieceBytesMax = 2 * block
    _ = plan.next()
    plan.scanned(file, from: 0, data: 0..<100 * zone, size: 100 * zone)
    func copies() -> [ResyncPiece] {
      var pieces: [ResyncPiece] = []
      while case .copy(let piece) = plan.next() { pieces.append(piece) }
      return pieces
    }
    let compared = copies()
    #expect(compared.count == 16 && compared.allSatisfy { $0.kind == .compare && $0.length == zone })
    let sequence = plan.sendHashes(compared[0])
    // One that turned out to be zeros counts as contents until it is acknowledged.
    let zeros = plan.send(compared[1], bytes: 0)
    // Ten blocks differ: they come in pieces of two, and four blocks at a time.
    try plan.compared(sequence, differing: 0x3FF, now: seconds(1))
    #expect(copies().isEmpty)
    try plan.acknowledged(SequenceRange(zeros), now: seconds(1))
    var blocks = 0
    while true {
      let pieces = copies().filter { $0.kind == .data }
      if pieces.isEmpty { break }
      blocks += pieces.reduce(0) { $0 + Int($1.length / block) }
      #expect(pieces.count <= 2 && pieces.allSatisfy { $0.length == 2 * block }, "\(pieces)")
      for row in pieces.map({ plan.send($0, bytes: $0.length) }) {
        try plan.acknowledged(SequenceRange(row), now: seconds(2))
      }
    }
    #expect(blocks == 10)
  }

  /// "Stalled" is said when nothing moves, and only then.
  @Test func aStallIsSaid() throws {
    let zone = ResyncPlan.zoneBytes
    var plan = ResyncPlan(
      files: [ResyncFile(file: file, size: 100 * zone, allocated: 100 * zone, content: .fresh)], now: seconds(0))
    _ = plan.next()
    plan.scanned(file, from: 0, data: 0..<100 * zone, size: 100 * zone)
    guard case .copy(let piece) = plan.next() else {
      Issue.record("no piece")
      return
    }
    let row = plan.send(piece, bytes: zone)
    #expect(plan.progress(now: seconds(9)).stalledSeconds == nil)
    #expect(plan.progress(now: seconds(12)).stalledSeconds == 12)
    try plan.acknowledged(SequenceRange(row), now: seconds(13))
    #expect(plan.progress(now: seconds(22)).stalledSeconds == nil)
    let stalled = plan.progress(now: seconds(40))
    #expect(stalled.stalledSeconds == 27 && stalled.bytesPerSecond == 0 && stalled.secondsLeft == nil)
  }

  /// 10 MiB/s of data: half of the file is a hole, which must not make the estimate hope.
  @Test func timeLeftIsHonest() throws {
    let zone = ResyncPlan.zoneBytes
    var plan = ResyncPlan(
      files: [ResyncFile(file: file, size: 2000 * zone, allocated: 1000 * zone, content: .fresh)],
      now: seconds(0))
    _ = plan.next()
    plan.scanned(file, from: 0, data: 0..<1000 * zone, size: 2000 * zone)
    #expect(plan.progress(now: seconds(0.5)).secondsLeft == nil)
    for round in 1...200 {
      guard case .copy(let piece) = plan.next() else {
        Issue.record("no piece")
        return
      }
      let sequence = plan.send(piece, bytes: zone)
      try plan.acknowledged(SequenceRange(sequence), now: seconds(Double(round) * 0.1))
    }
    let progress = plan.progress(now: seconds(20))
    #expect((9 * zone...11 * zone).contains(progress.bytesPerSecond))
    #expect((79...81).contains(progress.secondsLeft ?? 0))
    #expect(progress.bytesSent == 200 * zone)
    // Nothing moves: the rate falls and no time is promised.
    let stalled = plan.progress(now: seconds(60))
    #expect(stalled.bytesPerSecond < 4 * zone)
    var later = plan
    _ = later.progress(now: seconds(61))
    #expect(later.progress(now: seconds(72)).secondsLeft == nil)
  }
}
