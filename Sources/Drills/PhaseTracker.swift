import ControlAPI
import Model

/// Finds the phases of one leg in what is seen while it runs. Pure: observations with their times in, phases out.
///
/// Times are since the leg's command. A phase is the earliest sign of it, in the journal or in a status; a sign that could still be about
/// the time before the command does not count.
public struct PhaseTracker: Sendable {
  public enum Observation: Sendable {
    case event(JournalEvent)
    case module(ModuleStatus)
    /// Whether the guest answered its check just now.
    case probe(answers: Bool)
  }

  private let kind: DrillKind
  private let from: String
  private var times: [DrillPhase: Duration] = [:]
  /// Node that serves the guest after the leg.
  public private(set) var to: String?
  private var lastAnswer: Duration?
  private var answeredAgain: Duration?

  /// `from`: the node that serves the guest when the leg begins.
  public init(kind: DrillKind, from: String) {
    self.kind = kind
    self.from = from
  }

  public mutating func observe(_ observation: Observation, at time: Duration) {
    switch observation {
    case .event(let event): observe(event, at: time)
    case .module(let module): observe(module, at: time)
    case .probe(let answers): observe(answers: answers, at: time)
    }
  }

  private mutating func observe(_ event: JournalEvent, at time: Duration) {
    switch event.kind {
    case .guestDied, .guestStopped:
      if event.node == from { note(.noticed, time) }
    case .promoted:
      // On a swap only the other node is promoted; after a crash either may be.
      if kind == .crash || event.node != from { note(.promoted, time) }
    case .guestStarted:
      guard kind == .crash ? times[.noticed] != nil : event.node != from else { return }
      note(.started, time)
      to = event.node
    default: break
    }
  }

  private mutating func observe(_ module: ModuleStatus, at time: Duration) {
    let current = module.nodes.filter(\.current)
    if let old = current.first(where: { $0.node == from }), old.guest == .off { note(.noticed, time) }
    guard times[.noticed] != nil else { return }
    let serving = current.filter { $0.state == .prim || $0.state == .alone }
    if serving.contains(where: { $0.node != from }) { note(.promoted, time, onlyIfMissing: true) }
    guard let running = serving.first(where: { $0.guest == .running }) else { return }
    // After a swap the old node may be shown as it was for a moment.
    guard kind == .crash || running.node != from else { return }
    note(.started, time, onlyIfMissing: true)
    to = to ?? running.node
  }

  private mutating func observe(answers: Bool, at time: Duration) {
    guard answers else { return }
    guard let started = times[.started], time >= started else {
      lastAnswer = time
      return
    }
    if answeredAgain == nil { answeredAgain = time }
    note(.answering, time)
  }

  /// The earliest time wins; a status, which is only looked at now and then, never corrects the journal.
  private mutating func note(_ phase: DrillPhase, _ time: Duration, onlyIfMissing: Bool = false) {
    let time = max(time, .zero)
    if let known = times[phase], onlyIfMissing || known <= time { return }
    times[phase] = time
  }

  /// True when there is nothing left to wait for.
  public func isComplete(withCheck: Bool) -> Bool {
    times[.started] != nil && (!withCheck || times[.answering] != nil)
  }

  /// The leg as far as it was seen. In place (a crash after which the same node starts the guest anew) nobody is promoted.
  public func leg(name: String) -> DrillLeg {
    var leg = DrillLeg(name: name, from: from)
    leg.to = to
    leg.phases = DrillPhase.allCases.compactMap { phase in
      times[phase].map { .init(phase: phase, milliseconds: Int($0.milliseconds)) }
    }
    if let answeredAgain { leg.silenceMilliseconds = Int((answeredAgain - (lastAnswer ?? .zero)).milliseconds) }
    return leg
  }
}
