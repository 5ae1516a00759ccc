import CFuse3
import Glibc
import HostSystem
import Model
import Replication
import SecureLinks
import Synchronization

/// Applies the peer's stream, in order, and acknowledges it. The applying thread is the session's receiver; a second
/// thread does the fsyncs, so that writes behind a flush are not held up, and a third writes dirty pages back every second.
final class Replica: Sendable {
  static let writebackInterval: Duration = .seconds(1)
  /// How long the fsync thread of a replica that is no more may stay.
  static let lookInterval: Duration = .seconds(60)
  /// Flush requests of the peer that wait for their fsync; a guest's are few.
  static let flushesMax = 4096

  private struct State {
    var session: PeerSession?
    var tree: ReplicaTree?
    var collector: ManifestCollector?
    var operations = AcknowledgeBatch()
    var pieces = AcknowledgeBatch()
    var hasher: BlockHasher?
    /// Of the verification that goes on.
    var verifyHasher: BlockHasher?
    /// Something other than acknowledgements is queued.
    var hasAnswers = false
    var flushes: [FlushRequest] = []
  }

  private struct FlushRequest {
    let sequence: UInt64
    let session: PeerSession
    /// nil = everything.
    let file: FileID?
    let dataOnly: Bool
  }

  private let root: Int32
  private let intents: Intents
  private let state = Guarded(State())
  private let diskError: @Sendable (_ operation: String, _ path: String, _ error: Errno) -> Void

  /// `root` is borrowed: an O_PATH descriptor of the backing directory.
  init(
    root: Int32, intents: Intents,
    diskError: @escaping @Sendable (_ operation: String, _ path: String, _ error: Errno) -> Void
  ) throws {
    self.root = root
    self.intents = intents
    self.diskError = diskError
    try HostThread.start(name: "replica-flush") { [weak self] in Self.flushLoop { self } }
    try HostThread.start(name: "replica-write") { [weak self] in Self.writebackLoop { self } }
  }

  /// Beside `state`: a disk that hangs holds that lock, and whoever reports or keeps the link alive must not wait for it.
  private let role = Mutex<SessionID?>(nil)
  var session: SessionID? { role.withLock { $0 } }

  // MARK: role

  func accept(_ session: PeerSession) {
    state.withLock { state in
      guard state.session?.id != session.id else { return }
      state = State()
      state.session = session
      role.withLock { $0 = session.id }
    }
  }

  /// R1: when this returns, nothing of the session is applied any more, and nothing of it will be acknowledged.
  func stop() {
    state.withLock { state in
      state = State()
      role.withLock { $0 = nil }
    }
    state.wake()
  }

  // MARK: frames

  /// Handles one frame of the primary under the lock that applies (R1). Throws a `PeerFailure` to tell the peer.
  func handle(_ frame: FrameView, _ body: FrameBody) throws(PeerFailure) {
    try state.withLock { (state) throws(PeerFailure) in
      guard let session = state.session, session.id == frame.header.session else {
        throw PeerFailure(.wrongRole, 0, "this node is not the replica in session \(frame.header.session)")
      }
      do throws(ReplicaFailure) {
        try handle(frame, body, session, &state)
      } catch {
        switch error {
        case .disk(let operation, let path, let cause):
          diskError(operation, path, cause)
          throw PeerFailure(.diskError, cause.code, "\(operation) of \(path): \(cause)")
        case .diverged(let sentence): throw PeerFailure(.diverged, 0, sentence)
        }
      }
    }
  }

  private func handle(
    _ frame: FrameView, _ body: FrameBody, _ session: PeerSession, _ state: inout State
  ) throws(ReplicaFailure) {
    switch body {
    case .operation(let operation):
      try apply(operation, frame.data, &state)
      try once(state.operations.add(frame.header.sequence), frame)
    case .resyncData(let file, let offset):
      guard state.tree != nil else { throw .diverged("contents came before a manifest") }
      try state.tree?.write(file, offset, frame.data)
      try once(state.pieces.add(frame.header.sequence), frame)
    case .resyncZero(let file, let offset, let length):
      guard state.tree != nil else { throw .diverged("contents came before a manifest") }
      try state.tree?.zero(file, offset: offset, length: length)
      try once(state.pieces.add(frame.header.sequence), frame)
    case .resyncCompare(let file, let offset, let length, let hashes):
      guard let hasher = state.hasher,
        let differing = try state.tree?.compare(file, offset: offset, length: Int(length), hashes, hasher)
      else { throw .diverged("a comparison came before a manifest") }
      session.enqueue(
        FrameHead.bytes(
          .resyncCompared(differing: differing), session: session.id, sequence: frame.header.sequence))
      state.hasAnswers = true
    case .verifyBegin(let key):
      do { state.verifyHasher = try BlockHasher(key) } catch { throw .diverged("\(error)") }
    case .verify(let file, let question):
      guard let hasher = state.verifyHasher, let answer = try state.tree?.verify(file, question, hasher) else {
        throw .diverged("a question came before the beginning of a verification")
      }
      session.enqueue(
        FrameHead.bytes(.verified(answer), session: session.id, sequence: frame.header.sequence))
      state.hasAnswers = true
    case .flushRequest(let file):
      try flush(
        FlushRequest(sequence: frame.header.sequence, session: session, file: file, dataOnly: false), &state)
    case .dataFlushRequest(let file):
      try flush(FlushRequest(sequence: frame.header.sequence, session: session, file: file, dataOnly: true), &state)
    case .manifestBegin, .manifestEntry, .manifestAttribute, .manifestEnd:
      try collect(body, session, &state)
    default: throw .diverged("a \(body.kind) frame is not for a replica")
    }
  }

  private func once(_ isFirst: Bool, _ frame: FrameView) throws(ReplicaFailure) {
    guard isFirst else { throw .diverged("number \(frame.header.sequence) came twice") }
  }

  private func apply(
    _ operation: FileOperation, _ bytes: UnsafeRawBufferPointer, _ state: inout State
  ) throws(ReplicaFailure) {
    guard state.tree != nil else { throw .diverged("an operation came before a manifest") }
    try state.tree?.apply(operation, bytes)
  }

  private func collect(_ body: FrameBody, _ session: PeerSession, _ state: inout State) throws(ReplicaFailure) {
    var collector = state.collector ?? ManifestCollector()
    state.collector = nil
    let manifest: Manifest?
    do throws(ManifestError) { manifest = try collector.take(body) } catch { throw .diverged(error.message) }
    guard let manifest else {
      state.collector = collector
      return
    }
    let contents = try TreeRepair.apply(manifest, root: root, intents: intents)
    var tree = ReplicaTree(root: root)
    try tree.adopt(manifest)
    state.tree = tree
    guard !manifest.identityOnly else { return }
    do { state.hasher = try BlockHasher(manifest.key) } catch {
      throw .diverged("\(error)")
    }
    answer(contents, session)
    state.hasAnswers = true
  }

  /// This node's map, for the source to add to its own.
  private func answer(_ contents: [FileID: FileContent], _ session: PeerSession) {
    for (file, content) in contents {
      var pieces = [content]
      if case .zones(let zones) = content, zones.count > FrameLimits.differingRangesMax {
        pieces = stride(from: 0, to: zones.count, by: FrameLimits.differingRangesMax).map { start in
          .zones(Array(zones[start..<min(start + FrameLimits.differingRangesMax, zones.count)]))
        }
      }
      for piece in pieces { session.enqueue(FrameHead.bytes(.differing(file, piece), session: session.id)) }
    }
    session.enqueue(FrameHead.bytes(.differingEnd, session: session.id))
  }

  /// Everything that had arrived is applied: tells the peer.
  func acknowledge() {
    let session = state.withLock { state -> PeerSession? in
      guard let session = state.session, state.hasAnswers || !(state.operations.isEmpty && state.pieces.isEmpty) else {
        return nil
      }
      state.hasAnswers = false
      while !state.operations.isEmpty {
        session.enqueue(headBytesMax: FrameLimits.acknowledgeHeadBytesMax) {
          state.operations.take(into: $0, kind: .acknowledge, session: session.id)
        }
      }
      while !state.pieces.isEmpty {
        session.enqueue(headBytesMax: FrameLimits.acknowledgeHeadBytesMax) {
          state.pieces.take(into: $0, kind: .resyncAcknowledge, session: session.id)
        }
      }
      return session
    }
    session?.push()
  }

  // MARK: durability

  private func flush(_ request: FlushRequest, _ state: inout State) throws(ReplicaFailure) {
    guard state.flushes.count < Self.flushesMax else { throw .diverged("more than \(Self.flushesMax) flushes wait") }
    state.flushes.append(request)
    self.state.wake()
  }

  private struct Flush {
    let session: PeerSession
    var sequences: [UInt64]
    var objects: [Synced]
  }

  private struct Synced {
    let object: ReplicaObject
    let dataOnly: Bool
  }

  private static func flushLoop(_ replica: @escaping () -> Replica?) {
    while let replica = replica() { replica.flushOnce() }
  }

  /// Takes all flushes that wait: one fsync of a file serves every request for it that came before.
  private func flushOnce() {
    let flush = state.wait(timeout: Self.lookInterval) { state -> Flush? in
      guard let session = state.flushes.first?.session else { return nil }
      let waiting = state.flushes
      state.flushes = []
      var objects: [ObjectIdentifier: Synced] = [:]
      func add(_ object: ReplicaObject, dataOnly: Bool) {
        let key = ObjectIdentifier(object)
        objects[key] = Synced(object: object, dataOnly: dataOnly && objects[key]?.dataOnly != false)
      }
      for item in waiting {
        if item.dataOnly, let file = item.file, let object = state.tree?.objects[file] {
          // It stays dirty: its times and rights are still to be made durable.
          add(object, dataOnly: true)
        } else if let file = item.file, let object = state.tree?.takeDirty(file) {
          add(object, dataOnly: false)
        } else {
          for object in state.tree?.takeDirty() ?? [] { add(object, dataOnly: false) }
        }
      }
      return Flush(session: session, sequences: waiting.map(\.sequence), objects: Array(objects.values))
    }
    guard let flush else { return }
    var failure: (ReplicaObject, Errno)?
    for item in flush.objects where [S_IFREG, S_IFDIR].contains(item.object.type) {
      do throws(Errno) { try Self.sync(item) } catch { failure = failure ?? (item.object, error) }
    }
    if let (object, error) = failure { diskError("fsync", Backing.pathForMessage(object.descriptor), error) }
    let code = failure?.1.code ?? 0
    for sequence in flush.sequences {
      flush.session.enqueue(headBytesMax: FrameLimits.smallHeadBytesMax) {
        FrameHead.flushAnswer(into: $0, session: flush.session.id, sequence: sequence, errno: code)
      }
    }
    flush.session.push()
  }

  /// By a descriptor of its own: the applying thread may close the object's at any time.
  private static func sync(_ item: Synced) throws(Errno) {
    let flags = item.object.type == S_IFDIR ? O_RDONLY | O_DIRECTORY : O_RDONLY
    let file = OwnedDescriptor(try Backing.reopen(item.object.descriptor, flags: flags))
    try Backing.sync(file.number, dataOnly: item.dataOnly)
  }

  private static func writebackLoop(_ replica: @escaping () -> Replica?) {
    while let replica = replica() {
      replica.startWriteback()
      // Not on the replica's lock, where each flush would wake it.
      HostThread.sleep(for: writebackInterval)
    }
  }

  /// So that the fsync before this node starts a guest is short (R4). Errors stay with the file, for the fsync to find.
  private func startWriteback() {
    let files = state.withLock { state -> [OwnedDescriptor] in
      guard let tree = state.tree else { return [] }
      return tree.dirty.values.compactMap { object in
        guard object.needsWriteback, object.type == S_IFREG else { return nil }
        object.needsWriteback = false
        return object.data
      }
    }
    for file in files { vmha_start_writeback(file.number) }
  }
}

/// The session must end, and the peer is told why.
struct PeerFailure: Error {
  let code: FailureCode
  let errno: Int32
  let sentence: String
  init(_ code: FailureCode, _ errno: Int32, _ sentence: String) {
    self.code = code
    self.errno = errno
    self.sentence = sentence
  }
}
