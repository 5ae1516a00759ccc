import Model
import ModuleConfig
import Testing

@testable import NodeDaemon

/// R5: two arbiters do not exclude each other, so no node may have one while the other node has another.
@Suite struct ArbiterChangeTests {
  private func cluster(_ arbiter: Arbiter) -> ClusterConfiguration {
    var cluster = ClusterConfiguration(
      uuid: "2f6c1a0e-0b4d-4f5e-9d57-0c6b1f3f0a11", name: "c",
      nodes: [ClusterNode(id: .first, name: "a"), ClusterNode(id: .second, name: "b")], links: [], arbiter: arbiter)
    cluster.witness = WitnessConfiguration(endpoints: ["https://10.0.0.3:2379"])
    return cluster
  }

  @Test func betweenTwoArbitersLiesWait() throws {
    for old in Arbiter.allCases {
      for new in Arbiter.allCases {
        let steps = Daemon.stepsToArbiter(of: cluster(new), from: cluster(old))
        if old == new {
          #expect(steps == nil)
          continue
        }
        let arbiters = try [old] + #require(steps).map(\.arbiter)
        #expect(arbiters.last == new)
        // While a step is on its way one node has the old one and the other the new one.
        for (before, after) in zip(arbiters, arbiters.dropFirst()) { #expect(before == .wait || after == .wait) }
      }
    }
  }

  @Test func anotherEtcdIsAnotherArbiter() throws {
    var moved = cluster(.witness)
    moved.witness = WitnessConfiguration(endpoints: ["https://10.0.0.4:2379"])
    let steps = try #require(Daemon.stepsToArbiter(of: moved, from: cluster(.witness)))
    #expect(steps.map(\.arbiter) == [.wait, .witness])
    #expect(steps[0].witness == cluster(.witness).witness && steps[1] == moved)
    var slower = cluster(.witness)
    slower.detection = .seconds(9)
    #expect(Daemon.stepsToArbiter(of: slower, from: cluster(.witness)) == nil)
  }

  @Test func settingsAreSetAndTakenBack() throws {
    var changed = cluster(.wait)
    try Daemon.apply(
      [
        "witness-endpoints": "https://10.0.0.3:2379,https://10.0.0.4:2379", "witness-ca": "/etc/vmha/ca.crt",
        "fence-1": "fence_ipmilan:/etc/vmha/fence-1", "ping": "10.0.0.1,10.0.0.2",
      ], to: &changed)
    #expect(changed.witness?.endpoints.count == 2 && changed.witness?.authorityFile == "/etc/vmha/ca.crt")
    #expect(
      changed.fences == [.first: FenceConfiguration(agent: "fence_ipmilan", optionsFile: "/etc/vmha/fence-1")])
    #expect(changed.pingAddresses == ["10.0.0.1", "10.0.0.2"])
    try Daemon.apply(["witness-endpoints": "", "witness-ca": "", "fence-1": "", "ping": ""], to: &changed)
    #expect(changed.witness == nil && changed.fences.isEmpty && changed.pingAddresses.isEmpty)
    #expect(throws: (any Error).self) { try Daemon.apply(["fence-2": "fence_ipmilan"], to: &changed) }
    #expect(throws: (any Error).self) { try Daemon.apply(["witness-colour": "blue"], to: &changed) }
  }
}
