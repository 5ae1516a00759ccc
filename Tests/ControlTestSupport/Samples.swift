import ControlAPI
import Model

/// Fixed values for tests of everything that reads the API.
public enum Samples {
  public static let time = WallTime(milliseconds: 1_795_380_974_123)

  public static func event(
    _ id: Int64, _ sentence: String, kind: EventKind = .state, module: String? = "vm1", node: String = "node1",
    severity: Severity = .info, rule: String? = nil, after milliseconds: Int64 = 0, details: [String: String] = [:]
  ) -> JournalEvent {
    JournalEvent(
      id: id, time: WallTime(milliseconds: time.milliseconds + milliseconds),
      monotonicNanoseconds: 1_000_000_000 + milliseconds * 1_000_000, node: node, module: module, kind: kind,
      severity: severity, rule: rule, sentence: sentence, details: details)
  }

  public static func node(
    _ id: NodeID, _ state: ModuleState, _ readiness: Readiness = .ready, standing: Standing? = .uptodate,
    guest: GuestState = .off, current: Bool = true, sentence: String
  ) -> ModuleNodeStatus {
    ModuleNodeStatus(
      node: "node\(id.rawValue)", id: id, current: current, state: state, readiness: readiness, standing: standing,
      generation: GenerationStatus(Generation(number: 3, branch: BranchID(rawValue: 0x5eed_0000_0000_0003))),
      guest: guest, sentence: sentence, since: time)
  }

  /// PRIM on `primary`, SECOND on the other node, all well.
  public static func protected(_ name: String, number: Int, primary: NodeID = .first) -> ModuleStatus {
    let prim = node(primary, .prim, guest: .running, sentence: "serves the guest; both copies are the same")
    let second = node(primary.peer, .second, sentence: "follows node\(primary.rawValue)")
    var module = ModuleStatus(
      name: name, number: number, preferredNode: "node1", wish: .started,
      nodes: primary == .first ? [prim, second] : [second, prim])
    module.replicationLink = "repl"
    module.requestsInFlight = 2
    module.check = CheckStatus(kind: .tcp, address: "10.77.0.21", port: 80, answers: true, time: time)
    return module
  }

  /// ALONE on node 1, node 2 takes a copy.
  public static func resyncing(_ name: String, number: Int) -> ModuleStatus {
    var alone = node(.first, .alone, guest: .running, sentence: "copies to node2")
    var second = node(.second, .second, .transient, standing: .inconsistent, sentence: "takes the copy from node1")
    let resync = ResyncStatus(
      bytesTotal: 67_108_864, bytesDone: 16_777_216, bytesSent: 9_437_184, bytesPerSecond: 52_428_800, secondsLeft: 1)
    alone.resync = resync
    second.resync = resync
    var module = ModuleStatus(
      name: name, number: number, preferredNode: "node2", wish: .started, nodes: [alone, second])
    module.replicationLink = "repl"
    module.lastEvent = event(41, "copying to node2 begins", kind: .resyncStarted, module: name, rule: "R8")
    return module
  }

  public static func status(_ modules: [ModuleStatus]? = nil) -> ClusterStatus {
    var status = ClusterStatus(
      version: "0.1.0", time: time,
      cluster: ClusterIdentity(name: "lab", uuid: "0b6f7d52-8d5e-4f0e-9f0a-3f1f4f0c7a11", revision: 4),
      thisNode: "node1")
    status.nodes = [
      NodeStatus(
        name: "node1", id: .first, reachable: true, since: time, boot: "5f3a3d1c-52c9-4b62-8a0c-9d8f1f5a1a01"),
      NodeStatus(
        name: "node2", id: .second, reachable: true, since: time, boot: "b3d4e1aa-0c5e-4f5e-8d7a-7f4e1e6c2b02"),
    ]
    status.links = [
      LinkStatus(
        name: "repl", addresses: ["node1": "10.77.1.1", "node2": "10.77.1.2"], state: .up, since: time,
        replication: true),
      LinkStatus(
        name: "lan", addresses: ["node1": "10.77.0.1", "node2": "10.77.0.2"], state: .late, since: time,
        replication: false),
    ]
    status.arbiter = "policy=none: a survivor goes on 3 s after it lost the other node"
    status.warnings = [
      StatusWarning("can split: no witness", whatToDo: "keep two independent links between the nodes")
    ]
    status.modules = modules ?? [protected("vm1", number: 1), resyncing("vm2", number: 2)]
    return status
  }
}
