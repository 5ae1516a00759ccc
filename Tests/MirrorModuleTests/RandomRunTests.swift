import MirrorModule
import Model
import Testing

#if canImport(Glibc)
  import Glibc
#endif

/// Seeded random runs. VMHA_SEEDS = how many of each kind, VMHA_SEED = one only, with everything it decided.
@Suite struct RandomRunTests {
  private func number(_ name: String) -> UInt64? { getenv(name).flatMap { UInt64(String(cString: $0)) } }

  @Test(arguments: [ArbiterPolicy.wait, .none, .ping, .witness, .fence, .witnessAndFence])
  func everyRunIsSafeAndComesBack(arbiter: ArbiterPolicy) {
    if let seed = number("VMHA_SEED") { return one(seed, arbiter) }
    var failures = 0
    var rights: [RightKind: Int] = [:]
    // A run in which nobody ever needed the arbiter proves nothing about it.
    defer {
      let needed: RightKind? =
        arbiter == .wait ? nil : arbiter.asksWitness ? .witness : arbiter.fences ? .fence : .policy
      if let needed { #expect(rights[needed] ?? 0 >= 10, "rights obtained: \(rights)") }
    }
    for seed in 1...(number("VMHA_SEEDS") ?? 200) {
      let run = RandomRun(seed: seed, arbiter: arbiter)
      let failure = run.failure()
      rights.merge(run.world.ledger.rights, uniquingKeysWith: +)
      guard let failure else { continue }
      failures += 1
      Issue.record("VMHA_SEED=\(seed) arbiter \(arbiter.rawValue): \(failure)")
      if failures == 10 { return }
    }
  }

  private func one(_ seed: UInt64, _ arbiter: ArbiterPolicy) {
    let run = RandomRun(seed: seed, arbiter: arbiter)
    let world = run.world
    world.recorder = { [unowned world] node, line in print("\(world.now / 1_000_000) \(node.name) \(line)") }
    if let failure = run.failure() { Issue.record("arbiter \(arbiter.rawValue): \(failure)") }
  }
}
