import Glibc

/// SplitMix64: every choice of a run comes from its seed.
struct Dice: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var value = state
    value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
    return value ^ (value >> 31)
  }
  mutating func chance(_ percent: Int) -> Bool { Int.random(in: 0..<100, using: &self) < percent }
  mutating func pick<Value>(_ values: [Value]) -> Value { values[Int.random(in: 0..<values.count, using: &self)] }
}

/// A path below the root of a run; bytes, because names need not be text.
struct StepPath: Hashable, CustomStringConvertible {
  var bytes: [UInt8]
  init(_ bytes: [UInt8]) { self.bytes = bytes }
  init(_ text: String) { bytes = Array(text.utf8) }
  var description: String {
    var text = ""
    var repeated = 0
    for (index, byte) in bytes.enumerated() {
      repeated = index > 0 && bytes[index - 1] == byte ? repeated + 1 : 0
      if repeated == 4 { text += "…" }
      if repeated >= 4 { continue }
      text += (0x21...0x7E).contains(byte) ? String(UnicodeScalar(byte)) : "\\x" + String(byte, radix: 16)
    }
    return text + (bytes.count > 40 ? "(\(bytes.count))" : "")
  }
}

/// Who does a step. Users 5001 and 5002 share no group.
enum Actor: UInt32, Hashable {
  case root = 0
  case one = 5001
  case two = 5002
}

/// One of the times that utimensat takes.
enum Stamp: Hashable {
  case now, omit
  case at(Int, Int)
}

/// One system call. A descriptor is one of a few slots; a closed one is -1. Any list of steps is a run: none relies on another's
/// success.
enum Call: Hashable {
  case open(Int, StepPath, flags: Int32, mode: mode_t)
  case close(Int)
  case write(Int, offset: Int, count: Int, fill: Int)
  case append(Int, count: Int, fill: Int)
  case read(Int, offset: Int, count: Int)
  case setSize(Int, Int)
  case truncate(StepPath, Int)
  case allocate(Int, mode: Int32, offset: Int, count: Int)
  case seek(Int, offset: Int, whence: Int32)
  case sync(Int, dataOnly: Bool)
  case copyRange(Int, to: Int, offset: Int, toOffset: Int, count: Int)
  case status(StepPath)
  case statusOf(Int)
  case makeFolder(StepPath, mode: mode_t)
  case removeFolder(StepPath)
  case unlink(StepPath)
  case rename(StepPath, StepPath, flags: UInt32)
  case link(StepPath, StepPath)
  case linkOpen(Int, StepPath)
  case symlink(StepPath, StepPath)
  case readLink(StepPath)
  case makeNode(StepPath, mode: mode_t)
  case setMode(StepPath, mode_t)
  case setModeOf(Int, mode_t)
  case setOwner(StepPath, uid_t, gid_t)
  case setTimes(StepPath, Stamp, Stamp)
  case setAttribute(StepPath, String, [UInt8], flags: Int32)
  case getAttribute(StepPath, String)
  case listAttributes(StepPath)
  case removeAttribute(StepPath, String)
  case list(StepPath)
  case access(StepPath, Int32)
}

struct Step: Hashable, CustomStringConvertible {
  var actor: Actor
  var umask: mode_t
  var call: Call
  var description: String { "\(actor) umask \(String(umask, radix: 8)): \(call)" }
}

/// Makes the steps of a run from its seed: few names and few descriptors, so that they meet.
struct StepMaker {
  static let slots = 6
  private static let longName = [UInt8](repeating: 0x4C, count: 255)
  private var dice: Dice

  init(seed: UInt64) { dice = Dice(seed: seed) }

  static func steps(seed: UInt64, count: Int) -> [Step] {
    var maker = StepMaker(seed: seed)
    return (0..<count).map { _ in maker.step() }
  }

  private mutating func step() -> Step {
    let actor: Actor = dice.chance(75) ? .root : dice.pick([.one, .two])
    return Step(actor: actor, umask: dice.pick([0, 0o022, 0o027, 0o077]), call: call())
  }

  private mutating func call() -> Call {
    switch Int.random(in: 0..<100, using: &dice) {
    case 0..<12: open()
    case 12..<15: .close(slot())
    case 15..<52: dataCall()
    case 52..<74: nameCall()
    default: attributeCall()
    }
  }

  private mutating func slot() -> Int { Int.random(in: 0..<Self.slots, using: &dice) }

  private mutating func name() -> [UInt8] {
    switch Int.random(in: 0..<100, using: &dice) {
    case 0..<2: Self.longName
    case 2: Self.longName + [0x4C]
    case 3..<6: [0xFF, 0xFE, 0x0A]
    case 6: Array("a/".utf8)
    case 7: Array("..".utf8)
    case 8: Array(".".utf8)
    case 9: []
    case 10..<25: Array(dice.pick(["d0", "d1"]).utf8)
    default: Array(dice.pick(["a", "b", "c", "e", "f"]).utf8)
    }
  }

  private mutating func path() -> StepPath {
    var bytes: [UInt8] = []
    for _ in 0..<dice.pick([0, 0, 0, 1, 1, 2]) { bytes += Array(dice.pick(["d0/", "d1/", "d0/", "b/"]).utf8) }
    return StepPath(bytes + name())
  }

  private mutating func folder() -> StepPath {
    StepPath(dice.pick(["d0", "d1", "d0/d0", "d0/d1", "d1/d0", "", "a", "b", "d1/c"]))
  }

  private mutating func mode() -> mode_t {
    dice.chance(70)
      ? dice.pick([0o644, 0o666, 0o755, 0o777, 0o600, 0o700]) : mode_t.random(in: 0...0o7777, using: &dice)
  }

  private mutating func open() -> Call {
    var flags = dice.pick([O_RDONLY, O_WRONLY, O_RDWR, O_RDWR, O_RDWR])
    if dice.chance(70) { flags |= O_CREAT }
    if dice.chance(15) { flags |= O_EXCL }
    if dice.chance(15) { flags |= O_TRUNC }
    if dice.chance(20) { flags |= O_APPEND }
    if dice.chance(10) { flags |= O_NOFOLLOW }
    if dice.chance(5) { flags |= O_DIRECTORY }
    return .open(slot(), path(), flags: flags, mode: mode())
  }

  private mutating func offset() -> Int {
    switch Int.random(in: 0..<100, using: &dice) {
    case 0..<70: Int.random(in: 0..<300_000, using: &dice)
    case 70..<90: 4096 * Int.random(in: 0..<80, using: &dice)
    case 90..<96: Int.random(in: 1 << 20..<3 << 20, using: &dice)
    case 96, 97: (8 << 40) + Int.random(in: 0..<100_000, using: &dice)
    // Beyond what ext4 can hold in a file, and around its very end.
    case 98: (16 << 40) - 4096 + Int.random(in: -5000..<5000, using: &dice)
    default: dice.pick([1 << 45, Int.max - 10, Int.max])
    }
  }

  private mutating func count() -> Int {
    switch Int.random(in: 0..<100, using: &dice) {
    case 0..<60: Int.random(in: 1..<10_000, using: &dice)
    case 60..<90: 4096 * Int.random(in: 1..<20, using: &dice)
    case 90..<97: Int.random(in: 10_000..<200_000, using: &dice)
    case 97: 0
    default: Int.random(in: 1 << 20..<StepWorld.countMax, using: &dice)
    }
  }

  private mutating func dataCall() -> Call {
    switch Int.random(in: 0..<100, using: &dice) {
    case 0..<32: return .write(slot(), offset: offset(), count: count(), fill: Int.random(in: 0..<10_000, using: &dice))
    case 32..<42: return .append(slot(), count: count(), fill: Int.random(in: 0..<10_000, using: &dice))
    case 42..<58: return .read(slot(), offset: offset(), count: count())
    case 58..<66: return .setSize(slot(), dice.chance(10) ? offset() : Int.random(in: 0..<400_000, using: &dice))
    case 66..<70: return .truncate(path(), dice.chance(10) ? offset() : Int.random(in: 0..<400_000, using: &dice))
    case 70..<82:
      // None, keep size, punch, zero, zero and keep size, and two that do not exist alone.
      return .allocate(
        slot(), mode: dice.pick([0, 1, 3, 3, 0x10, 0x11, 2, 0x80]),
        offset: dice.chance(95) ? offset() % (4 << 20) : offset(),
        count: count())
    case 82..<88: return .seek(slot(), offset: offset(), whence: dice.pick([3, 4]))
    case 88..<93: return .sync(slot(), dataOnly: dice.chance(50))
    default:
      return .copyRange(
        slot(), to: slot(), offset: Int.random(in: 0..<200_000, using: &dice),
        toOffset: Int.random(in: 0..<200_000, using: &dice), count: count())
    }
  }

  private mutating func nameCall() -> Call {
    switch Int.random(in: 0..<100, using: &dice) {
    case 0..<15: .makeFolder(dice.chance(70) ? folder() : path(), mode: mode())
    case 15..<20: .removeFolder(dice.chance(70) ? folder() : path())
    case 20..<40: .unlink(path())
    case 40..<62: .rename(path(), path(), flags: dice.pick([0, 0, 0, 0, 1, 2, 2, 3, 16]))
    case 62..<75: .link(path(), path())
    case 75..<79: .linkOpen(slot(), path())
    case 79..<88:
      .symlink(
        dice.chance(5)
          ? StepPath([UInt8](repeating: 0x74, count: dice.pick([60, 1000, 4095])))
          : StepPath(dice.pick(["a", "b", "d0", "../d1", "d0/a", "c", "f", "nowhere/at/all"])), path())
    case 88..<93: .readLink(path())
    default: .makeNode(path(), mode: dice.pick([S_IFIFO, S_IFSOCK, S_IFREG, S_IFREG]) | mode())
    }
  }

  private mutating func stamp() -> Stamp {
    switch Int.random(in: 0..<10, using: &dice) {
    case 0: .now
    case 1: .omit
    case 2: .at(dice.pick([0, 1, -1, -1_000_000, 0x7FFF_FFFF, 0x8000_0000]), 999_999_999)
    // Before `TreePicture.newYear`, so that it is told from a time that came by itself.
    default: .at(Int.random(in: 1...1_500_000_000, using: &dice), Int.random(in: 0..<1_000_000_000, using: &dice))
    }
  }

  private mutating func attributeName() -> String {
    dice.pick([
      "user.a", "user.b", "user.c", "trusted.x", "security.x", "user.", "nospace", "trusted.vmhaX",
      "system.posix_acl_access", "system.posix_acl_access", "system.posix_acl_default",
    ])
  }

  private mutating func attributeCall() -> Call {
    switch Int.random(in: 0..<100, using: &dice) {
    case 0..<16: return .status(path())
    case 16..<24: return .statusOf(slot())
    case 24..<34: return .setMode(path(), mode_t.random(in: 0...0o7777, using: &dice))
    case 34..<37: return .setModeOf(slot(), mode_t.random(in: 0...0o7777, using: &dice))
    case 37..<47:
      return .setOwner(path(), dice.pick([0, 5001, 5002, uid_t.max]), dice.pick([0, 5001, 5002, gid_t.max]))
    case 47..<57: return .setTimes(path(), stamp(), stamp())
    case 57..<72:
      let name = attributeName()
      let value =
        name.hasPrefix("system.posix_acl")
        ? accessList() : [UInt8](repeating: 0x76, count: dice.pick([0, 1, 8, 20, 40, 70_000]))
      return .setAttribute(path(), name, value, flags: dice.pick([0, 0, 0, 1, 2]))
    case 72..<78: return .getAttribute(path(), attributeName())
    case 78..<83: return .listAttributes(path())
    case 83..<88: return .removeAttribute(path(), attributeName())
    case 88..<94: return .list(dice.chance(70) ? folder() : path())
    default: return .access(path(), dice.pick([F_OK, R_OK, W_OK, X_OK, R_OK | W_OK]))
    }
  }

  /// As setfacl encodes it: version 2, then tag, permissions and id of each entry; sometimes one that is not allowed.
  private mutating func accessList() -> [UInt8] {
    var bytes: [UInt8] = [2, 0, 0, 0]
    func entry(_ tag: UInt16, _ permissions: UInt16, _ id: UInt32) {
      for value in [UInt32(tag) | UInt32(permissions) << 16, id] {
        for byte in 0..<4 { bytes.append(UInt8(truncatingIfNeeded: value >> (8 * UInt32(byte)))) }
      }
    }
    func permissions() -> UInt16 { UInt16.random(in: 0...7, using: &dice) }
    entry(0x01, permissions(), UInt32.max)
    let named = dice.pick([0, 1, 2])
    if named > 0 { entry(0x02, permissions(), 5001) }
    if named > 1 { entry(0x02, permissions(), 5002) }
    entry(0x04, permissions(), UInt32.max)
    if dice.chance(30) { entry(0x08, permissions(), 5002) }
    if named > 0 || dice.chance(60) { entry(0x10, permissions(), UInt32.max) }
    if !dice.chance(3) { entry(0x20, permissions(), UInt32.max) }
    return bytes
  }
}
