import ControlAPI
import ControlTestSupport
import Foundation
import Model
import Testing

@testable import CommandLineTool

@Suite(.timeLimit(.minutes(1))) struct StatusTests {
  @Test func overview() async throws {
    let result = try await vmha(["status"])
    #expect(result.status == .success)
    #expect(
      result.output == """
        cluster lab
          node  node1  up    this node
          node  node2  up    for 0 s
          link  repl   up    10.77.1.1 - 10.77.1.2, replication
          link  lan    late  10.77.0.1 - 10.77.0.2, heartbeat only, for 0 s

        arbiter: policy=none: a survivor goes on 3 s after it lost the other node
        warning: can split: no witness
                 keep two independent links between the nodes

        VM   node1  node2                           GUEST             CHECK
        vm1  PRIM   SECOND                          running on node1  answers  serves the guest; both copies are the same
        vm2  ALONE  SECOND transient, inconsistent  running on node1  -        copying 25 %, 50.0 MiB/s, 1 s left

        """)
  }

  @Test func aModulesOwnArbiterIsShown() async throws {
    let fake = FakeControlService { state in
      state.change("vm1") { $0.arbiter = ModuleArbiter(kind: "witness", own: false, text: "witness: etcd decides") }
      state.change("vm2") { $0.arbiter = ModuleArbiter(kind: "wait", own: true, text: "wait: freezes until then") }
    }
    let table = try await vmha(["status"], on: fake).output
    #expect(
      table.contains("\n  vm2 has its own: wait: freezes until then\n") && !table.contains("vm1 has its own"),
      "\(table)")
    #expect(try await vmha(["status", "vm2"], on: fake).output.contains("its own, wait: freezes until then"))
    #expect(try await vmha(["status", "vm1"], on: fake).output.contains("arbiter      witness: etcd decides"))
  }

  @Test func troubleIsShownFirst() async throws {
    let fake = FakeControlService { state in
      state.status.nodes[1].reachable = false
      state.status.time = WallTime(milliseconds: Samples.time.milliseconds + 200_000)
      state.change("vm1") { module in
        module.nodes[1].current = false
        module.nodes[0].state = .wait
        module.nodes[0].readiness = .blocked
        module.nodes[0].guest = .off
        module.nodes[0].sentence = "needs node2: this copy is not the newest"
        module.check?.answers = false
      }
      state.change("vm2") { $0.split = true }
    }
    let result = try await vmha(["status"], on: fake)
    let lines = result.output.split(separator: "\n").map(String.init)
    #expect(lines.contains("  node  node2  lost  for 3 min"))
    let first = "vm1  WAIT blocked  (SECOND)                        off               silent  "
    #expect(lines.first { $0.hasPrefix("vm1") } == first + "node1: needs node2: this copy is not the newest")
    #expect(lines.contains { $0.hasSuffix("SPLIT: both copies are kept, see vmha status vm2") })
  }

  @Test func aResyncThatWaitsOrStallsIsTold() async throws {
    let fake = FakeControlService { state in
      state.change("vm2") { module in
        module.resyncPriority = .low
        for index in module.nodes.indices {
          module.nodes[index].resync = nil
          module.nodes[index].resyncWait = ResyncWait(higherPriority: 2, others: 1)
        }
      }
    }
    let table = try await vmha(["status"], on: fake)
    #expect(table.output.contains("its copy waits for 2 resyncs of higher priority and 1 other"), "\(table.output)")
    let details = try await vmha(["status", "vm2"], on: fake)
    #expect(details.output.contains("low priority"))
    #expect(details.output.ranges(of: "waits for 2 resyncs of higher priority and 1 other").count == 2)
    #expect(Wording.wait(ResyncWait(higherPriority: 1, others: 0)) == "waits for 1 resync of higher priority")
    #expect(Wording.wait(ResyncWait(higherPriority: 0, others: 2)) == "waits for 2 other resyncs")
    let stalled = ResyncStatus(
      bytesTotal: 100, bytesDone: 25, bytesSent: 25, bytesPerSecond: 0, secondsLeft: nil, stalledSeconds: 12)
    #expect(Wording.resync(stalled) == "25 %, stalled: nothing moved for 12 s")
  }

  @Test func detailsOfOneVM() async throws {
    let result = try await vmha(["status", "vm2"])
    let day = Samples.time.localDate
    let time = Samples.time.localTimeOfDay
    #expect(
      result.output == """
        vm2  (module 2)
          wished       started
          preferred    node2
          replication  over link repl
          in flight    0 requests
          last event   \(time) node1: copying to node2 begins
          node1: ALONE
            because  copies to node2
            guest    running
            copy     uptodate, generation 3, branch 5eed000000000003
            resync   16.0 MiB of 64.0 MiB, 25 %, 50.0 MiB/s, 1 s left, 9.0 MiB sent
            since    \(day) \(time)
          node2: SECOND transient, inconsistent
            because  takes the copy from node1
            guest    off
            copy     inconsistent, generation 3, branch 5eed000000000003
            resync   16.0 MiB of 64.0 MiB, 25 %, 50.0 MiB/s, 1 s left, 9.0 MiB sent
            since    \(day) \(time)

        """)
  }

  @Test func jsonIsThePayload() async throws {
    let result = try await vmha(["status", "--json"])
    #expect(try ControlCoding.decode(ClusterStatus.self, from: Data(result.output.utf8)) == Samples.status())
    let one = try await vmha(["status", "--json", "vm2"])
    #expect(try ControlCoding.decode(ClusterStatus.self, from: Data(one.output.utf8)).modules.map(\.name) == ["vm2"])
  }

  @Test func quietTellsByItsCode() async throws {
    let mixed = try await vmha(["status", "-q"])
    #expect(mixed.status == .failure && mixed.output.isEmpty)
    let well = FakeControlService { $0.status = Samples.status([Samples.protected("vm1", number: 1)]) }
    #expect(try await vmha(["status", "-q"], on: well).status == .success)
    let stopped = FakeControlService { state in
      state.status = Samples.status([Samples.protected("vm1", number: 1)])
      state.change("vm1") { module in
        module.wish = .stopped
        for index in 0..<2 { module.nodes[index].state = .stop }
      }
    }
    #expect(try await vmha(["status", "-q"], on: stopped).status == .success)
  }

  @Test func noClusterAndNoModules() async throws {
    let none = FakeControlService { $0.status.cluster = nil }
    #expect(try await vmha(["status"], on: none).output.hasPrefix("node1 belongs to no cluster.\n"))
    let empty = FakeControlService { $0.status.modules = [] }
    #expect(try await vmha(["status"], on: empty).output.contains("No VM is protected yet."))
  }

  @Test func unknownVMIsAnError() async throws {
    let result = try await vmha(["status", "nosuch"])
    #expect(result.status == .refused)
    #expect(
      result.errors == """
        error: no protected VM is named 'nosuch'
        why:   vmha protects no module of this name in this cluster
        next:  see them with: vmha status; protect a VM with: vmha add nosuch

        """)
  }

  @Test func coloursAndCuttingAreForTerminalsOnly() {
    func console(_ isTerminal: Bool, _ colour: Bool) -> Console {
      Console(
        isTerminal: isTerminal, canAsk: false, usesColour: colour, width: 60, write: { _ in }, writeError: { _ in },
        readAnswer: { nil })
    }
    let coloured = StatusRendering(Samples.status(), console(true, true)).overview().joined(separator: "\n")
    #expect(coloured.contains("\u{1B}[32mPRIM\u{1B}[0m"))
    let narrow = StatusRendering(Samples.status(), console(true, false)).overview()
    #expect(narrow.allSatisfy { !$0.contains("\u{1B}") })
    let plain = StatusRendering(Samples.status(), console(false, false)).overview()
    #expect(plain.contains { $0.hasSuffix("both copies are the same") })
  }

  @Test func figures() {
    #expect(Wording.bytes(0) == "0 B" && Wording.bytes(1023) == "1023 B" && Wording.bytes(1536) == "1.5 KiB")
    #expect(Wording.bytes(UInt64.max) == "16384.0 PiB")
    #expect(Wording.roughly(seconds: 119) == "119 s" && Wording.roughly(seconds: 12000) == "3 h 20 min")
    #expect(Wording.roughly(seconds: 180_000) == "2 d 2 h" && Wording.roughly(seconds: -5) == "0 s")
    #expect(Wording.seconds(.milliseconds(1250)) == "1.3 s" || Wording.seconds(.milliseconds(1250)) == "1.2 s")
    var operation = OperationStatus(id: OperationID(rawValue: "x"), kind: .add, module: "vm", sentence: "")
    operation.bytesDone = 1 << 30
    operation.bytesTotal = 3 << 30
    #expect(OperationProgress.bar(operation) == "[##########--------------------]  33 %  1.0 GiB of 3.0 GiB")
  }
}
