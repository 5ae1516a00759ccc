/// A request to the peer's daemon that got no answer.
public struct PeerError: Error, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable {
    /// No connection on any link: the peer has seen nothing of the request.
    case unreachable
    /// The connection was lost, or the time was over, after the request had left: the peer may have acted on it.
    case outcomeUnknown
    /// A message above `PeerFrames.frameBytesMax`.
    case limit
    /// The channel was closed, or has no peer yet.
    case closed
  }
  public let code: Code
  public let message: String
  public init(_ code: Code, _ message: String) {
    self.code = code
    self.message = message
  }
  public var description: String { message }
}
