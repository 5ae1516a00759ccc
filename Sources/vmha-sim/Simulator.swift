import ArgumentParser
import Glibc
import HostSystem
import MirrorModule
import Simulation

/// Runs many simulated clusters. See docs/simulation.md.
@main
struct Simulator: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmha-sim",
    abstract: "Plays a cluster of two nodes through random faults, once for each seed, and checks every step.",
    discussion: """
      Exit codes: 0 = every invariant held and every kind of thing was met; 1 = a violation; 2 = a kind of thing was met in
      none of 1000 or more seeds; 3 = a report could not be written.
      """)

  /// Fewer seeds than this may miss a kind without that being a fault.
  static let coverageSeedsMin = 1000

  @Option(help: "How many seeds, of each arbiter.")
  var seeds: UInt64 = 1000

  @Option(help: "The first seed.")
  var first: UInt64 = 1

  @Option(help: "wait, none, ping, witness, fence, witnessAndFence, or all in turn.")
  var arbiter = "all"

  @Option(help: "This one seed only.")
  var seed: UInt64?

  @Flag(help: "Print every decision and every fault of the one seed.")
  var trace = false

  @Option(help: "Write the report as JSON to this file.")
  var json: String?

  @Option(help: "End after this many violations.")
  var stopAfter = 10

  @Option(help: "Processes that share the seeds; 0 = one for each processor.")
  var jobs = 0

  @Flag(help: .hidden)
  var worker = false

  private var arbiters: [ArbiterPolicy] {
    if arbiter == "all" { return Campaign.arbiters }
    return ArbiterPolicy(rawValue: arbiter).map { [$0] } ?? []
  }

  func validate() throws {
    guard !arbiters.isEmpty else {
      throw ValidationError("there is no arbiter '\(arbiter)': \(Campaign.arbiters.map(\.rawValue)) or all")
    }
    guard seeds > 0, stopAfter > 0, jobs >= 0, first <= UInt64.max - seeds else {
      throw ValidationError("--seeds and --stop-after must be at least 1, --jobs at least 0")
    }
    guard !trace || seed != nil else { throw ValidationError("--trace needs --seed") }
  }

  func run() throws {
    if worker { return try Batch.runHere(arbiters[0], first..<first + seeds, stopAfter: stopAfter) }
    if trace, let seed { return try traceOne(seed) }
    let range = seed.map { $0..<$0 + 1 } ?? first..<first + seeds
    let jobs = jobs > 0 ? jobs : max(1, sysconf(Int32(_SC_NPROCESSORS_ONLN)))
    var summaries: [Summary] = []
    for arbiter in arbiters {
      let left = stopAfter - summaries.reduce(0) { $0 + $1.report.failures.count }
      guard left > 0 else { break }
      let summary = try Batch.runAll(arbiter, range, jobs: jobs, stopAfter: left)
      summary.print()
      summaries.append(summary)
    }
    do { if let json { try Summary.write(summaries, to: json) } } catch {
      complain("\(error)")
      throw ExitCode(3)
    }
    if summaries.contains(where: { !$0.report.failures.isEmpty }) { throw ExitCode(1) }
    if summaries.contains(where: { !$0.missing.isEmpty }) { throw ExitCode(2) }
  }

  private func traceOne(_ seed: UInt64) throws {
    var isViolated = false
    for arbiter in arbiters {
      print("== seed \(seed), arbiter \(arbiter.rawValue)")
      if let violation = Campaign.trace(arbiter, seed: seed, line: { print($0) }) {
        isViolated = true
        print("VIOLATION \(violation)")
      } else {
        print("every invariant held")
      }
    }
    if isViolated { throw ExitCode(1) }
  }
}

func complain(_ text: String) {
  let line = Array("vmha-sim: \(text)\n".utf8)
  _ = write(STDERR_FILENO, line, line.count)
}
