// The comparison of both copies of a module while it is in sync (`vmha verify`, the scrub): what vmhad asks of an engine, and what
// the engine says of it. Nothing here decides about roles or rights.

/// One comparison, chosen by vmhad.
public struct VerifyRequest: Codable, Sendable, Hashable {
  /// Fresh random: tells this comparison from every other one.
  public var id: UInt64
  /// The session in which both copies are in sync; the comparison ends with it.
  public var session: SessionID
  /// What differs is overwritten on the other node with this node's contents.
  public var repairs: Bool
  /// Bytes of this node's data that may be read in a second; 0 = as fast as the guest's own requests leave room.
  public var bytesPerSecondMax: UInt64
  public init(id: UInt64, session: SessionID, repairs: Bool, bytesPerSecondMax: UInt64) {
    self.id = id
    self.session = session
    self.repairs = repairs
    self.bytesPerSecondMax = bytesPerSecondMax
  }
}

/// One place in which the copies are not the same.
public struct VerifyFinding: Codable, Sendable, Hashable {
  public enum Kind: String, Codable, Sendable, Hashable {
    /// The contents differ.
    case differs
    /// The other node's disk cannot read its copy.
    case unreadableThere = "unreadable_there"
    /// This node's disk cannot read its copy: only the other node's is left.
    case unreadableHere = "unreadable_here"
    /// The files have different lengths; `offset` is the shorter one, `length` the difference.
    case size
    /// The other node does not have the file.
    case missing
    /// Names, owners, modes or extended attributes in this folder differ.
    case names
  }
  /// Below the module's folder.
  public var path: String
  public var kind: Kind
  /// In bytes; 0 where the kind has no place in a file.
  public var offset: UInt64
  public var length: UInt64
  /// The other node has this node's contents now.
  public var isRepaired: Bool
  enum CodingKeys: String, CodingKey {
    case path, kind, offset, length
    case isRepaired = "repaired"
  }
  public init(path: String, kind: Kind, offset: UInt64 = 0, length: UInt64 = 0, isRepaired: Bool = false) {
    self.path = path
    self.kind = kind
    self.offset = offset
    self.length = length
    self.isRepaired = isRepaired
  }
}

/// How far a comparison is, or what it came to.
public struct VerifyReport: Codable, Sendable, Hashable {
  public enum Outcome: Codable, Sendable, Hashable {
    /// All that was there at the beginning has been compared.
    case complete
    /// It ended before; what was found until then is in the report.
    case interrupted(why: String)
  }
  /// Places that are told one by one; all are counted.
  public static let findingsMax = 64

  /// That of the request.
  public var id: UInt64
  public var repairs: Bool
  /// Milliseconds since 1970 by the clock of the node that compared; for people.
  public var startedAtMs: Int64
  public var endedAtMs: Int64?
  /// Data of this node to be read, holes apart, as it was at the beginning.
  public var bytesTotal: UInt64
  public var bytesDone: UInt64
  public var bytesPerSecond: UInt64
  /// nil until a rate is known.
  public var secondsLeft: Int?
  /// The first `findingsMax`.
  public var findings: [VerifyFinding]
  public var findingsCount: Int
  public var repairedCount: Int
  /// nil = it goes on.
  public var outcome: Outcome?

  public init(id: UInt64, repairs: Bool, startedAtMs: Int64) {
    self.id = id
    self.repairs = repairs
    self.startedAtMs = startedAtMs
    bytesTotal = 0
    bytesDone = 0
    bytesPerSecond = 0
    findings = []
    findingsCount = 0
    repairedCount = 0
  }

  /// Places that are still not the same.
  public var differingCount: Int { findingsCount - repairedCount }
}
