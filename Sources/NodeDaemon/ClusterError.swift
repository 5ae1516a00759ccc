/// A cluster command that was refused or failed. Unless it says otherwise, nothing was changed.
public struct ClusterError: Error, Codable, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Codable, Sendable, Hashable {
    case alreadyMember, notMember
    /// A name, address or other value that cannot be.
    case invalid
    /// An address that no interface of this host has.
    case addressNotHere
    case wrongToken
    case wrongFingerprint
    /// The other host has seen nothing of it.
    case unreachable
    /// The other host was asked and its answer did not come: it may have done it.
    case unanswered
    /// The other side is of another cluster, or has both its nodes.
    case otherCluster
    case nodeNameTaken
    /// The links given are not those of the cluster.
    case wrongLinks
    /// cluster.xml is not what the change was made from.
    case changedMeanwhile
    /// Files of the cluster that cannot be read or written, or do not fit together.
    case damaged
    case refused
  }
  public var code: Code
  public var what: String
  public var why: String
  public var next: String
  public init(_ code: Code, _ what: String, why: String, next: String) {
    self.code = code
    self.what = what
    self.why = why
    self.next = next
  }
  public var description: String { "\(what): \(why); \(next)" }
}
