import ControlAPI
import Model

/// A rehearsal with real consequences: the guest is moved or killed, and brought back to where it was. Everything goes through
/// `ControlService`, so a drill does nothing that an operator could not do.
public struct Drill: Sendable {
  /// Limits of the waits, in seconds.
  public static let legSecondsMax = 600
  public static let protectedSecondsMax = 1800
  /// The guest must have answered its check this often in a row before the drill begins.
  public static let answersBeforeCount = 3

  public struct Timing: Sendable {
    /// Between two looks at status, journal and guest.
    public var interval: Duration = .milliseconds(50)
    public var legMax: Duration = .seconds(Drill.legSecondsMax)
    public var protectedMax: Duration = .seconds(Drill.protectedSecondsMax)
    public init() {}
  }

  private let service: any ControlService
  private let probe: any GuestProbe
  private let name: String
  private let kind: DrillKind
  private let timing: Timing
  /// Now, in nanoseconds of the clock of `JournalEvent.monotonicNanoseconds`.
  private let clock: @Sendable () -> Int64
  private let tell: @Sendable (String) -> Void

  /// `clock` must read CLOCK_BOOTTIME of the host whose vmhad `service` is: events of that node are then timed exactly.
  /// `tell` gets one line for each thing that happens.
  public init(
    service: any ControlService, probe: any GuestProbe, module name: String, kind: DrillKind,
    timing: Timing = Timing(), clock: @escaping @Sendable () -> Int64, tell: @escaping @Sendable (String) -> Void
  ) {
    self.service = service
    self.probe = probe
    self.name = name
    self.kind = kind
    self.timing = timing
    self.clock = clock
    self.tell = tell
  }

  /// What stands against it; nil if nothing does. Changes nothing.
  public static func refusal(_ module: ModuleStatus) -> ControlError? {
    let why: String
    let nodes = module.nodes
    if module.split {
      why = "it is split: each node has a copy of its own"
    } else if let operation = module.operation {
      why = "it is busy: \(operation)"
    } else if let lost = nodes.first(where: { !$0.current }) {
      why = "\(lost.node) cannot be reached, so there may be no second good copy"
    } else if module.isProtected, module.primary?.guest == .running {
      return nil
    } else if module.isProtected {
      why = "its guest does not run"
    } else {
      let text = nodes.map { node in
        "\(node.node) \(node.state.rawValue) \(node.readiness.rawValue) \(node.standing?.rawValue ?? "no copy")"
      }
      why = "it is not PRIM ready and SECOND ready with two uptodate copies: \(text.joined(separator: ", "))"
    }
    return ControlError(
      .refused, "no drill with \(module.name) now: it could leave no good copy", why: why,
      next: "wait until vmha status shows PRIM and SECOND: vmha status \(module.name)")
  }

  /// Runs it. Throws `ControlError` if it was refused (nothing happened); what goes wrong later is in the report.
  public func run() async throws -> DrillReport {
    let status = try await service.status()
    guard let module = status.modules.first(where: { $0.name == name }) else { throw ControlError.noSuchModule(name) }
    if let refusal = Self.refusal(module) { throw refusal }
    guard let home = module.primary?.node else { throw ControlError(.refused, "nobody serves \(name)") }
    try await requireAnswers(module)
    var report = DrillReport(
      time: .now(), cluster: status.cluster?.name ?? "", host: status.thisNode, module: name, kind: kind,
      check: module.check.map(Self.text))
    do {
      let first = try await leg(kind.rawValue, kind, from: home, module.check, status.thisNode, into: &report)
      try await waitUntilProtected()
      if let away = first.to, away != home {
        _ = try await leg("swap back", .swap, from: away, module.check, status.thisNode, into: &report)
        try await waitUntilProtected()
      }
      let last = try await service.module(name)
      report.succeeded = last.primary?.node == home
      if !report.succeeded {
        report.problem = "it runs on \(last.primary?.node ?? "no node"), not on \(home) as before"
      }
    } catch let error as ControlError {
      report.problem = [error.message, error.why].compactMap { $0 }.joined(separator: ": ")
    }
    return report
  }

  private func requireAnswers(_ module: ModuleStatus) async throws {
    guard let check = module.check else {
      tell("module.xml names no check: the guest's own answer is not measured")
      return
    }
    for _ in 0..<Self.answersBeforeCount {
      guard await probe.answers(check) else {
        throw ControlError(
          .refused, "no drill with \(name) now: its guest does not answer",
          why: "\(Self.text(check)) is silent from here",
          next: "look at the guest, or correct the check in its module.xml")
      }
      try await Task.sleep(for: timing.interval)
    }
  }

  private static func text(_ check: CheckStatus) -> String {
    "\(check.kind.rawValue) \(check.address)" + (check.port.map { " port \($0)" } ?? "")
  }

  /// One command and what follows from it. Added to the report also if it did not end well (throws).
  private func leg(
    _ label: String, _ kind: DrillKind, from: String, _ check: CheckStatus?, _ host: String,
    into report: inout DrillReport
  ) async throws -> DrillLeg {
    var tracker = PhaseTracker(kind: kind, from: from)
    let before = clock()
    let acceptance =
      switch kind {
      case .swap: try await service.swapModule(name)
      case .crash: try await service.crashGuest(name)
      }
    let start = clock()
    tell(kind == .crash ? "QEMU of \(name) on \(from) was killed" : acceptance.sentence)
    defer { report.legs.append(tracker.leg(name: label)) }
    var cursor = acceptance.cursor
    while true {
      let answers: Bool? = if let check { await probe.answers(check) } else { nil }
      let probed = clock()
      let page = try await service.log(since: cursor, module: name, limit: JournalPage.limitMax)
      let logged = clock()
      cursor = page.cursor
      for event in page.events {
        // This host's own events carry its clock; of another's only the arrival is known. Those from before the command are old news.
        let time = event.node == host ? event.monotonicNanoseconds : logged
        guard time >= before else { continue }
        tracker.observe(.event(event), at: .nanoseconds(max(0, time - start)))
        tell("\(event.node): \(event.sentence)")
      }
      tracker.observe(.module(try await service.module(name)), at: .nanoseconds(clock() - start))
      if let answers { tracker.observe(.probe(answers: answers), at: .nanoseconds(probed - start)) }
      if tracker.isComplete(withCheck: check != nil) { return tracker.leg(name: label) }
      if Duration.nanoseconds(clock() - start) > timing.legMax {
        throw ControlError(
          .timedOut, "the \(label) did not end within \(timing.legMax.components.seconds) s",
          why: try await service.module(name).nodes.map { "\($0.node): \($0.sentence)" }.joined(separator: "; "))
      }
      try await Task.sleep(for: timing.interval)
    }
  }

  private func waitUntilProtected() async throws {
    let start = clock()
    var isTold = false
    while true {
      let module = try await service.module(name)
      if module.isProtected { return }
      if !isTold { tell("waiting until both copies of \(name) are the same again") }
      isTold = true
      if Duration.nanoseconds(clock() - start) > timing.protectedMax {
        throw ControlError(
          .timedOut, "\(name) is not protected again after \(timing.protectedMax.components.seconds) s",
          why: module.nodes.map { "\($0.node): \($0.sentence)" }.joined(separator: "; "))
      }
      try await Task.sleep(for: timing.interval)
    }
  }
}
