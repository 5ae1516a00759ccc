import FoundationEssentials
import Glibc
import HostSystem
import Model
import NodeDaemon
import SecureLinks
import Testing

@Suite(.serialized) struct PeerTests {
  let port: Int
  let first: LinksHost
  let second: LinksHost

  init() throws {
    port = try freePort()
    (first, second) = try joinedPair(port: port)
  }

  func channel(_ host: LinksHost, isLinkUp: @escaping @Sendable (String) -> Bool = { _ in true }) throws -> PeerChannel
  {
    PeerChannel(try #require(try host.membership()).channel, port: port, isLinkUp: isLinkUp)
  }

  func listen(_ host: LinksHost, _ handler: @escaping PeerListener.Handler) throws -> PeerListener {
    let listener = try host.listen(port: port, handler: handler)
    #expect(eventually { listener.ports.count == 2 })
    return listener
  }

  @Test func callsGoBothWaysAndSideBySide() throws {
    let listener = try listen(second) { request, peer in
      usleep(20_000)
      return request + Data(" for \(peer)".utf8)
    }
    defer { listener.close() }
    let channel = try channel(first)
    defer { channel.close() }
    let answers = Monitor<[String]>([])
    let threads = try (0..<10).map { number in
      try HostThread.start(name: "call", detached: false) {
        for round in 0..<5 {
          let answer = try? channel.call(Data("\(number).\(round)".utf8), timeout: .seconds(5))
          answers.withLock { $0.append(answer.map { String(decoding: $0, as: UTF8.self) } ?? "none") }
        }
      }
    }
    threads.forEach { $0.join() }
    let expected = (0..<10).flatMap { number in (0..<5).map { "\(number).\($0) for n1" } }
    #expect(answers.withLock { $0.sorted() } == expected.sorted())
    let large = Data(repeating: 7, count: 3 << 20)
    #expect(try channel.call(large, timeout: .seconds(10)).count == large.count + 7)
    #expect(throws: PeerError.self) { try channel.call(Data(repeating: 7, count: 5 << 20), timeout: .seconds(1)) }
    #expect(try channel.call(Data(), timeout: .seconds(5)) == Data(" for n1".utf8))
  }

  @Test func theOtherLinkIsTriedAndARestartIsNoticed() throws {
    let membership = try #require(try second.membership())
    let onlyLan = try PeerListener(
      context: membership.context, addresses: [second.addresses[1]], port: port, handler: { request, _ in request })
    #expect(eventually { onlyLan.ports.count == 1 })
    let channel = try channel(first)
    defer { channel.close() }
    #expect(try channel.call(Data("a".utf8), timeout: .seconds(5)) == Data("a".utf8))
    // The kept connection is gone, the new listener has both addresses.
    onlyLan.close()
    let error = #expect(throws: PeerError.self) { try channel.call(Data("b".utf8), timeout: .seconds(2)) }
    #expect(
      error?.code == .unreachable && error?.message.contains("repl:") == true && error?.message.contains("lan:") == true
    )
    let again = try listen(second) { request, _ in request }
    #expect(try channel.call(Data("c".utf8), timeout: .seconds(5)) == Data("c".utf8))
    again.close()
  }

  @Test func anUnansweredRequestHasAnUnknownOutcome() throws {
    let gate = Monitor(false)
    let listener = try listen(second) { request, _ in
      _ = gate.wait(timeout: .seconds(10)) { $0 ? true : nil }
      return request
    }
    let channel = try channel(first)
    let start = monotonicNow()
    let error = #expect(throws: PeerError.self) { try channel.call(Data("x".utf8), timeout: .milliseconds(300)) }
    #expect(error?.code == .outcomeUnknown && monotonicNow() - start < .seconds(8))
    // A caller in the middle is let go when the node is lost.
    let ended = Monitor<PeerError.Code?>(nil)
    try HostThread.start(name: "call") {
      do {
        _ = try channel.call(Data("y".utf8), timeout: .seconds(30))
      } catch {
        ended.withLock { $0 = (error as? PeerError)?.code }
      }
    }
    usleep(300_000)
    channel.dropConnections()
    #expect(ended.wait(timeout: .seconds(5)) { $0 } == .outcomeUnknown)
    gate.withLock { $0 = true }
    channel.close()
    #expect(throws: PeerError.self) { try channel.call(Data(), timeout: .seconds(1)) }
    listener.close()
  }

  @Test func noPeerAndAnAddressThatComesLater() throws {
    let none = PeerChannel(nil, port: port)
    let error = #expect(throws: PeerError.self) { try none.call(Data(), timeout: .seconds(1)) }
    #expect(error?.code == .closed)
    let events = Monitor<[PeerListener.Event]>([])
    let membership = try #require(try second.membership())
    let listener = try PeerListener(
      context: membership.context, addresses: ["192.0.2.5", second.addresses[0]], port: port,
      handler: { request, _ in request }, report: { event in events.withLock { $0.append(event) } })
    defer { listener.close() }
    #expect(eventually { listener.ports.count == 1 })
    usleep(1_200_000)
    let problems = events.withLock { $0 }.filter { if case .cannotListen("192.0.2.5", _) = $0 { true } else { false } }
    #expect(problems.count == 1)
    listener.use(context: membership.context, addresses: second.addresses)
    #expect(eventually { listener.ports.count == 2 })
    #expect(try channel(first).call(Data("z".utf8), timeout: .seconds(5)) == Data("z".utf8))
  }
}
