import MirrorModule
import Simulation
import Testing

/// The first seeds of each arbiter; `make sim` runs as many as are wanted.
@Suite struct RandomRunTests {
  static let seeds: Range<UInt64> = 1..<101

  @Test(arguments: Campaign.arbiters)
  func everyRunIsSafeAndComesBack(arbiter: ArbiterPolicy) {
    let report = Campaign.run(arbiter, seeds: Self.seeds, failuresMax: 10) { _ in }
    for failure in report.failures {
      Issue.record("make sim SEED=\(failure.seed) ARBITER=\(arbiter.rawValue): \(failure.violation)")
    }
    // Runs in which nobody ever needed the arbiter prove nothing about it.
    let needed: Met? =
      switch arbiter {
      case .wait: nil
      case .none, .ping: .rightByPolicy
      case .witness, .witnessAndFence: .rightByWitness
      case .fence: .rightByFence
      }
    if let needed { #expect(report.times[needed.rawValue] > 0) }
  }
}
