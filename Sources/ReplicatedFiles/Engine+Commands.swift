import CFuse3
import Glibc
import HostSystem
import Model
import Replication
import Synchronization

/// Commands, one at a time. What takes long runs on a thread of its own and answers later.
extension Engine {
  /// Carries a command out. Every refusal is a `failed` event, and then nothing has changed.
  public func perform(_ command: EngineCommand) {
    commands.withLock { _ in
      do {
        guard case .configure = command else {
          guard state.withLock({ $0.configuration != nil }) else {
            throw EngineError(.control, "the first command has to be configure")
          }
          return try carryOut(command)
        }
        try carryOut(command)
      } catch {
        Log.note("\(command.name): \(error)")
        emit(.failed(command: command.name, why: "\(error)"))
      }
    }
  }

  private func carryOut(_ command: EngineCommand) throws {
    switch command {
    case .configure(let configuration):
      try configure(configuration)
      emit(.ready(report()))
    case .connect:
      state.withLock { $0.isConnecting = true }
      connector?.want(true)
    case .endSession: endSession()
    case .send(let session, let bytes): try send(bytes, session)
    case .acceptReplication(let session): try acceptReplication(session)
    case .mount: try mount()
    case .unmount(let force): try unmount(force: force)
    case .setPolicy(let policy): try setPolicy(policy)
    case .startResync(let session, let comparesEverything): try startResync(session, comparesEverything)
    case .flushBarrier(let session): try flushBarrier(session)
    case .drain: mirror.drain()
    case .syncFiles(let request): try syncFiles(request)
    case .clearIntents(let session): try clearIntents(session)
    case .verify(let request): try verify(request)
    case .stopVerify: mirror.stopVerify()
    case .confirmSession(let session): try confirmSession(session)
    case .report: emit(.ready(report()))
    case .exit: leave()
    }
  }

  // MARK: configuration and sessions

  private func configure(_ configuration: EngineConfiguration) throws {
    let current = state.withLock { $0.configuration }
    guard configuration.silenceMax > .zero, configuration.keepalive > .zero,
      configuration.keepalive * 2 < configuration.silenceMax
    else {
      throw EngineError(.control, "keepalive must be shorter than half of silenceMax, and both longer than nothing")
    }
    guard configuration.suspendAfter > .zero, configuration.suspendAfter < configuration.silenceMax else {
      throw EngineError(.control, "suspendAfter must be shorter than silenceMax, and longer than nothing")
    }
    let movesTree =
      current?.backingDirectory != configuration.backingDirectory || current?.mountPoint != configuration.mountPoint
      || current?.intentsFile != configuration.intentsFile
    if movesTree {
      guard !isMounted, state.withLock({ $0.replica?.session }) == nil else {
        throw EngineError(.busy, "the directories cannot change while the module is mounted or replicating")
      }
      let root: OwnedDescriptor
      do throws(Errno) { root = OwnedDescriptor(try Backing.openFolder(configuration.backingDirectory)) } catch {
        throw EngineError(
          .backing, "cannot open the backing directory \(configuration.backingDirectory): \(error)")
      }
      let intents: Intents
      do { intents = try Intents(path: configuration.intentsFile) } catch {
        throw EngineError(.backing, "cannot keep a write-intent map: \(error)")
      }
      if let note = intents.note { Log.note("write-intent map: \(note)") }
      mirror.use(intents)
      let replica = try Replica(root: root.number, intents: intents) { [weak self] operation, path, error in
        Log.note("disk error: \(operation) of \(path): \(error)")
        self?.emit(.diskError(operation: operation, path: path, errno: error.code))
      }
      state.withLock { state in
        state.root = root
        state.replica = replica
        state.intents = intents
      }
      goOn(configuration, root)
    }
    let revision = state.withLock { state in
      // The same again changes nothing, so that a restarted vmhad does not disturb the links.
      if state.configuration != configuration { state.revision += 1 }
      state.configuration = configuration
      return state.revision
    }
    connector?.use(Connector.Settings(configuration: configuration, revision: revision))
    // An engine that goes on with a mount reports at once whether its reads wait.
    watchReads()
  }

  private func endSession() {
    disconnect(saying: "ended by its module")
    emit(.sessionEnded)
  }

  private func disconnect(saying why: String) {
    let session = state.withLock { state in
      state.isConnecting = false
      return state.session
    }
    connector?.want(false)
    if let session { _ = end(session.id, saying: why) }
  }

  private func send(_ bytes: [UInt8], _ id: SessionID) throws {
    guard bytes.count <= FrameLimits.dataBytesMax else {
      throw EngineError(.control, "a message of \(bytes.count) bytes; the limit is \(FrameLimits.dataBytesMax)")
    }
    // Dropped if its session is over.
    guard let session = state.withLock({ $0.session }), session.id == id else { return }
    session.enqueue(FrameHead.coreMessage(bytes, session: id))
    session.push()
  }

  private func acceptReplication(_ id: SessionID) throws {
    guard !isMounted else { throw EngineError(.state, "this node is mounted as primary: unmount first") }
    guard let session = state.withLock({ $0.session }), session.id == id else {
      throw EngineError(.state, "session \(id) is over")
    }
    let replica = state.withLock { $0.replica }
    if replica?.session == id { return }
    try mirror.reset(becomesReplica: true)
    state.withLock { $0.mirroredSession = nil }
    replica?.accept(session)
    // Lost in between: then it must not look like a replica of a dead session.
    if state.withLock({ $0.session?.id }) != id { replica?.stop() }
  }

  // MARK: mount

  private func mount() throws {
    if let mounted = state.withLock({ $0.mounted }) {
      return emit(.mounted(fuseConnection: mounted.mount.connection))
    }
    guard let configuration = state.withLock({ $0.configuration }),
      let (root, replica) = state.withLock({ state in state.root.map { ($0, state.replica) } })
    else { return }
    try FuseConnections.clearStaleMount(configuration.mountPoint)
    replica?.stop()
    try mirror.reset(becomesReplica: false)
    state.withLock { $0.mirroredSession = nil }
    let server = try makeServer(configuration, root, readsUntil: monotonicNow() + configuration.suspendAfter)
    let mount: FuseMount
    do {
      mount = try FuseMount(
        module: configuration.module.text, mountPoint: configuration.mountPoint, server: server,
        endsWithProcess: endsWithProcess, whenEnded: { [weak self] in self?.mountEnded() })
    } catch {
      server.closeAll()
      throw error
    }
    do { try serve(mount, server) } catch {
      kept.giveUp()
      throw error
    }
    Log.note("mounted \(configuration.mountPoint), FUSE connection \(mount.connection.map(String.init) ?? "unknown")")
    if !mount.outlivesProcess {
      Log.note("a crash of this engine will end the mount: that needs Linux 6.9 or newer, and a keeper")
    }
    emit(.mounted(fuseConnection: mount.connection))
  }

  private func makeServer(
    _ configuration: EngineConfiguration, _ root: OwnedDescriptor, readsUntil: Instant
  ) throws(EngineError) -> FileServer {
    let copy = dup(root.number)
    guard copy >= 0 else { throw EngineError(.backing, "cannot keep the backing directory open: \(Errno.last)") }
    kept.readsUntil = readsUntil
    let gate = ReadGate(until: readsUntil)
    do throws(Errno) { return try FileServer(root: copy, sink: mirror, gate: gate, kept: kept) } catch {
      close(copy)
      throw EngineError(.backing, "cannot read \(configuration.backingDirectory): \(error)")
    }
  }

  private func serve(_ mount: FuseMount, _ server: FileServer) throws(EngineError) {
    mirror.attach(server)
    // A failure is on record, and harmless: the guest's first write tries again, and tells of it.
    do { try state.withLock({ $0.intents })?.prepare() } catch { Log.note("no write goes on yet: \(error)") }
    try mount.start()
    state.withLock { $0.mounted = Mounted(mount: mount, server: server) }
  }

  /// The engine before this one died under its mount: serves it on, frozen, in no session. The guest sees nothing but a delay.
  /// Where that cannot be, both end, as on a kernel that knows no repetition.
  private func goOn(_ configuration: EngineConfiguration, _ root: OwnedDescriptor) {
    guard let inherited = kept.inherited(), !isMounted else { return }
    do {
      guard inherited.mountPoint == configuration.mountPoint else {
        throw EngineError(.state, "it is mounted on \(inherited.mountPoint)")
      }
      // R2: what was left of the reads' lease, by the same clock; never more than a whole term.
      let term = monotonicNow() + configuration.suspendAfter
      let server = try makeServer(configuration, root, readsUntil: min(kept.readsUntil, term))
      try server.adopt()
      mirror.followOther()
      let mount = try FuseMount(
        device: inherited.device, mountPoint: inherited.mountPoint, initRequest: inherited.initRequest, server: server,
        whenEnded: { [weak self] in self?.mountEnded() })
      try serve(mount, server)
      Log.note("goes on with \(inherited.mountPoint) as engine number \(kept.era)")
    } catch {
      Log.note("cannot go on with \(inherited.mountPoint): \(error); it ends with this engine")
      kept.giveUp()
      if let connection = kept.connection { FuseConnections.abort(connection) }
      Glibc.exit(70)
    }
  }

  private func unmount(force: Bool) throws {
    guard let mounted = state.withLock({ $0.mounted }) else { return emit(.unmounted) }
    state.withLock { $0.isUnmounting = true }
    defer { state.withLock { $0.isUnmounting = false } }
    if force {
      // First: a guest that must lose its disk does not get it back from another engine.
      kept.giveUp()
      mirror.beginTearDown()
    }
    do {
      try mounted.mount.unmount(force: force)
    } catch {
      mirror.tearingDown(false)
      throw error
    }
    takeDown(mounted)
    emit(.unmounted)
  }

  /// The kernel's connection is gone: waits for its threads, answers what is open, closes everything.
  private func takeDown(_ mounted: Mounted) {
    mirror.beginTearDown()
    mounted.mount.join()
    stopResync()
    endVerify()
    mirror.detach()
    mounted.server.gate.close()
    mounted.server.closeAll()
    mounted.mount.destroy()
    kept.ended()
    state.withLock { $0.mounted = nil }
    Log.note("unmounted \(mounted.mount.mountPoint)")
  }

  /// On a thread of the mount: the connection has ended. If it was not us, somebody aborted or unmounted it.
  private func mountEnded() {
    guard !state.withLock({ $0.isUnmounting }) else { return }
    startThread("mount-ended") { engine in
      engine.commands.withLock { _ in
        guard let mounted = engine.state.withLock({ $0.mounted }) else { return }
        Log.note("the mount \(mounted.mount.mountPoint) was ended from outside")
        engine.takeDown(mounted)
        engine.emit(.unmounted)
      }
    }
  }

  private func stopResync() {
    guard state.withLock({ $0.isResyncing }) else { return }
    if let session = state.withLock({ $0.session }) { lose(session.id, "the mount was removed during a resync") }
    _ = state.wait(timeout: Mirror.drainTimeout) { $0.isResyncing ? nil : true }
  }

  // MARK: policy and resync

  private func setPolicy(_ policy: AcknowledgePolicy) throws {
    let (session, root, mirrored) = state.withLock { ($0.session, $0.root, $0.mirroredSession) }
    if case .both(let id) = policy, let session, let root, session.id == id, mirrored != id {
      // The replica has to know the ids of this side's files (swap). Nothing changes them: the policy is frozen.
      guard isMounted, mirror.policy == .frozen else {
        throw EngineError(.state, "cannot turn from \(mirror.policy) to \(policy) before a resync")
      }
      try mirror.sendManifest(root: root.number, to: session, key: HashKey(0, 0), identityOnly: true)
      state.withLock { $0.mirroredSession = id }
    }
    try mirror.setPolicy(policy)
    watchReads()
    Log.note("policy \(policy)")
  }

  private func startResync(_ id: SessionID, _ comparesEverything: Bool) throws {
    guard let root = state.withLock({ $0.root }), isMounted else {
      throw EngineError(.state, "this node is not mounted: it cannot be the source of a resync")
    }
    guard mirror.policy == .alone, state.withLock({ $0.session?.id }) == id else {
      throw EngineError(.state, "a resync needs the policy alone and the current session")
    }
    let isFree = state.withLock { state -> Bool in
      defer { state.isResyncing = true }
      return !state.isResyncing
    }
    guard isFree else { throw EngineError(.busy, "a resync is in progress") }
    startThread("resync") { engine in
      defer {
        engine.state.withLock {
          $0.isResyncing = false
          $0.resync = nil
        }
        engine.state.wake()
      }
      do throws(EngineError) {
        try engine.mirror.resync(id, root: root.number, comparesEverything: comparesEverything) { progress in
          engine.state.withLock {
            $0.resync = progress
            $0.mirroredSession = id
          }
          engine.emit(.resyncProgress(id, progress))
        }
        engine.state.withLock { $0.mirroredSession = id }
        Log.note("everything is copied in session \(id)")
        engine.emit(.resyncCopied(id))
      } catch {
        Log.note("\(error)")
        // Refused before anything was sent: nothing has changed. Later the target is left in the middle of a copy.
        if error.code != .busy { engine.lose(id, "\(error)") }
        engine.emit(.failed(command: "startResync", why: "\(error)"))
      }
    }
  }

  // MARK: durability

  private func flushBarrier(_ id: SessionID) throws {
    guard let root = state.withLock({ $0.root }), state.withLock({ $0.session?.id }) == id else {
      throw EngineError(.state, "session \(id) is over")
    }
    startThread("barrier") { engine in
      let isStarted = engine.mirror.barrier(
        id, syncHere: { () throws(Errno) in try engine.mirror.syncTree(root.number) },
        done: { [weak engine] code in
          // The loss of the session is told by its own event.
          if code == 0 { engine?.emit(.barrierDone(id)) }
          if code != 0, code != AcknowledgeMachine.barrierLost {
            engine?.emit(.failed(command: "flushBarrier", why: "fsync failed: \(Errno(code))"))
          }
        })
      if !isStarted { engine.emit(.failed(command: "flushBarrier", why: "session \(id) is over")) }
    }
  }

  /// R8.4
  private func clearIntents(_ id: SessionID) throws {
    let (replica, intents) = state.withLock { ($0.replica, $0.intents) }
    // Lost meanwhile: the zones stay, and are compared once more.
    guard replica?.session == id, let intents else { return }
    do throws(Errno) { try intents.clear() } catch {
      throw EngineError(.backing, "the write-intent map cannot be stored: \(error)")
    }
  }

  private func syncFiles(_ request: UInt64) throws {
    guard let root = state.withLock({ $0.root }) else { return }
    startThread("sync-files") { engine in
      do throws(Errno) {
        try TreeWalk.sync(root: root.number, dropsCache: true)
        engine.emit(.filesSynced(request))
      } catch {
        engine.emit(.diskError(operation: "fsync", path: "the backing directory", errno: error.code))
        engine.emit(.failed(command: "syncFiles", why: "fsync failed: \(error)"))
      }
    }
  }

  private func startThread(_ name: String, _ body: @escaping @Sendable (Engine) -> Void) {
    do {
      try HostThread.start(name: name, stackBytes: 2 << 20) { [self] in body(self) }
    } catch {
      emit(.failed(command: name, why: "\(error)"))
    }
  }

  // MARK: end

  /// `exit`: nothing is left mounted, whoever still uses it.
  private func leave() {
    disconnect(saying: "the engine exits")
    kept.giveUp()
    do { try unmount(force: true) } catch { Log.note("\(error)") }
    Log.note("exits, as told")
    Glibc.exit(0)
  }

  /// How long a guest's requests may take to be answered before another engine goes on with what is not.
  static let makeRoomTimeout: Duration = .seconds(2)

  /// For SIGUSR2: makes room for an engine of the program that is installed now. A mount stays: the keeper starts the next engine
  /// under it. Answers why not.
  public func makeRoom() -> String? {
    commands.withLock { _ in
      if isMounted, !kept.isAdoptable { return "the mount would end with it; swap or stop the module first" }
      if !mirror.drain(within: Self.makeRoomTimeout) { Log.note("requests wait; the next engine gets them") }
      disconnect(saying: "the engine is replaced")
      Log.note("makes room for the next engine")
      // As in a crash, at a better moment: nothing is unmounted, nobody waits for other threads.
      Glibc._exit(0)
    }
  }

  /// For SIGTERM: leaves only if nobody uses the mount. Answers why not.
  public func leaveIfUnused() -> String? {
    commands.withLock { _ in
      guard openFiles == 0 else { return "the mount is in use: \(openFiles) open files" }
      do { try unmount(force: false) } catch { return "\(error)" }
      leave()
      return nil
    }
  }
}

extension EngineCommand {
  var name: String {
    switch self {
    case .configure: "configure"
    case .connect: "connect"
    case .endSession: "endSession"
    case .send: "send"
    case .acceptReplication: "acceptReplication"
    case .mount: "mount"
    case .unmount: "unmount"
    case .setPolicy: "setPolicy"
    case .startResync: "startResync"
    case .flushBarrier: "flushBarrier"
    case .drain: "drain"
    case .syncFiles: "syncFiles"
    case .clearIntents: "clearIntents"
    case .verify: "verify"
    case .stopVerify: "stopVerify"
    case .confirmSession: "confirmSession"
    case .report: "report"
    case .exit: "exit"
    }
  }
}
