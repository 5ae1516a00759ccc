import ControlAPI
import Foundation
import Model
import Synchronization

/// A daemon without anything behind it: holds a status and a journal, plays prepared steps, remembers what it was asked.
public final class FakeControlService: ControlService, Sendable {
  public struct State: Sendable {
    public var status = Samples.status()
    public var journal: [JournalEvent] = []
    /// Thrown by the call of that name ("swap vm1", or "swap" for every module) instead of doing anything.
    public var failures: [String: ControlError] = [:]
    /// One is played (and used up) by each look at the status that follows a command.
    public var steps: [@Sendable (inout State) -> Void] = []
    public var plan = AddPlan(name: "vm3", number: 3, findings: [], steps: ["move its disk"], bytesToCopy: 0)
    /// One is given (and used up but for the last) by each look at an operation.
    public var operations: [OperationStatus] = []
    public var calls: [String] = []
    public var peerKnownUntil: WallTime? = Samples.time
    public var peerClockAhead: Int64?
    public var changes: ClusterChanges?
    public var initialise: ClusterInitialiseRequest?
    public var join: ClusterJoinRequest?
    public var add: AddRequest?
    public var resolve: ResolveRequest?
    public var branches: [ArchivedBranch] = []
    var listeners: [Int: AsyncStream<JournalEvent>.Continuation] = [:]
    var listenerNext = 0

    public init() {}

    public mutating func append(_ event: JournalEvent) {
      var event = event
      event.id = (journal.last?.id ?? 0) + 1
      journal.append(event)
      for listener in listeners.values { listener.yield(event) }
    }

    public mutating func change(_ name: String, _ body: (inout ModuleStatus) -> Void) {
      guard let index = status.modules.firstIndex(where: { $0.name == name }) else { return }
      body(&status.modules[index])
    }
  }

  private let state: Mutex<State>

  public init(_ prepare: (inout State) -> Void = { _ in }) {
    var state = State()
    prepare(&state)
    self.state = Mutex(state)
  }

  @discardableResult public func edit<Value: Sendable>(_ body: (inout State) -> Value) -> Value {
    state.withLock { state in
      body(&state)
    }
  }

  public var calls: [String] { edit { $0.calls } }

  private func record(_ call: String) throws {
    try state.withLock { state in
      state.calls.append(call)
      let verb = call.split(separator: " ").first.map(String.init) ?? call
      if let error = state.failures[call] ?? state.failures[verb] { throw error }
    }
  }

  private func accept(_ verb: String, _ name: String, target: String?) throws -> Acceptance {
    try record("\(verb) \(name)")
    return try state.withLock { state in
      guard state.status.modules.contains(where: { $0.name == name }) else { throw ControlError.noSuchModule(name) }
      return Acceptance(
        module: name, cursor: state.journal.last?.id ?? 0, time: Samples.time, sentence: "\(verb) of \(name) begins",
        targetNode: target)
    }
  }

  public func status() async throws -> ClusterStatus {
    try record("status")
    return edit { state in
      if !state.steps.isEmpty { state.steps.removeFirst()(&state) }
      return state.status
    }
  }

  public func module(_ name: String) async throws -> ModuleStatus {
    guard let module = try await status().modules.first(where: { $0.name == name }) else {
      throw ControlError.noSuchModule(name)
    }
    return module
  }

  public func startModule(_ name: String, force: Bool) async throws -> Acceptance {
    try accept(force ? "force-start" : "start", name, target: edit { $0.status.modules.first?.preferredNode })
  }
  public func stopModule(_ name: String, timeoutSeconds: Int?) async throws -> Acceptance {
    if let timeoutSeconds { edit { $0.calls.append("timeout \(timeoutSeconds)") } }
    return try accept("stop", name, target: nil)
  }
  public func swapModule(_ name: String) async throws -> Acceptance {
    let primary = edit { $0.status.modules.first { $0.name == name }?.primary?.node }
    return try accept("swap", name, target: primary == "node1" ? "node2" : "node1")
  }
  public func crashGuest(_ name: String) async throws -> Acceptance { try accept("crash", name, target: nil) }

  public func resolve(_ name: String, _ request: ResolveRequest) async throws -> Acceptance {
    edit { $0.resolve = request }
    return try accept("resolve", name, target: request.keep)
  }
  public func branches(_ name: String) async throws -> [ArchivedBranch] {
    try record("branches \(name)")
    return edit { $0.branches }
  }
  public func exportBranch(_ name: String, _ branch: String, to directory: String) async throws -> OperationID {
    try record("export \(name) \(branch) \(directory)")
    return OperationID(rawValue: "export-1")
  }
  public func dropBranch(_ name: String, _ branch: String) async throws -> OperationID {
    try record("drop \(name) \(branch)")
    return OperationID(rawValue: "drop-1")
  }
  public func setModule(_ name: String, _ changes: ModuleChanges) async throws {
    let settings = [changes.resyncPriority?.rawValue, changes.arbiter.map { "arbiter \($0)" }].compactMap { $0 }
    try record("set \(name) " + settings.joined(separator: ", "))
  }
  public func verifyModule(_ name: String, repair: Bool) async throws -> OperationID {
    try record(repair ? "repair \(name)" : "verify \(name)")
    return OperationID(rawValue: "op-3")
  }
  public func stopVerification(_ name: String) async throws { try record("stop-verify \(name)") }

  public func planAdd(_ request: AddRequest) async throws -> AddPlan {
    try record("plan \(request.name)")
    return edit {
      $0.add = request
      return $0.plan
    }
  }
  public func add(_ request: AddRequest) async throws -> OperationID {
    try record("add \(request.name)")
    return OperationID(rawValue: "op-1")
  }
  public func remove(_ name: String, purgeCopy: Bool) async throws -> OperationID {
    try record(purgeCopy ? "purge \(name)" : "remove \(name)")
    return OperationID(rawValue: "op-2")
  }
  public func operation(_ id: OperationID) async throws -> OperationStatus {
    try record("operation \(id)")
    return try state.withLock { state in
      guard let first = state.operations.first else {
        throw ControlError(.noSuchOperation, "there is no operation \(id)")
      }
      if state.operations.count > 1 { state.operations.removeFirst() }
      return first
    }
  }

  public func clusterInitialise(_ request: ClusterInitialiseRequest) async throws -> JoinTicket {
    try record("init")
    edit { $0.initialise = request }
    return Samples.ticket
  }
  public func clusterTicket() async throws -> JoinTicket {
    try record("ticket")
    return Samples.ticket
  }
  public func clusterJoin(_ request: ClusterJoinRequest) async throws -> ClusterDescription {
    try record("join")
    edit { $0.join = request }
    return Samples.cluster
  }
  public func clusterShow() async throws -> ClusterDescription {
    try record("show")
    return Samples.cluster
  }
  public func clusterSet(_ changes: ClusterChanges) async throws -> ClusterDescription {
    try record("set")
    edit { $0.changes = changes }
    return Samples.cluster
  }

  public func check() async throws -> CheckReport {
    try record("check")
    return Samples.check
  }

  public func log(since cursor: Int64?, module: String?, limit: Int) async throws -> JournalPage {
    try record("log")
    return edit { state in
      let matching = state.journal.filter { module == nil || $0.module == module }
      let last = state.journal.last?.id ?? 0
      guard let cursor else { return JournalPage(events: matching.suffix(limit), cursor: last) }
      let events = Array(matching.filter { $0.id > cursor }.prefix(limit))
      return JournalPage(events: events, cursor: events.count == limit ? events.last?.id ?? last : max(last, cursor))
    }
  }

  public func timeline(module: String?, limit: Int) async throws -> Timeline {
    try record("timeline")
    return edit { state in
      var timeline = Timeline(
        events: state.journal.filter { module == nil || $0.module == nil || $0.module == module }.suffix(limit),
        peer: "node2")
      timeline.peerKnownUntil = state.peerKnownUntil
      timeline.peerClockAheadMilliseconds = state.peerClockAhead
      return timeline
    }
  }

  public func decisions(_ name: String) async throws -> Data {
    try record("decisions \(name)")
    return Data(#"{"entries":[]}"#.utf8)
  }

  public func events() -> AsyncStream<JournalEvent> {
    let (stream, continuation) = AsyncStream<JournalEvent>.makeStream(bufferingPolicy: .bufferingNewest(100))
    let number = edit { state in
      state.listenerNext += 1
      state.listeners[state.listenerNext] = continuation
      return state.listenerNext
    }
    continuation.onTermination = { [weak self] _ in self?.edit { _ = $0.listeners.removeValue(forKey: number) } }
    return stream
  }
}

extension Samples {
  public static let ticket = JoinTicket(
    clusterName: "lab", address: "10.77.1.1", fingerprint: String(repeating: "ab", count: 32),
    token: String(repeating: "5c", count: 16), expires: WallTime(milliseconds: time.milliseconds + 900_000),
    linkNames: ["repl", "lan"])

  public static let check = CheckReport(
    arbiter: "witness: etcd at https://10.77.0.3:2379 decides who goes on",
    checks: [
      ArbiterCheck(
        node: "node1", what: "read https://10.77.0.3:2379", module: nil, passed: true, detail: "etcd cluster cdf8",
        milliseconds: 3),
      ArbiterCheck(
        node: "node2", what: "register", module: "web", passed: false, detail: "the module's register is missing",
        milliseconds: 1),
    ])

  public static var cluster: ClusterDescription {
    var cluster = ClusterDescription(
      identity: ClusterIdentity(name: "lab", uuid: "0b6f7d52-8d5e-4f0e-9f0a-3f1f4f0c7a11", revision: 4),
      nodes: [.init(id: 1, name: "node1"), .init(id: 2, name: "node2")],
      links: [
        .init(name: "repl", addresses: ["node1": "10.77.1.1", "node2": "10.77.1.2"], replication: true),
        .init(name: "lan", addresses: ["node1": "10.77.0.1", "node2": "10.77.0.2"], replication: false),
      ], pulseMilliseconds: 250, detectionMilliseconds: 3000, bootWaitMilliseconds: 60_000, arbiter: "policy=none")
    cluster.fingerprint = ticket.fingerprint
    return cluster
  }
}
