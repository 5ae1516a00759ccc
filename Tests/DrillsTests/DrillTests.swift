import ControlAPI
import ControlTestSupport
import Glibc
import Model
import Synchronization
import Testing

@testable import Drills

@Suite(.timeLimit(.minutes(1))) struct DrillTests {
  /// Answers while the fake's guest runs.
  private struct FakeProbe: GuestProbe {
    let fake: FakeControlService
    func answers(_ check: CheckStatus) async -> Bool {
      fake.edit { $0.status.modules.first?.nodes.contains { $0.guest == .running } ?? false }
    }
  }

  private func drill(_ fake: FakeControlService, _ kind: DrillKind) -> Drill {
    var timing = Drill.Timing()
    timing.interval = .milliseconds(2)
    timing.legMax = .seconds(1)
    timing.protectedMax = .seconds(1)
    return Drill(
      service: fake, probe: FakeProbe(fake: fake), module: "vm1", kind: kind, timing: timing,
      clock: bootClockNanoseconds, tell: { _ in })
  }

  private func protected(_ steps: [@Sendable (inout FakeControlService.State) -> Void]) -> FakeControlService {
    FakeControlService { state in
      state.status = Samples.status([Samples.protected("vm1", number: 1)])
      // Before them: one look by the drill itself.
      state.steps = [{ _ in }] + steps
    }
  }

  /// As vmhad's journal would write it now.
  private static func now(_ kind: EventKind, _ node: String) -> JournalEvent {
    JournalEvent(
      monotonicNanoseconds: bootClockNanoseconds(), node: node, module: "vm1", kind: kind, sentence: kind.rawValue)
  }

  @Test func aSwapGoesThereAndBack() async throws {
    let fake = protected([
      { state in
        state.change("vm1") { $0.nodes[0].guest = .off }
        state.append(Self.now(.guestStopped, "node1"))
      },
      { state in
        state.change("vm1") { $0 = Samples.protected("vm1", number: 1, primary: .second) }
        state.append(Self.now(.promoted, "node2"))
        state.append(Self.now(.guestStarted, "node2"))
      },
      // Two looks until the guest has answered, one that finds it protected; then the way back.
      { _ in }, { _ in },
      { state in state.change("vm1") { $0.nodes[1].guest = .off } },
      { state in state.change("vm1") { $0 = Samples.protected("vm1", number: 1) } },
    ])
    let report = try await drill(fake, .swap).run()
    #expect(report.succeeded && report.problem == nil)
    #expect(report.legs.map(\.name) == ["swap", "swap back"])
    #expect(report.legs.map(\.to) == ["node2", "node1"])
    #expect(report.legs.allSatisfy { $0[.answering] != nil && $0[.started] != nil })
    #expect(fake.calls.filter { $0.hasPrefix("swap") } == ["swap vm1", "swap vm1"])
  }

  @Test func aCrashInPlaceNeedsNoWayBack() async throws {
    let fake = protected([
      { state in
        state.change("vm1") { $0.nodes[0].guest = .off }
        state.append(Self.now(.guestDied, "node1"))
      },
      { state in
        state.change("vm1") { $0.nodes[0].guest = .running }
        state.append(Self.now(.guestStarted, "node1"))
      },
    ])
    let report = try await drill(fake, .crash).run()
    #expect(report.succeeded)
    #expect(report.legs.map(\.name) == ["crash"])
    #expect(report.check == "tcp 10.77.0.21 port 80" && report.host == "node1" && report.cluster == "lab")
    #expect(report.legs[0][.promoted] == nil && report.legs[0][.noticed] != nil)
    #expect(fake.calls.contains("crash vm1"))
  }

  @Test func aGuestThatDoesNotComeBackIsReported() async throws {
    let fake = protected([{ state in state.change("vm1") { $0.nodes[0].guest = .off } }])
    let report = try await drill(fake, .crash).run()
    #expect(!report.succeeded)
    #expect(report.problem?.hasPrefix("the crash did not end within 1 s") == true)
    #expect(report.legs.count == 1 && report.legs[0].to == nil)
  }

  @Test func refusals() async throws {
    let good = Samples.protected("vm1", number: 1)
    #expect(Drill.refusal(good) == nil)
    let spoil: [(String, (inout ModuleStatus) -> Void)] = [
      ("split", { $0.split = true }), ("busy", { $0.operation = "add" }),
      ("cannot be reached", { $0.nodes[1].current = false }), ("uptodate copies", { $0.nodes[1].standing = .outdated }),
      ("uptodate copies", { $0.nodes[1].readiness = .transient }), ("uptodate copies", { $0.nodes[0].state = .alone }),
      ("does not run", { $0.nodes[0].guest = .paused }),
    ]
    for (word, change) in spoil {
      var module = good
      change(&module)
      let refusal = try #require(Drill.refusal(module))
      #expect(refusal.code == .refused && refusal.why?.contains(word) == true)
    }
    let silent = protected([])
    silent.edit { $0.change("vm1") { $0.check?.address = "x" } }
    struct Mute: GuestProbe { func answers(_ check: CheckStatus) async -> Bool { false } }
    let drill = Drill(
      service: silent, probe: Mute(), module: "vm1", kind: .crash, clock: bootClockNanoseconds, tell: { _ in })
    let error = try await #require(throws: ControlError.self) { try await drill.run() }
    #expect(error.message.contains("does not answer"))
    #expect(!silent.calls.contains("crash vm1"))
  }

  @Test func theProbeAsksForReal() async throws {
    let listener = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    defer { close(listener) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    withUnsafeMutablePointer(to: &address) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        #expect(bind(listener, $0, length) == 0)
        #expect(listen(listener, 4) == 0)
        #expect(getsockname(listener, $0, &length) == 0)
      }
    }
    let port = Int(UInt16(bigEndian: address.sin_port))
    func check(_ kind: CheckStatus.Kind, _ port: Int?) -> CheckStatus {
      CheckStatus(kind: kind, address: "127.0.0.1", port: port, answers: false, time: nil)
    }
    let probe = HostProbe()
    #expect(await probe.answers(check(.tcp, port)))
    #expect(await !probe.answers(check(.tcp, 1)))
    #expect(await probe.answers(check(.ping, nil)))
    #expect(
      await !probe.answers(CheckStatus(kind: .ping, address: "no such host", port: nil, answers: false, time: nil)))
  }
}
