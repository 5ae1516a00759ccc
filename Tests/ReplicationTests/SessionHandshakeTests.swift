import Model
import Testing

@testable import Replication

private func hello(
  _ node: NodeID, nonce: UInt64, module text: String = "web", cluster: String = "c0",
  versions: ClosedRange<UInt16> = 1...1
) -> Hello {
  Hello(
    versionMin: versions.lowerBound, versionMax: versions.upperBound, node: node, nonce: nonce, module: module(text),
    cluster: cluster)
}

private let none = SessionID(rawValue: 0)

private func refusal(_ own: Hello, _ peer: Hello) -> SessionHandshake.Refusal? {
  var handshake = SessionHandshake(own: own)
  do {
    _ = try handshake.received(.hello(peer), session: none)
    return nil
  } catch {
    return error
  }
}

@Suite struct SessionHandshakeTests {
  @Test func bothEndsAgree() throws {
    var first = SessionHandshake(own: hello(.first, nonce: 11, versions: 1...3))
    var second = SessionHandshake(own: hello(.second, nonce: 22, versions: 2...5))
    guard case .answer(let atFirst) = try first.received(second.hello, session: none),
      case .answer(let atSecond) = try second.received(first.hello, session: none)
    else {
      Issue.record("no answer")
      return
    }
    #expect(atFirst == atSecond)
    #expect(atFirst.version == 3)
    #expect(atFirst.session != none)
    #expect(try first.received(.agree(version: 3), session: atSecond.session) == .agreed(atFirst))
    #expect(try second.received(.agree(version: 3), session: atFirst.session) == .agreed(atFirst))
  }

  /// One fresh nonce is enough for a fresh id; the roles of the nonces are not exchangeable.
  @Test func everyNonceMakesAnotherSession() {
    var random = SeededGenerator(seed: 3)
    let fixed = random.next()
    var seen: Set<SessionID> = []
    for _ in 0..<20_000 {
      let fresh = random.next()
      #expect(seen.insert(SessionHandshake.session(fixed, fresh)).inserted)
      #expect(seen.insert(SessionHandshake.session(fresh, fixed)).inserted)
    }
  }

  @Test func refusalsSayWhatIsWrong() {
    let own = hello(.first, nonce: 1)
    let cases: [(Hello, SessionHandshake.Refusal.Code, String)] = [
      (
        hello(.second, nonce: 2, cluster: "c9"), .wrongCluster,
        "the peer belongs to cluster c9, this node to cluster c0"
      ),
      (hello(.second, nonce: 2, module: "db"), .wrongModule, "'db'"),
      (hello(.first, nonce: 2), .wrongNode, "node 1"),
      (hello(.second, nonce: 1), .repeatedNonce, "nonce"),
      (hello(.second, nonce: 2, versions: 2...4), .noCommonVersion, "the peer 2 to 4"),
    ]
    for (peer, code, words) in cases {
      let found = refusal(own, peer)
      #expect(found?.code == code)
      #expect(found?.message.contains(words) == true, "\(found?.message ?? "accepted")")
    }
    #expect(refusal(own, hello(.second, nonce: 2)) == nil)
  }

  @Test func nothingElseIsTaken() throws {
    var early = SessionHandshake(own: hello(.first, nonce: 1))
    #expect(throws: SessionHandshake.Refusal.self) { try early.received(.keepalive, session: none) }
    // Once refused it stays refused.
    #expect(throws: SessionHandshake.Refusal.self) {
      try early.received(.hello(hello(.second, nonce: 2)), session: none)
    }
    var other = SessionHandshake(own: hello(.first, nonce: 1))
    _ = try other.received(.hello(hello(.second, nonce: 2)), session: none)
    #expect(throws: SessionHandshake.Refusal.self) {
      try other.received(.agree(version: 1), session: SessionID(rawValue: 5))
    }
    var refused = SessionHandshake(own: hello(.first, nonce: 1))
    do {
      _ = try refused.received(.failure(.refused, errno: 0, sentence: "not mine"), session: none)
      Issue.record("accepted")
    } catch {
      #expect(error.code == .refusedByPeer)
      #expect(error.message == "the engine of node 2 refuses the session: not mine")
    }
  }
}
