import FoundationEssentials
import Glibc
import HostSystem
import Testing

/// Every labelled host call of the write path, the replica, the map and the resync: it fails once, or its node, or both, lose their
/// power there. Then the nodes come back, and must have everything that was promised and be the same.
///
/// `make test` takes a sample; VMHA_SWEEP=all takes every label with its first, middle and last occurrence; VMHA_SEED=n repeats
/// a sample.
@Suite(.serialized, .timeLimit(.minutes(60)))
struct SweepTests {
  private static let sampleCount = 6
  /// What a workload must have met, or it tests less than it says.
  private static let required: Set<String> = [
    "backing.create", "backing.mkdir", "backing.mknod", "backing.symlink", "backing.link", "backing.unlink",
    "backing.rename", "backing.chown", "backing.chmod", "backing.truncate", "backing.setxattr",
    "backing.removexattr", "backing.write", "backing.allocate", "backing.sync", "backing.datasync", "backing.times",
    "intents.write", "intents.sync",
  ]

  @Test func everyCall() throws {
    let isWhole = getenv("VMHA_SWEEP") != nil
    let seed = getenv("VMHA_SEED").flatMap { UInt64(String(cString: $0)) } ?? randomUInt64() % 1_000_000
    var random = Dice(seed: seed)
    let rig = try SweepRig(seed: seed)
    defer { rig.end() }
    let met = try rig.record()
    let writer = Set(met[.load]?.first?.keys.map { $0 } ?? [])
    #expect(writer.isSuperset(of: Self.required), "not met: \(Self.required.subtracting(writer))")
    var points = points(met)
    let whole = points.count
    points.shuffle(using: &random)
    if !isWhole { points = Array(points.prefix(Self.sampleCount)) }
    var missed = 0
    for (index, point) in points.enumerated() {
      do {
        if try !rig.run(point) { missed += 1 }
      } catch {
        Issue.record("\(point) (VMHA_SEED=\(seed), \(index + 1) of \(points.count)): \(error)")
      }
      if isWhole { print("sweep \(index + 1)/\(points.count): \(point)") }
    }
    print("sweep: \(points.count) of \(whole) points, seed \(seed); \(missed) were not met again or changed nothing")
  }

  private func points(_ met: [CrashPoint.Phase: [[String: Int]]]) -> [CrashPoint] {
    var points: Set<CrashPoint> = []
    for (phase, nodes) in met {
      for (node, labels) in nodes.enumerated() {
        for (label, count) in labels where label.hasPrefix("backing.") || label.hasPrefix("intents.") {
          // The number of calls differs a little from run to run.
          for number in Set([1, (count + 1) / 2, max(1, count * 9 / 10)]) {
            // A disk is never too full to be read.
            for what in CrashPoint.What.allCases where what != .noSpace || label != "backing.read" {
              points.insert(CrashPoint(node: node, phase: phase, what: what, label: label, number: number))
            }
          }
        }
      }
    }
    return points.sorted { $0.description < $1.description }
  }
}
