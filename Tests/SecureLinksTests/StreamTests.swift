import Glibc
import HostSystem
import Model
import Testing

@testable import SecureLinks

func text(_ stream: SecureStream, _ count: Int) throws -> String {
  var bytes = [UInt8](repeating: 0, count: count)
  let done = try bytes.withUnsafeMutableBytes { try stream.readFully(into: $0) }
  return done ? String(decoding: bytes, as: UTF8.self) : ""
}

func say(_ text: String, _ stream: SecureStream) throws {
  try Array(text.utf8).withUnsafeBytes { try stream.write($0) }
}

@Suite struct StreamTests {
  let cluster: Cluster
  let server: Server
  let client: SecureContext

  init() throws {
    cluster = try Cluster()
    server = try Server(cluster.context("n1"))
    client = try cluster.context("n2")
  }

  func pair() throws -> (SecureStream, SecureStream) {
    let near = try server.connect(client, expecting: "n1")
    return (near, try #require(try server.accept(timeout: .seconds(5))))
  }

  @Test func bothEndsAreProven() throws {
    let (near, far) = try pair()
    #expect(near.peerName == "n1" && far.peerName == "n2" && !far.isJoin && far.peerAddress == "127.0.0.1")
    try say("hello", near)
    #expect(try text(far, 5) == "hello")
    try say("there", far)
    #expect(try text(near, 5) == "there")
    near.shutdown()
    #expect(try text(far, 1).isEmpty)
    try say("x", far)  // reaches a closed socket; the next ones fail
    usleep(20_000)
    #expect(throws: SecureError.self) {
      try say("x", far); try say("x", far)
    }
  }

  @Test func readTimeoutLeavesTheStreamUsable() throws {
    let (near, far) = try pair()
    near.readTimeout = .milliseconds(30)
    #expect(near.readTimeout == .milliseconds(30))
    #expect(secureError { _ = try text(near, 1) }?.code == .timedOut)
    try say("late", far)
    #expect(try text(near, 4) == "late")
  }

  @Test func shutdownFreesReaderAndWriterOfThisEnd() throws {
    let (near, far) = try pair()
    let ended = Monitor<[String]>([])
    try HostThread.start(name: "reader") {
      let count = (try? text(near, 1))?.count
      ended.withLock { $0.append("read \(count ?? -1)") }
    }
    try HostThread.start(name: "writer") {
      let large = [UInt8](repeating: 7, count: 64 << 20)
      let error = secureError { try large.withUnsafeBytes { try near.write($0) } }
      ended.withLock { $0.append("write \(error?.code.rawValue ?? "done")") }
    }
    usleep(150_000)
    near.shutdown()
    #expect(ended.wait(timeout: .seconds(3)) { $0.count == 2 ? $0.sorted() : nil } == ["read 0", "write closed"])
    withExtendedLifetime(far) {}
  }

  @Test func writeTimeout() throws {
    let (near, far) = try pair()
    near.writeTimeout = .milliseconds(50)
    let large = [UInt8](repeating: 7, count: 64 << 20)
    #expect(secureError { try large.withUnsafeBytes { try near.write($0) } }?.code == .timedOut)
    #expect(secureError { try say("x", near) }?.code == .closed)
    withExtendedLifetime(far) {}
  }

  /// Random piece sizes both ways at the same time, with keys changing under way; every byte is checked.
  @Test func fullDuplexWithKeyChanges() throws {
    let (near, far) = try pair()
    near.recordsPerKey = 50
    far.recordsPerKey = 70
    let total = 5 << 20
    let failures = Monitor<[String]>([])
    let threads = try [(near, UInt64(1)), (far, UInt64(2))].flatMap { stream, seed in
      [
        try HostThread.start(name: "w", detached: false) {
          do { try writePattern(stream, total: total, seed: seed) } catch {
            failures.withLock { $0.append("\(error)") }
          }
        },
        try HostThread.start(name: "r", detached: false) {
          do { try checkPattern(stream, total: total) } catch { failures.withLock { $0.append("\(error)") } }
        },
      ]
    }
    threads.forEach { $0.join() }
    #expect(failures.withLock { $0 }.isEmpty)
  }

  @Test func connectsOverIPv6() throws {
    let listener = try SecureListener(address: "::1", port: 0, context: client)
    defer { listener.close() }
    let other = try cluster.context("n1")
    let near = try SecureStream.connect(
      to: "::1", port: listener.port, context: other, expectedPeer: "n2", timeout: .seconds(5))
    #expect(near.peerName == "n2")
  }

  @Test func roundTripIsShort() throws {
    let (near, far) = try pair()
    let echo = try HostThread.start(name: "echo", detached: false) {
      var bytes = [UInt8](repeating: 0, count: 4096)
      while (try? bytes.withUnsafeMutableBytes { try far.readFully(into: $0) }) == true {
        try? bytes[..<64].withUnsafeBytes { try far.write($0) }
      }
    }
    let block = [UInt8](repeating: 1, count: 4096 - 40)
    let header = [UInt8](repeating: 2, count: 40)
    var answer = [UInt8](repeating: 0, count: 64)
    let start = monotonicNow()
    for _ in 0..<2000 {
      try header.withUnsafeBytes { head in try block.withUnsafeBytes { try near.write(head, $0) } }
      #expect(try answer.withUnsafeMutableBytes { try near.readFully(into: $0) })
    }
    let each = (monotonicNow() - start).nanoseconds / 2000
    print("TLS round trip 4 KiB -> 64 B over loopback: \(each / 1000) us")
    near.shutdown()
    echo.join()
  }
}

/// The byte at stream position `index`.
private func patternByte(_ index: Int) -> UInt8 { UInt8(truncatingIfNeeded: index &* 2_654_435_761 >> 7) }

private func writePattern(_ stream: SecureStream, total: Int, seed: UInt64) throws {
  let pattern = (0..<total).map(patternByte)
  var state = seed
  var offset = 0
  try pattern.withUnsafeBytes { bytes in
    while offset < total {
      var pieces: [UnsafeRawBufferPointer] = []
      for _ in 0..<3 {
        state = state &* 6_364_136_223_846_793_005 &+ 1
        let sizes = [1, 40, 4096, 16_384, 16_385, 300_000]
        let size = min(total - offset, sizes[Int(state >> 33) % sizes.count])
        pieces.append(UnsafeRawBufferPointer(rebasing: bytes[offset..<(offset + size)]))
        offset += size
      }
      try stream.writeAll(pieces)
    }
  }
}

private func checkPattern(_ stream: SecureStream, total: Int) throws {
  var buffer = [UInt8](repeating: 0, count: 100_000)
  var offset = 0
  while offset < total {
    let count = try buffer.withUnsafeMutableBytes { try stream.read(into: $0) }
    guard count > 0 else { throw SecureError(.closed, "ended at \(offset)") }
    for index in 0..<count where buffer[index] != patternByte(offset + index) {
      throw SecureError(.tls, "wrong byte at \(offset + index)")
    }
    offset += count
  }
}
