// What vmhad and a module's engine (vmha-replicad) say to each other on the engine's unix socket: one JSON object a line
// each way, `EngineCommand` down, `EngineEvent` up. The engine never decides about roles or rights; the module core does.
// The engine alone enforces R1 (session), R2 (acknowledge), R3 (intents) and the order of writes.

/// When the engine may acknowledge a guest's write or flush (R2).
public enum AcknowledgePolicy: Codable, Sendable, Hashable {
  /// Nothing is acknowledged; requests wait.
  case frozen
  /// R2(b): applied here is enough. Only after R4 is durable.
  case alone
  /// As `alone`, and everything is mirrored into this session for its target. Losing the session turns it into `alone`.
  case resyncing(SessionID)
  /// R8.1 to R8.2: both must have it; losing the session turns it into `alone` (the right to be alone still holds).
  case settling(SessionID)
  /// R2(a), from R8.3 on: both must have it; losing the session turns it into `frozen`.
  case both(SessionID)
}

public enum EngineRole: String, Codable, Sendable, Hashable {
  /// Neither mounted nor applying.
  case idle
  /// Mounted, serving a guest.
  case primary
  /// Applying the peer's stream.
  case replica
}

/// One way to reach the peer's engine, best first. Addresses are numeric IPv4 or IPv6.
public struct EngineLink: Codable, Sendable, Hashable {
  public var name: String
  public var localAddress: String
  public var peerAddress: String
  public init(name: String, localAddress: String, peerAddress: String) {
    self.name = name
    self.localAddress = localAddress
    self.peerAddress = peerAddress
  }
}

public struct EngineConfiguration: Codable, Sendable, Hashable {
  public var module: ModuleName
  public var node: NodeID
  public var peerName: String
  /// TCP port of this module's engine, the same on both nodes. Node 1 dials, node 2 listens.
  public var port: Int
  public var links: [EngineLink]
  public var backingDirectory: String
  public var mountPoint: String
  /// This node's write-intent map (R3); made if it is not there, and then everything counts as possibly different.
  public var intentsFile: String
  /// PEM files: cluster CA certificate, this node's certificate, its key.
  public var authorityFile: String
  public var certificateFile: String
  public var keyFile: String
  /// No byte from the peer for this long = the session is lost.
  public var silenceMax: Duration
  /// An idle engine sends a keepalive this often.
  public var keepalive: Duration
  /// Primary, and the peer's say is needed but it is not heard for this long: the guest's reads wait too (R2). Shorter than
  /// `silenceMax`.
  public var suspendAfter: Duration

  public init(
    module: ModuleName, node: NodeID, peerName: String, port: Int, links: [EngineLink], backingDirectory: String,
    mountPoint: String, intentsFile: String, authorityFile: String, certificateFile: String, keyFile: String,
    silenceMax: Duration, keepalive: Duration, suspendAfter: Duration
  ) {
    self.module = module
    self.node = node
    self.peerName = peerName
    self.port = port
    self.links = links
    self.backingDirectory = backingDirectory
    self.mountPoint = mountPoint
    self.intentsFile = intentsFile
    self.authorityFile = authorityFile
    self.certificateFile = certificateFile
    self.keyFile = keyFile
    self.silenceMax = silenceMax
    self.keepalive = keepalive
    self.suspendAfter = suspendAfter
  }
}

public enum EngineCommand: Codable, Sendable, Hashable {
  /// First command of every control connection, safe to repeat; links and timings may change while running. Answered by `ready`.
  case configure(EngineConfiguration)
  /// From now on keep trying to have a connection with the peer's engine (dial, or accept). Each success is a new session: `connected`.
  case connect
  /// End the session and stop connecting until the next `connect`: queued frames die, no ack of it counts (R1). Answered by
  /// `sessionEnded` even if there was none.
  case endSession
  /// Hand these bytes to the peer's module core, in order with everything else this side sends in that session. Dropped if it is over.
  case send(SessionID, [UInt8])
  /// Become a replica in this session: apply what the peer sends. Refused (`failed`) while mounted.
  case acceptReplication(SessionID)
  /// Mount the FUSE file system with policy `frozen`. Answered by `mounted`. Repeatable.
  case mount
  /// Unmount; answered by `unmounted`, or `failed` if files are open. With `force` the FUSE connection is aborted first.
  case unmount(force: Bool)
  /// Change the policy, or be refused (`failed`) if its session is not the current one. The new policy holds before anything else is read.
  /// Turning to a session policy in a session in which this side was the replica (swap) sends the identity manifest first.
  case setPolicy(AcknowledgePolicy)
  /// Bring the target of this session up to date: what the maps of both nodes say may differ, or everything, is compared, or copied. The policy must
  /// be `alone`; it becomes `resyncing`, and `settling` when nothing is left to send (`resyncCopied`).
  case startResync(SessionID, comparesEverything: Bool)
  /// R8.2 and swap: fsync here, and have the replica fsync and answer. Answered by `barrierDone`, or by the loss of the session.
  case flushBarrier(SessionID)
  /// Stop accepting guest requests (they wait, as `frozen`), wait until none is in flight. Answered by `drained`.
  case drain
  /// fsync every backing file and directory (R4, before a fresh guest). Answered by `filesSynced` of the same number; several may run
  /// at once and be answered in any order.
  case syncFiles(UInt64)
  /// R8.4: this node, the replica of this session, has adopted the source's generation: its own map is cleared. No answer.
  case clearIntents(SessionID)
  /// Compare both copies while the policy is `both` of this session. No answer: `EngineReport.verify` tells how far it is and what it
  /// came to, a refusal included. Refused (`failed`) while another one goes on.
  case verify(VerifyRequest)
  /// The comparison that goes on ends, as interrupted. No answer.
  case stopVerify
  /// R2, before a guest starts in a session. Answered by `sessionConfirmed` if the policy is `both` of this session and the peer was
  /// heard within `suspendAfter` of the answer, by this engine's clock; else refused (`failed`).
  case confirmSession(SessionID)
  /// Answered by `ready` with a fresh report.
  case report
  /// Leave: unmounts (forced) and exits. Only sent when the module stops or is removed.
  case exit
}

public struct ResyncProgress: Codable, Sendable, Hashable {
  public var bytesTotal: UInt64
  public var bytesDone: UInt64
  /// Bytes that were really sent (holes and zeros are not).
  public var bytesSent: UInt64
  public var bytesPerSecond: UInt64
  /// nil until a rate is known.
  public var secondsLeft: Int?
  /// For how long nothing has moved, if that is long; nil = it moves.
  public var stalledSeconds: Int?
  public init(
    bytesTotal: UInt64, bytesDone: UInt64, bytesSent: UInt64, bytesPerSecond: UInt64, secondsLeft: Int?,
    stalledSeconds: Int? = nil
  ) {
    self.bytesTotal = bytesTotal
    self.bytesDone = bytesDone
    self.bytesSent = bytesSent
    self.bytesPerSecond = bytesPerSecond
    self.secondsLeft = secondsLeft
    self.stalledSeconds = stalledSeconds
  }
}

/// What an engine is doing now; lets a restarted vmhad take a running engine over.
public struct EngineReport: Codable, Sendable, Hashable {
  /// Whose death ends the engine for good: its keeper, if it has one.
  public var processID: Int32
  public var role: EngineRole
  public var policy: AcknowledgePolicy
  public var session: SessionID?
  public var isMounted: Bool
  public var resync: ResyncProgress?
  /// The comparison of both copies that goes on, or the last one of this engine's life.
  public var verify: VerifyReport?
  /// Guest requests waiting for an acknowledgement.
  public var requestsInFlight: Int
  public var bytesWritten: UInt64
  public var bytesSent: UInt64
  public var bytesReceived: UInt64
  /// What a resync would have to look at by this node's write-intent map, files of which nothing is known apart; nil =
  /// everything.
  public var bytesMarked: UInt64?
  /// Name of the link the session runs over.
  public var link: String?
  /// Number of the mount's FUSE connection in /sys/fs/fuse/connections, for aborting a hung mount.
  public var fuseConnection: UInt32?
  /// The guest does not notice a crash of the engine (Linux 6.9 or newer); nil = not mounted.
  public var mountOutlivesCrash: Bool?
  /// The guest's reads wait, too (`readsHeld`); nil = an engine that does not hold them.
  public var areReadsHeld: Bool?
  public init(processID: Int32, role: EngineRole, policy: AcknowledgePolicy) {
    self.processID = processID
    self.role = role
    self.policy = policy
    isMounted = false
    requestsInFlight = 0
    bytesWritten = 0
    bytesSent = 0
    bytesReceived = 0
  }
}

public enum EngineEvent: Codable, Sendable, Hashable {
  case ready(EngineReport)
  /// A connection is up and its session agreed. Nothing flows in it but `send` until a core says so.
  case connected(SessionID, link: String)
  /// The policy has already fallen (see `AcknowledgePolicy`) when this is sent.
  case sessionLost(SessionID, policy: AcknowledgePolicy, why: String)
  /// Answer to `endSession`.
  case sessionEnded
  case message(SessionID, [UInt8])
  case mounted(fuseConnection: UInt32?)
  case unmounted
  case resyncProgress(SessionID, ResyncProgress)
  /// Everything is copied and the policy is `settling` (R8.1).
  case resyncCopied(SessionID)
  case barrierDone(SessionID)
  case sessionConfirmed(SessionID)
  case drained
  case filesSynced(UInt64)
  /// R2: nothing is acknowledged and the peer has not been heard for `suspendAfter`: reads wait from here on.
  case readsHeld
  case readsReleased
  /// A command could not be done; nothing changed.
  case failed(command: String, why: String)
  /// R11: the backing store has a request of the guest and has not answered it for so long. Said again while it goes on.
  case diskHangs(milliseconds: Int64)
  /// After `diskHangs`.
  case diskAnswers
  /// R11: the backing store failed under a write or flush, here or (replica) for the peer's stream.
  case diskError(operation: String, path: String, errno: Int32)
}
