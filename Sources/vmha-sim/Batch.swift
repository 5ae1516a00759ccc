import ArgumentParser
import FoundationEssentials
import Glibc
import HostSystem
import MirrorModule
import Model
import Simulation
import Synchronization

/// Seeds run in processes of their own, so that one which ends its process is a finding like any other.
enum Batch {
  /// Seeds a process runs, at most.
  private static let seedsMax: UInt64 = 100
  /// A process that needs longer for them hangs.
  private static let timeout: Duration = .seconds(600)

  /// In the process of one batch: the seed before each, and the report at the end.
  static func runHere(_ arbiter: ArbiterPolicy, _ seeds: Range<UInt64>, stopAfter: Int) throws {
    let report = Campaign.run(arbiter, seeds: seeds, failuresMax: stopAfter) { seed in
      let line = Array("seed \(seed)\n".utf8)
      _ = write(STDOUT_FILENO, line, line.count)
    }
    let text = Array(try JSONEncoder().encode(report)) + [0x0A]
    guard text.withUnsafeBytes({ writeAll($0) }) else { throw ExitCode(3) }
  }

  private static func writeAll(_ bytes: UnsafeRawBufferPointer) -> Bool {
    var done = 0
    while done < bytes.count {
      let count = write(STDOUT_FILENO, bytes.baseAddress.map { $0 + done }, bytes.count - done)
      guard count > 0 else { return false }
      done += count
    }
    return true
  }

  private struct State {
    var next: UInt64
    var report = BatchReport()
    var running = 0
    var error: (any Error)?
    var notedAt: Instant
  }

  /// All of them, in `jobs` processes at a time. Ends early at `stopAfter` violations.
  static func runAll(
    _ arbiter: ArbiterPolicy, _ seeds: Range<UInt64>, jobs: Int, stopAfter: Int
  ) throws -> Summary {
    let began = monotonicNow()
    let state = Mutex(State(next: seeds.lowerBound, notedAt: began))
    let work: @Sendable () -> Void = {
      while let batch = take(state, seeds, jobs: jobs, stopAfter: stopAfter) {
        do {
          let report = try runChild(arbiter, batch, stopAfter: stopAfter)
          state.withLock { state in
            state.report.add(report)
            note(arbiter, &state, seeds, began)
          }
        } catch {
          state.withLock { $0.error = error }
        }
      }
    }
    let threads = try (1..<max(jobs, 1)).map { try HostThread.start(name: "batch-\($0)", detached: false, work) }
    work()
    for thread in threads { thread.join() }
    let (report, error) = state.withLock { ($0.report, $0.error) }
    if let error { throw error }
    return Summary(arbiter: arbiter, report: report, first: seeds.lowerBound, took: monotonicNow() - began)
  }

  private static func take(
    _ state: borrowing Mutex<State>, _ seeds: Range<UInt64>, jobs: Int, stopAfter: Int
  ) -> Range<UInt64>? {
    state.withLock { state in
      guard state.next < seeds.upperBound, state.report.failures.count < stopAfter, state.error == nil else {
        return nil
      }
      let share = max(1, UInt64(seeds.count) / UInt64(jobs * 4))
      let end = min(seeds.upperBound, state.next + min(seedsMax, share))
      defer { state.next = end }
      return state.next..<end
    }
  }

  /// Called under the lock, at most every ten seconds.
  private static func note(_ arbiter: ArbiterPolicy, _ state: inout State, _ seeds: Range<UInt64>, _ began: Instant) {
    let now = monotonicNow()
    guard now - state.notedAt >= .seconds(10) else { return }
    state.notedAt = now
    let rate = Double(state.report.seeds) / Double(max(1, (now - began).milliseconds)) * 1000
    complain(
      "\(arbiter.rawValue): \(state.report.seeds) of \(seeds.count) seeds, \(Int(rate)) a second, "
        + "\(state.report.failures.count) violations")
  }

  private static func runChild(
    _ arbiter: ArbiterPolicy, _ seeds: Range<UInt64>, stopAfter: Int
  ) throws -> BatchReport {
    let result: ChildProcess.Result
    do {
      result = try ChildProcess.run(
        [
          "/proc/self/exe", "--worker", "--arbiter", arbiter.rawValue, "--first", "\(seeds.lowerBound)", "--seeds",
          "\(seeds.count)", "--stop-after", "\(stopAfter)",
        ], timeout: timeout)
    } catch let error as HostError where error.code == .timedOut {
      return broken(seeds.lowerBound, "seeds \(seeds.lowerBound) to \(seeds.upperBound - 1) do not end")
    }
    let lines = result.output.split(separator: 0x0A)
    if result.status == 0, let last = lines.last {
      return try JSONDecoder().decode(BatchReport.self, from: Data(last))
    }
    // What its own checks found wrong ended the process: at the last seed it named.
    let named = lines.last { $0.starts(with: Array("seed ".utf8)) }.map { String(decoding: $0, as: UTF8.self) }
    let seed = named.flatMap { UInt64($0.dropFirst(5)) } ?? seeds.lowerBound
    let said = result.errorText.split(separator: "\n").first { $0.contains("rror") }.map(String.init) ?? ""
    return broken(seed, "the program ended itself with status \(result.status): \(said)")
  }

  /// What the batch found before is not known any more.
  private static func broken(_ seed: UInt64, _ sentence: String) -> BatchReport {
    var report = BatchReport()
    report.seeds = 1
    report.failures = [
      BatchReport.Failure(seed: seed, violation: Violation(invariant: "I0", sentence: sentence, atMs: 0))
    ]
    return report
  }
}
