import ControlAPI
import ControlTestSupport
import Model
import Testing

@testable import CommandLineTool

/// What `vmha start --force` says before it does anything.
@Suite(.timeLimit(.minutes(1))) struct ForceTests {
  /// node1, where the command is given, waits for node2.
  private func waiting(_ standing: Standing, _ change: (inout ModuleStatus) -> Void = { _ in }) -> FakeControlService {
    FakeControlService { state in
      state.status = Samples.status([Samples.protected("vm1", number: 1)])
      state.change("vm1") { module in
        module.nodes[0] = Samples.node(.first, .wait, .blocked, standing: standing, sentence: "waiting for node2")
        var facts = BranchFacts(
          since: nil, lastWrite: Samples.time, bytesWritten: 3 << 20, bytesOnDisk: 8 << 20, bytesFree: 1 << 30)
        facts.lastInSync = Samples.time
        module.nodes[0].branch = facts
        module.nodes[1].current = false
        change(&module)
      }
    }
  }

  private func said(_ fake: FakeControlService) async throws -> String {
    let result = try await vmha(["start", "vm1", "--force"], on: fake, answer: "n")
    #expect(result.status == .refused && result.calls.isEmpty)
    return result.errors
  }

  @Test func anOldCopyIsCalledOld() async throws {
    let text = try await said(waiting(.outdated))
    let time = "\(Samples.time.localDate) \(Samples.time.localTimeOfDay)"
    #expect(text.contains("this copy is OUTDATED: node2 went on without it"))
    #expect(text.contains("its data: in sync until \(time), last written \(time) (0 s ago)"))
    #expect(text.contains("If node2 still runs, or comes back with writes of its own, the module splits"))
  }

  @Test func aCopyThatWasInSyncMayBeTheNewest() async throws {
    let text = try await said(waiting(.uptodate))
    #expect(text.contains("whether node2 went on without it is not known") && !text.contains("OUTDATED"))
  }

  @Test func halfACopyIsNotOffered() async throws {
    #expect(try await said(waiting(.inconsistent)).contains("not usable: it will be refused"))
  }

  /// It may be the best copy there is: it is offered, and what it may be worth is said.
  @Test func aLostRecordIsOfferedWithItsRisk() async throws {
    let here = waiting(.inconsistent) { $0.nodes[0].recordLost = true }
    let text = try await said(here)
    #expect(text.contains("its record is LOST") && text.contains("half of one and half of another"))
    #expect(!text.contains("refused"))
    let overview = try await vmha(["status"], on: here).output
    #expect(overview.contains("WAIT blocked, record lost") && !overview.contains("blocked, inconsistent"))
    #expect(try await vmha(["status", "vm1"], on: here).output.contains("its record is lost: nobody knows"))
    let there = try await said(waiting(.uptodate) { $0.nodes[1].recordLost = true })
    #expect(there.contains("node2 lost its record: its copy, which may be the newer one, is overwritten"))
  }

  @Test func aSplitSaysThatThisCopyHasWritesOfItsOwn() async throws {
    let text = try await said(waiting(.uptodate) { $0.split = true })
    #expect(text.contains("vm1 is SPLIT. This copy has writes of its own, and node2's copy has others"))
    #expect(text.contains("at most 3.0 MiB written since in sync"))
  }

  @Test func nothingIsSaidOfLossWhereItRunsAlready() async throws {
    let fake = FakeControlService { $0.status = Samples.status([Samples.protected("vm1", number: 1)]) }
    #expect(try await said(fake).hasPrefix("vm1 runs on node1 already: --force changes nothing.\n"))
  }

  /// `vmha status` says for what, and how old the data is.
  @Test func aCopyThatWaitsSaysHowOldItIs() async throws {
    let fake = waiting(.outdated)
    fake.edit { $0.status.time = WallTime(milliseconds: Samples.time.milliseconds + 7_260_000) }
    let overview = try await vmha(["status"], on: fake)
    let day = Samples.time.localDate
    #expect(overview.output.contains("node1: waiting for node2. Its data: in sync until \(day)"))
    #expect(overview.output.contains("(2 h 1 min ago)"))
    let details = try await vmha(["status", "vm1"], on: fake)
    #expect(details.output.contains("in sync until \(day)"))
  }
}
