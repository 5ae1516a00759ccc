import MirrorModule

/// One invariant of docs/invariants.md that did not hold.
public struct Violation: Sendable, Codable, Hashable, CustomStringConvertible {
  /// "I1".
  public let invariant: String
  public let sentence: String
  /// In virtual time.
  public let atMs: Int64
  public init(invariant: String, sentence: String, atMs: Int64) {
    self.invariant = invariant
    self.sentence = sentence
    self.atMs = atMs
  }
  public var description: String { "at \(atMs) ms: \(invariant): \(sentence)" }
}

/// What a batch of seeds of one arbiter came to.
public struct BatchReport: Sendable, Codable {
  public struct Failure: Sendable, Codable {
    public var seed: UInt64
    public var violation: Violation
    public init(seed: UInt64, violation: Violation) {
      self.seed = seed
      self.violation = violation
    }
  }
  public var seeds = 0
  public var failures: [Failure] = []
  /// By `Met`: how often, and in how many runs at least once.
  public var times: [Int]
  public var runs: [Int]

  public init() {
    times = Array(repeating: 0, count: Met.allCases.count)
    runs = times
  }

  public mutating func add(_ other: BatchReport) {
    seeds += other.seeds
    failures += other.failures
    for index in times.indices {
      times[index] += other.times[index]
      runs[index] += other.runs[index]
    }
  }

  mutating func add(_ coverage: Coverage) {
    for (index, count) in coverage.times.enumerated() where count > 0 {
      times[index] += count
      runs[index] += 1
    }
  }

  /// What these runs say nothing about.
  public func neverMet(_ arbiter: ArbiterPolicy) -> [Met] {
    Met.allCases.filter { times[$0.rawValue] == 0 && $0.isExpected(of: arbiter) }
  }
}

/// Runs of many seeds.
public enum Campaign {
  public static let arbiters: [ArbiterPolicy] = [.wait, .none, .ping, .witness, .fence, .witnessAndFence]

  /// `beforeEach` hears of a seed before it runs, so that one that ends the process is known.
  public static func run(
    _ arbiter: ArbiterPolicy, seeds: Range<UInt64>, failuresMax: Int, beforeEach: (UInt64) -> Void
  ) -> BatchReport {
    var report = BatchReport()
    for seed in seeds {
      beforeEach(seed)
      let run = RandomRun(seed: seed, arbiter: arbiter)
      let failure = run.failure()
      report.seeds += 1
      report.add(run.world.coverage)
      guard let failure else { continue }
      report.failures.append(BatchReport.Failure(seed: seed, violation: failure))
      if report.failures.count >= failuresMax { break }
    }
    return report
  }

  /// One run, every decision and fault of it as a line.
  public static func trace(_ arbiter: ArbiterPolicy, seed: UInt64, line: @escaping (String) -> Void) -> Violation? {
    let run = RandomRun(seed: seed, arbiter: arbiter)
    let world = run.world
    world.recorder = { [unowned world] node, text in line("\(world.stamp) \(node.name) \(text)") }
    world.faultRecorder = { [unowned world] text in line("\(world.stamp) -- \(text)") }
    return run.failure()
  }
}
