import MirrorModule
import Model
import Testing

@testable import Simulation

/// What was said before a host stood still, and is heard or sent when it goes on.
@Suite struct LateWordTests {
  private static func begin(_ arbiter: ArbiterPolicy) -> World {
    var options = World.Options()
    options.arbiter = arbiter
    options.hasPowerCuts = true
    let world = World(options)
    for node in world.nodes { node.startDaemon() }
    world.run(for: .milliseconds(600))
    world.command(.start(force: false), at: world.nodes[0])
    return world
  }

  /// Step by step, because what is looked for is over within a millisecond.
  private static func run(_ world: World, until holds: () -> Bool) -> Bool {
    for _ in 0..<100_000 where world.violations.isEmpty {
      if holds() { return true }
      world.run(for: .microseconds(100))
    }
    return holds()
  }

  private static func runGuest(_ world: World) throws {
    try #require(world.run(upTo: .seconds(60)) { world.isConverged && world.nodes[0].guest?.state == .running })
  }

  /// A host stands still with words of its peer unread, the peer goes on alone, and the guest here is found dead: the engine hears the
  /// old words before it looks at its clock, and must not confirm the session on them (simulation, seed 133624 of `witness`).
  @Test func wordsFromBeforeAStandstillConfirmNoSession() throws {
    let world = Self.begin(.witness)
    let (a, b) = (world.nodes[0], world.nodes[1])
    try Self.runGuest(world)
    world.run(for: .seconds(15))
    let session = try #require(a.engine?.session)
    try #require(Self.run(world) { !session.queues[b.index].isEmpty })
    a.freeze()
    try #require(world.run(upTo: .seconds(20)) { b.guest?.state == .running })
    try #require(b.record?.peerOutdated == .witness)
    try #require(!session.queues[b.index].isEmpty && session.isHeld[a.index], "the old words lie unread")
    a.guest?.end(.failed)
    // Its next look at the clock comes a moment after the thaw.
    world.run(for: .milliseconds(130))
    var isAsked = false
    var isStarted = false
    world.recorder = { node, line in
      guard node === a else { return }
      if line.contains("confirmSession") { isAsked = true }
      if line.contains("startGuest") { isStarted = true }
    }
    a.thaw()
    world.run(for: .seconds(1))
    #expect(isAsked, "else this test shows nothing")
    #expect(!isStarted)
    #expect(world.run(upTo: .seconds(60)) { world.isConverged })
    #expect(world.violations == [])
    #expect(a.guest == nil && b.guest != nil)
  }

  /// The target has adopted, durably, and its host stands still before its engine has sent ADOPTED.
  private static func adoptedUnsent() throws -> World {
    let world = begin(.wait)
    let b = world.nodes[1]
    try #require(run(world) { b.record?.standing == .uptodate })
    return world
  }

  /// It consents before its engine has read what it was told: ADOPTED leaves with the session's end behind it. The source has ended the
  /// session before it asked, and both come back (simulation, seed 140382 of `ping`).
  @Test func aConsentOvertakesAdopted() throws {
    let world = try Self.adoptedUnsent()
    let (a, b) = (world.nodes[0], world.nodes[1])
    let adopted = b.record?.generation
    b.freeze()
    var isAsked = false
    world.recorder = { node, line in if node === a, line.contains("askConsent") { isAsked = true } }
    try #require(Self.run(world) { isAsked })
    world.run(for: .milliseconds(100))
    b.thaw()
    world.run(for: .seconds(1))
    #expect(b.record?.consentedTo == adopted, "else this test shows nothing")
    #expect(b.engine?.session == nil)
    #expect(world.run(upTo: .seconds(60)) { world.isConverged && a.guest != nil })
    #expect(world.violations == [])
    #expect(a.record?.generation != adopted && a.record?.generation == b.record?.generation)
  }

  /// Without that end ADOPTED leaves only as long as the record says so.
  @Test func adoptedMayNotOutliveItsRecord() throws {
    let world = try Self.adoptedUnsent()
    world.nodes[1].record?.standing = .outdated
    world.run(for: .milliseconds(20))
    #expect(world.violations.first?.description.contains("I5: b sends ADOPTED before it is durable") == true)
  }
}
