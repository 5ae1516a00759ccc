import Membership
import Model
import Testing

private let settings = MembershipSettings(pulse: .milliseconds(250), detection: .seconds(3))

/// Runs a core as the daemon does and writes down what it says, one line each, with the time in milliseconds.
private struct World {
  var core: Membership
  var now = Instant(nanoseconds: 0)
  var sequence: UInt64 = 0
  var wakeUp = Instant(nanoseconds: 0)
  var lines: [String] = []

  init(_ links: [String] = ["a", "b"]) {
    core = Membership(settings: settings, links: links, now: now)
    handle(.tick)
  }

  mutating func handle(_ event: MembershipEvent) {
    for directive in core.handle(event, at: now) {
      let time = (now - Instant(nanoseconds: 0)).milliseconds
      switch directive {
      case .link(let name, let state, let why): lines.append("\(time) \(name) \(state.rawValue): \(why)")
      case .peer(let presence, let why): lines.append("\(time) peer \(presence.rawValue): \(why)")
      case .peerRestarted(let boot): lines.append("\(time) restarted \(boot)")
      case .ownStall(let gap): lines.append("\(time) stall \(gap.milliseconds)")
      case .wakeUp(let at): wakeUp = at
      }
    }
  }

  /// Lets the time pass, tick by tick.
  mutating func pass(_ milliseconds: Int) {
    let end = now + .milliseconds(milliseconds)
    while wakeUp <= end {
      now = wakeUp
      handle(.tick)
    }
    now = end
  }

  mutating func beat(_ links: String..., boot: String = "x", hearsUs: Bool = true) {
    sequence += 1
    for link in links { handle(.beat(Beat(link: link, boot: boot, sequence: sequence, hearsUs: hearsUs))) }
  }

  /// Beats every pulse for so long.
  mutating func beats(_ milliseconds: Int, _ links: [String], hearsUs: Bool = true) {
    for _ in 0..<(milliseconds / 250) {
      pass(250)
      sequence += 1
      for link in links { handle(.beat(Beat(link: link, boot: "x", sequence: sequence, hearsUs: hearsUs))) }
    }
  }

  mutating func takeLines() -> [String] {
    defer { lines = [] }
    return lines
  }
}

@Suite struct MembershipTests {
  @Test func heardLostAndBack() {
    var world = World()
    world.beats(500, ["a", "b"])
    #expect(
      world.takeLines() == ["250 a up: the peer is heard", "250 peer up: heard on a", "250 b up: the peer is heard"])
    world.pass(5000)
    #expect(
      world.takeLines() == [
        "1250 a late: no beat for 750 ms", "1250 b late: no beat for 750 ms", "3500 a lost: no beat for 3 s",
        "3500 b lost: no beat for 3 s", "3500 peer lost: no beat on any link for 3 s",
      ])
    world.beat("b")
    #expect(world.takeLines() == ["5500 b up: the peer is heard", "5500 peer up: heard on b"])
    #expect(world.core.presenceSince == Instant(nanoseconds: 5_500_000_000))
  }

  @Test func neverHeard() {
    var world = World(["a"])
    world.pass(10_000)
    #expect(
      world.takeLines() == ["3000 a lost: never heard", "3000 peer lost: no beat on any link within 3 s of the start"])
  }

  @Test func oneLinkIsEnough() {
    var world = World()
    world.beats(500, ["a", "b"])
    _ = world.takeLines()
    world.beats(5000, ["b"])
    #expect(world.takeLines() == ["1250 a late: no beat for 750 ms", "3500 a lost: no beat for 3 s"])
    #expect(world.core.presence == .up && world.core.linksHeard == ["b"])
    world.beats(250, ["a", "b"])
    #expect(world.takeLines() == ["5750 a up: the peer is heard"])
  }

  @Test func oneWayLinkIsNamedAndDoesNotFlap() {
    var world = World(["a"])
    world.beats(2750, ["a"], hearsUs: false)
    #expect(world.takeLines() == ["250 a up: the peer is heard", "250 peer up: heard on a"])
    world.beats(1000, ["a"], hearsUs: false)
    #expect(world.takeLines() == ["3250 a one-way: the peer is heard, but does not hear this node here"])
    #expect(world.core.linksHeard == ["a"] && world.core.presence == .up)
    world.beats(250, ["a"])
    #expect(world.takeLines() == ["4000 a up: the peer is heard"])
  }

  @Test func anOwnStallCountsSilenceAnew() {
    var world = World(["a"])
    world.beats(500, ["a"])
    _ = world.takeLines()
    // 10 s without running: the first thing after it is a tick.
    world.now = world.now + .seconds(10)
    world.handle(.tick)
    #expect(world.takeLines() == ["10500 stall 9750"])
    world.pass(2900)
    #expect(world.core.presence == .up)
    world.pass(200)
    #expect(
      world.takeLines() == [
        "11250 a late: no beat for 750 ms", "13500 a lost: no beat for 3 s",
        "13500 peer lost: no beat on any link for 3 s",
      ])
    // A stall does not bring a lost peer back.
    world.now = world.now + .seconds(10)
    world.handle(.stalled(.seconds(10)))
    #expect(world.takeLines() == ["23600 stall 10000"])
    #expect(world.core.presence == .lost)
  }

  @Test func aShortGapIsNoStall() {
    var world = World(["a"])
    world.beats(500, ["a"])
    _ = world.takeLines()
    world.now = world.now + .milliseconds(1700)
    world.beat("a")
    #expect(world.takeLines().isEmpty)
    world.handle(.stalled(.milliseconds(1500)))
    #expect(world.takeLines().isEmpty)
    world.handle(.stalled(.milliseconds(1501)))
    #expect(world.takeLines() == ["2200 stall 1501"])
  }

  @Test func replaysAndOvertakenBeatsCountForNothing() {
    var world = World(["a"])
    world.beats(500, ["a"])
    _ = world.takeLines()
    for _ in 0..<16 {
      world.pass(250)
      world.handle(.beat(Beat(link: "a", boot: "x", sequence: world.sequence, hearsUs: true)))
      world.handle(.beat(Beat(link: "a", boot: "x", sequence: 1, hearsUs: true)))
      world.handle(.beat(Beat(link: "unknown", boot: "x", sequence: 99, hearsUs: true)))
    }
    #expect(world.core.presence == .lost)
  }

  @Test func aRebootIsToldAndItsPastBootsAreDead() {
    var world = World(["a", "b"])
    world.beats(500, ["a", "b"])
    _ = world.takeLines()
    world.sequence = 0
    world.pass(100)
    world.beat("a", boot: "y")
    #expect(world.takeLines() == ["600 restarted y"])
    world.beat("b", boot: "y")
    #expect(world.takeLines().isEmpty && world.core.peerBoot == "y")
    world.sequence = 1000
    world.beat("a", boot: "x")
    #expect(world.takeLines().isEmpty && world.core.peerBoot == "y")
  }

  @Test func linksAndTimesChangeWhileRunning() {
    var world = World(["a"])
    world.beats(500, ["a"])
    _ = world.takeLines()
    world.handle(.linksChanged(["b", "a"]))
    #expect(world.core.links.map(\.state) == [.late, .up])
    world.handle(.settingsChanged(MembershipSettings(pulse: .milliseconds(250), detection: .seconds(1))))
    world.pass(1000)
    #expect(
      world.takeLines() == [
        "1250 a late: no beat for 750 ms", "1500 b lost: never heard", "1500 a lost: no beat for 1 s",
        "1500 peer lost: no beat on any link for 1 s",
      ])
    world.handle(.settingsChanged(settings))
    #expect(world.core.presence == .lost && world.takeLines().isEmpty)
    world.handle(.linksChanged(["c"]))
    #expect(world.core.presence == .lost && world.takeLines().isEmpty)
  }

  /// Whatever happens, the next wake-up is in the future and not further than a pulse away.
  @Test func wakeUpIsAlwaysNear() {
    var world = World()
    var random: UInt64 = 7
    for _ in 0..<5000 {
      random = random &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
      world.now = world.now + .milliseconds(Int(random >> 33 % 700))
      switch random >> 60 % 4 {
      case 0: world.beat("a", hearsUs: random & 1 == 0)
      case 1: world.beat("b")
      case 2: world.handle(.tick)
      default: world.handle(.stalled(.milliseconds(Int(random >> 40 % 4000))))
      }
      #expect(world.wakeUp > world.now && world.wakeUp - world.now <= settings.pulse)
      let heard = world.core.links.contains { $0.state == .up || $0.state == .oneWay }
      #expect(!heard || world.core.presence == .up)
    }
  }
}
