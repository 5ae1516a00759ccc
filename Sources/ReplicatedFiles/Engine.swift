import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// A module's engine: carries out `EngineCommand`s and reports `EngineEvent`s. It decides nothing about roles or rights; it
/// alone keeps R1 (sessions), R2 (acknowledgements) and the order of writes.
public final class Engine: Sendable {
  /// While a guest or a copy is at work.
  static let tickInterval: Duration = .milliseconds(100)
  /// A peer that is there and acknowledges nothing of what a guest waits for has failed (its disk hangs). Longer than a slow
  /// disk's worst second, shorter than the 30 s after which a guest's own disk driver gives up.
  static let acknowledgeStallMax: Duration = .seconds(10)

  struct Mounted: Sendable {
    let mount: FuseMount
    let server: FileServer
  }

  struct State {
    var configuration: EngineConfiguration?
    var revision = 0
    /// Borrowed by the replica and by walks.
    var root: OwnedDescriptor?
    var replica: Replica?
    var intents: Intents?
    var lastClearing = Instant(nanoseconds: 0)
    var isClearing = false
    var stallWatch = StallWatch()
    var mounted: Mounted?
    var isUnmounting = false
    var session: PeerSession?
    /// Whether new sessions are wanted (`connect`, `endSession`).
    var isConnecting = false
    /// The session in which this side sent a manifest and was not the replica since.
    var mirroredSession: SessionID?
    var resync: ResyncProgress?
    var isResyncing = false
    /// The last verification, or the one that goes on.
    var verify: VerifyReport?
    var isVerifying = false
    var bytesSent: UInt64 = 0
    var bytesReceived: UInt64 = 0
  }

  let state = Guarded(State())
  /// One command at a time, whoever it comes from.
  let commands = Mutex(())
  let mirror: Mirror
  let kept: Kept
  /// The mount ends with this process, as with kernels before 6.9.
  let endsWithProcess: Bool
  let readWatch = Mutex(ReadWatch())
  let diskWatch: Mutex<DiskWatch>
  private let clearInterval: Duration
  private let connectorBox = Mutex<Connector?>(nil)
  private let emitter: @Sendable (EngineEvent) -> Void

  /// `emit` is called from any thread and must not block. A zone that was not written for one to two `clearInterval`s is
  /// cleared from the write-intent map (R3).
  /// `kept`: what outlives this process; nil = nothing does. `diskStallMax`: a disk that has a request of the guest for longer
  /// hangs; nil = `DiskWatch.stallMax`.
  public init(
    kept: Kept? = nil, endsWithProcess: Bool = false, clearInterval: Duration = .seconds(5),
    diskStallMax: Duration? = nil, emit: @escaping @Sendable (EngineEvent) -> Void
  ) throws {
    self.kept = try kept ?? Kept()
    self.endsWithProcess = endsWithProcess
    self.clearInterval = clearInterval
    diskWatch = Mutex(DiskWatch(stallMax: diskStallMax ?? DiskWatch.stallMax))
    emitter = emit
    let target = Weak()
    mirror = Mirror(
      observer: Mirror.Observer(
        drained: { emit(.drained) },
        diskError: { operation, path, error in
          Log.note("disk error: \(operation) of \(path): \(error)")
          emit(.diskError(operation: operation, path: path, errno: error.code))
        },
        broken: { session, why in target.engine?.lose(session, why) }))
    target.set(self)
    let connector = try Connector { [weak self] session in self?.begin(session) ?? false }
    connectorBox.withLock { $0 = connector }
    try HostThread.start(name: "tick") { [weak self] in
      var last = monotonicNow()
      while let engine = self {
        let now = monotonicNow()
        let pause = engine.tick(now, gap: now - last)
        last = now
        usleep(useconds_t(pause.nanoseconds / 1000))
      }
    }
  }

  private final class Weak: Sendable {
    private let box = Mutex<(@Sendable () -> Engine?)?>(nil)
    func set(_ engine: Engine) { box.withLock { $0 = { [weak engine] in engine } } }
    var engine: Engine? { box.withLock { $0 }?() }
  }

  var connector: Connector? { connectorBox.withLock { $0 } }

  func emit(_ event: EngineEvent) { emitter(event) }

  // MARK: report

  public func report() -> EngineReport {
    let policy = mirror.policy
    let areHeld = areReadsHeld
    return state.withLock { state in
      let replicaSession = state.replica?.session
      let role: EngineRole = state.mounted != nil ? .primary : (replicaSession != nil ? .replica : .idle)
      var report = EngineReport(processID: kept.process, role: role, policy: policy)
      report.session = state.session?.id
      report.isMounted = state.mounted != nil
      report.resync = state.resync
      report.verify = state.verify
      report.requestsInFlight = mirror.requestsInFlight
      report.bytesWritten = mirror.bytesWritten.load(ordering: .relaxed)
      report.bytesSent = state.bytesSent + (state.session?.bytesSent.load(ordering: .relaxed) ?? 0)
      report.bytesReceived = state.bytesReceived + (state.session?.bytesReceived.load(ordering: .relaxed) ?? 0)
      report.bytesMarked = state.intents?.bytesMarked
      report.link = state.session?.link
      report.fuseConnection = state.mounted?.mount.connection
      report.mountOutlivesCrash = state.mounted.map { $0.mount.outlivesProcess && kept.isAdoptable }
      report.areReadsHeld = areHeld
      return report
    }
  }

  /// Open files of the guest, or of anyone else, in the mount.
  public var openFiles: Int { state.withLock { $0.mounted }?.server.openCount ?? 0 }
  /// A copy is on its way, or is being given up.
  public var isResyncing: Bool { state.withLock { $0.isResyncing } }
  public var isMounted: Bool { state.withLock { $0.mounted != nil } }

  // MARK: time

  /// Answers when to look again: an engine that has nothing to do wakes up for its keepalives and little else.
  private func tick(_ now: Instant, gap: Duration) -> Duration {
    // Last: a session that is lost below must not prolong the reads' lease.
    defer {
      mirror.clock.store(now.nanoseconds, ordering: .releasing)
      watchReads()
    }
    watchDisk(now, gap: gap)
    let (session, configuration, isBusy) = state.withLock { ($0.session, $0.configuration, $0.isResyncing) }
    guard let session, let configuration else { return Self.tickInterval }
    clearIntents(now)
    // PROTOCOL, timing relations: a process that did not run may have been replaced meanwhile.
    if gap > configuration.silenceMax / 2 {
      lose(session.id, "this engine did not run for \(gap.milliseconds) ms")
      return Self.tickInterval
    }
    let silence = session.silence(now)
    if silence > configuration.silenceMax {
      lose(session.id, "nothing received from the peer for \(silence.milliseconds) ms")
      return Self.tickInterval
    }
    let awaited = mirror.oldestAwaited
    if let awaited {
      let stall = state.withLock { $0.stallWatch.look(awaited.session, oldest: awaited.sequence, now: now) }
      if stall > Self.acknowledgeStallMax {
        lose(session.id, "the peer has not answered a change or flush for \(stall.milliseconds) ms: its disk hangs")
        return Self.tickInterval
      }
    }
    let queued = session.queuedBytes
    if queued > PeerSession.queueBytesMax {
      lose(session.id, "the peer takes too little: \(queued) bytes wait for it")
      return Self.tickInterval
    }
    let unsaid = now - session.lastSent
    if unsaid >= configuration.keepalive { session.keepAlive() }
    if isBusy || awaited?.sequence != nil || queued > 0 { return Self.tickInterval }
    // Well below the gap that counts as "did not run"; and never past a deadline.
    let idle = min(configuration.silenceMax / 8, configuration.silenceMax - silence + .milliseconds(1))
    let due = unsaid >= configuration.keepalive ? configuration.keepalive : configuration.keepalive - unsaid
    return max(.milliseconds(10), min(idle, due))
  }

  private func clearIntents(_ now: Instant) {
    let due = state.withLock { state -> OwnedDescriptor? in
      guard !state.isClearing, now - state.lastClearing >= clearInterval, state.mounted != nil, let root = state.root
      else { return nil }
      state.lastClearing = now
      state.isClearing = true
      return root
    }
    guard let root = due else { return }
    do {
      try HostThread.start(name: "clear-intents", stackBytes: 2 << 20) { [self] in
        mirror.clearIntents(root: root.number)
        state.withLock { $0.isClearing = false }
      }
    } catch {
      Log.note("the write-intent map is not cleared: \(error)")
      state.withLock { $0.isClearing = false }
    }
  }
}
