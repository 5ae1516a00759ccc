import Model

@testable import Replication

/// The stream of the peer.
enum FrameChecks {
  private static let session = SessionID(rawValue: 0x1122_3344_5566_7788)

  /// First byte: bit 0 = make the checksums right before reading, so that what lies behind them is reached; the others say into
  /// which pieces the stream is cut. The rest is the stream.
  static func stream(_ input: [UInt8]) throws {
    guard let mode = input.first else { return }
    let bytes = mode & 1 == 1 ? sealed(Array(input[1...])) : Array(input[1...])
    let whole = try frames(in: bytes)
    let pieces = try received(bytes, cut: Int(mode >> 1) * 7 + 1)
    guard whole == pieces else { throw Finding("cut into pieces the stream means \(pieces), as a whole \(whole)") }
  }

  /// What a stream holds until its end or the first error.
  private struct Reading: Equatable {
    var bodies: [FrameBody] = []
    var error: FrameError.Code?
  }

  private static func frames(in bytes: [UInt8]) throws -> Reading {
    var reading = Reading()
    try bytes.withUnsafeBytes { buffer in
      var rest = buffer
      do {
        while case .frame(let view) = try FrameView.first(in: rest) {
          let used = UnsafeRawBufferPointer(rebasing: rest[..<view.header.frameBytes])
          reading.bodies.append(try exact(view, used))
          rest = UnsafeRawBufferPointer(rebasing: rest[view.header.frameBytes...])
        }
      } catch let error as FrameError { reading.error = error.code }
    }
    return reading
  }

  /// What a frame says is all it says: written again, it is the same bytes.
  private static func exact(_ view: FrameView, _ bytes: UnsafeRawBufferPointer) throws -> FrameBody {
    let body = try view.body()
    let header = view.header
    let again = FrameHead.bytes(
      body, session: header.session, sequence: header.sequence, dataLength: view.data.count,
      dataChecksum: header.flags.contains(.dataChecksum) ? header.dataChecksum : nil)
    guard again.elementsEqual(bytes.prefix(again.count)) else {
      throw Finding("\(body) was read from other bytes than it is written as")
    }
    if header.kind == .acknowledge || header.kind == .resyncAcknowledge {
      var ranges: [SequenceRange] = []
      try view.forEachRange { ranges.append($0) }
      guard body == .acknowledge(ranges) || body == .resyncAcknowledge(ranges) else {
        throw Finding("\(body) has the ranges \(ranges)")
      }
    }
    return body
  }

  private static func received(_ bytes: [UInt8], cut: Int) throws -> Reading {
    var reading = Reading()
    let receiver = FrameReceiver()
    var position = 0
    do {
      while position < bytes.count {
        let space = receiver.space()
        guard !space.isEmpty else { throw Finding("there is no room left for a frame that is not complete") }
        let count = min(cut, bytes.count - position, space.count)
        space.copyBytes(from: bytes[position..<position + count])
        receiver.commit(count)
        position += count
        while let view = try receiver.next() { reading.bodies.append(try view.body()) }
      }
    } catch let error as FrameError { reading.error = error.code }
    return reading
  }

  /// Makes of any bytes a row of frames with lengths that fit and checksums that are right.
  private static func sealed(_ stream: [UInt8]) -> [UInt8] {
    var bytes = stream
    var start = 0
    func put(_ value: UInt32, _ offset: Int) {
      for byte in 0..<4 { bytes[start + offset + byte] = UInt8(truncatingIfNeeded: value >> (8 * UInt32(byte))) }
    }
    func sum(_ range: Range<Int>) -> UInt32 { bytes[range].withUnsafeBytes { CRC32C.checksum($0) } }
    while bytes.count - start >= FrameLimits.headerBytes {
      let left = bytes.count - start - FrameLimits.headerBytes
      let fields = min(Int(bytes[start + 24]) | Int(bytes[start + 25]) << 8, left)
      let data = min(Int(bytes[start + 28]) | Int(bytes[start + 29]) << 8, left - fields)
      let fieldsStart = start + FrameLimits.headerBytes
      put(FrameHeader.magic, 0)
      bytes[start + 4] = FrameHeader.layout
      put(UInt32(fields), 24)
      put(UInt32(data), 28)
      put(sum(fieldsStart..<fieldsStart + fields), 32)
      put(bytes[start + 6] & 1 == 1 ? sum(fieldsStart + fields..<fieldsStart + fields + data) : 0, 36)
      put(sum(start..<start + 40), 40)
      start = fieldsStart + fields + data
    }
    return bytes
  }

  // MARK: manifest

  /// Any row of manifest frames is refused or is a tree, and a tree can be made from nothing by the steps that come out.
  static func manifest(_ input: [UInt8]) throws {
    var collector = ManifestCollector()
    for body in try frames(in: sealed(input)).bodies {
      do {
        guard let manifest = try collector.take(body) else { continue }
        try check(manifest)
        collector = ManifestCollector()
      } catch is ManifestError { collector = ManifestCollector() }
    }
  }

  private static func check(_ manifest: Manifest) throws {
    guard manifest.paths.first == TreePath(), manifest.entries.count == manifest.paths.count else {
      throw Finding("a manifest of \(manifest.entries.count) entries has the paths \(manifest.paths)")
    }
    var made: Set<TreePath> = [TreePath()]
    let root = TreeEntry(path: TreePath(), inode: 1, mode: FileType.directory.rawValue, owner: 0, group: 0)
    let diff = ManifestDiff(manifest: manifest, target: [root])
    for action in diff.actions() {
      switch action {
      case .remove(let path, _): throw Finding("'\(path)' of an empty tree is to be removed")
      case .create(let path, _):
        guard let parent = path.parent, made.contains(parent), made.insert(path).inserted else {
          throw Finding("'\(path)' is made twice, or before its folder")
        }
      case .link(let existing, let path):
        guard let parent = path.parent, made.contains(parent), made.contains(existing), made.insert(path).inserted
        else {
          throw Finding("'\(path)' is linked to '\(existing)' before both are possible")
        }
      case .setAttributes(let path, _), .setExtendedAttribute(let path, _, _), .removeExtendedAttribute(let path, _):
        guard made.contains(path) else { throw Finding("'\(path)' is changed before it is made") }
      }
    }
    // A root that is no folder cannot be made into one, and is not asked to be.
    let wanted = manifest.entries.first?.type == .directory ? Set(manifest.paths) : []
    guard wanted.isSubset(of: made) else { throw Finding("not made: \(wanted.subtracting(made))") }
  }

  // MARK: seeds

  private static func name(_ text: String) -> FileName {
    guard let name = FileName(text) else { preconditionFailure("'\(text)' is a name") }
    return name
  }
  private static let attribute: AttributeName = {
    guard let name = AttributeName("user.a") else { preconditionFailure("'user.a' is a name") }
    return name
  }()

  private static func operations() -> [FileOperation] {
    let (one, two) = (FileID(rawValue: 1), FileID(rawValue: 2))
    let object = NewObject(id: two, mode: 0o100644, owner: 1, group: 2, accessed: .zero, modified: .zero)
    return [
      .write(two, offset: 4096, length: 3), .create(parent: one, name: name("a"), object),
      .makeDirectory(parent: one, name: name("b"), object), .makeNode(parent: one, name: name("c"), object, device: 9),
      .link(two, parent: one, name: name("d")), .unlink(parent: one, name: name("e"), two),
      .removeDirectory(parent: one, name: name("f"), two),
      .rename(parent: one, name: name("a"), newParent: two, newName: name("b"), .exchange),
      .setAttributes(two, AttributeChange(mode: 0o644, owner: 1, group: 2, size: 3, accessed: .zero, modified: .zero)),
      .allocate(two, .punchHole, offset: 1, length: 2), .setExtendedAttribute(two, name: attribute, value: [1, 2]),
      .removeExtendedAttribute(two, name: attribute), .forget(two),
    ] + (LinkTarget([0x61]).map { [.makeSymlink(parent: one, name: name("s"), object, target: $0)] } ?? [])
  }

  static func streamSeeds() -> [[UInt8]] {
    let file = FileID(rawValue: 3)
    var bodies: [FrameBody] = [
      .agree(version: 1), .keepalive, .failure(.diskError, errno: 5, sentence: "pwrite"), .bye(sentence: "end"),
      .coreMessage, .acknowledge([SequenceRange(1, through: 4), SequenceRange(9)]), .flushRequest(file),
      .dataFlushRequest(file), .flushAnswer(errno: 0), .resyncData(file, offset: 5),
      .resyncZero(file, offset: 6, length: 7),
      .resyncAcknowledge([SequenceRange(2)]), .differing(file, .zones([1..<2, 4..<9])), .differing(file, .fresh),
      .differingEnd, .resyncCompare(file, offset: 0, length: 65537, hashes: [BlockHash(1, 2), BlockHash(3, 4)]),
      .resyncCompared(differing: 5),
    ]
    bodies += operations().map { .operation($0) }
    if let module = ModuleName("vm1") {
      bodies.append(.hello(Hello(node: .first, nonce: 7, module: module, cluster: "c")))
    }
    let frames = bodies.map { body -> [UInt8] in
      let data: [UInt8]
      switch body {
      case .resyncData, .operation(.write), .coreMessage: data = [7, 8, 9]
      default: data = []
      }
      var isHello = false
      if case .hello = body { isHello = true }
      return FrameHead.bytes(
        body, session: isHello ? SessionID(rawValue: 0) : session, sequence: body.kind.isNumbered ? 5 : 0,
        dataLength: data.count) + data
    }
    return frames.map { [1] + $0 } + [[9] + frames.flatMap { $0 }, [0] + frames.flatMap { $0 }]
  }

  static func manifestSeeds() -> [[UInt8]] {
    func entry(_ id: UInt64, _ parent: UInt64?, _ text: String, _ mode: UInt32) -> FrameBody {
      .manifestEntry(
        ManifestEntry(
          id: FileID(rawValue: id), place: parent.map { ManifestPlace(parent: FileID(rawValue: $0), name: name(text)) },
          mode: mode, owner: 0, group: 0, target: mode & 0o170000 == 0o120000 ? LinkTarget([0x61]) : nil))
    }
    let key = HashKey(1, 2)
    let bodies: [FrameBody] = [
      .manifestBegin(identityOnly: false, key: key), entry(1, nil, "", 0o40755), entry(2, 1, "a", 0o100644),
      .manifestAttribute(FileID(rawValue: 2), name: attribute, value: [1]), entry(3, 1, "d", 0o40755),
      entry(2, 3, "b", 0o100644), entry(4, 3, "s", 0o120777), entry(5, 3, "p", 0o10644),
      .manifestEnd(entries: 6, attributes: 1),
    ]
    let stream = bodies.flatMap { FrameHead.bytes($0, session: session) }
    return [stream, stream + stream]
  }
}
