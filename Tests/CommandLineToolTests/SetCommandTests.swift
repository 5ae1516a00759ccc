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

  @Test func whatIsNotUnderstoodIsRefused() async throws {
    for line in [["set", "vm1"], ["set", "--resync-priority", "high"], ["set", "vm1", "--resync-priority", "7"]] {
      let result = try await vmha(line)
      #expect(result.status == .usage && result.calls.isEmpty, "\(line): \(result)")
    }
  }

  @Test func aSeedIsNamedByItsPathOnTheOtherNode() async throws {
    let add = try await vmha(["add", "vm3", "--yes", "--seed-from", "carried"])
    #expect(add.status == .usage && add.errors.contains("absolute path, on the other node"), "\(add)")
  }
}
