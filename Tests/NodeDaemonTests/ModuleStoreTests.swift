import ControlAPI
import Glibc
import HostSystem
import MirrorModule
import Model
import Testing

@testable import NodeDaemon

@Suite struct ModuleStoreTests {
  /// A folder of its own for each test, removed afterwards.
  private static func withStore(_ body: (ModuleStore, String) throws -> Void) throws {
    try withAdoptionFolder { root in
      for folder in ["/var", "/var/lib", "/var/lib/vmha"] { try DurableFile.makeFolder(root + folder) }
      let name = try #require(ModuleName("vm1"))
      let paths = HostPaths(root: root)
      try body(ModuleStore(paths: paths, module: name), paths.moduleState(name))
    }
  }

  private static let record = DurableRecord(
    generation: Generation(number: 7, branch: BranchID(rawValue: 0xfeed_beef_0123_4567)), standing: .uptodate)

  @Test func nothingThereIsAbsentAndStopped() throws {
    try Self.withStore { store, _ in
      guard case .absent = try store.readRecord() else { return #expect(Bool(false), "a record out of nothing") }
      let loaded = try store.load(hasGuest: true)
      #expect(loaded.record == nil && loaded.wish == Wish(started: false, version: 0) && loaded.notes.isEmpty)
    }
  }

  @Test func comesBackAsWritten() throws {
    try Self.withStore { store, _ in
      try store.write(Self.record)
      try store.write(Wish(started: true, version: 12))
      guard case .valid(let read) = try store.readRecord() else { return #expect(Bool(false), "unreadable") }
      #expect(read == Self.record)
      #expect(try store.load(hasGuest: false).wish == Wish(started: true, version: 12))
      #expect(store.readVerification() == nil)
      var known = VerificationRecord(id: UInt64.max)
      known.identicalUpTo = WallTime(milliseconds: 1_795_380_974_123)
      try store.write(known)
      #expect(store.readVerification() == known)
      try store.removeAll()
      #expect(store.readVerification() == nil)
    }
  }

  /// Counted by the monotonic clock of one boot, kept by date, counted on in the next boot.
  @Test func limitsOutliveTheBoot() throws {
    try Self.withStore { store, folder in
      func limits(_ now: Instant, _ wall: WallTime) throws -> ModuleLimits {
        guard case .valid(let stored) = try store.readLimits() else { return ModuleLimits() }
        return stored.limits(at: now, wall: wall)
      }
      let late = Instant(nanoseconds: 500_000 * 1_000_000_000)
      let wall = WallTime(milliseconds: 1_795_380_974_000)
      #expect(try limits(late, wall) == ModuleLimits())
      var counted = ModuleLimits()
      counted.restarts = [late + .seconds(-7200), late + .seconds(-60)]
      counted.takeovers = [late + .seconds(-30)]
      counted.gaveUpAt = late
      counted.stopped = "it keeps dying"
      try store.write(StoredLimits(counted, at: late, wall: wall))
      #expect(try limits(late, wall) == counted)
      // Ten seconds after the next boot, an hour later.
      let next = Instant(nanoseconds: 10 * 1_000_000_000)
      let read = try limits(next, WallTime(milliseconds: wall.milliseconds + 3_600_000))
      #expect(read.restarts == [next + .seconds(-10_800), next + .seconds(-3660)])
      #expect(read.takeovers == [next + .seconds(-3630)] && read.gaveUpAt == next + .seconds(-3600))
      #expect(read.stopped == "it keeps dying" && read.peerGaveUpAt == nil)
      // The wall clock was set back behind them: they count as of now.
      #expect(try limits(next, WallTime(milliseconds: 5)).restarts == [next, next])
      try DurableFile.write(Array("damaged".utf8), to: "\(folder)/limits.json")
      let loaded = try store.load(hasGuest: false)
      #expect(loaded.limits == ModuleLimits() && loaded.notes.count == 1)
      try store.write(StoredLimits(counted, at: late, wall: wall))
      try store.removeAll()
      #expect(try limits(late, wall) == ModuleLimits())
    }
  }

  @Test func theLastMomentInSyncIsNoted() throws {
    try Self.withStore { store, folder in
      try store.write(Self.record)
      let root = String(folder.dropLast("/var/lib/vmha/modules/vm1".count))
      let paths = HostPaths(root: root)
      let name = try #require(ModuleName("vm1"))
      func at(_ seconds: Int64) -> WallTime { WallTime(milliseconds: 1_795_380_974_000 + seconds * 1000) }
      var notes = SyncNotes(paths: paths)
      try notes.look(at: name, inSync: false, now: at(0))
      #expect(SyncNotes.read(paths, name) == nil)
      for second in 1...90 { try notes.look(at: name, inSync: true, now: at(Int64(second))) }
      // What a power cut leaves, and what an end in order leaves.
      #expect(SyncNotes.read(paths, name) == at(61))
      try notes.look(at: name, inSync: false, now: at(91))
      #expect(SyncNotes.read(paths, name) == at(90))
      try notes.look(at: name, inSync: false, now: at(500))
      #expect(SyncNotes.read(paths, name) == at(90))
      try store.removeAll()
      #expect(SyncNotes.read(paths, name) == nil)
    }
  }

  @Test(arguments: [".a", ".b"]) func damageToOneCopyLosesNothing(copy: String) throws {
    try Self.withStore { store, folder in
      var older = Self.record
      older.standing = .outdated
      try store.write(older)
      try store.write(Self.record)
      try DurableFile.write(Array("damaged".utf8), to: "\(folder)/record\(copy)")
      guard case .valid(let read) = try store.readRecord() else { return #expect(Bool(false), "unreadable") }
      #expect(read == Self.record)
    }
  }

  @Test func damageToBothIsUnreadableNeverAbsent() throws {
    try Self.withStore { store, folder in
      try store.write(Self.record)
      for copy in [".a", ".b"] { try DurableFile.write(Array("damaged".utf8), to: "\(folder)/record\(copy)") }
      guard case .damaged = try store.readRecord() else { return #expect(Bool(false), "believed") }
    }
  }
}

@Suite struct MilestoneTests {
  private static func status(
    _ state: ModuleState, _ readiness: Readiness, _ guest: CoreGuest, inSync: Bool = false, split: Bool = false
  ) -> CoreStatus {
    var status = MirrorModule(
      settings: MirrorSettings(
        module: ModuleName("vm1") ?? preconditionName, node: .first, nodeName: "a", peerName: "b", preferred: .first,
        arbiter: .none, detection: .seconds(3), bootWait: .seconds(60), stopTimeout: .seconds(60), restartsMax: 3,
        restartWindow: .seconds(86_400), bootID: "boot", seed: 1)
    ).status
    status.state = state
    status.readiness = readiness
    status.guest = guest
    status.inSync = inSync
    status.isSplit = split
    return status
  }
  private static var preconditionName: ModuleName { preconditionFailure("vm1 is a name") }

  @Test func aTakeoverIsToldInOrder() {
    let second = Self.status(.second, .ready, .off, inSync: true)
    let promoted = Self.status(.alone, .transient, .off)
    let starting = Self.status(.alone, .transient, .starting)
    let running = Self.status(.alone, .ready, .running)
    #expect(Milestones.between(second, promoted).map(\.kind) == [.promoted, .state])
    #expect(Milestones.between(promoted, starting).map(\.kind) == [.guestStarting])
    #expect(Milestones.between(starting, running).map(\.kind) == [.state, .guestStarted])
  }

  @Test func aGuestThatDiesIsNotAGuestThatStops() {
    let running = Self.status(.prim, .ready, .running)
    #expect(Milestones.between(running, Self.status(.prim, .transient, .off)).map(\.kind) == [.state, .guestDied])
    let stopping = Self.status(.prim, .transient, .stopping)
    #expect(Milestones.between(stopping, Self.status(.prim, .transient, .off)).map(\.kind) == [.guestStopped])
  }

  @Test func aGuestRestartedAtOnceDiedAllTheSame() {
    let running = Self.status(.prim, .ready, .running)
    let kinds = Milestones.between(running, Self.status(.prim, .transient, .starting)).map(\.kind)
    #expect(kinds == [.state, .guestDied, .guestStarting])
  }

  @Test func theSameSaysNothing() {
    let running = Self.status(.prim, .ready, .running)
    #expect(Milestones.between(running, running).isEmpty)
  }

  @Test func aSplitIsAnError() {
    let found = Milestones.between(
      Self.status(.alone, .ready, .running), Self.status(.alone, .blocked, .running, split: true))
    #expect(found.map(\.kind) == [.state, .split])
    #expect(found.allSatisfy { $0.severity == .error })
  }
}
