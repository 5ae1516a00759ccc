import ControlAPI
import ControlTestSupport
import Model
import Testing

@testable import CommandLineTool

@Suite(.timeLimit(.minutes(1))) struct VerifyCommandTests {
  private func operation(_ result: VerificationResult?, _ sentence: String, error: ControlError? = nil)
    -> OperationStatus
  {
    var status = OperationStatus(
      id: OperationID(rawValue: "op-3"), kind: .verify, module: "vm1", sentence: sentence)
    status.finished = true
    status.verification = result
    status.error = error
    return status
  }

  private func result(
    _ findings: [VerifyFinding] = [], count: Int? = nil, repaired: Int = 0, complete: Bool = true
  ) -> VerificationResult {
    VerificationResult(
      node: "node1", startedAt: Samples.time, endedAt: Samples.time + .seconds(90), complete: complete, bytes: 1 << 30,
      findings: findings, findingsCount: count ?? findings.count, repairedCount: repaired)
  }

  private func fake(_ operation: OperationStatus) -> FakeControlService {
    FakeControlService { $0.operations = [operation] }
  }

  @Test func theExitCodeTells() async throws {
    let same = try await vmha(["verify", "vm1"], on: fake(operation(result(), "vm1: both copies are identical")))
    #expect(same.status == .success && same.calls == ["verify vm1", "operation op-3"])
    #expect(same.output == "vm1: both copies are identical\n")

    let place = VerifyFinding(path: "disk.img", kind: .differs, offset: 5_242_880, length: 65536)
    let differs = try await vmha(
      ["verify", "vm1"], on: fake(operation(result([place], count: 20), "vm1: they DIFFER")))
    #expect(differs.status == .differs && differs.status.rawValue == 6)
    #expect(
      differs.output == """
        vm1: they DIFFER
          disk.img: 64.0 KiB at offset 5242880 differ
          and 19 more

        """)

    let error = ControlError(.failed, "vm1: interrupted", why: "the session was lost", httpStatus: 500)
    let cut = try await vmha(
      ["verify", "vm1"], on: fake(operation(result(complete: false), "vm1: interrupted", error: error)))
    #expect(cut.status == .failure && cut.errors.contains("the session was lost"))
    // What was found before it was interrupted is a difference.
    let cutLate = try await vmha(
      ["verify", "vm1"], on: fake(operation(result([place], complete: false), "vm1: interrupted", error: error)))
    #expect(cutLate.status == .differs && cutLate.output.contains("disk.img"))

    let refused = try await vmha(
      ["verify", "vm1"],
      on: FakeControlService { $0.failures["verify vm1"] = ControlError(.refused, "vm1 is not compared", why: "ALONE") }
    )
    #expect(refused.status == .refused)
    #expect(try await vmha(["verify", "vm1", "--stop", "--repair"]).status == .usage)
    #expect(try await vmha(["verify", "vm1", "--yes"]).status == .usage)
    #expect(try await vmha(["verify", "vm1", "--stop"]).calls == ["stop-verify vm1"])
    #expect(try await vmha(["verify", "vm1", "--no-wait"]).calls == ["verify vm1"])
  }

  @Test func aRepairIsAgreedTo() async throws {
    var place = VerifyFinding(path: "disk.img", kind: .size, length: 512)
    place.isRepaired = true
    let done = operation(result([place], repaired: 1), "vm1: both copies are identical; 1 place repaired from node1")
    let alone = try await vmha(["verify", "vm1", "--repair"], on: fake(done))
    #expect(alone.status == .refused && alone.calls == [])
    let asked = try await vmha(["verify", "vm1", "--repair"], on: fake(done), answer: "n")
    #expect(asked.status == .refused && asked.calls == [])
    #expect(asked.output.contains("the other node gets what node1 has"))
    let agreed = try await vmha(["verify", "vm1", "--repair", "--yes"], on: fake(done))
    #expect(agreed.status == .success && agreed.calls == ["repair vm1", "operation op-3"])
    #expect(agreed.output.contains("disk.img: the lengths differ by 512 B, repaired"))
  }

  @Test func statusShowsWhatIsKnown() async throws {
    let fake = FakeControlService { state in
      state.change("vm1") { module in
        var known = VerificationStatus()
        known.identicalUpTo = Samples.time
        known.last = result()
        module.verification = known
      }
      state.change("vm2") { $0.verification = VerificationStatus() }
    }
    let time = "\(Samples.time.localTimeOfDay.prefix(5)) (verified \(Samples.time.localDate))"
    #expect(try await vmha(["status", "vm1"], on: fake).output.contains("copies       identical up to \(time)"))
    #expect(try await vmha(["status", "vm2"], on: fake).output.contains("never verified"))
    #expect(
      try await vmha(["status", "-q"], on: FakeControlService { $0.status.modules.removeLast() }).status == .success)

    let place = VerifyFinding(path: "disk.img", kind: .differs, offset: 65536, length: 65536)
    let differing = FakeControlService { state in
      state.status.modules.removeLast()
      state.change("vm1") { module in
        var known = VerificationStatus()
        known.last = result([place])
        module.verification = known
      }
    }
    let details = try await vmha(["status", "vm1"], on: differing).output
    #expect(
      details.contains("DIFFER in 1 place") && details.contains("    disk.img: 64.0 KiB at offset 65536 differ\n"))
    #expect(try await vmha(["status"], on: differing).output.contains("the copies DIFFER, see vmha status vm1"))
    #expect(try await vmha(["status", "-q"], on: differing).status == .failure)
  }
}
