import Glibc
import HostSystem
import Model
import Testing

@Suite struct ChannelTests {
  let folder: TemporaryFolder
  init() throws { folder = try TemporaryFolder() }

  func pair() throws -> (LineChannel, LineChannel) {
    var ends: [Int32] = [0, 0]
    #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
    return (LineChannel(socket: ends[0]), LineChannel(socket: ends[1]))
  }

  struct Note: Codable, Hashable { var text: String; var number: UInt64 }

  @Test func overASocketInTheFileSystem() throws {
    let path = folder.file("s")
    let listener = try UnixSocket.listen(path: path, mode: 0o660, group: "root")
    defer { close(listener) }
    var status = stat()
    #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o660)
    #expect(throws: HostError.self) { try UnixSocket.listen(path: path) }
    #expect(try UnixSocket.accept(listener, timeout: .seconds(1)) != nil)  // the probe of the second listen
    #expect(try UnixSocket.accept(listener, timeout: .milliseconds(20)) == nil)
    let client = try LineChannel.connect(path: path)
    let server = LineChannel(socket: try #require(try UnixSocket.accept(listener, timeout: .seconds(1))))
    let peer = try server.peerCredentials()
    #expect(peer.process == getpid() && peer.user == getuid() && peer.group == getgid())
    let note = Note(text: "a \"line\"\nwith a break", number: .max)
    try client.send(note)
    try client.writeLine(Array("{}".utf8))
    try client.send(note)
    #expect(try server.receive(Note.self) == note)
    #expect(throws: HostError.self) { try server.receive(Note.self) }
    #expect(try server.receive(Note.self) == note)
    client.close()
    #expect(try server.readLine() == nil)
    #expect(throws: HostError.self) {
      try server.send(note); try server.send(note)
    }
  }

  @Test func replacesADeadSocketAndExplainsItsErrors() throws {
    let path = folder.file("dead")
    close(try UnixSocket.listen(path: path))
    #expect(throws: HostError.self) { try UnixSocket.connect(path: path) }
    close(try UnixSocket.listen(path: path))
    #expect(throws: HostError.self) { try UnixSocket.listen(path: folder.file(String(repeating: "n", count: 120))) }
    do {
      _ = try UnixSocket.listen(path: folder.file("g"), group: "no-such-group")
      Issue.record("listened")
    } catch let error as HostError {
      #expect(error.description.contains("groupadd"))
    }
  }

  @Test func longLinesPassAndLongerOnesDoNot() throws {
    let (a, b) = try pair()
    let longest = [UInt8](repeating: 65, count: LineChannel.lineBytesMax)
    let writer = try HostThread.start(name: "writer", detached: false) { try? a.writeLine(longest) }
    #expect(try b.readLine() == longest)
    writer.join()
    #expect(throws: HostError.self) { try a.writeLine(longest + [65]) }
    #expect(throws: HostError.self) { try a.writeLine([10]) }
  }

  @Test func aTooLongOrUnfinishedLineIsAnError() throws {
    var ends: [Int32] = [0, 0]
    #expect(socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0)
    let raw = ends[0]
    let channel = LineChannel(socket: ends[1])
    let writer = try HostThread.start(name: "writer", detached: false) {
      let bytes = [UInt8](repeating: 65, count: 1 << 16)
      for _ in 0..<17 { _ = send(raw, bytes, bytes.count, Int32(MSG_NOSIGNAL)) }
    }
    #expect(throws: HostError.self) { try channel.readLine(timeout: .seconds(5)) }
    channel.close()
    writer.join()
    close(raw)
    let (a, b) = try pair()
    try a.writeLine([65])
    #expect(try b.readLine() == [65])
    #expect(throws: HostError.self) { try b.readLine(timeout: .milliseconds(30)) }
  }

  @Test func closeFreesABlockedReaderAndWriter() throws {
    let (a, b) = try pair()
    let ended = Monitor(0)
    try HostThread.start(name: "reader") {
      _ = try? a.readLine()
      ended.withLock { $0 += 1 }
    }
    try HostThread.start(name: "writer") {
      let line = [UInt8](repeating: 65, count: 1 << 19)
      while (try? a.writeLine(line)) != nil {}
      ended.withLock { $0 += 1 }
    }
    usleep(50_000)
    a.close()
    #expect(ended.wait(timeout: .seconds(3)) { $0 == 2 ? true : nil } == true)
    withExtendedLifetime(b) {}
  }
}
