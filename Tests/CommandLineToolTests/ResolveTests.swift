import ControlAPI
import ControlTestSupport
import FoundationEssentials
import Model
import Testing

@testable import CommandLineTool

@Suite(.timeLimit(.minutes(1))) struct ResolveTests {
  /// vm1 SPLIT, both guests running.
  private func split() -> FakeControlService.State {
    var state = FakeControlService.State()
    state.status = Samples.status([Samples.protected("vm1", number: 1)])
    state.change("vm1") { module in
      module.split = true
      for index in 0..<2 {
        module.nodes[index].state = .alone
        module.nodes[index].readiness = .blocked
        module.nodes[index].guest = .running
        module.nodes[index].generation = GenerationStatus(
          Generation(number: 3, branch: BranchID(rawValue: UInt64(0xa + index))))
        module.nodes[index].branch = BranchFacts(
          since: Samples.time, lastWrite: Samples.time, bytesWritten: index == 0 ? 3 << 20 : nil, bytesOnDisk: 8 << 20,
          bytesFree: 1 << 30)
      }
    }
    return state
  }

  @Test func bothSidesAreShownAndWhatWasSeenIsSent() async throws {
    let fake = FakeControlService { state in
      state = split()
      state.steps = [{ _ in }, { state in state.change("vm1") { $0 = Samples.protected("vm1", number: 1) } }]
    }
    let result = try await vmha(["resolve", "vm1", "--keep", "node2", "--yes"], on: fake)
    #expect(result.status == .success, "\(result.errors)")
    #expect(result.calls == ["resolve vm1"])
    #expect(
      fake.edit { $0.resolve }
        == ResolveRequest(keep: "node2", branches: ["node1": "000000000000000a", "node2": "000000000000000b"]))
    #expect(result.errors.contains("node1: ALONE, guest running, generation 3, branch 000000000000000a"))
    #expect(result.errors.contains("at most 3.0 MiB written since in sync"))
    #expect(result.errors.contains("is ARCHIVED there; its guest is shut down, 8.0 MiB without reflinks, 1.0 GiB free"))
    #expect(result.errors.contains("an unknown part of it written") && result.errors.contains("goes on as it is"))
    #expect(result.output.contains("vm1 is in sync again"))
  }

  @Test func nothingIsDoneUnasked() async throws {
    let fake = FakeControlService { $0 = split() }
    let unasked = try await vmha(["resolve", "vm1", "--keep", "node2"], on: fake)
    #expect(unasked.status == .refused && unasked.calls == [])
    let nobody = try await vmha(["resolve", "vm1", "--keep", "node3", "--yes"], on: fake)
    #expect(nobody.status == .refused && nobody.calls == [] && nobody.errors.contains("the nodes are"))
    fake.edit { $0.change("vm1") { $0.split = false } }
    let whole = try await vmha(["resolve", "vm1", "--keep", "node2", "--yes"], on: fake)
    #expect(whole.status == .refused && whole.calls == [] && whole.errors.contains("not SPLIT"))
  }

  @Test func statusShowsBothBranches() async throws {
    let fake = FakeControlService { $0 = split() }
    let result = try await vmha(["status", "vm1"], on: fake)
    #expect(result.output.contains("vmha resolve vm1 --keep NODE"))
    #expect(result.output.components(separatedBy: "alone since").count == 3)
  }

  @Test func branchesAreListedExportedAndDropped() async throws {
    let fake = FakeControlService { state in
      state.status = Samples.status([Samples.protected("vm1", number: 1)])
      state.branches = [
        ArchivedBranch(
          branch: "000000000000000a", number: 3, node: "node1", since: nil, lastWrite: Samples.time,
          archived: Samples.time, bytes: 8 << 20, files: 1,
          directory: "/images/.vmha-vm1@branches/000000000000000a/files")
      ]
      var done = OperationStatus(
        id: OperationID(rawValue: "op"), kind: .exportBranch, module: "vm1", sentence: "it is there")
      done.finished = true
      state.operations = [done]
    }
    let list = try await vmha(["branch", "list"], on: fake)
    #expect(list.output.contains("000000000000000a") && list.output.contains("8.0 MiB"))
    let out = try await vmha(["branch", "export", "vm1", "000000000000000a", "/tmp/out"], on: fake)
    #expect(out.status == .success && fake.calls.contains("export vm1 000000000000000a /tmp/out"))
    let unasked = try await vmha(["branch", "drop", "vm1", "000000000000000a"], on: fake)
    #expect(unasked.status == .refused && !fake.calls.contains("drop vm1 000000000000000a"))
    let other = try await vmha(["branch", "drop", "vm1", "000000000000000b", "--yes"], on: fake)
    #expect(other.status == .refused)
    let dropped = try await vmha(["branch", "drop", "vm1", "000000000000000a", "--yes"], on: fake)
    #expect(dropped.status == .success && fake.calls.contains("drop vm1 000000000000000a"))
  }
}
