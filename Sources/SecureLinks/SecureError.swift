import Glibc
import HostSystem

/// A secure connection, certificate or join that did not come about, in words an operator can act on.
public struct SecureError: Error, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable, Codable {
    case certificateExpired, certificateNotYetValid
    /// The peer's certificate is not from our cluster's CA.
    case otherCluster
    /// Of our cluster, but not the node that was asked for.
    case unexpectedNode
    /// The CA's fingerprint is not the one that was given.
    case wrongFingerprint
    case notTLS
    /// Nothing listens there.
    case refused
    case timedOut, noRoute
    /// The local address does not exist on this host (now).
    case localAddressMissing
    /// The peer ended the connection because it did not like our certificate, or did not say why.
    case refusedByPeer
    case closed
    /// A PEM file or certificate that cannot be read, made or used.
    case badCertificate
    case limit
    case system
    /// Any other failure inside TLS.
    case tls
  }
  public let code: Code
  public let message: String
  public let errno: Int32

  public init(_ code: Code, _ message: String, errno: Int32 = 0) {
    self.code = code
    self.message = message
    self.errno = errno
  }

  public var description: String { message }

  static func system(_ what: String, _ number: Int32) -> SecureError {
    let code: Code =
      switch number {
      case ECONNREFUSED: .refused
      case ETIMEDOUT: .timedOut
      case EHOSTUNREACH, ENETUNREACH, ENETDOWN: .noRoute
      case EADDRNOTAVAIL: .localAddressMissing
      case ECONNRESET, EPIPE, ENOTCONN, ECONNABORTED: .closed
      default: .system
      }
    return SecureError(code, "\(what): \(errnoText(number)) (errno \(number))", errno: number)
  }
}
