import HostSystem
import Membership
import Model
import ModuleConfig
import SecureLinks

/// Everything a node needs of its membership, read from its files and checked against each other.
public struct ClusterMembership: Sendable {
  public let configuration: ClusterConfiguration
  /// This host.
  public let node: ClusterNode
  /// nil until the other host has joined.
  public let peer: ClusterNode?
  public let context: SecureContext
  public let seal: HeartbeatSeal
  /// SHA-256 of cluster.xml as it is on disk, 64 hexadecimal digits.
  public let configurationHash: String

  /// nil = this host is not in a cluster. Throws `ClusterError.damaged` naming the file.
  public static func load(_ paths: HostPaths) throws -> ClusterMembership? {
    do {
      // R5: this node acts on it, and tells the other node that it has it.
      guard let xml = try DurableFile.readDurable(paths.clusterFile, bytesMax: ClusterSetup.configurationBytesMax)
      else {
        return nil
      }
      return try ClusterMembership(paths, xml: xml)
    } catch let error as ClusterError {
      throw error
    } catch {
      throw ClusterError(
        .damaged, "the cluster's files on this host cannot be used", why: "\(error)",
        next: "repair or restore that file and restart vmhad")
    }
  }

  private init(_ paths: HostPaths, xml: [UInt8]) throws {
    configuration = try ClusterConfiguration(xml: xml, file: paths.clusterFile)
    configurationHash = hexadecimal(sha256(xml))
    context = try SecureContext(
      authorityFile: paths.authorityFile, certificateFile: paths.nodeCertificateFile, keyFile: paths.nodeKeyFile)
    guard context.cluster == configuration.uuid else {
      throw ClusterError(
        .damaged, "the cluster's files on this host do not fit together",
        why:
          "\(paths.clusterFile) is of cluster \(configuration.uuid), "
          + "\(paths.nodeCertificateFile) of \(context.cluster ?? "none")",
        next: "restore the files of one cluster")
    }
    let name = context.nodeName ?? ""
    guard let own = configuration.node(named: name) else {
      throw ClusterError(
        .damaged, "the cluster's files on this host do not fit together",
        why: "\(paths.nodeCertificateFile) is for node '\(name)', which \(paths.clusterFile) does not have",
        next: "restore the files of one cluster")
    }
    guard let seal = HeartbeatSeal(key: try DurableFile.read(paths.heartbeatKeyFile, bytesMax: 4096)) else {
      throw ClusterError(
        .damaged, "the heartbeat key cannot be used",
        why: "\(paths.heartbeatKeyFile) does not hold \(HeartbeatSeal.keyBytes) bytes",
        next: "copy that file from the other node and restart vmhad")
    }
    self.seal = seal
    node = own
    peer = configuration.node(own.id.peer)
  }

  /// This node's address on each link.
  public var localAddresses: [String] { configuration.links.compactMap { $0.addresses[node.id] } }

  /// Both ends of every link, replication links first; empty without a peer.
  public var links: [HeartbeatLink] {
    Self.links(configuration.links.sorted { $0.replication && !$1.replication }, node.id)
  }
  /// Those over which modules may replicate.
  public var replicationLinks: [HeartbeatLink] { Self.links(configuration.replicationLinks, node.id) }

  private static func links(_ links: [ClusterLink], _ own: NodeID) -> [HeartbeatLink] {
    links.compactMap { link in
      guard let local = link.addresses[own], let peer = link.addresses[own.peer] else { return nil }
      return HeartbeatLink(name: link.name, localAddress: local, peerAddress: peer)
    }
  }

  public var heartbeat: HeartbeatConfiguration {
    HeartbeatConfiguration(
      node: node.id, links: peer == nil ? [] : links,
      settings: MembershipSettings(pulse: configuration.pulse, detection: configuration.detection),
      revision: UInt32(clamping: configuration.revision))
  }

  /// nil without a peer.
  public var channel: PeerChannel.Configuration? {
    peer.map { PeerChannel.Configuration(context: context, peerName: $0.name, links: links) }
  }
}
