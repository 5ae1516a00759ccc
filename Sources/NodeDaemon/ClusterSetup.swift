import FoundationEssentials
import Glibc
import HostSystem
import Model
import ModuleConfig
import SecureLinks
import Synchronization

/// Makes, joins and changes the cluster. cluster.xml is the commit point: it is written last, and a host without it is
/// in no cluster, whatever else lies in the key folder; repeating the command then starts anew or completes.
public final class ClusterSetup: Sendable {
  public static let configurationBytesMax = 1 << 20
  /// Connecting and being answered, while joining.
  static let joinTimeout: Duration = .seconds(20)

  let paths: HostPaths
  let port: Int
  let tickets: JoinTicketBook
  private let hostAddresses: @Sendable () throws -> [String]
  private let changed: @Sendable (ClusterMembership) -> Void
  /// Held by one command or request at a time, but not while the peer is being asked: then it is true, and everything
  /// else is refused, so that two nodes that change the cluster at the same moment refuse each other instead of waiting
  /// for each other.
  private let isChanging = Mutex(false)

  /// `changed` is called, from the thread that made the change, when this host has become a member or cluster.xml is
  /// another one. `port` and `hostAddresses` are the real ones but in tests.
  public init(
    paths: HostPaths, port: Int = ClusterPorts.control,
    hostAddresses: @escaping @Sendable () throws -> [String] = { try localAddresses() },
    changed: @escaping @Sendable (ClusterMembership) -> Void
  ) throws {
    self.paths = paths
    self.port = port
    self.hostAddresses = hostAddresses
    self.changed = changed
    tickets = JoinTicketBook(path: "\(paths.certificates)/ticket.json", boot: try bootID())
  }

  /// Makes a cluster of this host alone, and a ticket for the other one. `nodeName` nil = the host name. Throws
  /// `ClusterError`.
  public func initialise(clusterName: String, nodeName: String?, links: [ClusterOwnLink]) throws -> ClusterTicket {
    let (ticket, membership) = try exclusively("a new cluster was not made") {
      try refuseIfMember(doing: "a new cluster was not made")
      let node = ClusterNode(id: .first, name: try Self.nodeName(nodeName))
      try checkAddresses(links)
      let configuration = ClusterConfiguration(
        uuid: Self.newUUID(), name: clusterName, nodes: [node],
        links: links.map { ClusterLink(name: $0.name, replication: $0.replication, addresses: [.first: $0.address]) })
      try Self.validate(configuration, what: "a new cluster was not made")
      let membership = try Self.guarded("a new cluster could not be made") { try create(configuration, node) }
      return (try issueTicket(membership), membership)
    }
    changed(membership)
    return ticket
  }

  private func create(_ configuration: ClusterConfiguration, _ node: ClusterNode) throws -> ClusterMembership {
    let authority = try ClusterAuthority.create(cluster: configuration.uuid)
    let key = try NodeKey.create()
    let grant = JoinGrant(
      authorityCertificate: String(decoding: authority.certificatePEM, as: UTF8.self),
      authorityKey: String(decoding: authority.keyPEM, as: UTF8.self),
      nodeCertificate: String(decoding: try authority.sign(request: key.request(), node: node.name), as: UTF8.self),
      heartbeatKey: Data(HeartbeatSeal.makeKey()), configuration: Data(configuration.xml().utf8))
    try makeFolders()
    try DurableFile.write(key.pem, to: paths.nodeKeyFile, mode: 0o600)
    return try install(grant)
  }

  /// A new ticket; older ones are void. While the cluster has both nodes it is for a host that takes the other node's
  /// place under the same name. Throws `ClusterError`.
  public func newTicket() throws -> ClusterTicket {
    try exclusively("no ticket was made") { try issueTicket(try member()) }
  }

  private func issueTicket(_ membership: ClusterMembership) throws -> ClusterTicket {
    try Self.guarded("no ticket could be made") {
      let fingerprint = try CertificateFacts(file: paths.authorityFile).fingerprint
      return ClusterTicket(
        clusterName: membership.configuration.name, addresses: membership.localAddresses,
        fingerprint: hexadecimal(fingerprint), token: try tickets.issue(now: monotonicNow()),
        lifetime: JoinTicketBook.lifetime, linkNames: membership.configuration.links.map(\.name),
        replaces: membership.peer?.name)
    }
  }

  /// Whether a host without certificate may knock now (for `PeerListener`).
  public var allowsJoin: Bool { tickets.isOpen(now: monotonicNow()) }

  // MARK: One at a time

  func exclusively<Result: Sendable>(_ what: String, _ work: () throws -> Result) throws -> Result {
    try isChanging.withLock { isChanging in
      guard !isChanging else { throw Self.busy(what) }
      return try work()
    }
  }

  /// `prepare` and `finish` have the files for themselves; between them only `ask` runs, and everything else is
  /// refused.
  func changing<Plan: Sendable, Result: Sendable>(
    _ what: String, prepare: () throws -> Plan, ask: (Plan) throws -> Void, finish: (Plan) throws -> Result
  ) throws -> Result {
    let plan = try isChanging.withLock { isChanging in
      guard !isChanging else { throw Self.busy(what) }
      let plan = try prepare()
      isChanging = true
      return plan
    }
    let asked = Swift.Result { try ask(plan) }
    return try isChanging.withLock { isChanging in
      isChanging = false
      try asked.get()
      return try finish(plan)
    }
  }

  private static func busy(_ what: String) -> ClusterError {
    ClusterError(
      .changedMeanwhile, what, why: "the cluster is being changed by another command at this moment",
      next: "repeat the command in a few seconds")
  }

  // MARK: Files

  /// Writes an identity, cluster.xml last. The node's key is already there.
  func install(_ grant: JoinGrant) throws -> ClusterMembership {
    try DurableFile.write(grant.authorityKey.utf8, to: paths.authorityKeyFile, mode: 0o600)
    try DurableFile.write(grant.authorityCertificate.utf8, to: paths.authorityFile, mode: 0o644)
    try DurableFile.write(grant.nodeCertificate.utf8, to: paths.nodeCertificateFile, mode: 0o644)
    try DurableFile.write(grant.heartbeatKey, to: paths.heartbeatKeyFile, mode: 0o600)
    return try commit(Array(grant.configuration))
  }

  /// Replaces cluster.xml, having made sure that it can be used with the other files.
  func commit(_ xml: [UInt8]) throws -> ClusterMembership {
    _ = try ClusterConfiguration(xml: xml, file: paths.clusterFile)
    try DurableFile.write(xml, to: paths.clusterFile, mode: 0o644)
    return try member()
  }

  func makeFolders() throws {
    try DurableFile.makeFolder(paths.configuration, mode: 0o755)
    try DurableFile.makeFolder(paths.state, mode: 0o755)
    try DurableFile.makeFolder(paths.certificates, mode: 0o700)
  }

  func member() throws -> ClusterMembership {
    guard let membership = try ClusterMembership.load(paths) else {
      throw ClusterError(
        .notMember, "nothing was done", why: "this host is not in a cluster",
        next: "use 'vmha cluster init' here, or 'vmha cluster join' with the line that the other host prints")
    }
    return membership
  }

  /// Tells the daemon about a change, outside the lock.
  func tell(_ membership: ClusterMembership) { changed(membership) }

  // MARK: Checks

  func refuseIfMember(doing what: String) throws {
    guard let membership = try ClusterMembership.load(paths) else { return }
    let cluster = membership.configuration
    throw ClusterError(
      .alreadyMember, what,
      why: "this host is already node '\(membership.node.name)' of cluster '\(cluster.name)' (\(cluster.uuid))",
      next: "see 'vmha status'; a host is in one cluster only")
  }

  static func nodeName(_ given: String?) throws -> String {
    let name = try given ?? guarded("the host name cannot be read") { try hostName() }
    guard ClusterAuthority.isNodeName(name) else {
      throw ClusterError(
        .invalid, "'\(name)' cannot be a node's name", why: "it needs 1 to 63 letters, digits, '-' or '.'",
        next: "give another one with --node-name")
    }
    return name
  }

  /// `except` = addresses that are in use already: an interface that is down now must not forbid a change of something
  /// else.
  func checkAddresses(_ links: [ClusterOwnLink], except known: [String] = []) throws {
    let here = try Self.guarded("this host's addresses cannot be read") { try hostAddresses() }
    for link in links where !here.contains(link.address) && !known.contains(link.address) {
      throw ClusterError(
        .addressNotHere, "link '\(link.name)' cannot be used",
        why: "no interface of this host has the address \(link.address)",
        next: "this host has: \(here.filter { $0 != "127.0.0.1" && $0 != "::1" }.joined(separator: ", "))")
    }
  }

  static func validate(_ configuration: ClusterConfiguration, what: String) throws {
    do {
      try configuration.validate()
    } catch {
      throw ClusterError(
        .invalid, what, why: "\(error.element.map { "\($0): " } ?? "")\(error.what)", next: error.allowed)
    }
  }

  /// Errors of lower layers become what the operator is told.
  static func guarded<Result>(_ what: String, _ work: () throws -> Result) throws -> Result {
    do {
      return try work()
    } catch let error as ClusterError {
      throw error
    } catch {
      throw ClusterError(.damaged, what, why: "\(error)", next: "remove the cause and repeat the command")
    }
  }

  private static func newUUID() -> String {
    var raw = randomBytes(16)
    raw[6] = raw[6] & 0x0F | 0x40
    raw[8] = raw[8] & 0x3F | 0x80
    let digits = Array(hexadecimal(raw))
    return [0..<8, 8..<12, 12..<16, 16..<20, 20..<32].map { String(digits[$0]) }.joined(separator: "-")
  }
}
