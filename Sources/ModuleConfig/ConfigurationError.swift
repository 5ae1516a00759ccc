/// Why a configuration file was refused. One sentence says where, what is wrong, and what is allowed.
public struct ConfigurationError: Error, Codable, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Codable, Sendable, Hashable {
    /// The file cannot be read, or is larger than `XMLDocument.bytesMax`.
    case unreadable
    /// It is not well-formed XML, or uses a part of XML that is not accepted (a DOCTYPE).
    case malformed
    /// An element or attribute is unknown, missing, or stands where it may not.
    case structure
    /// A value is outside what is allowed.
    case value
    /// Two values contradict each other.
    case relation
  }
  public var code: Code
  public var file: String
  /// From 1; nil where no line is to blame.
  public var line: Int?
  /// The element, such as `link` or `link 'repl'`.
  public var element: String?
  public var what: String
  public var allowed: String

  public init(_ code: Code, file: String, line: Int? = nil, element: String? = nil, what: String, allowed: String) {
    self.code = code
    self.file = file
    self.line = line
    self.element = element
    self.what = what
    self.allowed = allowed
  }

  public var description: String {
    let place = line.map { "\(file):\($0)" } ?? file
    return "\(place): \(element.map { "<\($0)>: " } ?? "")\(what); \(allowed)"
  }
}
