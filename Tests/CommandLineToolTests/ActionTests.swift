import ControlAPI
import ControlTestSupport
import Model
import Testing

@testable import CommandLineTool

@Suite(.timeLimit(.minutes(1))) struct ActionTests {
  /// vm1 stopped on both nodes.
  private func stopped() -> FakeControlService.State {
    var state = FakeControlService.State()
    state.status = Samples.status([Samples.protected("vm1", number: 1)])
    state.change("vm1") { module in
      module.wish = .stopped
      for index in 0..<2 {
        module.nodes[index].state = .stop
        module.nodes[index].guest = .off
        module.nodes[index].sentence = "stopped by the operator"
      }
    }
    return state
  }

  @Test func startWaitsAndTells() async throws {
    let fake = FakeControlService { state in
      state = stopped()
      state.append(Samples.event(0, "older than the command"))
      state.steps = [
        { state in
          state.change("vm1") {
            $0.nodes[0].state = .prim
            $0.nodes[0].readiness = .transient
          }
          state.append(Samples.event(0, "becomes PRIM", kind: .promoted))
          state.append(Samples.event(0, "another's affair", module: "vm9"))
        },
        { state in
          state.append(Samples.event(0, "the guest starts", kind: .guestStarting, severity: .warning))
        },
        { state in
          state.change("vm1") { module in
            module = Samples.protected("vm1", number: 1)
          }
        },
      ]
    }
    let result = try await vmha(["start", "vm1"], on: fake)
    #expect(result.status == .success && result.errors.isEmpty)
    #expect(
      masked(result.output) == """
        start of vm1 begins
         # s  node1: becomes PRIM
         # s  node1: the guest starts
        vm1 runs on node1  ( # s)

        """)
    #expect(result.calls == ["start vm1"])
  }

  @Test func aBlockedModuleFailsTheCommand() async throws {
    let fake = FakeControlService { state in
      state = stopped()
      state.change("vm1") { module in
        module.nodes[0].state = .wait
        module.nodes[0].readiness = .blocked
        module.nodes[0].sentence = "this copy is outdated, and node2 cannot be reached"
        module.nodes[1].current = false
      }
    }
    let result = try await vmha(["start", "vm1"], on: fake)
    #expect(result.status == .failure)
    #expect(
      result.errors == """
        error: vm1 is not started: WAIT blocked on node1
        why:   this copy is outdated, and node2 cannot be reached
        next:  vmha status vm1, vmha log vm1

        """)
  }

  @Test func aLimitEndsTheWaiting() async throws {
    let fake = FakeControlService { $0 = stopped() }
    let result = try await vmha(["start", "vm1", "--wait", "1"], on: fake)
    #expect(result.status == .timedOut)
    #expect(result.errors.hasPrefix("error: vm1 is not started after 1 s\nwhy:   stopped by the operator\n"))
  }

  @Test func stopAcceptsALostNode() async throws {
    let fake = FakeControlService { state in
      state = stopped()
      state.change("vm1") { $0.nodes[1].current = false }
    }
    let result = try await vmha(["stop", "vm1", "--timeout", "5"], on: fake)
    #expect(result.status == .success)
    #expect(result.output.contains("vm1 is stopped here; node2 cannot be asked"))
    #expect(result.calls == ["timeout 5", "stop vm1"])
  }

  @Test func swapWaitsForTheOtherNode() async throws {
    let fake = FakeControlService { state in
      state.status = Samples.status([Samples.protected("vm1", number: 1)])
      // The first look belongs to the command itself, before the swap.
      state.steps = [
        { _ in },
        { state in state.change("vm1") { $0.nodes[0].readiness = .transient } },
        { state in state.change("vm1") { $0 = Samples.protected("vm1", number: 1, primary: .second) } },
      ]
    }
    let result = try await vmha(["swap", "vm1", "-q"], on: fake)
    #expect(result.status == .success && result.output.isEmpty)
    let refused = ControlError(.refused, "vm1 cannot swap", why: "node2 is not in sync")
    let busy = FakeControlService { $0.failures["swap vm1"] = refused }
    let second = try await vmha(["swap", "vm1"], on: busy)
    #expect(second.status == .refused)
    #expect(second.errors == "error: vm1 cannot swap\nwhy:   node2 is not in sync\n")
  }

  @Test func allGoOnWhenOneFails() async throws {
    let fake = FakeControlService { state in
      state.status = Samples.status([Samples.protected("vm1", number: 1), Samples.protected("vm2", number: 2)])
      state.failures["start vm1"] = ControlError(.refused, "vm1 cannot start")
    }
    let result = try await vmha(["start", "--all"], on: fake)
    #expect(result.status == .refused)
    #expect(result.calls == ["start vm1", "start vm2"])
    #expect(result.output.contains("vm2 runs on node1"))
  }

  @Test func noWaitReturnsAtOnce() async throws {
    let fake = FakeControlService { $0 = stopped() }
    let result = try await vmha(["start", "vm1", "--no-wait"], on: fake)
    #expect(result.status == .success && result.output == "start of vm1 begins\n")
  }

  @Test func forceAsks() async throws {
    let no = try await vmha(["start", "vm1", "--force"], answer: "n")
    #expect(no.status == .refused && no.calls.isEmpty)
    #expect(no.output.contains("Start vm1 by force? [y/N]"))
    let nobody = try await vmha(["start", "vm1", "--force"])
    #expect(nobody.status == .refused && nobody.errors.contains("give --yes"))
    let yes = try await vmha(["start", "vm1", "--force", "--yes"])
    #expect(yes.status == .success && yes.calls == ["force-start vm1"])
  }
}
