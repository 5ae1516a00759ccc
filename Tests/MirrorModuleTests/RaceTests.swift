import MirrorModule
import Model
import Testing

@testable import Simulation

#if canImport(Glibc)
  import Glibc
#endif

/// Each scenario once undisturbed, and then once for each directive that either core gave in it and each fault: the fault strikes behind
/// that directive. Whatever it is, every step must be safe, and healed it must come back (docs/invariants.md).
@Suite struct RaceTests {
  struct Scenario: Sendable, CustomTestStringConvertible {
    let name: String
    let options: String
    let commands: String
    var testDescription: String { name }
  }

  private static let inSync = "boot a ; boot b ; run 600 ; start a ; settle ; "
  static let scenarios: [Scenario] = [
    Scenario(name: "first start", options: "arbiter=wait preferred=b", commands: inSync),
    Scenario(
      name: "start on both at once", options: "arbiter=wait",
      commands: "boot a ; boot b ; run 600 ; start a ; start b ; run 9000"),
    Scenario(name: "swap", options: "arbiter=wait", commands: inSync + "swap a ; run 4000"),
    Scenario(
      name: "stop and start", options: "arbiter=wait", commands: inSync + "stop a ; run 5000 ; start b ; run 6000"),
    Scenario(
      name: "link cut, consent", options: "arbiter=wait",
      commands: inSync + "cut replication ; run 5000 ; heal ; run 6000"),
    Scenario(
      name: "primary lost in the first resync, as after add", options: "arbiter=witness",
      commands: "boot a ; boot b ; run 600 ; start a ; run 1200 ; power-cut a ; run 5000 ; boot a ; run 9000"),
    Scenario(
      name: "target lost in the resync", options: "arbiter=fence",
      commands: "boot a ; boot b ; run 600 ; start a ; run 1200 ; power-cut b ; run 5000 ; boot b ; run 9000"),
    Scenario(
      name: "takeover by witness", options: "arbiter=witness",
      commands: inSync + "run 15000 ; power-cut a ; run 6000 ; boot a ; run 9000"),
    Scenario(
      name: "takeover by fence", options: "arbiter=witness+fence",
      commands: inSync + "run 15000 ; cut both ; run 9000 ; heal ; boot a ; boot b ; run 9000"),
    Scenario(
      name: "both cut, witness", options: "arbiter=witness",
      commands: inSync + "run 15000 ; cut both ; run 8000 ; heal ; run 8000"),
    Scenario(
      name: "one-way", options: "arbiter=witness", commands: inSync + "run 15000 ; mute a ; run 8000 ; heal ; run 8000"),
    Scenario(
      name: "blackout, witness", options: "arbiter=witness",
      commands: inSync + "run 15000 ; power-cut a ; power-cut b ; run 1000 ; boot b ; run 14000 ; boot a ; run 9000"),
    Scenario(
      name: "split, resolved by policy", options: "arbiter=none split-policy=keep-preferred",
      commands: inSync + "cut both ; run 6000 ; heal ; run 12000"),
    Scenario(
      name: "forced by the clock", options: "arbiter=wait force-after=30s",
      commands: inSync + "power-cut a ; power-cut b ; boot b ; run 36000 ; boot a ; run 9000"),
    Scenario(
      name: "a guest that keeps dying", options: "arbiter=wait",
      commands: inSync
        + "kill-qemu a ; run 3000 ; kill-qemu a ; run 5000 ; kill-qemu a ; run 5000 ; kill-qemu a ; run 4000"),
    Scenario(name: "the primary's disk", options: "arbiter=wait", commands: inSync + "disk-error a ; run 8000"),
    Scenario(name: "the engine dies", options: "arbiter=wait", commands: inSync + "kill-engine a ; run 8000"),
  ]

  enum Fault: String, CaseIterable {
    case vmhad, power, replication, allLinks, oneWay, stop, swap, engine
  }

  private static func begin(_ scenario: Scenario) throws -> World {
    World(try Transcript.options(["nodes"] + scenario.options.split(separator: " ").map(String.init)))
  }

  /// What the undisturbed run says: at which of its directives something becomes durable.
  private static func reference(_ scenario: Scenario) throws -> [(node: Int, isPersist: Bool)] {
    var directives: [(node: Int, isPersist: Bool)] = []
    let world = try begin(scenario)
    world.recorder = { node, line in directives.append((node.index, line.hasPrefix("persist"))) }
    try play(scenario, in: world)
    world.recorder = nil
    if let violation = world.violations.first { throw Transcript.Problem(text: violation.description) }
    return directives
  }

  private static func play(_ scenario: Scenario, in world: World) throws {
    for command in scenario.commands.split(separator: ";") {
      let words = command.split(separator: " ").map(String.init)
      // A fault may keep it from settling: only the end counts.
      if words.first == "settle" {
        _ = world.run(upTo: .seconds(20)) { world.isConverged && world.nodes.contains { $0.guest != nil } }
      } else if !words.isEmpty {
        try Transcript.perform(words, in: world)
      }
    }
  }

  private static func strike(_ fault: Fault, _ node: SimNode, in world: World) {
    switch fault {
    case .vmhad, .power:
      node.diesWithHost = fault == .power
      node.daemonDiesAfter = 0
      // Behind the last directive of a list nothing would come to die at.
      world.after(.microseconds(1)) {
        guard node.daemonDiesAfter == 0 else { return }
        fault == .power ? node.powerCut() : node.killDaemon()
      }
      world.after(fault == .power ? .seconds(3) : .milliseconds(300)) {
        node.diesWithHost = false
        fault == .power ? world.powerOn(node) : node.startDaemon()
      }
    case .replication: world.replicationUp = [false, false]
    case .allLinks: (world.replicationUp, world.lanUp) = ([false, false], [false, false])
    case .oneWay: (world.replicationUp[node.index], world.lanUp[node.index]) = (false, false)
    case .stop: world.after(.zero) { world.command(.stop, at: node) }
    case .swap: world.after(.zero) { world.command(.swap, at: node) }
    case .engine: world.after(.zero) { node.killEngine() }
    }
  }

  /// What went wrong, or nil.
  private static func run(_ scenario: Scenario, _ fault: Fault, at index: Int) throws -> String? {
    let world = try begin(scenario)
    var count = 0
    world.recorder = { [unowned world] node, _ in
      if count == index { strike(fault, node, in: world) }
      count += 1
    }
    try play(scenario, in: world)
    world.recorder = nil
    world.heal()
    world.run(for: .seconds(8))
    for node in world.nodes { world.command(.start(force: false), at: node) }
    _ = world.run(upTo: .seconds(120)) { world.isConverged || world.isSplit }
    if world.isSplit, world.maySplit { world.giveUp(world.nodes[1]) }
    _ = world.run(upTo: .seconds(120)) { world.isConverged }
    world.run(for: .seconds(30))
    if let violation = world.violations.first { return violation.description }
    guard world.isConverged else {
      return "does not come back: "
        + world.nodes.map { "\($0.name): \(world.status($0)?.sentence ?? "-")" }.joined(separator: " | ")
    }
    // I8, between two bursts of the guest.
    guard world.run(upTo: .seconds(30), until: { world.isConverged && world.isStill }) else { return "never still" }
    world.checkEqualCopies()
    return world.violations.first?.description
  }

  /// Restarts of vmhad and power cuts: right before and right behind everything that becomes durable. The other faults: at every
  /// directive with VMHA_RACES=all, else at every 31st, another one for each scenario and fault.
  @Test(arguments: scenarios) func isSafeAndComesBack(scenario: Scenario) throws {
    let directives = try Self.reference(scenario)
    let isWhole = getenv("VMHA_RACES").map { String(cString: $0) } == "all"
    #expect(directives.filter(\.isPersist).count >= 4, "this scenario has hardly anything durable")
    var runs = 0
    for (number, fault) in Fault.allCases.enumerated() {
      for index in directives.indices {
        let isDurable =
          directives[index].isPersist
          || index + 1 < directives.count && directives[index + 1].isPersist
            && directives[index + 1].node == directives[index].node
        let isMeant = fault == .vmhad || fault == .power ? isDurable : index % 31 == (number + scenario.name.count) % 31
        guard isWhole || isMeant else { continue }
        runs += 1
        if let failure = try Self.run(scenario, fault, at: index) {
          Issue.record("\(scenario.name), \(fault.rawValue) behind directive \(index): \(failure)")
        }
      }
    }
    #expect(runs >= 20)
  }
}
