import Model
import Replication

/// Connector.agree: the production's `SessionHandshake` at both ends. One end has its session before the other, which may not come to it
/// any more: because the connection ends under the last frame, or its engine has been told to end or is gone.
extension World {
  func shakeHands(_ engines: [SimEngine]) {
    let nonces = [random.next(), newNonce()]
    guard let module = ModuleName("vm") else { preconditionFailure("the name is fixed") }
    var ends = zip(engines, nonces).map { engine, nonce in
      SessionHandshake(
        own: Replication.Hello(node: engine.node.id, nonce: nonce, module: module, cluster: "c"))
    }
    var agreements: [SessionHandshake.Agreement] = []
    do {
      for side in 0...1 {
        let greeting = ends[1 - side].hello
        guard case .answer(let agreement) = try ends[side].received(greeting, session: SessionID(rawValue: 0)) else {
          return violate("I0: a handshake does not answer a greeting")
        }
        agreements.append(agreement)
      }
      for side in 0...1 {
        let theirs = agreements[1 - side]
        guard case .agreed = try ends[side].received(.agree(version: theirs.version), session: theirs.session) else {
          return violate("I0: a handshake does not end")
        }
      }
    } catch { return violate("I0: a handshake is refused: \(error)") }
    let session = Session(agreements[0].session)
    guard !options.isCalm else { return engines.forEach { $0.begin(session) } }
    connectionPlanned = true
    let first = random.below(2)
    let gap = random.milliseconds(random.chance(90) ? 0...5 : 5...1500)
    begin(session, engines[first])
    after(gap) { [unowned self] in
      connectionPlanned = false
      let isBroken = random.chance(3)
      if isBroken { meet(.handshakeBroken) }
      begin(session, engines[1 - first], isBroken: isBroken)
    }
  }

  /// The second end takes the session, or hangs up.
  private func begin(_ session: Session, _ engine: SimEngine, isBroken: Bool = false) {
    let node = engine.node
    let peer = self.peer(of: node)
    let isThere =
      node.engine === engine && engine.wantsConnection && engine.session == nil && !engine.isAway && !node.isFrozen
    guard isThere, !isBroken, replicates(from: peer) else {
      meet(.handshakeHalf)
      session.isHeld[node.index] = false
      // A host that stands still says nothing: the other end's silence ends it.
      if !node.isFrozen { session.send(.end, from: node) }
      return
    }
    engine.begin(session)
  }
}
