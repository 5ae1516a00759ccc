import Glibc
import MirrorModule
import Model

// Compiled with the simulation's own files by tools/sim-mutants. Seed after seed, each with every arbiter, until something is violated:
// then status 1, and how many runs that took.
let seeds = CommandLine.arguments.dropFirst().first.flatMap { UInt64($0) } ?? 500
var runs = 0
for seed in 1...max(seeds, 1) {
  for arbiter in [ArbiterPolicy.witness, .fence, .wait, .none, .witnessAndFence, .ping] {
    runs += 1
    guard let failure = RandomRun(seed: seed, arbiter: arbiter).failure() else { continue }
    print("after \(runs) runs: seed \(seed), \(arbiter.rawValue): \(failure)")
    exit(1)
  }
}
print("\(runs) runs")
