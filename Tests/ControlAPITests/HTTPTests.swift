import ControlAPI
@testable import ControlHTTP
import ControlTestSupport
import Foundation
import Glibc
import Logging
import Testing

@Suite(.timeLimit(.minutes(1))) struct HTTPTests {
  @Test func everyCallArrivesAndIsAnswered() async throws {
    let fake = FakeControlService {
      $0.operations = [OperationStatus(id: OperationID(rawValue: "op-1"), kind: .add, module: "vm3", sentence: "moves")]
    }
    try await withServer(fake) { path async throws in
      let client = ControlClient(socketPath: path)
      #expect(try await client.status() == Samples.status())
      #expect(try await client.module("vm1").name == "vm1")
      #expect(try await client.startModule("vm1", force: false).targetNode == "node1")
      #expect(try await client.startModule("vm1", force: true).module == "vm1")
      #expect(try await client.stopModule("vm1", timeoutSeconds: 7).targetNode == nil)
      #expect(try await client.swapModule("vm1").targetNode == "node2")
      #expect(try await client.crashGuest("vm1").time == Samples.time)
      #expect(try await client.planAdd(AddRequest(name: "vm3", preferredNode: "node2", directory: "/d")).number == 3)
      #expect(try await client.add(AddRequest(name: "vm3")).rawValue == "op-1")
      #expect(try await client.remove("vm1", purgeCopy: true).rawValue == "op-2")
      #expect(try await client.operation(OperationID(rawValue: "op-1")).sentence == "moves")
      let links = [OwnLink(name: "repl", address: "10.0.0.1", replication: true)]
      #expect(try await client.clusterInitialise(ClusterInitialiseRequest(name: "c", links: links)) == Samples.ticket)
      #expect(try await client.clusterTicket() == Samples.ticket)
      let join = ClusterJoinRequest(address: "10.0.0.1", fingerprint: "f", token: "t", nodeName: "n", links: links)
      #expect(try await client.clusterJoin(join) == Samples.cluster)
      #expect(try await client.clusterShow() == Samples.cluster)
      var changes = ClusterChanges()
      changes.detectionMilliseconds = 5000
      changes.addLinks = Samples.cluster.links
      #expect(try await client.clusterSet(changes) == Samples.cluster)
      #expect(try await client.timeline(module: "vm1", limit: 7).peer == "node2")
      #expect(try await client.decisions("vm1") == Data(#"{"entries":[]}"#.utf8))
      #expect(fake.edit { $0.changes } == changes)
      #expect(try await client.check() == Samples.check)
      #expect(fake.edit { $0.join } == join)
    }
    #expect(
      fake.calls == [
        "status", "status", "start vm1", "force-start vm1", "timeout 7", "stop vm1", "swap vm1", "crash vm1",
        "plan vm3", "add vm3", "purge vm1", "operation op-1", "init", "ticket", "join", "show", "set",
        "timeline", "decisions vm1", "check",
      ])
  }

  @Test func errorsCrossTheSocketWhole() async throws {
    let refused = ControlError(
      .refused, "vm1 cannot swap", why: "node2 takes a copy", next: "wait", details: ["25 % done"])
    let fake = FakeControlService { $0.failures["swap"] = refused }
    try await withServer(fake) { path async throws in
      let client = ControlClient(socketPath: path)
      await #expect(throws: refused) { try await client.swapModule("vm1") }
      await #expect(throws: ControlError.noSuchModule("no/such vm%")) { try await client.module("no/such vm%") }
      let wrong = try await #require(throws: ControlError.self) {
        try await client.stopModule("vm1", timeoutSeconds: -1)
      }
      #expect(wrong.code == .invalidRequest && wrong.nothingChanged)
      let limit = try await #require(throws: ControlError.self) {
        try await client.log(since: 0, module: nil, limit: 1_000_000)
      }
      #expect(limit.code == .invalidRequest)
    }
  }

  @Test func unknownRoutesAndBodiesAreErrorsOfTheSameShape() async throws {
    try await withServer(FakeControlService()) { path async throws in
      let (status, body) = try rawRequest(path, "GET /v2/nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
      #expect(status == 404)
      #expect(try ControlCoding.decode(ControlError.self, from: body).code == .noSuchRoute)
      let text = "POST /v1/add/plan HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
      let (badStatus, badBody) = try rawRequest(path, text)
      #expect(badStatus == 400)
      #expect(try ControlCoding.decode(ControlError.self, from: badBody).why?.contains("'name'") == true)
      let size = ControlCoding.bodyBytesMax + 1
      let large = "POST /v1/add HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: \(size)\r\n\r\n"
      let (largeStatus, _) = try rawRequest(path, large + String(repeating: "x", count: size))
      #expect(largeStatus == 413)
    }
  }

  @Test func followGivesTheBacklogAndThenEverythingNew() async throws {
    let fake = FakeControlService { state in
      for number in 1...5 { state.append(Samples.event(0, "old \(number)", module: number == 3 ? "vm2" : "vm1")) }
    }
    let seen = try await withServer(fake) { path async throws in
      var seen: [Int64] = []
      let client = ControlClient(socketPath: path)
      struct Enough: Error {}
      do {
        try await client.follow(since: 1, module: "vm1") { event in
          seen.append(event.id)
          if event.id == 5 {
            fake.edit {
              $0.append(Samples.event(0, "another's", module: "vm2"))
              $0.append(Samples.event(0, "new"))
            }
          }
          if event.id == 7 { throw Enough() }
        }
      } catch is Enough {}
      return seen
    }
    #expect(seen == [2, 4, 5, 7])
  }

  @Test func aStreamWhoseDaemonEndsSaysSo() async throws {
    let fake = FakeControlService { $0.append(Samples.event(0, "last")) }
    let follower = try await withServer(fake) { path async throws in
      let (seen, continuation) = AsyncStream<Void>.makeStream()
      let follower = Task {
        try await ControlClient(socketPath: path).follow(since: 0, module: nil) { _ in continuation.finish() }
      }
      for await _ in seen {}
      return follower
    }
    // A stop may end the stream in order or cut it; either way it ends, and a cut is an error of this API.
    do {
      try await follower.value
    } catch let error as ControlError {
      #expect(error.code == .daemonNotRunning || error.code == .badAnswer)
    }
  }

  @Test func theStreamFillsGapsFromTheJournal() async throws {
    let fake = FakeControlService { state in
      for number in 1...4 { state.append(Samples.event(0, "\(number)")) }
    }
    var feed = EventFeed(service: fake, module: nil, cursor: 1)
    let journal = fake.edit { $0.journal }
    #expect(try await feed.take(journal[0]).isEmpty)
    #expect(try await feed.take(journal[3]).map(\.id) == [2, 3, 4])
    #expect(try await feed.take(journal[2]).isEmpty)
    #expect(try await feed.take(Samples.event(0, "not stored")).count == 1)
  }

  @Test func noDaemonIsSaidPlainly() async throws {
    let client = ControlClient(socketPath: "/tmp/vmha-no-such-folder/vmhad.sock")
    let error = try await #require(throws: ControlError.self) { try await client.status() }
    #expect(error.code == .daemonNotRunning)
    #expect(error.message == "vmhad is not running on this host")
    #expect(error.next == "systemctl start vmhad")
  }

  @Test func aSecondServerIsRefusedAndADeadSocketReplaced() async throws {
    let fake = FakeControlService()
    try await withServer(fake) { path async throws in
      let second = ControlServer(service: fake, socketPath: path, group: nil, logger: Logger(label: "test"))
      let error = try await #require(throws: ControlError.self) { try await second.run() }
      #expect(error.code == .refused)
      #expect(try await ControlClient(socketPath: path).status().thisNode == "node1")
    }
    let folder = "/tmp/vmha-dead-\(getpid())"
    mkdir(folder, 0o700)
    defer { try? FileManager.default.removeItem(atPath: folder) }
    let path = folder + "/vmhad.sock"
    try leaveDeadSocket(path)
    let server = ControlServer(service: fake, socketPath: path, group: nil, logger: Logger(label: "test"))
    let (ready, continuation) = AsyncStream<Void>.makeStream()
    let task = Task { try await server.run { continuation.finish() } }
    for await _ in ready {}
    #expect(try await ControlClient(socketPath: path).status().thisNode == "node1")
    let attributes = try FileManager.default.attributesOfItem(atPath: path)
    #expect(attributes[.posixPermissions] as? Int == 0o600)
    task.cancel()
    try await task.value
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test func theStreamParserKeepsEventsTogether() throws {
    var parser = ServerSentEvents()
    let text = ": hello\r\n\r\nid: 1\nevent: journal\ndata: {\"a\":\ndata: 1}\n\ndata:x\n\n"
    var events: [Data] = []
    for byte in text.utf8 { events += try parser.feed([byte]) }
    #expect(events.map { String(decoding: $0, as: UTF8.self) } == ["{\"a\":\n1}", "x"])
    #expect(throws: ControlError.self) {
      _ = try parser.feed(repeatElement(UInt8(ascii: "y"), count: ServerSentEvents.bytesMax + 1))
    }
  }
}
