import Model
import Testing

@testable import Replication

private let session = SessionID(rawValue: 0x1122_3344_5566_7788)

private func decode(_ bytes: [UInt8]) throws -> (body: FrameBody, header: FrameHeader, data: [UInt8])? {
  try bytes.withUnsafeBytes { buffer in
    guard case .frame(let view) = try FrameView.first(in: buffer) else { return nil }
    return (try view.body(), view.header, [UInt8](view.data))
  }
}

private func errorCode(_ bytes: [UInt8]) -> FrameError.Code? {
  do {
    _ = try decode(bytes)
    return nil
  } catch let error as FrameError {
    return error.code
  } catch {
    return nil
  }
}

/// Makes the checksums of a frame right again after its header or fields were changed.
private func resealed(_ frame: [UInt8]) -> [UInt8] {
  var frame = frame
  func put(_ value: UInt32, at offset: Int) {
    for byte in 0..<4 { frame[offset + byte] = UInt8(truncatingIfNeeded: value >> (8 * UInt32(byte))) }
  }
  let fieldsLength = Int(frame[24]) | Int(frame[25]) << 8 | Int(frame[26]) << 16
  let fieldsEnd = min(FrameLimits.headerBytes + fieldsLength, frame.count)
  put(frame[FrameLimits.headerBytes..<fieldsEnd].withUnsafeBytes { CRC32C.checksum($0) }, at: 32)
  put(frame[..<40].withUnsafeBytes { CRC32C.checksum($0) }, at: 40)
  return frame
}

@Suite struct ChecksumTests {
  @Test func knownValues() {
    func sum(_ bytes: [UInt8]) -> UInt32 { bytes.withUnsafeBytes { CRC32C.checksum($0) } }
    #expect(sum([]) == 0)
    #expect(sum(Array("123456789".utf8)) == 0xE306_9283)
    #expect(sum([UInt8](repeating: 0, count: 32)) == 0x8A91_36AA)
    #expect(sum([UInt8](repeating: 0xFF, count: 32)) == 0x62A8_AB43)
    #expect(sum(Array(0..<32)) == 0x46DD_794E)
  }

  @Test func piecesMakeTheWhole() {
    var random = SeededGenerator(seed: 1)
    let bytes = random.bytes(100)
    let whole = bytes.withUnsafeBytes { CRC32C.checksum($0) }
    for cut in 0...bytes.count {
      var sum = CRC32C()
      bytes[..<cut].withUnsafeBytes { sum.update($0) }
      bytes[cut...].withUnsafeBytes { sum.update($0) }
      #expect(sum.value == whole)
    }
  }
}

@Suite struct FrameTests {
  /// Bytes on the wire must never change within a layout.
  @Test func goldenVectors() {
    let file = FileID(rawValue: 0x0102)
    let operation = FileOperation.rename(
      parent: FileID(rawValue: 2), name: name("a"), newParent: FileID(rawValue: 3), newName: name("bc"), .exchange)
    let vectors: [(body: FrameBody, sequence: UInt64, data: [UInt8], hex: String)] = [
      (.keepalive, 0, [], Golden.keepalive),
      (.operation(.write(file, offset: 4096, length: 3)), 7, [1, 2, 3], Golden.write),
      (.operation(operation), 8, [], Golden.rename),
      (.acknowledge([SequenceRange(1, through: 5), SequenceRange(9)]), 0, [], Golden.acknowledge),
      (.flushRequest(nil), 9, [], Golden.flushRequest),
      (.resyncZero(file, offset: 1 << 20, length: 1 << 30), 1, [], Golden.resyncZero),
      (.failure(.diskError, errno: 5, sentence: "pwrite"), 0, [], Golden.failure),
    ]
    for vector in vectors {
      let head = FrameHead.bytes(
        vector.body, session: session, sequence: vector.sequence, dataLength: vector.data.count)
      #expect(text(head + vector.data) == vector.hex, "\(vector.body)")
    }
    let hello = Hello(
      versionMin: 1, versionMax: 1, node: .second, nonce: 0x0A0B_0C0D, module: module("web"), cluster: "c0")
    #expect(text(FrameHead.bytes(.hello(hello), session: SessionID(rawValue: 0))) == Golden.hello)
  }

  @Test(arguments: FrameKind.allCases) func roundTrip(_ kind: FrameKind) throws {
    var samples = FrameSamples(random: SeededGenerator(seed: UInt64(kind.rawValue)))
    for round in 0..<400 {
      let sample = samples.frame(kind, isChecked: round % 2 == 0)
      let found = try #require(try decode(sample.bytes))
      #expect(found.body == sample.body)
      #expect(found.data == sample.data)
      #expect(found.header.kind == kind)
      #expect(found.header.frameBytes == sample.bytes.count)
    }
  }

  /// The functions of the hot path write the same bytes as the general one.
  @Test func hotHeadsAreTheSame() {
    let file = FileID(rawValue: 77)
    withUnsafeTemporaryAllocation(byteCount: FrameLimits.acknowledgeHeadBytesMax, alignment: 8) { buffer in
      func made(_ count: Int) -> [UInt8] { [UInt8](UnsafeRawBufferPointer(rebasing: buffer[..<count])) }
      #expect(
        made(
          FrameHead.write(
            into: buffer, session: session, sequence: 5, file: file, offset: 12, dataLength: 4096, dataChecksum: 99))
          == FrameHead.bytes(
            .operation(.write(file, offset: 12, length: 4096)), session: session, sequence: 5, dataLength: 4096,
            dataChecksum: 99))
      #expect(
        made(
          FrameHead.resyncData(into: buffer, session: session, sequence: 6, file: file, offset: 1, dataLength: 9))
          == FrameHead.bytes(.resyncData(file, offset: 1), session: session, sequence: 6, dataLength: 9))
      #expect(
        made(FrameHead.resyncZero(into: buffer, session: session, sequence: 6, file: file, offset: 1, length: 9))
          == FrameHead.bytes(.resyncZero(file, offset: 1, length: 9), session: session, sequence: 6))
      #expect(
        made(FrameHead.flushRequest(into: buffer, session: session, sequence: 3, file: file))
          == FrameHead.bytes(.flushRequest(file), session: session, sequence: 3))
      #expect(
        made(FrameHead.flushRequest(into: buffer, session: session, sequence: 3, file: file, dataOnly: true))
          == FrameHead.bytes(.dataFlushRequest(file), session: session, sequence: 3))
      #expect(
        made(FrameHead.flushRequest(into: buffer, session: session, sequence: 3, file: nil, dataOnly: true))
          == FrameHead.bytes(.flushRequest(nil), session: session, sequence: 3))
      #expect(
        made(FrameHead.flushAnswer(into: buffer, session: session, sequence: 3, errno: 28))
          == FrameHead.bytes(.flushAnswer(errno: 28), session: session, sequence: 3))
      #expect(
        made(FrameHead.keepalive(into: buffer, session: session)) == FrameHead.bytes(.keepalive, session: session))
      let ranges = (1...512).map { SequenceRange(UInt64($0) * 10) }
      #expect(
        made(FrameHead.acknowledge(into: buffer, kind: .acknowledge, session: session, ranges: ranges[...]))
          == FrameHead.bytes(.acknowledge(ranges), session: session))
    }
  }

  /// Any single changed byte is noticed (with the data's checksum on), and so is any loss of the end.
  @Test(arguments: FrameKind.allCases) func everyFlippedByteIsAnError(_ kind: FrameKind) throws {
    var samples = FrameSamples(random: SeededGenerator(seed: 1000 + UInt64(kind.rawValue)))
    for _ in 0..<20 {
      let bytes = samples.frame(kind, isChecked: true).bytes
      guard bytes.count < 400 else { continue }
      for index in bytes.indices {
        var flipped = bytes
        flipped[index] ^= UInt8.random(in: 1...255, using: &samples.random)
        #expect(errorCode(flipped) != nil, "byte \(index) of a \(kind) frame")
        #expect(try decode(Array(bytes[..<index])) == nil, "cut at \(index)")
      }
    }
  }

  /// With checksums made right again, a changed frame is refused or means exactly what its bytes say: encoding it
  /// again gives the same.
  @Test(arguments: FrameKind.allCases) func everyForgedFrameIsRefusedOrExact(_ kind: FrameKind) throws {
    var samples = FrameSamples(random: SeededGenerator(seed: 2000 + UInt64(kind.rawValue)))
    for _ in 0..<60 {
      let bytes = samples.frame(kind, isChecked: false).bytes
      guard bytes.count < 1000 else { continue }
      for index in bytes.indices where !(32..<44).contains(index) {
        var forged = bytes
        forged[index] ^= UInt8.random(in: 1...255, using: &samples.random)
        forged = resealed(forged)
        do {
          guard let found = try decode(forged) else { continue }
          let again = FrameHead.bytes(
            found.body, session: found.header.session, sequence: found.header.sequence,
            dataLength: found.data.count,
            dataChecksum: found.header.flags.contains(.dataChecksum) ? found.header.dataChecksum : nil)
          #expect(again + found.data == Array(forged[..<found.header.frameBytes]), "byte \(index) of a \(kind) frame")
        } catch {
          #expect(error is FrameError)
        }
      }
    }
  }

  @Test func everyRuleOfTheHeader() {
    let write = FrameHead.bytes(
      .operation(.write(FileID(rawValue: 1), offset: 0, length: 1)), session: session, sequence: 1, dataLength: 1)
    func forged(_ offset: Int, _ value: [UInt8]) -> FrameError.Code? {
      var bytes = write + [0]
      bytes.replaceSubrange(offset..<offset + value.count, with: value)
      return errorCode(resealed(bytes))
    }
    #expect(forged(0, [0]) == .notAFrame)
    #expect(forged(4, [2]) == .unknownLayout)
    #expect(forged(5, [99]) == .unknownKind)
    #expect(forged(6, [2]) == .unknownFlags)
    #expect(forged(36, [1]) == .unknownFlags)
    #expect(forged(8, [UInt8](repeating: 0, count: 8)) == .badSession)
    #expect(forged(16, [UInt8](repeating: 0, count: 8)) == .badSequence)
    #expect(forged(26, [2]) == .tooLong)
    #expect(forged(24, [0xFF, 0xFF, 0xFF, 0xFF]) == .tooLong)
    #expect(forged(28, [1, 0, 0x10, 0]) == .tooLong)
    #expect(forged(28, [0, 0, 0, 0]) == .badLength)
    var silent = FrameHead.bytes(.keepalive, session: session)
    silent[28] = 1
    #expect(errorCode(resealed(silent) + [0]) == .badLength)
    var longer = FrameHead.bytes(.keepalive, session: session)
    longer[24] = 1
    longer.append(0)
    #expect(errorCode(resealed(longer)) == .surplusFields)
  }

  @Test func namesThatLeadAwayAreRefused() {
    #expect(FileName("..") == nil)
    #expect(FileName(".") == nil)
    #expect(FileName("") == nil)
    #expect(FileName("a/b") == nil)
    #expect(FileName([0x61, 0]) == nil)
    #expect(FileName([UInt8](repeating: 0x61, count: 256)) == nil)
    #expect(FileName([0xFF, 0xFE])?.bytes == [0xFF, 0xFE])
    let unlink = FileOperation.unlink(parent: FileID(rawValue: 1), name: name("ab"), FileID(rawValue: 2))
    var bytes = FrameHead.bytes(.operation(unlink), session: session, sequence: 1)
    bytes.replaceSubrange(54..<56, with: [0x2E, 0x2E])
    #expect(errorCode(resealed(bytes)) == .badValue)
  }

  @Test func acknowledgedRangesWithoutAllocating() throws {
    let ranges = [SequenceRange(1, through: 4), SequenceRange(8), SequenceRange(6)]
    let bytes = FrameHead.bytes(.resyncAcknowledge(ranges), session: session)
    var seen: [SequenceRange] = []
    try bytes.withUnsafeBytes { buffer in
      guard case .frame(let view) = try FrameView.first(in: buffer) else { return }
      try view.forEachRange { seen.append($0) }
    }
    #expect(seen == ranges)
  }

  @Test func longSentencesAreCutBetweenCharacters() throws {
    let sentence = String(repeating: "é", count: 2000)
    let found = try decode(FrameHead.bytes(.bye(sentence: sentence), session: session))
    guard case .bye(let short) = found?.body else {
      Issue.record("no bye")
      return
    }
    #expect(short == String(repeating: "é", count: 512))
  }

  /// A stream cut anywhere gives the same frames.
  @Test func receiverTakesAnyChunks() throws {
    var samples = FrameSamples(random: SeededGenerator(seed: 5))
    var stream: [UInt8] = []
    var sent: [(FrameBody, [UInt8])] = []
    for _ in 0..<300 {
      let kinds = FrameKind.allCases
      let sample = samples.frame(kinds[Int.random(in: 0..<kinds.count, using: &samples.random)], isChecked: true)
      stream += sample.bytes
      sent.append((sample.body, sample.data))
    }
    let receiver = FrameReceiver()
    var position = 0
    var received = 0
    while position < stream.count {
      let space = receiver.space()
      let chunk = min(stream.count - position, space.count, Int.random(in: 1...5000, using: &samples.random))
      space.copyBytes(from: stream[position..<position + chunk])
      receiver.commit(chunk)
      position += chunk
      while let view = try receiver.next() {
        #expect(try view.body() == sent[received].0)
        #expect([UInt8](view.data) == sent[received].1)
        received += 1
      }
    }
    #expect(received == sent.count)
  }

  /// The largest frame fits, whatever came before it.
  @Test func receiverHoldsTheLargestFrames() throws {
    let data = [UInt8](repeating: 7, count: FrameLimits.dataBytesMax)
    let frame =
      FrameHead.bytes(
        .resyncData(FileID(rawValue: 1), offset: 0), session: session, sequence: 1, dataLength: data.count) + data
    let stream = frame + FrameHead.bytes(.keepalive, session: session) + frame + frame
    let receiver = FrameReceiver()
    var position = 0
    var frames = 0
    while position < stream.count {
      let space = receiver.space()
      try #require(!space.isEmpty)
      let chunk = min(stream.count - position, space.count)
      space.copyBytes(from: stream[position..<position + chunk])
      receiver.commit(chunk)
      position += chunk
      while try receiver.next() != nil { frames += 1 }
    }
    #expect(frames == 4)
  }
}
