import Arbitration
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Synchronization

/// Does what the cores ask of the arbiters, each request on a thread of its own, and watches over those that no core looks at. Never
/// decides: every answer goes back to the core as an event.
final class Arbiters: Sendable {
  /// From one look to the next; up to a quarter is added at random.
  static let lookEvery: Duration = .seconds(10)
  /// Fence devices are slow, and some allow one login at a time: every sixth look.
  static let looksBetweenFences = 6

  typealias Tell = @Sendable (CoreEvent) -> Void

  /// What is looked at: once for all modules, whichever of them ask it.
  enum Part: String, Sendable, CaseIterable {
    case fence, ping, witness

    func isAsked(by arbiter: Arbiter) -> Bool {
      switch self {
      case .fence: arbiter.fences
      case .ping: arbiter == .policyPing
      case .witness: arbiter.asksWitness
      }
    }
  }

  private struct State {
    var cluster: ClusterConfiguration?
    var node: NodeID = .first
    var witness: EtcdWitness?
    /// Requests that wait for the agent that is running: one at a time, however many modules lost the peer.
    var fencing: [(id: UInt64, tell: Tell)]?
    var trouble: [Part: String] = [:]
  }
  private let state = Mutex(State())
  private let isOver = Monitor(false)
  /// What this service found: degraded (warning), or well again (notice).
  private let report: @Sendable (_ isTrouble: Bool, _ text: String) -> Void

  init(report: @escaping @Sendable (_ isTrouble: Bool, _ text: String) -> Void) { self.report = report }

  func start() throws { try HostThread.start(name: "arbiters") { self.watch() } }
  func stop() { isOver.withLock { $0 = true } }

  /// A configuration that has changed nothing of the witness keeps its connections and its token.
  func use(_ cluster: ClusterConfiguration, node: NodeID) {
    state.withLock { state in
      let old = state.cluster
      state.node = node
      state.cluster = cluster
      // What is still asked is as broken as it was; the next look says more.
      state.trouble = state.trouble.filter { part, _ in cluster.arbitersInUse.contains(where: part.isAsked) }
      guard old?.witness != cluster.witness || old?.uuid != cluster.uuid else { return }
      state.witness = cluster.witness.map { EtcdWitness($0, cluster: cluster.uuid) }
    }
  }

  /// What does not work, and a sentence for the status, in a fixed order.
  var troubles: [(part: Part, sentence: String)] {
    state.withLock { state in Part.allCases.compactMap { part in state.trouble[part].map { (part, $0) } } }
  }

  // MARK: the cores' requests

  func readWitness(_ id: UInt64, _ module: ModuleName, _ tell: @escaping Tell) {
    run(id, tell) { .witnessRead(id: id, try $0.read($0.key(of: module))) }
  }

  func swapWitness(
    _ id: UInt64, _ module: ModuleName, expect: Int64, _ register: WitnessRegister, _ tell: @escaping Tell
  ) {
    run(id, tell) { witness in
      try witness.swap(witness.key(of: module), expect: expect, register)
      return .witnessSwapped(id: id)
    }
  }

  func ping(_ id: UInt64, _ tell: @escaping Tell) {
    let addresses = state.withLock { $0.cluster?.pingAddresses ?? [] }
    start(id, tell) {
      _ = try PingAddresses.first(of: addresses)
      return .pingAnswered(id: id)
    }
  }

  /// The peer is powered off for every module at once.
  func fence(_ id: UInt64, _ tell: @escaping Tell) {
    let (agent, isFirst) = state.withLock { state in
      let isFirst = state.fencing == nil
      state.fencing = (state.fencing ?? []) + [(id, tell)]
      return (Self.agent(against: state.node.peer, state.cluster), isFirst)
    }
    guard isFirst else { return }
    let finish: @Sendable (String?) -> Void = { failure in
      let waiting = self.state.withLock { state in
        defer { state.fencing = nil }
        return state.fencing ?? []
      }
      for (id, tell) in waiting { tell(failure.map { .arbiterFailed(id: id, why: $0) } ?? .peerFenced(id: id)) }
    }
    guard let agent else { return finish("no fence agent is configured for the other node") }
    do {
      try HostThread.start(name: "fence") {
        do {
          try agent.off()
          finish(nil)
        } catch { finish("\(error)") }
      }
    } catch { finish("\(error)") }
  }

  static func agent(against node: NodeID, _ cluster: ClusterConfiguration?) -> FenceAgent? {
    guard let cluster, let fence = cluster.fences[node] else { return nil }
    let own = cluster.node(node.peer).map(\.name)
    return FenceAgent(
      fence, target: cluster.node(node)?.name ?? "\(node)", ownName: own ?? "\(node.peer)",
      ownAddresses: cluster.links.compactMap { $0.addresses[node.peer] })
  }

  private func run(
    _ id: UInt64, _ tell: @escaping Tell, _ work: @escaping @Sendable (EtcdWitness) throws -> CoreEvent
  ) {
    guard let witness = state.withLock({ $0.witness }) else {
      return tell(.arbiterFailed(id: id, why: "no witness is configured"))
    }
    start(id, tell) { try work(witness) }
  }

  private func start(_ id: UInt64, _ tell: @escaping Tell, _ work: @escaping @Sendable () throws -> CoreEvent) {
    do {
      try HostThread.start(name: "arbiter") {
        do { tell(try work()) } catch { tell(.arbiterFailed(id: id, why: "\(error)")) }
      }
    } catch { tell(.arbiterFailed(id: id, why: "\(error)")) }
  }

  // MARK: health

  private func watch() {
    var looks = 0
    while true {
      let jitter = Int64(randomUInt64() % UInt64(Self.lookEvery.nanoseconds / 4))
      if isOver.wait(timeout: Self.lookEvery + .nanoseconds(jitter), until: { $0 ? true : nil }) != nil { return }
      let (cluster, node, witness) = state.withLock { ($0.cluster, $0.node, $0.witness) }
      guard let cluster, cluster.nodes.count == 2 else { continue }
      for part in Part.allCases where cluster.arbitersInUse.contains(where: part.isAsked) {
        switch part {
        case .witness:
          if let witness { note(part, of: cluster) { _ = try witness.read(witness.rehearsalKey(of: node)) } }
        case .ping: note(part, of: cluster) { _ = try PingAddresses.first(of: cluster.pingAddresses) }
        case .fence:
          guard looks % Self.looksBetweenFences == 0 else { continue }
          note(part, of: cluster) { try Self.agent(against: node.peer, cluster)?.monitor() }
        }
      }
      looks += 1
    }
  }

  private func note(_ part: Part, of cluster: ClusterConfiguration, _ look: () throws -> Void) {
    var text: String?
    do { try look() } catch { text = "the arbiter's \(part.rawValue) does not work from this node: \(error)" }
    let old = state.withLock { state -> String? in
      // Of another configuration by now.
      guard state.cluster == cluster else { return text }
      defer { state.trouble[part] = text }
      return state.trouble[part]
    }
    guard (old == nil) != (text == nil) else { return }
    report(text != nil, text.map { "DEGRADED: \($0)" } ?? "the arbiter's \(part.rawValue) works again from this node")
  }
}
