import FoundationEssentials
import HostSystem
import MirrorModule
import Model
import Simulation

/// What a campaign of one arbiter came to.
struct Summary {
  let arbiter: ArbiterPolicy
  let report: BatchReport
  let first: UInt64
  let took: Duration

  private var seconds: Double { Double(took.milliseconds) / 1000 }
  private var rate: Double { Double(report.seeds) / max(seconds, 0.001) }

  /// Kinds that these runs should have met, and were too few to excuse.
  var missing: [Met] {
    report.seeds >= Simulator.coverageSeedsMin ? report.neverMet(arbiter) : []
  }

  func print() {
    Swift.print(
      "\(arbiter.rawValue): \(report.seeds) seeds from \(first), \(Int(seconds.rounded())) s, \(Int(rate)) seeds/s, "
        + "\(report.failures.count) violations")
    for met in Met.allCases {
      let index = met.rawValue
      guard report.times[index] > 0 || met.isExpected(of: arbiter) else { continue }
      let share = Double(report.runs[index]) * 100 / Double(max(report.seeds, 1))
      Swift.print(
        "  \(Self.padded(met.words, 32)) \(Self.padded("\(report.times[index])", 10)) in "
          + "\((share * 10).rounded() / 10) % of the seeds\(report.times[index] == 0 ? "  NEVER MET" : "")")
    }
    for failure in report.failures {
      Swift.print(
        """
        VIOLATION of \(failure.violation.invariant): seed \(failure.seed), arbiter \(arbiter.rawValue), at \
        \(failure.violation.atMs) ms: \(failure.violation.sentence)
          replay: make sim SEED=\(failure.seed) ARBITER=\(arbiter.rawValue)
        """)
    }
    if !missing.isEmpty {
      Swift.print("NEVER MET in \(report.seeds) seeds: \(missing.map(\.words).joined(separator: ", "))")
    }
  }

  private static func padded(_ text: String, _ width: Int) -> String {
    text + String(repeating: " ", count: max(0, width - text.count))
  }

  private struct Document: Encodable {
    struct Count: Encodable {
      var times: Int
      var seeds: Int
    }
    var arbiter: String
    var first: UInt64
    var seeds: Int
    var seconds: Double
    var seedsPerSecond: Double
    var violations: [BatchReport.Failure]
    var met: [String: Count]
    var neverMet: [String]
  }

  static func write(_ summaries: [Summary], to path: String) throws {
    let documents = summaries.map { summary in
      let counts = Met.allCases.map { met in
        let report = summary.report
        return (met.words, Document.Count(times: report.times[met.rawValue], seeds: report.runs[met.rawValue]))
      }
      return Document(
        arbiter: summary.arbiter.rawValue, first: summary.first, seeds: summary.report.seeds, seconds: summary.seconds,
        seedsPerSecond: summary.rate, violations: summary.report.failures,
        met: Dictionary(uniqueKeysWithValues: counts),
        neverMet: summary.report.neverMet(summary.arbiter).map(\.words))
    }
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys]
    try encoder.encode(documents).write(to: URL(filePath: path))
  }
}
