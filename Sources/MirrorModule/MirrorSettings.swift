import Model

/// What may give the right to be alone when the peer cannot give its consent (R5).
public enum ArbiterPolicy: String, Sendable, Codable, Hashable {
  /// After the detection time the survivor goes on. Can split, and says so.
  case none
  /// As `none`, if one of the configured addresses answers: a node whose own network is gone stays off. Can split all the same.
  case ping
  /// Nobody: freeze until the peer consents or the operator decides.
  case wait
  /// A register in etcd, changed by compare-and-swap.
  case witness
  /// An agent powers the peer off.
  case fence
  /// Both must say yes: the witness picks the one, the fence makes sure of the other.
  case witnessAndFence

  public var asksWitness: Bool { self == .witness || self == .witnessAndFence }
  public var fences: Bool { self == .fence || self == .witnessAndFence }
  /// It gives rights that prove nothing: both nodes may get one.
  public var isUnproven: Bool { self == .none || self == .ping }
  /// It may decide against a peer that is there but gives no consent (R11). A node that answers is not powered off.
  var overrulesLivePeer: Bool { isUnproven || self == .witness }
}

/// Whose copy of a split module goes on without the operator (R12).
public enum SplitPolicy: String, Sendable, Codable, Hashable {
  /// Nobody's: both are kept until the operator chooses.
  case ask
  /// The one on the module's preferred node.
  case keepPreferred
}

/// Everything a module core is told once. Durations are checked when the configuration is loaded (docs/timing.md).
public struct MirrorSettings: Sendable, Codable, Hashable {
  public var module: ModuleName
  public var node: NodeID
  public var nodeName: String
  public var peerName: String
  public var preferred: NodeID
  public var arbiter: ArbiterPolicy
  /// Silence after which a node counts as lost.
  public var detection: Duration
  /// How long a node that was not in sync in this boot waits for its peer before policy may start it (R9: uncleanClaimDelay).
  public var bootWait: Duration
  /// The guest's clean shutdown may take this long, then it is forced off.
  public var stopTimeout: Duration
  /// Guest restarts allowed in `restartWindow` before the module is handed to the peer, or stopped.
  public var restartsMax: Int
  public var restartWindow: Duration
  /// After a blackout a copy that waits for its lost peer for so long is started by force; nil = never.
  public var forceAfter: Duration?
  public var splitPolicy = SplitPolicy.ask
  /// This boot of the host: the same id means that the page cache was kept (`continuous`).
  public var bootID: String
  /// Seeds branch ids and nonces; must be random per process.
  public var seed: UInt64

  /// Pause between two requests for the peer's consent.
  public static let consentRetry: Duration = .seconds(1)
  /// A request for consent without an answer counts as refused after this.
  public static let consentAnswerMax: Duration = .seconds(5)
  /// Pause before an arbiter that gave no right is asked again.
  public static let arbiterRetry: Duration = .seconds(2)
  /// The shell must have answered a read, a swap or a ping by then.
  public static let arbiterAnswerMax: Duration = .seconds(15)
  /// The shell must have answered `fencePeer` by then.
  public static let fenceAnswerMax: Duration = .seconds(180)
  /// Two nodes that lost sight of each other must not power each other off: the one without the guest fences twice this later, node 2
  /// once this later.
  public static let fenceStagger: Duration = .seconds(2)
  /// From the moment a node is in sync, or alone, to its first look at the witness.
  public static let witnessFirstLook: Duration = .seconds(1)
  /// From one look at the witness to the next; up to a quarter is added at random.
  public static let witnessLook: Duration = .seconds(10)
  /// Under policy `none`: how much longer than the detection time a node asks a peer that is there, serves nobody and gives no
  /// consent, before the policy decides.
  public static let consentPatience: Duration = .seconds(7)
  /// The same for a primary whose guest is frozen meanwhile: longer than a peer that does not see this node any more takes to go
  /// on by itself, which its heartbeat then tells.
  public static let frozenPatience: Duration = .seconds(2)
  /// R12: the peer's agreement that its branch goes on counts as refused after this.
  public static let surrenderAnswerMax: Duration = .seconds(5)
  /// Pause before ADOPT is sent again.
  public static let adoptRetry: Duration = .seconds(1)
  /// How long a primary that lost its engine offers the module to its in-sync peer before it starts again by itself.
  public static let offerTime: Duration = .seconds(5)
  /// How long an operator's start waits for the preferred node to be in sync before the guest starts where its data is.
  public static let preferredWait: Duration = .seconds(60)
  /// Pause before an engine that died again is started again.
  public static let engineRestartPause: Duration = .seconds(2)
  /// A node that took the module over this often in the window leaves it where it is, unless the peer stays lost for the pause.
  public static let takeoversMax = 3
  public static let takeoverWindow: Duration = .seconds(3600)
  public static let takeoverPause: Duration = .seconds(300)
  /// Sessions lost by a primary in the window before it, alone by then, lets its peer wait: 5 s, doubled with each further one.
  public static let flapsBeforePause = 4
  public static let flapWindow: Duration = .seconds(600)
  public static let flapPause: Duration = .seconds(5)
  public static let flapPauseMax: Duration = .seconds(60)
  /// Losses remembered: enough for the longest pause.
  static let flapCountMax = 16
  /// The longest pause before an engine that keeps dying is started again; doubled from `engineRestartPause` with each death in the window.
  public static let engineRestartPauseMax: Duration = .seconds(60)
  public static let engineDeathWindow: Duration = .seconds(600)
  /// Pause before a guest that could not be suspended or resumed is tried again.
  public static let suspensionRetry: Duration = .seconds(1)
  /// The engine's word that the session lives is good for a start of the guest for so long: together with `suspendAfter` it is
  /// shorter than the detection time (ClusterConfiguration.suspendMargin).
  public static let startConfirmMax: Duration = .milliseconds(300)
  /// Pause before a guest that could not be started is tried again.
  public static let guestRetryPause: Duration = .seconds(2)

  public init(
    module: ModuleName, node: NodeID, nodeName: String, peerName: String, preferred: NodeID, arbiter: ArbiterPolicy,
    detection: Duration, bootWait: Duration, stopTimeout: Duration, restartsMax: Int, restartWindow: Duration,
    bootID: String, seed: UInt64
  ) {
    self.module = module
    self.node = node
    self.nodeName = nodeName
    self.peerName = peerName
    self.preferred = preferred
    self.arbiter = arbiter
    self.detection = detection
    self.bootWait = bootWait
    self.stopTimeout = stopTimeout
    self.restartsMax = restartsMax
    self.restartWindow = restartWindow
    self.bootID = bootID
    self.seed = seed
  }
}
