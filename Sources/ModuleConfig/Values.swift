import Glibc

/// What the words and numbers of the configuration files may look like.
enum Values {
  static let uuidAllowed = "a UUID such as 2f6c1a0e-0b4d-4f5e-9d57-0c6b1f3f0a11 is needed"
  /// Lower-case with dashes, or nil. Upper-case digits are accepted.
  static func uuid(_ text: String) -> String? {
    let lower = text.lowercased()
    let groups = lower.split(separator: "-", omittingEmptySubsequences: false)
    guard groups.map(\.count) == [8, 4, 4, 4, 12] else { return nil }
    let isHexadecimal = groups.joined().unicodeScalars.allSatisfy {
      ("0"..."9").contains($0) || ("a"..."f").contains($0)
    }
    return isHexadecimal ? lower : nil
  }

  static let nameAllowed = "1 to 64 of A-Z a-z 0-9 . _ - are allowed, the first a letter or digit"
  static func name(_ text: String) -> String? {
    guard (1...ClusterConfiguration.nameLengthMax).contains(text.utf8.count), let head = text.unicodeScalars.first,
      isAlphanumeric(head), text.unicodeScalars.allSatisfy({ isAlphanumeric($0) || ".-_".unicodeScalars.contains($0) })
    else { return nil }
    return text
  }
  static func isAlphanumeric(_ scalar: Unicode.Scalar) -> Bool {
    ("0"..."9").contains(scalar) || ("a"..."z").contains(scalar) || ("A"..."Z").contains(scalar)
  }

  static let addressAllowed = "the numeric IPv4 or IPv6 address of one host is needed, without prefix length or scope"
  static func address(_ text: String) -> String? { IPAddress(text)?.text }

  static let pathAllowed = "an absolute path without '.', '..' or empty parts is needed, at most 1024 bytes"
  static func absolutePath(_ text: String) -> String? {
    guard text.hasPrefix("/"), relativePath(String(text.dropFirst())) != nil else { return nil }
    return text
  }

  static let filePathAllowed = "a path below the module's folder is needed, without '.', '..' or empty parts"
  static func relativePath(_ text: String) -> String? {
    let parts = text.split(separator: "/", omittingEmptySubsequences: false)
    let isBad = parts.contains { $0.isEmpty || $0 == "." || $0 == ".." || $0.utf8.count > 255 }
    let hasControl = text.unicodeScalars.contains { $0.value < 32 }
    return isBad || hasControl || text.utf8.count > 1023 ? nil : text
  }
}

/// A numeric address of one host.
public struct IPAddress: Hashable, Sendable {
  public enum Family: String, Sendable { case ipv4 = "IPv4", ipv6 = "IPv6" }
  public var family: Family
  /// In the usual short form, so that two spellings of one address are equal.
  public var text: String

  /// nil for names, scopes, prefixes, the unspecified address and multicast.
  public init?(_ text: String) {
    var bytes = [UInt8](repeating: 0, count: 16)
    let isIPv4 = inet_pton(AF_INET, text, &bytes) == 1
    guard isIPv4 || inet_pton(AF_INET6, text, &bytes) == 1 else { return nil }
    let length = isIPv4 ? 4 : 16
    let isUnspecified = bytes.prefix(length).allSatisfy { $0 == 0 }
    let isMulticast = isIPv4 ? bytes[0] >= 224 : bytes[0] == 0xff
    guard !isUnspecified, !isMulticast else { return nil }
    var buffer = [CChar](repeating: 0, count: 64)
    guard inet_ntop(isIPv4 ? AF_INET : AF_INET6, bytes, &buffer, socklen_t(buffer.count)) != nil else { return nil }
    family = isIPv4 ? .ipv4 : .ipv6
    self.text = String(decoding: buffer.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
  }
}
