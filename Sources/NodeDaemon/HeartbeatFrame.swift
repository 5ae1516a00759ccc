import HostSystem
import Model
import SecureLinks

/// One module in the heartbeat, 16 bytes.
public struct ModuleBeat: Sendable, Hashable {
  public struct Flags: OptionSet, Sendable, Hashable {
    public let rawValue: UInt8
    public init(rawValue: UInt8) { self.rawValue = rawValue }
    public static let guestRunning = Flags(rawValue: 1)
    /// It cannot go on and asks the peer to take the module.
    public static let offers = Flags(rawValue: 2)
    public static let inSync = Flags(rawValue: 4)
    /// Holds the right to be alone.
    public static let isAlone = Flags(rawValue: 8)
    /// The operator wants it started.
    public static let isWanted = Flags(rawValue: 16)
    static let known = Flags(rawValue: 31)
  }
  public var number: ModuleNumber
  public var state: ModuleState
  public var readiness: Readiness
  public var flags: Flags
  /// nil = no durable record here yet.
  public var standing: Standing?
  public var generation: Generation

  public init(
    number: ModuleNumber, state: ModuleState, readiness: Readiness, flags: Flags, standing: Standing?,
    generation: Generation
  ) {
    self.number = number
    self.state = state
    self.readiness = readiness
    self.flags = flags
    self.standing = standing
    self.generation = generation
  }
}

/// The body of a heartbeat datagram; `HeartbeatSeal` wraps it. The size does not depend on traffic, only on links and
/// modules.
///
/// Little-endian: version 1 B, node 1 B, flags 1 B (bit 0: the node is going down in good order), links heard 1 B,
/// modules 1 B, 3 zero bytes, configuration revision 4 B, link 4 B, sequence 8 B, boot id 16 B, links heard 4 B each,
/// modules 16 B each: {number 1 B, state and readiness 1 B (high, low half), flags 1 B, standing 1 B, generation number
/// 4 B, branch 8 B}.
public struct HeartbeatFrame: Sendable, Hashable {
  public static let version: UInt8 = 1
  public static let linkCountMax = 8
  static let headerBytes = 40
  static let moduleBytes = 16

  public var node: NodeID
  public var isLeaving: Bool
  /// Revision of the sender's cluster.xml.
  public var revision: UInt32
  /// The link this beat was sent on, as `linkID`.
  public var link: UInt32
  /// Grows with every beat of a boot.
  public var sequence: UInt64
  /// Kernel boot id, 36 characters.
  public var boot: String
  /// Links on which the sender hears the receiver, as `linkID`, at most `linkCountMax`.
  public var linksHeard: [UInt32]
  /// At most `moduleCountMax`.
  public var modules: [ModuleBeat]

  public init(
    node: NodeID, isLeaving: Bool = false, revision: UInt32, link: UInt32, sequence: UInt64, boot: String,
    linksHeard: [UInt32], modules: [ModuleBeat]
  ) {
    self.node = node
    self.isLeaving = isLeaving
    self.revision = revision
    self.link = link
    self.sequence = sequence
    self.boot = boot
    self.linksHeard = linksHeard
    self.modules = modules
  }

  /// Short name of a link for the datagram: CRC-32C of its name.
  public static func linkID(_ name: String) -> UInt32 { Checksum.crc32c(Array(name.utf8)) }

  private static let states: [ModuleState] = [.stop, .wait, .alone, .prim, .second]
  private static let readinesses: [Readiness] = [.ready, .transient, .blocked]
  private static let standings: [Standing?] = [nil, .uptodate, .outdated, .inconsistent]

  /// nil if a limit or the form of the boot id is not kept: the caller's mistake.
  public func encode() -> [UInt8]? {
    guard linksHeard.count <= Self.linkCountMax, modules.count <= moduleCountMax, let boot = Self.bootBytes(boot) else {
      return nil
    }
    var out: [UInt8] = [
      Self.version, UInt8(node.rawValue), isLeaving ? 1 : 0, UInt8(linksHeard.count), UInt8(modules.count), 0, 0, 0,
    ]
    func put(_ value: some FixedWidthInteger) { withUnsafeBytes(of: value.littleEndian) { out += $0 } }
    put(revision)
    put(link)
    put(sequence)
    out += boot
    for link in linksHeard { put(link) }
    for module in modules {
      guard let state = Self.states.firstIndex(of: module.state),
        let readiness = Self.readinesses.firstIndex(of: module.readiness),
        let standing = Self.standings.firstIndex(of: module.standing)
      else { return nil }
      out += [UInt8(module.number.rawValue), UInt8(state << 4 | readiness), module.flags.rawValue, UInt8(standing)]
      put(module.generation.number)
      put(module.generation.branch.rawValue)
    }
    return out
  }

  /// nil for anything that `encode` cannot have made.
  public init?(_ bytes: [UInt8]) {
    guard bytes.count >= Self.headerBytes, bytes[0] == Self.version, let node = NodeID(rawValue: Int(bytes[1])),
      bytes[2] <= 1, bytes[5...7].allSatisfy({ $0 == 0 })
    else { return nil }
    let (linkCount, moduleCount) = (Int(bytes[3]), Int(bytes[4]))
    guard linkCount <= Self.linkCountMax, moduleCount <= moduleCountMax,
      bytes.count == Self.headerBytes + 4 * linkCount + Self.moduleBytes * moduleCount
    else { return nil }
    func integer<T: FixedWidthInteger>(_ offset: Int, _: T.Type) -> T {
      (0..<MemoryLayout<T>.size).reversed().reduce(0) { $0 << 8 | T(bytes[offset + $1]) }
    }
    self.node = node
    isLeaving = bytes[2] == 1
    revision = integer(8, UInt32.self)
    link = integer(12, UInt32.self)
    sequence = integer(16, UInt64.self)
    boot = Self.bootText(bytes[24..<40])
    linksHeard = (0..<linkCount).map { integer(Self.headerBytes + 4 * $0, UInt32.self) }
    modules = []
    for index in 0..<moduleCount {
      let offset = Self.headerBytes + 4 * linkCount + Self.moduleBytes * index
      let (state, readiness) = (Int(bytes[offset + 1] >> 4), Int(bytes[offset + 1] & 15))
      guard let number = ModuleNumber(rawValue: Int(bytes[offset])), state < Self.states.count,
        readiness < Self.readinesses.count, bytes[offset + 2] & ~ModuleBeat.Flags.known.rawValue == 0,
        Int(bytes[offset + 3]) < Self.standings.count, !modules.contains(where: { $0.number == number })
      else { return nil }
      modules.append(
        ModuleBeat(
          number: number, state: Self.states[state], readiness: Self.readinesses[readiness],
          flags: ModuleBeat.Flags(rawValue: bytes[offset + 2]), standing: Self.standings[Int(bytes[offset + 3])],
          generation: Generation(
            number: integer(offset + 4, UInt32.self), branch: BranchID(rawValue: integer(offset + 8, UInt64.self)))))
    }
  }

  private static func bootBytes(_ text: String) -> [UInt8]? {
    guard text.utf8.count == 36, text == text.lowercased(), let raw = bytes(hexadecimal: text.filter { $0 != "-" }),
      raw.count == 16, bootText(raw[...]) == text
    else { return nil }
    return raw
  }

  private static func bootText(_ raw: ArraySlice<UInt8>) -> String {
    let digits = Array(hexadecimal(Array(raw)))
    return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { String(digits[$0]) }.joined(separator: "-")
  }
}
