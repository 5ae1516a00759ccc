/// One of the two hosts of a cluster. The number is 1 or 2, fixed when the node joins, and the same on both nodes.
public struct NodeID: RawRepresentable, Hashable, Sendable, Codable, Comparable, CustomStringConvertible {
  public let rawValue: Int
  public init?(rawValue: Int) {
    guard (1...2).contains(rawValue) else { return nil }
    self.rawValue = rawValue
  }
  public static let first = NodeID(unchecked: 1)
  public static let second = NodeID(unchecked: 2)
  private init(unchecked: Int) { rawValue = unchecked }
  public var peer: NodeID { self == .first ? .second : .first }
  public static func < (a: NodeID, b: NodeID) -> Bool { a.rawValue < b.rawValue }
  public var description: String { "node \(rawValue)" }
}

/// A module's name, which is the libvirt name of its VM: 1 to 64 of `A-Z a-z 0-9 . _ + -`, not starting with `.` or `-`.
/// Narrower than libvirt's own rule, because the name becomes part of paths, sockets and unit names.
public struct ModuleName: Hashable, Sendable, Codable, Comparable, CustomStringConvertible {
  public static let lengthMax = 64
  public let text: String
  public init?(_ text: String) {
    let scalars = text.unicodeScalars
    guard (1...ModuleName.lengthMax).contains(scalars.count), let head = scalars.first, head != ".", head != "-",
      scalars.allSatisfy(ModuleName.isAllowed)
    else { return nil }
    self.text = text
  }
  private static func isAllowed(_ scalar: Unicode.Scalar) -> Bool {
    switch scalar {
    case "A"..."Z", "a"..."z", "0"..."9", ".", "_", "+", "-": true
    default: false
    }
  }
  public init(from decoder: any Decoder) throws {
    let text = try decoder.singleValueContainer().decode(String.self)
    guard let name = ModuleName(text) else {
      throw DecodingError.dataCorrupted(
        .init(codingPath: decoder.codingPath, debugDescription: "'\(text)' is not a module name"))
    }
    self = name
  }
  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(text)
  }
  public static func < (a: ModuleName, b: ModuleName) -> Bool { a.text < b.text }
  public var description: String { text }
}

/// The most modules one cluster carries. The heartbeat's size and the port range depend on it.
public let moduleCountMax = 25

/// A module's number, 1...25, the same on both nodes; it fixes the module's replication port.
public struct ModuleNumber: RawRepresentable, Hashable, Sendable, Codable, Comparable {
  public let rawValue: Int
  public init?(rawValue: Int) {
    guard (1...moduleCountMax).contains(rawValue) else { return nil }
    self.rawValue = rawValue
  }
  public static func < (a: ModuleNumber, b: ModuleNumber) -> Bool { a.rawValue < b.rawValue }
}

/// One replication connection, from handshake to loss (R1): 64 random bits agreed by both ends. Never used twice.
public struct SessionID: RawRepresentable, Hashable, Sendable, Codable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public var description: String { hexadecimal(rawValue) }
}

/// One line of history: everything written under one right to be alone. Random, never used twice.
public struct BranchID: RawRepresentable, Hashable, Sendable, Codable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  /// The branch of a copy that holds nothing yet: every other branch descends from it.
  public static let empty = BranchID(rawValue: 0)
  public var description: String { hexadecimal(rawValue) }
}

/// 16 lower-case hexadecimal digits.
public func hexadecimal(_ value: UInt64) -> String {
  let digits = String(value, radix: 16)
  return String(repeating: "0", count: 16 - digits.count) + digits
}
