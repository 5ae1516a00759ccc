import ControlAPI
import ControlTestSupport
import Testing

@testable import CommandLineTool

@Suite(.timeLimit(.minutes(1))) struct SetCommandTests {
  @Test func thePriorityIsSetOnEach() async throws {
    let set = try await vmha(["set", "vm1", "vm2", "--resync-priority", "high"])
    #expect(set.status == .success && set.calls == ["set vm1 high", "set vm2 high"], "\(set)")
    #expect(set.output == "vm1: set on both nodes\nvm2: set on both nodes\n")
  }

  @Test func theArbiterIsSetOnEach() async throws {
    let set = try await vmha(["set", "vm1", "vm2", "--arbiter", "wait"])
    #expect(set.calls == ["set vm1 arbiter wait", "set vm2 arbiter wait"], "\(set)")
    #expect(set.output == "vm1: set on both nodes\nvm2: set on both nodes\n")
    let back = try await vmha(["set", "vm1", "--arbiter=cluster", "--resync-priority", "low"])
    #expect(back.calls == ["set vm1 low, arbiter cluster"], "\(back)")
  }

  /// What it costs is said with the answer.
  @Test func theAnswerSaysWhatTheArbiterMeans() async throws {
    for kind in ["fence", "witness+fence"] {
      let set = try await vmha(["set", "vm1", "--arbiter", kind])
      #expect(
        set.status == .success && set.output.contains("powers the whole other node off, under all its VMs"), "\(set)")
    }
    for kind in ["policy=ping", "policy=none"] {
      let set = try await vmha(["set", "vm1", "--arbiter", kind])
      #expect(set.calls == ["set vm1 arbiter \(kind)"] && set.output.contains("can split"), "\(set)")
    }
    #expect(try await vmha(["set", "-q", "vm1", "--arbiter", "fence"]).output.isEmpty)
  }

  @Test func whatIsNotUnderstoodIsRefused() async throws {
    for line in [
      ["set", "vm1"], ["set", "--resync-priority", "high"], ["set", "vm1", "--resync-priority", "7"],
      ["set", "vm1", "--arbiter", "dice"], ["set", "vm1", "--arbiter", ""], ["set", "--arbiter", "wait"],
    ] {
      let result = try await vmha(line)
      #expect(result.status == .usage && result.calls.isEmpty, "\(line): \(result)")
    }
  }

  @Test func aSeedIsNamedByItsPathOnTheOtherNode() async throws {
    let add = try await vmha(["add", "vm3", "--yes", "--seed-from", "carried"])
    #expect(add.status == .usage && add.errors.contains("absolute path, on the other node"), "\(add)")
  }
}
