import FoundationEssentials
import Glibc
import HostSystem
import Model
import ModuleConfig
import NodeDaemon
import SecureLinks

/// A host with folders, a name and loopback addresses of its own.
final class LinksHost: Sendable {
  let name: String
  let paths: HostPaths
  let addresses: [String]
  let setup: ClusterSetup
  let changes: Monitor<[ClusterMembership]>

  /// `number` 1...9 gives 127.0.77.number and 127.0.78.number.
  init(_ name: String, number: Int, port: Int) throws {
    let changes = Monitor<[ClusterMembership]>([])
    let addresses = ["127.0.77.\(number)", "127.0.78.\(number)"]
    self.name = name
    self.changes = changes
    self.addresses = addresses
    paths = HostPaths(root: "/tmp/vmha-node-\(getpid())-\(randomUInt64())")
    try DurableFile.makeFolder(paths.root, mode: 0o700)
    setup = try ClusterSetup(
      paths: paths, port: port, hostAddresses: { addresses },
      changed: { membership in changes.withLock { $0.append(membership) } })
  }

  var links: [ClusterOwnLink] {
    [
      ClusterOwnLink(name: "repl", address: addresses[0], replication: true),
      ClusterOwnLink(name: "lan", address: addresses[1], replication: false),
    ]
  }

  func membership() throws -> ClusterMembership? { try ClusterMembership.load(paths) }

  /// What vmhad does: listens on the control port of every link.
  func listen(port: Int, handler: @escaping PeerListener.Handler = { request, _ in request }) throws -> PeerListener {
    guard let membership = try membership() else { throw ClusterError(.notMember, "", why: "", next: "") }
    return try PeerListener(
      context: membership.context, addresses: membership.localAddresses, port: port, handler: handler,
      allowsJoin: { [setup] in setup.allowsJoin }, joinHandler: { [setup] in setup.admit($0, from: $1) })
  }

  deinit { _ = try? ChildProcess.run(["rm", "-rf", paths.root], timeout: .seconds(10)) }
}

/// A port that is free on every loopback address now, for TCP and UDP.
func freePort() throws -> Int {
  let socket = try SocketAddress("0.0.0.0", port: 0).boundSocket(type: SOCK_STREAM)
  defer { close(socket) }
  return try SocketAddress.localPort(socket)
}

/// Waits until it holds, at most 10 s.
func eventually(_ condition: () throws -> Bool) rethrows -> Bool {
  for _ in 0..<1000 {
    if try condition() { return true }
    usleep(10_000)
  }
  return false
}

/// Two hosts, the second of which has joined the first.
func joinedPair(port: Int) throws -> (LinksHost, LinksHost) {
  let (first, second) = (try LinksHost("n1", number: 1, port: port), try LinksHost("n2", number: 2, port: port))
  let ticket = try first.setup.initialise(clusterName: "test", nodeName: "n1", links: first.links)
  let listener = try first.listen(port: port)
  defer { listener.close() }
  guard eventually({ listener.ports.count == 2 }) else {
    throw ClusterError(.unreachable, "no listener", why: "", next: "")
  }
  _ = try second.setup.join(
    address: ticket.addresses[0], fingerprint: ticket.fingerprint, token: ticket.token, nodeName: "n2",
    links: second.links)
  return (first, second)
}

/// The error of a cluster command that must fail.
func clusterError(_ work: () throws -> Void) -> ClusterError? {
  do {
    try work()
    return nil
  } catch {
    return error as? ClusterError ?? ClusterError(.refused, "not a ClusterError", why: "\(error)", next: "")
  }
}
