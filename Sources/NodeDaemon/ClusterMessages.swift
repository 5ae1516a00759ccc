import FoundationEssentials
import Model

/// One end of a link on the host where the command is given.
public struct ClusterOwnLink: Codable, Sendable, Hashable {
  public var name: String
  /// Numeric address of this host.
  public var address: String
  /// Only the first node's word counts.
  public var replication: Bool
  public init(name: String, address: String, replication: Bool) {
    self.name = name
    self.address = address
    self.replication = replication
  }
}

/// What the other host needs to join.
public struct ClusterTicket: Sendable, Hashable {
  public var clusterName: String
  /// Addresses of this host the other one may dial, best first.
  public var addresses: [String]
  /// SHA-256 of the CA's certificate, 64 hexadecimal digits.
  public var fingerprint: String
  /// 32 hexadecimal digits, for one host.
  public var token: String
  /// How long the token is good.
  public var lifetime: Duration
  public var linkNames: [String]
  /// Set if the cluster has both nodes: only a host that takes this node's place is admitted.
  public var replaces: String?
}

/// What a joining host says, over a connection on which only the cluster has proven itself.
struct JoinRequest: Codable, Sendable, Hashable {
  static let versionNow = 1
  static let bytesMax = 64 << 10
  var version: Int
  var token: String
  var nodeName: String
  /// PEM.
  var certificateRequest: String
  /// Own address by link name.
  var addresses: [String: String]
}

/// What the member answers. The whole identity of the node.
struct JoinGrant: Codable, Sendable, Hashable {
  var authorityCertificate: String
  var authorityKey: String
  var nodeCertificate: String
  var heartbeatKey: Data
  /// cluster.xml, with the new node in it.
  var configuration: Data
}

enum JoinReply: Codable, Sendable, Hashable {
  case granted(JoinGrant)
  case refused(ClusterError)
}

/// Between the two daemons, about cluster.xml. The transport is the daemon's.
public enum ClusterPeerRequest: Codable, Sendable, Hashable {
  /// Answered by `current`.
  case get
  /// Replace the file whose SHA-256 is `expected` by this one. Repeatable. Answered by `current`.
  case put(configuration: Data, expected: String)
}

public enum ClusterPeerReply: Codable, Sendable, Hashable {
  case current(configuration: Data)
  case refused(ClusterError)
}
