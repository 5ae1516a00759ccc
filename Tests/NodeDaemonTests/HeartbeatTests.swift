import Glibc
import HostSystem
import Membership
import Model
import NodeDaemon
import SecureLinks
import Testing

private func beat(_ number: Int, state: ModuleState = .prim, flags: ModuleBeat.Flags = [.guestRunning, .inSync])
  -> ModuleBeat?
{
  ModuleNumber(rawValue: number).map {
    ModuleBeat(
      number: $0, state: state, readiness: .ready, flags: flags, standing: .uptodate,
      generation: Generation(number: 7, branch: BranchID(rawValue: 0x0102_0304_0506_0708)))
  }
}

private let boot = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"

@Suite struct HeartbeatFrameTests {
  func frame() throws -> HeartbeatFrame {
    HeartbeatFrame(
      node: .second, revision: 5, link: HeartbeatFrame.linkID("repl"), sequence: 0x0A0B, boot: boot,
      linksHeard: [HeartbeatFrame.linkID("repl"), 1],
      modules: [
        try #require(beat(1)),
        ModuleBeat(
          number: try #require(ModuleNumber(rawValue: 25)), state: .wait, readiness: .blocked, flags: .offers,
          standing: nil,
          generation: Generation(number: 0, branch: BranchID(rawValue: 0))),
      ])
  }

  @Test func goldenBytes() throws {
    let expected =
      "0102000202000000" + "05000000" + "8b5785ec" + "0b0a000000000000" + "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
      + "8b5785ec" + "01000000" + "01300501" + "07000000" + "0807060504030201" + "19120200" + "00000000"
      + "0000000000000000"
    #expect(try hexadecimal(#require(frame().encode())) == expected)
    #expect(try HeartbeatFrame(#require(bytes(hexadecimal: expected))) == frame())
  }

  @Test func theLargestFitsItsDatagram() throws {
    var largest = try frame()
    largest.modules = (1...moduleCountMax).compactMap { beat($0) }
    largest.linksHeard = (0..<UInt32(HeartbeatFrame.linkCountMax)).map { $0 }
    let bytes = try #require(largest.encode())
    #expect(bytes.count == 472 && bytes.count <= HeartbeatSeal.bodyBytesMax && HeartbeatFrame(bytes) == largest)
    largest.linksHeard.append(9)
    #expect(largest.encode() == nil)
    largest = try frame()
    largest.boot = boot.uppercased()
    #expect(largest.encode() == nil)
    largest.boot = boot.replacing("-", with: "")
    #expect(largest.encode() == nil)
  }

  /// What is not refused means the same bytes: nothing in a frame is ignored.
  @Test func everyFlippedBitAndLengthIsRefusedOrMeant() throws {
    let good = try #require(try frame().encode())
    for index in good.indices {
      for bit in 0..<8 {
        var bad = good
        bad[index] ^= 1 << bit
        if let decoded = HeartbeatFrame(bad) { #expect(decoded.encode() == bad) }
      }
    }
    for length in 0..<good.count { #expect(HeartbeatFrame(Array(good[..<length])) == nil) }
    #expect(HeartbeatFrame(good + [0]) == nil)
    var twice = try frame()
    twice.modules = [twice.modules[0], twice.modules[0]]
    #expect(try HeartbeatFrame(#require(twice.encode())) == nil)
  }
}

/// One heartbeat service and what it told.
private final class Node: Sendable {
  let events: Monitor<[HeartbeatEvent]>
  let service: HeartbeatService

  init(
    _ node: NodeID, _ links: [HeartbeatLink], port: Int, key: [UInt8], boot: String? = nil, detection: Int = 3000
  ) throws {
    let events = Monitor<[HeartbeatEvent]>([])
    self.events = events
    service = try HeartbeatService(
      configuration: Self.configuration(node, links, detection: detection),
      seal: #require(HeartbeatSeal(key: key)), boot: boot ?? bootID(), port: port, isRealTime: false,
      handler: { event in events.withLock { $0.append(event) } })
  }

  static func configuration(_ node: NodeID, _ links: [HeartbeatLink], detection: Int = 3000) -> HeartbeatConfiguration {
    HeartbeatConfiguration(
      node: node, links: links,
      settings: MembershipSettings(pulse: .milliseconds(50), detection: .milliseconds(detection)), revision: 3)
  }

  func sees(_ wanted: (HeartbeatEvent) -> Bool) -> Bool {
    events.wait(timeout: .seconds(30)) { $0.contains(where: wanted) ? true : nil } == true
  }
  func sees(_ presence: PeerPresence) -> Bool {
    sees { if case .peer(presence, _) = $0 { true } else { false } }
  }
  func forget() { events.withLock { $0 = [] } }
  func stop() { service.stop() }
}

@Suite(.serialized) struct HeartbeatServiceTests {
  let key = HeartbeatSeal.makeKey()

  func links(_ from: Int, _ to: Int, _ names: [String] = ["repl", "lan"]) -> [HeartbeatLink] {
    names.enumerated().map { index, name in
      HeartbeatLink(name: name, localAddress: "127.0.8\(index).\(from)", peerAddress: "127.0.8\(index).\(to)")
    }
  }

  @Test func twoNodesHearEachOtherAndALoss() throws {
    let port = try freePort()
    let first = try Node(.first, links(1, 2), port: port, key: key)
    defer { first.stop() }
    let second = try Node(.second, links(2, 1), port: port, key: key, boot: boot)
    #expect(first.sees(.up) && second.sees(.up))
    #expect(first.sees { $0 == .peerRevision(3) })
    let module = try #require(beat(4))
    second.service.setModules([module])
    #expect(first.sees { $0 == .peerModules([module]) })
    #expect(eventually { first.service.snapshot().links.allSatisfy { $0.state == .up } })
    let snapshot = first.service.snapshot()
    #expect(snapshot.presence == .up && snapshot.peerBoot == boot && snapshot.peerModules == [module])
    #expect(snapshot.rejected == 0)
    first.forget()
    second.service.setLeaving()
    #expect(first.sees { $0 == .peerLeaving })
    second.stop()
    #expect(first.sees(.lost))
    #expect(first.service.snapshot().peerModules == [module])
    // The same host after a reboot.
    first.forget()
    let again = try Node(.second, links(2, 1), port: port, key: key)
    defer { again.stop() }
    #expect(first.sees(.up))
    #expect(first.sees { if case .peerRestarted = $0 { true } else { false } })
    #expect(first.sees { $0 == .peerModules([]) })
  }

  @Test func anotherKeyIsSilence() throws {
    let port = try freePort()
    let first = try Node(.first, links(3, 4), port: port, key: key)
    let second = try Node(.second, links(4, 3), port: port, key: HeartbeatSeal.makeKey())
    defer {
      first.stop()
      second.stop()
    }
    #expect(first.sees(.lost))
    #expect(first.service.snapshot().rejected > 0)
  }

  @Test func aMissingAddressIsToldAndTheOthersGoOn() throws {
    let port = try freePort()
    var broken = links(5, 6)
    broken[0].localAddress = "192.0.2.9"
    let first = try Node(.first, broken, port: port, key: key)
    let second = try Node(.second, links(6, 5), port: port, key: key)
    defer {
      first.stop()
      second.stop()
    }
    #expect(first.sees { if case .socketProblem("repl", let why) = $0 { why.contains("192.0.2.9") } else { false } })
    #expect(first.sees(.up))
    #expect(first.service.snapshot().links[0].problem != nil)
    first.service.use(Node.configuration(.first, links(5, 6)))
    #expect(first.sees { $0 == .socketReady(link: "repl") })
    #expect(eventually { first.service.snapshot().links.map(\.state) == [.up, .up] })
  }

  @Test func noPeerYetThenOne() throws {
    let port = try freePort()
    let first = try Node(.first, [], port: port, key: key)
    let second = try Node(.second, links(8, 7), port: port, key: key)
    defer {
      first.stop()
      second.stop()
    }
    usleep(3_500_000)
    #expect(first.events.withLock { $0 }.isEmpty && first.service.snapshot().presence == .unknown)
    first.service.use(Node.configuration(.first, links(7, 8)))
    #expect(first.sees(.up))
    #expect(!first.events.withLock { $0 }.contains { if case .ownStall = $0 { true } else { false } })
  }

  /// A path that the peer's beats do not come back on: the peer has another idea of that link's addresses.
  @Test func oneWayLinkIsSeen() throws {
    let port = try freePort()
    var wrong = links(2, 1)
    wrong[0].peerAddress = "127.0.80.9"
    let first = try Node(.first, links(1, 2), port: port, key: key)
    let second = try Node(.second, wrong, port: port, key: key)
    defer {
      first.stop()
      second.stop()
    }
    #expect(second.sees { if case .link("repl", .oneWay, _) = $0 { true } else { false } })
    #expect(first.sees { if case .link("repl", .lost, _) = $0 { true } else { false } })
    #expect(first.service.snapshot().presence == .up)
  }

  /// A second service on the same addresses (a vmhad that has not ended) does not kill the first.
  @Test func realTimeStartsOrWarns() throws {
    let port = try freePort()
    let events = Monitor<[HeartbeatEvent]>([])
    let seal = try #require(HeartbeatSeal(key: key))
    let pid = try ChildProcess.run(["true"], timeout: .seconds(5)).status
    #expect(pid == 0)
    let service = try HeartbeatService(
      configuration: Node.configuration(.first, links(1, 2)), seal: seal, boot: bootID(), port: port,
      handler: { event in events.withLock { $0.append(event) } })
    #expect(events.wait(timeout: .seconds(20)) { $0.contains(.socketReady(link: "repl")) ? true : nil } == true)
    service.stop()
    munlockall()
    print("heartbeat warnings: \(events.withLock { $0 }.filter { if case .warning = $0 { true } else { false } })")
  }
}
