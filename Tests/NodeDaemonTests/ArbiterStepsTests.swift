import ControlAPI
import Glibc
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Synchronization
import Testing

@testable import NodeDaemon

/// R5: the whole change on the files of two hosts, stopped wherever it can be stopped.
@Suite(.serialized) struct ArbiterStepsTests {
  private static let vm1 = ModuleName("vm1").unsafelyUnwrapped
  private static let vm2 = ModuleName("vm2").unsafelyUnwrapped
  private let first: LinksHost
  private let second: LinksHost

  init() throws {
    (first, second) = try joinedPair(port: freePort())
    _ = try first.setup.change(
      to: edited(first) {
        $0.arbiter = .witness
        $0.witness = WitnessConfiguration(endpoints: ["https://10.0.0.3:2379"])
        $0.pingAddresses = ["10.0.0.254"]
        $0.moduleArbiters[Self.vm2] = .policyPing
      }, peer: answers(second))
  }

  private func answers(_ host: LinksHost) -> ClusterSetup.AskPeer { { host.setup.answer($0) } }

  private func configuration(_ host: LinksHost) throws -> ClusterConfiguration {
    try #require(try host.membership()).configuration
  }

  private func edited(
    _ host: LinksHost, _ edit: (inout ClusterConfiguration) -> Void
  ) throws -> ClusterConfiguration {
    var changed = try configuration(host)
    edit(&changed)
    return changed
  }

  /// As the nodes' cores would say while nothing happens to them.
  private func reports(_ change: (inout MirrorStatus, ModuleName) -> Void = { _, _ in }) throws -> [ModuleReport] {
    var reports: [ModuleReport] = []
    for (host, node) in [(first, NodeID.first), (second, .second)] {
      let cluster = try configuration(host)
      for module in [Self.vm1, Self.vm2] {
        let settings = MirrorSettings(
          module: module, node: node, nodeName: host.name, peerName: "other", preferred: .first,
          arbiter: arbiterPolicy(cluster.arbiter(of: module)), detection: .seconds(3), bootWait: .seconds(60),
          stopTimeout: .seconds(60), restartsMax: 3, restartWindow: .seconds(60), bootID: "b", seed: 1)
        var status = MirrorModule(settings: settings).status
        status.inSync = true
        status.state = node == .first ? .prim : .second
        change(&status, module)
        reports.append(
          ModuleReport(
            module: module, status: status, wish: Wish(started: true, version: 1), since: .now(), engine: nil,
            branch: nil))
      }
    }
    return reports
  }

  private func change(
    on host: LinksHost, asking peer: ClusterSetup.AskPeer? = nil, checks: [ArbiterCheck] = [],
    pause: @escaping (Duration) -> Bool = { _ in false }, reports: (() throws -> [ModuleReport])? = nil
  ) -> ArbiterChange {
    let ask = peer ?? answers(host === first ? second : first)
    return ArbiterChange(
      what: "it was not changed", reports: reports ?? { try self.reports() },
      rehearse: { _ in CheckReport(arbiter: "", checks: checks) },
      write: { new, old in
        var new = new
        new.revision = old.configuration.revision
        return try host.setup.change(to: new, peer: ask)
      }, pause: pause)
  }

  private func set(_ kind: Arbiter?, _ change: ArbiterChange, on host: LinksHost) throws {
    let membership = try #require(try host.membership())
    var new = membership.configuration
    new.moduleArbiters[Self.vm1] = kind
    _ = try change.run(to: new, from: membership)
  }

  private func arbiters(of module: ModuleName) throws -> [Arbiter] {
    try [first, second].map { try configuration($0).arbiter(of: module) }
  }

  private func refusal(_ work: () throws -> Void) -> ControlError? {
    do {
      try work()
      return nil
    } catch { return error as? ControlError ?? ControlError(.failed, "not a ControlError: \(error)") }
  }

  @Test func aModuleGetsItsOwnOnBothNodesAndGivesItBack() throws {
    try set(.policyPing, change(on: first), on: first)
    #expect(try arbiters(of: Self.vm1) == [.policyPing, .policyPing])
    #expect(try configuration(first) == configuration(second))
    #expect(try configuration(first).arbiter == .witness)
    #expect(
      first.changes.withLock { $0.suffix(2).map { $0.configuration.arbiter(of: Self.vm1) } } == [.wait, .policyPing])
    try set(nil, change(on: second), on: second)
    #expect(try arbiters(of: Self.vm1) == [.witness, .witness])
    #expect(try configuration(second).moduleArbiters == [Self.vm2: .policyPing])
  }

  @Test func whatIsNotSafeIsRefusedAndChangesNothing() throws {
    let before = try configuration(first)
    // Only the module that changes has to be in sync.
    func out(_ name: ModuleName) -> () throws -> [ModuleReport] {
      {
        try self.reports { status, module in
          if module == name { (status.inSync, status.state) = (false, .alone) }
        }
      }
    }
    let alone = refusal { try set(.wait, change(on: first, reports: out(Self.vm1)), on: first) }
    #expect(
      alone?.code == .refused && alone?.why?.contains("vm1 is not in sync") ?? false, "\(String(describing: alone))")
    let late = refusal {
      try set(.wait, change(on: first, reports: { try reports { status, _ in status.arbiter = .fence } }), on: first)
    }
    #expect(late?.why?.contains("has not taken the present arbiter, witness") ?? false, "\(String(describing: late))")
    let check = ArbiterCheck(node: "n2", what: "ping", module: nil, passed: false, detail: "silence", milliseconds: 1)
    let unready = refusal { try set(.policyPing, change(on: first, checks: [check]), on: first) }
    #expect(unready?.why == "n2: ping: silence")
    let lost = refusal {
      try set(.wait, change(on: first, reports: { throw ControlError(.peerUnreachable, "x") }), on: first)
    }
    #expect(lost?.code == .peerUnreachable)
    #expect(refusalOfFence())
    #expect(try configuration(first) == before && configuration(second) == before)

    try set(.wait, change(on: first, reports: out(Self.vm2)), on: first)
    #expect(try arbiters(of: Self.vm1) == [.wait, .wait])
  }

  /// No agent is set up.
  private func refusalOfFence() -> Bool {
    do {
      try set(.fence, change(on: first), on: first)
      return false
    } catch { return "\(error)".contains("fence, the arbiter of vm1, needs fence-1=AGENT:FILE") }
  }

  /// The cores may be behind their configuration: what they do then is looked at before the next step.
  @Test func aRightThatComesBetweenTheStepsStopsThem() throws {
    let looks = Mutex(0)
    let cores = {
      try self.reports { status, module in
        guard module == Self.vm1, status.arbiter == .wait else { return }
        // Behind at first; then it turns out that it went on alone by the arbiter before.
        if looks.withLock({
          $0 += 1; return $0
        }) < 7 {
          status.arbiter = .witness
        } else {
          (status.inSync, status.state) = (false, .alone)
        }
      }
    }
    let pauses = Mutex(0)
    let refused = refusal {
      try set(
        .policyPing,
        change(
          on: first,
          pause: { _ in
            pauses.withLock { $0 += 1 }
            return false
          }, reports: cores), on: first)
    }
    #expect(refused?.message == "the arbiter is 'wait' now, and not policy=ping for vm1 yet")
    #expect(refused?.why?.contains("vm1 is not in sync") ?? false, "\(String(describing: refused))")
    #expect(pauses.withLock { $0 } == 3)
    #expect(try arbiters(of: Self.vm1) == [.wait, .wait])
    #expect(try arbiters(of: Self.vm2) == [.policyPing, .policyPing])
    // Repeated once it is in sync again.
    try set(.policyPing, change(on: second), on: second)
    #expect(try arbiters(of: Self.vm1) == [.policyPing, .policyPing])
  }

  private enum Fault: Hashable {
    /// The host's disk, and so its process, ends with this durable call.
    case crash(isFirst: Bool, call: Int)
    /// This answer of the peer is lost.
    case lostAnswer(Int)
  }

  /// Either host dies at every durable call of the change, or an answer is lost: at no time, and in no order of coming back, have the two
  /// files different arbiters that both give rights; and the same command, on either host, completes it.
  @Test func whereverItStopsNoModuleHasTwoArbiters() throws {
    var stopped = 0
    func sweep(_ fault: (Int) -> Fault) throws {
      for number in 0..<40 {
        // There and back, in two steps each: with an own arbiter, and with the cluster's.
        if try !isStopped(fault(number), setting: number % 2 == 0 ? .policyPing : nil) {
          #expect(number > 0)
          return
        }
        stopped += 1
      }
      Issue.record("the change never got through")
    }
    for isFirst in [true, false] { try sweep { .crash(isFirst: isFirst, call: $0) } }
    try sweep { .lostAnswer($0) }
    #expect(stopped > 20, "\(stopped)")
  }

  /// False: the change was over before the fault came.
  private func isStopped(_ fault: Fault, setting target: Arbiter?) throws -> Bool {
    // So that there always is something to change.
    if try configuration(first).moduleArbiters[Self.vm1] == target {
      try set(target == nil ? .policyPing : nil, change(on: first), on: first)
    }
    let count = Mutex(0)
    let answered = Mutex(0)
    if case .crash(let isFirst, let call) = fault {
      let root = (isFirst ? first : second).paths.root
      HostCalls.setFaultHook { label, path in
        guard path.hasPrefix(root), label.hasPrefix("durable.") else { return nil }
        return count.withLock {
          $0 += 1
          return $0 > call ? EIO : nil
        }
      }
    }
    defer { HostCalls.setFaultHook(nil) }
    let peer: ClusterSetup.AskPeer = { request in
      let answer = second.setup.answer(request)
      if case .lostAnswer(let number) = fault,
        answered.withLock({
          $0 += 1
          return $0 == number + 1
        })
      {
        throw PeerError(.outcomeUnknown, "the connection was lost")
      }
      return answer
    }
    var failed = false
    do { try set(target, change(on: first, asking: peer), on: first) } catch { failed = true }
    HostCalls.setFaultHook(nil)
    try check("\(fault)")
    guard failed else { return false }
    _ = try second.setup.reconcile(peer: answers(first))
    try check("\(fault), the second came back")
    _ = try first.setup.reconcile(peer: answers(second))
    try check("\(fault), the first came back")
    let host = count.withLock { $0 } % 2 == 0 ? first : second
    try set(target, change(on: host), on: host)
    #expect(try configuration(first) == configuration(second), "\(fault)")
    #expect(try configuration(first).moduleArbiters[Self.vm1] == target, "\(fault)")
    return true
  }

  private func check(_ when: String) throws {
    let (a, b) = (try configuration(first), try configuration(second))
    for module in [Self.vm1, Self.vm2, ModuleName("vm3").unsafelyUnwrapped] {
      let rules = [ArbiterRule(a.arbiter(of: module), in: a), ArbiterRule(b.arbiter(of: module), in: b)]
      #expect(rules[0] == rules[1] || rules.contains { $0.kind == .wait }, "\(module) after \(when): \(rules)")
    }
    #expect(a.arbiter == .witness && b.arbiter == .witness && a.arbiter(of: Self.vm2) == .policyPing)
  }
}
