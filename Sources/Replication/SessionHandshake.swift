import Model

/// Agreement on a session at the start of a connection, the same on both ends: send `hello`, receive the peer's, send
/// `agree`, receive the peer's `agree`. Only then is the session there: each end knows that the other computed the
/// same id and version.
///
/// ```
/// dialler  -- hello -->  <-- hello --   -- agree -->  <-- agree --   session
/// ```
public struct SessionHandshake: Sendable {
  /// Protocol versions this code speaks.
  public static let versionMin: UInt16 = 1
  public static let versionMax: UInt16 = 1
  public static let clusterBytesMax = 64

  public struct Agreement: Hashable, Sendable {
    public var session: SessionID
    public var version: UInt16
  }

  /// Why there is no session, as a sentence for the log and for the peer (send it as `.failure(.refused, ...)`, then
  /// close).
  public struct Refusal: Error, Hashable, Sendable, CustomStringConvertible {
    public enum Code: Hashable, Sendable {
      case wrongCluster, wrongModule, wrongNode, noCommonVersion, repeatedNonce, outOfOrder, disagreement, refusedByPeer
    }
    public var code: Code
    public var message: String
    init(_ code: Code, _ message: String) {
      self.code = code
      self.message = message
    }
    public var description: String { message }
  }

  private enum Step: Hashable, Sendable {
    case awaitingHello
    case awaitingAgree(Agreement)
    case agreed
    case refused
  }

  private let own: Hello
  private var step = Step.awaitingHello

  /// `own.nonce` must be fresh from the system's random source for every connection.
  public init(own: Hello) { self.own = own }

  /// First frame to send.
  public var hello: FrameBody { .hello(own) }

  public enum Progress: Hashable, Sendable {
    /// Send `FrameBody.agree(version:)` in this session and wait for the peer's.
    case answer(Agreement)
    /// The session has begun.
    case agreed(Agreement)
  }

  /// Give it every frame received until it says `agreed`; any error means: tell the peer, close.
  public mutating func received(_ body: FrameBody, session: SessionID) throws(Refusal) -> Progress {
    do {
      return try accept(body, session)
    } catch {
      step = .refused
      throw error
    }
  }

  private mutating func accept(_ body: FrameBody, _ session: SessionID) throws(Refusal) -> Progress {
    switch (step, body) {
    case (_, .failure(_, _, let sentence)):
      throw Refusal(.refusedByPeer, "the engine of \(own.node.peer) refuses the session: \(sentence)")
    case (.awaitingHello, .hello(let peer)):
      let agreement = try agree(with: peer)
      step = .awaitingAgree(agreement)
      return .answer(agreement)
    case (.awaitingAgree(let agreement), .agree(let version)):
      guard session == agreement.session, version == agreement.version else {
        throw Refusal(
          .disagreement,
          "the nodes computed different sessions (\(agreement.session) version \(agreement.version) here, "
            + "\(session) version \(version) there); the connection is closed and tried again")
      }
      step = .agreed
      return .agreed(agreement)
    default:
      throw Refusal(.outOfOrder, "the peer sent a \(body.kind) frame in the middle of the handshake")
    }
  }

  private func agree(with peer: Hello) throws(Refusal) -> Agreement {
    guard peer.cluster == own.cluster else {
      throw Refusal(.wrongCluster, "the peer belongs to cluster \(peer.cluster), this node to cluster \(own.cluster)")
    }
    guard peer.module == own.module else {
      throw Refusal(
        .wrongModule,
        "the peer's engine serves module '\(peer.module)', this one '\(own.module)': compare the modules' numbers "
          + "and ports"
      )
    }
    guard peer.node == own.node.peer else {
      throw Refusal(.wrongNode, "the other end says it is \(peer.node), which is this node itself")
    }
    guard peer.nonce != own.nonce else {
      throw Refusal(
        .repeatedNonce, "both ends sent the same nonce: this end is talking to itself, or the random source is broken")
    }
    let version = min(own.versionMax, peer.versionMax)
    guard version >= max(own.versionMin, peer.versionMin) else {
      throw Refusal(
        .noCommonVersion,
        "no common protocol version: this node speaks \(own.versionMin) to \(own.versionMax), "
          + "the peer \(peer.versionMin) to \(peer.versionMax); upgrade the older node")
    }
    let (first, second) = own.node < peer.node ? (own.nonce, peer.nonce) : (peer.nonce, own.nonce)
    return Agreement(session: SessionHandshake.session(first, second), version: version)
  }

  /// Mixes both nonces, node 1's first, into the session id. For any fixed nonce of one end it is one-to-one in the
  /// other's (except that zero, which names no session, becomes one), so one end with a fresh nonce is enough for a
  /// fresh id (R1).
  static func session(_ first: UInt64, _ second: UInt64) -> SessionID {
    var value = mixed(mixed(first) &+ 0x9E37_79B9_7F4A_7C15) ^ second
    value = mixed(value)
    return SessionID(rawValue: value == 0 ? 1 : value)
  }

  /// The finaliser of SplitMix64, a permutation of 64-bit values.
  private static func mixed(_ value: UInt64) -> UInt64 {
    var value = value
    value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
    return value ^ (value >> 31)
  }
}
