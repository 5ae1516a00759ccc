import ControlAPI
import Model
import ModuleConfig
import Testing

@testable import NodeDaemon

/// R5: two arbiters do not exclude each other, so no node may have one for a module while the other node has another.
@Suite struct ArbiterChangeTests {
  private static let vm1 = ModuleName("vm1").unsafelyUnwrapped
  private static let vm2 = ModuleName("vm2").unsafelyUnwrapped
  private static let kinds: [Arbiter?] = [nil] + Arbiter.allCases

  private func cluster(_ arbiter: Arbiter, vm1: Arbiter? = nil, vm2: Arbiter? = nil) -> ClusterConfiguration {
    var cluster = ClusterConfiguration(
      uuid: "2f6c1a0e-0b4d-4f5e-9d57-0c6b1f3f0a11", name: "c",
      nodes: [ClusterNode(id: .first, name: "a"), ClusterNode(id: .second, name: "b")], links: [], arbiter: arbiter)
    cluster.witness = WitnessConfiguration(endpoints: ["https://10.0.0.3:2379"])
    cluster.moduleArbiters[Self.vm1] = vm1
    cluster.moduleArbiters[Self.vm2] = vm2
    return cluster
  }

  private func path(_ old: ClusterConfiguration, _ new: ClusterConfiguration) -> [ClusterConfiguration] {
    [old] + ArbiterSteps(from: old, to: new).configurations
  }

  @Test func betweenTwoArbitersLiesWait() throws {
    for old in Arbiter.allCases {
      for new in Arbiter.allCases {
        let steps = ArbiterSteps(from: cluster(old), to: cluster(new))
        #expect(steps.isEmpty == (old == new))
        let arbiters = path(cluster(old), cluster(new)).map(\.arbiter)
        #expect(arbiters.last == new && arbiters.count <= 3)
        // While a step is on its way one node has the old one and the other the new one.
        for (before, after) in zip(arbiters, arbiters.dropFirst()) {
          #expect(before == after || before == .wait || after == .wait)
        }
      }
    }
  }

  /// Every pair of neighbours, for every module: the same, or one of them is `wait`; and who does not change never waits.
  @Test func noModuleEverHasTwo() throws {
    for old in Arbiter.allCases {
      for new in Arbiter.allCases {
        for (ownBefore, ownAfter) in Self.kinds.flatMap({ before in Self.kinds.map { (before, $0) } }) {
          let (from, to) = (cluster(old, vm1: ownBefore, vm2: .fence), cluster(new, vm1: ownAfter, vm2: .fence))
          let path = path(from, to)
          #expect(path.last == to)
          for (before, after) in zip(path, path.dropFirst()) {
            for module in [Self.vm1, Self.vm2, ModuleName("vm3").unsafelyUnwrapped] {
              let (a, b) = (before.arbiter(of: module), after.arbiter(of: module))
              #expect(a == b || a == .wait || b == .wait, "\(from) to \(to), \(module)")
            }
            #expect(after.arbiter(of: Self.vm2) == .fence, "it has its own and does not change")
          }
          if old == new, ownAfter != nil || ownBefore != nil {
            #expect(path.allSatisfy { $0.arbiter == old }, "the cluster's is not touched by a module's")
          }
          if from.arbiter(of: Self.vm1) == to.arbiter(of: Self.vm1) {
            #expect(path.allSatisfy { $0.arbiter(of: Self.vm1) == to.arbiter(of: Self.vm1) }, "\(from) to \(to)")
          }
        }
      }
    }
  }

  @Test func anotherEtcdIsAnotherArbiterForThoseThatAskIt() throws {
    var moved = cluster(.witness)
    moved.witness = WitnessConfiguration(endpoints: ["https://10.0.0.4:2379"])
    let steps = ArbiterSteps(from: cluster(.witness), to: moved).configurations
    #expect(steps.map(\.arbiter) == [.wait, .witness])
    #expect(steps[0].witness == cluster(.witness).witness && steps[1] == moved)
    var slower = cluster(.witness)
    slower.detection = .seconds(9)
    #expect(ArbiterSteps(from: cluster(.witness), to: slower).isEmpty)

    moved.arbiter = .policyNone
    moved.moduleArbiters = [Self.vm1: .witness, Self.vm2: .wait]
    let own = ArbiterSteps(from: cluster(.policyNone, vm1: .witness, vm2: .wait), to: moved)
    #expect(own.affects(Self.vm1) && !own.affects(Self.vm2) && !own.affects(ModuleName("vm3").unsafelyUnwrapped))
    #expect(own.configurations.map { $0.arbiter(of: Self.vm1) } == [.wait, .witness])
    #expect(own.configurations.map(\.arbiter) == [.policyNone, .policyNone])
    moved.moduleArbiters = [:]
    #expect(ArbiterSteps(from: cluster(.policyNone), to: moved).isEmpty, "nobody asks it yet")
  }

  /// What is not changed may be broken: that must not forbid to leave it.
  @Test func onlyWhatIsWantedIsRehearsed() {
    let leaving = ArbiterSteps(from: cluster(.witness), to: cluster(.witness, vm1: .policyPing)).trial
    #expect(leaving.arbitersInUse == [.wait, .policyPing])
    let back = ArbiterSteps(from: cluster(.witness, vm1: .wait), to: cluster(.witness)).trial
    #expect(back.arbitersInUse == [.wait, .witness] && back.arbiter(of: Self.vm1) == .witness)
    let default_ = ArbiterSteps(from: cluster(.wait, vm1: .fence), to: cluster(.witness, vm1: .fence)).trial
    #expect(default_.arbitersInUse == [.witness])
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

  @Test func warningsSpeakOfTheModulesTheyConcern() {
    let modules = [Self.vm1, Self.vm2]
    func whats(_ cluster: ClusterConfiguration) -> [String] {
      Daemon.splitWarnings(cluster, modules).map { $0.what + " -> " + $0.whatToDo }
    }
    #expect(whats(cluster(.witness)).isEmpty)
    #expect(whats(cluster(.policyNone, vm1: .witness, vm2: .wait)).isEmpty, "nobody follows the cluster's")
    let all = whats(cluster(.policyNone))
    #expect(all.count == 1 && all[0].hasPrefix("can split: no witness; if both"), "\(all)")
    let some = whats(cluster(.policyNone, vm1: .witness))
    #expect(some.count == 1 && some[0].hasPrefix("can split: no witness (vm2); if both"), "\(some)")
    let own = whats(cluster(.witness, vm1: .policyPing))
    let wayOut = "without a witness: vm1 -> vmha set vm1 --arbiter \(ModuleChanges.clustersArbiter) "
    #expect(own.count == 1 && own[0].contains(wayOut), "\(own)")
    let part = Daemon.modules(asking: .witness, cluster(.wait, vm1: .witness), modules)
    #expect(part == " (vm1)" && Daemon.modules(asking: .witness, cluster(.witness), modules).isEmpty)
  }

  @Test func aJournalLineForEachModuleThatGetsItsOwn() {
    let changes = Daemon.ownArbiterChanges(
      from: cluster(.witness, vm1: .wait), to: cluster(.witness, vm2: .policyPing))
    #expect(changes.map(\.module) == [Self.vm1, Self.vm2])
    #expect(changes[0].sentence == "its arbiter is witness now, the cluster's, instead of wait")
    #expect(changes[1].sentence == "its arbiter is policy=ping now, its own, instead of witness")
  }

  @Test func oneFenceTargetForBothNodesIsFound() {
    func target(_ node: String, _ detail: String, passed: Bool = true) -> ArbiterCheck {
      ArbiterCheck(
        node: node, what: FenceTarget.check, module: nil, passed: passed, detail: detail, milliseconds: 0)
    }
    let same = FenceTarget.sharedByBoth([target("a", "fence_x plug 3"), target("b", "fence_x plug 3")])
    #expect(same?.passed == false && same?.detail.contains("fence_x plug 3") ?? false)
    #expect(FenceTarget.sharedByBoth([target("a", "fence_x plug 3"), target("b", "fence_x plug 4")]) == nil)
    #expect(FenceTarget.sharedByBoth([target("a", "fence_x plug 3")]) == nil)
    #expect(FenceTarget.sharedByBoth([target("a", "no", passed: false), target("b", "no", passed: false)]) == nil)
  }
}
