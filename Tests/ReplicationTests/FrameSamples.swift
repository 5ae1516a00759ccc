import Model

@testable import Replication

/// Random frames that this protocol allows.
struct FrameSamples {
  var random: SeededGenerator

  mutating func file() -> FileID { FileID(rawValue: UInt64.random(in: 1...UInt64.max, using: &random)) }
  mutating func word() -> UInt32 { UInt32.random(in: 0...UInt32.max, using: &random) }

  private mutating func nameBytes(_ countMax: Int) -> [UInt8] {
    (0..<Int.random(in: 1...countMax, using: &random)).map { _ in
      UInt8.random(in: 0x30...0xFF, using: &random)
    }
  }
  mutating func name() -> FileName {
    FileName(nameBytes(random.chance(10) ? 255 : 12)) ?? sampleName
  }
  mutating func attributeName() -> AttributeName {
    AttributeName(nameBytes(random.chance(10) ? 255 : 12)) ?? sampleAttribute
  }
  mutating func time() -> FileTime {
    FileTime(
      seconds: Int64.random(in: Int64.min...Int64.max, using: &random),
      nanoseconds: UInt32.random(in: 0..<1_000_000_000, using: &random)) ?? .zero
  }
  mutating func target() -> LinkTarget {
    LinkTarget(nameBytes(random.chance(5) ? 4095 : 40)) ?? sampleTarget
  }
  mutating func mode(_ type: FileType) -> UInt32 { type.rawValue | UInt32.random(in: 0...0o7777, using: &random) }
  mutating func object(_ type: FileType) -> NewObject {
    NewObject(id: file(), mode: mode(type), owner: word(), group: word(), accessed: time(), modified: time())
  }
  mutating func range() -> (offset: UInt64, length: UInt64) {
    let offset = UInt64.random(in: 0..<FrameLimits.fileBytesMax, using: &random)
    return (offset, UInt64.random(in: 1...FrameLimits.fileBytesMax - offset, using: &random))
  }
  private mutating func change() -> AttributeChange {
    AttributeChange(
      mode: random.chance(50) ? UInt32.random(in: 0...0o7777, using: &random) : nil,
      owner: random.chance(50) ? word() : nil, group: random.chance(50) ? word() : nil,
      size: random.chance(50) ? range().offset : nil, accessed: random.chance(50) ? time() : nil,
      modified: random.chance(50) ? time() : nil)
  }
  private mutating func value() -> [UInt8] {
    random.bytes(random.chance(5) ? 65536 : Int.random(in: 0...50, using: &random))
  }

  mutating func operation(dataLength: Int) -> FileOperation {
    switch Int.random(in: 0..<14, using: &random) {
    case 0: return .write(file(), offset: range().offset / 2, length: UInt32(dataLength))
    case 1: return .create(parent: file(), name: name(), object(.regular))
    case 2: return .makeDirectory(parent: file(), name: name(), object(.directory))
    case 3: return .makeNode(parent: file(), name: name(), object(.fifo), device: random.next())
    case 4: return .makeSymlink(parent: file(), name: name(), object(.symlink), target: target())
    case 5: return .link(file(), parent: file(), name: name())
    case 6: return .unlink(parent: file(), name: name(), file())
    case 7: return .removeDirectory(parent: file(), name: name(), file())
    case 8: return .rename(parent: file(), name: name(), newParent: file(), newName: name(), [.exchange])
    case 9: return .setAttributes(file(), change())
    case 10:
      let (offset, length) = range()
      return .allocate(file(), [.punchHole, .keepSize], offset: offset, length: length)
    case 11: return .setExtendedAttribute(file(), name: attributeName(), value: value())
    case 12: return .removeExtendedAttribute(file(), name: attributeName())
    default: return .forget(file())
    }
  }

  mutating func entry() -> ManifestEntry {
    let types: [FileType] = [.regular, .directory, .symlink, .fifo, .blockDevice]
    let type = types[Int.random(in: 0..<types.count, using: &random)]
    return ManifestEntry(
      id: file(),
      place: type == .directory && random.chance(30) ? nil : ManifestPlace(parent: file(), name: name()),
      mode: mode(type), owner: word(), group: word(), size: type == .regular ? range().offset : 0,
      device: random.next(), accessed: time(), modified: time(), target: type == .symlink ? target() : nil)
  }

  mutating func ranges() -> [SequenceRange] {
    (0..<(random.chance(5) ? 512 : Int.random(in: 1...5, using: &random))).map { _ in
      let first = UInt64.random(in: 1...UInt64.max - (1 << 32), using: &random)
      return SequenceRange(first, through: first + UInt64.random(in: 0..<(1 << 32) - 1, using: &random))
    }
  }

  mutating func content() -> FileContent {
    switch Int.random(in: 0..<3, using: &random) {
    case 0: return .fresh
    case 1: return .whole
    default:
      var zones: [Range<UInt32>] = []
      var start: UInt32 = 0
      for _ in 0..<(random.chance(5) ? FrameLimits.differingRangesMax : Int.random(in: 0...5, using: &random)) {
        let first = start + UInt32.random(in: 1...1000, using: &random)
        start = first + UInt32.random(in: 1...1000, using: &random)
        zones.append(first..<start)
      }
      return .zones(zones)
    }
  }

  mutating func compare() -> FrameBody {
    let length = UInt32.random(in: 1...UInt32(ResyncPlan.zoneBytes), using: &random)
    let blocks = (UInt64(length) + ResyncPlan.blockBytes - 1) / ResyncPlan.blockBytes
    let hashes = (0..<blocks).map { _ in BlockHash(random.next(), random.next()) }
    return .resyncCompare(file(), offset: range().offset / 2, length: length, hashes: hashes)
  }

  mutating func question() -> VerifyQuestion {
    switch Int.random(in: 0..<4, using: &random) {
    case 0:
      let length = UInt32.random(in: 1...UInt32(VerifyRun.pieceBytes), using: &random)
      let blocks = (UInt64(length) + ResyncPlan.blockBytes - 1) / ResyncPlan.blockBytes
      let hashes = (0..<blocks).map { _ in BlockHash(random.next(), random.next()) }
      return .data(offset: range().offset / 2, length: length, hashes: hashes)
    case 1:
      let (offset, length) = range()
      return .zeros(offset: offset, length: length)
    case 2: return .size
    default: return .folder(BlockHash(random.next(), random.next()))
    }
  }

  mutating func answer() -> VerifyAnswer {
    switch Int.random(in: 0..<4, using: &random) {
    case 0: return .missing
    case 1:
      let (start, length) = range()
      return .compared(start: start, end: start + length, differing: word(), unreadable: word())
    case 2: return .size(range().offset)
    default: return .folder(isSame: random.chance(50))
    }
  }

  /// A frame body and the length of the data that goes with it.
  mutating func body(_ kind: FrameKind) -> (body: FrameBody, dataLength: Int) {
    let dataLength = random.chance(5) ? 1 << 16 : Int.random(in: 1...64, using: &random)
    let module = ModuleName("web-01") ?? sampleModule
    switch kind {
    case .hello:
      let node = random.chance(50) ? NodeID.first : .second
      return (
        .hello(
          Hello(versionMin: 1, versionMax: 7, node: node, nonce: random.next() | 1, module: module, cluster: "c-1")), 0
      )
    case .agree: return (.agree(version: 3), 0)
    case .keepalive: return (.keepalive, 0)
    case .failure: return (.failure(.diskError, errno: Int32(bitPattern: word()), sentence: "écrire: disque"), 0)
    case .bye: return (.bye(sentence: ""), 0)
    case .coreMessage: return (.coreMessage, dataLength)
    case .operation:
      let operation = operation(dataLength: dataLength)
      if case .write = operation { return (.operation(operation), dataLength) }
      return (.operation(operation), 0)
    case .acknowledge: return (.acknowledge(ranges()), 0)
    case .flushRequest: return (.flushRequest(random.chance(50) ? nil : file()), 0)
    case .dataFlushRequest: return (.dataFlushRequest(file()), 0)
    case .flushAnswer: return (.flushAnswer(errno: Int32(bitPattern: word())), 0)
    case .manifestBegin:
      return (.manifestBegin(identityOnly: random.chance(50), key: HashKey(random.next(), random.next())), 0)
    case .manifestEntry: return (.manifestEntry(entry()), 0)
    case .manifestAttribute: return (.manifestAttribute(file(), name: attributeName(), value: value()), 0)
    case .manifestEnd: return (.manifestEnd(entries: word(), attributes: word()), 0)
    case .resyncData: return (.resyncData(file(), offset: range().offset / 2), dataLength)
    case .resyncZero:
      let (offset, length) = range()
      return (.resyncZero(file(), offset: offset, length: length), 0)
    case .resyncAcknowledge: return (.resyncAcknowledge(ranges()), 0)
    case .differing: return (.differing(file(), content()), 0)
    case .differingEnd: return (.differingEnd, 0)
    case .resyncCompare: return (compare(), 0)
    case .resyncCompared: return (.resyncCompared(differing: word()), 0)
    case .verifyBegin: return (.verifyBegin(key: HashKey(random.next(), random.next())), 0)
    case .verify: return (.verify(file(), question()), 0)
    case .verified: return (.verified(answer()), 0)
    }
  }

  /// A whole frame in bytes.
  mutating func frame(_ kind: FrameKind, isChecked: Bool) -> (body: FrameBody, bytes: [UInt8], data: [UInt8]) {
    let (body, dataLength) = body(kind)
    let data = random.bytes(dataLength)
    let sum = isChecked && kind.mayCarryData ? data.withUnsafeBytes { CRC32C.checksum($0) } : nil
    let head = FrameHead.bytes(
      body, session: SessionID(rawValue: kind == .hello ? 0 : random.next() | 1),
      sequence: kind.isNumbered ? random.next() | 1 : 0, dataLength: dataLength, dataChecksum: sum)
    return (body, head + data, data)
  }
}

let sampleName = name("a")
let sampleAttribute = attribute("user.a")
let sampleTarget = target("a")
let sampleModule = module("m")

func name(_ text: String) -> FileName {
  guard let name = FileName(text) else { preconditionFailure("'\(text)' is no name") }
  return name
}
func attribute(_ text: String) -> AttributeName {
  guard let name = AttributeName(text) else { preconditionFailure("'\(text)' is no name") }
  return name
}
func module(_ text: String) -> ModuleName {
  guard let name = ModuleName(text) else { preconditionFailure("'\(text)' is no name") }
  return name
}
func target(_ text: String) -> LinkTarget {
  guard let target = LinkTarget(Array(text.utf8)) else { preconditionFailure("'\(text)' is no target") }
  return target
}
