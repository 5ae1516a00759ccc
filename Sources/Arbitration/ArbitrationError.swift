/// Why an arbiter gave no answer, or not the one that was asked for; a sentence an operator can act on, without secrets.
public struct ArbitrationError: Error, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable {
    /// Nobody answers there.
    case unreachable
    case timedOut
    /// Certificates.
    case untrusted
    /// User, password or permissions.
    case refused
    /// A file of the configuration is missing, readable by others, or not what it must be.
    case configuration
    /// An answer that makes no sense, or an error of the other side.
    case failed
  }
  public let code: Code
  public let text: String
  public init(_ code: Code, _ text: String) {
    self.code = code
    self.text = text
  }
  public var description: String { text }
}
