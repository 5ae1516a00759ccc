import FoundationEssentials
import HostSystem
import Model
import ModuleConfig
import SecureLinks

// The two ends of `vmha cluster join`.

extension ClusterSetup {
  /// Makes this host the other node of the cluster whose member answers at `address`. Repeating it with the same ticket
  /// completes a join that was cut off at any point. `nodeName` nil = the host name. Throws `ClusterError`.
  public func join(
    address: String, fingerprint: String, token: String, nodeName: String?, links: [ClusterOwnLink]
  ) throws -> ClusterMembership {
    let membership = try exclusively("this host did not join") {
      try refuseIfMember(doing: "this host did not join")
      let name = try Self.nodeName(nodeName)
      guard let digest = bytes(hexadecimal: fingerprint), digest.count == 32 else {
        throw ClusterError(
          .wrongFingerprint, "this host did not join", why: "the fingerprint does not have 64 hexadecimal digits",
          next: "copy the whole line that the other host printed")
      }
      guard Set(links.map(\.name)).count == links.count else {
        throw ClusterError(
          .wrongLinks, "this host did not join", why: "a link is given twice", next: "give each link once")
      }
      try checkAddresses(links)
      return try Self.guarded("this host could not join") {
        let request = JoinRequest(
          version: JoinRequest.versionNow, token: token, nodeName: name,
          certificateRequest: String(decoding: try joinKey().request(), as: UTF8.self),
          addresses: Dictionary(links.map { ($0.name, $0.address) }, uniquingKeysWith: { first, _ in first }))
        let grant = try ask(address, SecureContext(joiningWithFingerprint: digest), request)
        try Self.check(grant, digest, name)
        return try install(grant)
      }
    }
    tell(membership)
    return membership
  }

  /// The key of an earlier attempt is used again: the ticket, once used, lets only that key in.
  private func joinKey() throws -> NodeKey {
    try makeFolders()
    if let pem = try DurableFile.readIfPresent(paths.nodeKeyFile), (try? NodeKey(pem: pem).request()) != nil {
      return NodeKey(pem: pem)
    }
    let key = try NodeKey.create()
    try DurableFile.write(key.pem, to: paths.nodeKeyFile, mode: 0o600)
    return key
  }

  private func ask(_ address: String, _ context: SecureContext, _ request: JoinRequest) throws -> JoinGrant {
    let what = "this host did not join"
    let answer: [UInt8]?
    do {
      let stream = try SecureStream.connect(
        to: address, port: port, context: context, expectedPeer: nil, timeout: Self.joinTimeout)
      defer { stream.shutdown() }
      stream.writeTimeout = Self.joinTimeout
      try PeerFrames.write(Array(JSONEncoder().encode(request)), to: stream)
      answer = try PeerFrames.read(from: stream, timeout: Self.joinTimeout)
    } catch let error as SecureError {
      throw Self.explain(error, what)
    }
    guard let answer, let reply = try? JSONDecoder().decode(JoinReply.self, from: Data(answer)) else {
      throw ClusterError(
        .refused, what, why: "\(address) gave no answer that this vmha understands",
        next: "install the same version of vmha on both hosts and repeat the command")
    }
    switch reply {
    case .granted(let grant): return grant
    case .refused(let error): throw error
    }
  }

  /// Nothing is written that would not work together afterwards.
  private static func check(_ grant: JoinGrant, _ fingerprint: [UInt8], _ name: String) throws {
    let authority = try CertificateFacts(pem: Array(grant.authorityCertificate.utf8))
    let own = try CertificateFacts(pem: Array(grant.nodeCertificate.utf8))
    let configuration = try ClusterConfiguration(xml: Array(grant.configuration), file: "the member's cluster.xml")
    guard authority.fingerprint == fingerprint, own.commonName == name, own.cluster == configuration.uuid,
      authority.cluster == configuration.uuid, configuration.node(named: name) != nil,
      grant.heartbeatKey.count == HeartbeatSeal.keyBytes
    else {
      throw ClusterError(
        .refused, "this host did not join", why: "what the member sent does not fit together",
        next: "install the same version of vmha on both hosts and repeat the command")
    }
  }

  private static func explain(_ error: SecureError, _ what: String) -> ClusterError {
    switch error.code {
    case .wrongFingerprint:
      ClusterError(
        .wrongFingerprint, what, why: error.message,
        next: "copy the whole line that the other host printed; if it is right, something else answers at that address")
    case .refusedByPeer:
      ClusterError(
        .wrongToken, what, why: error.message, next: "run 'vmha cluster ticket' on the other host and use its line")
    case .certificateExpired, .certificateNotYetValid:
      ClusterError(
        .refused, what, why: error.message, next: "set the clocks of both hosts right and repeat the command")
    default:
      ClusterError(
        .unreachable, what, why: error.message,
        next:
          "check the address, that vmhad runs there, and that no firewall blocks port \(ClusterPorts.control)"
      )
    }
  }

  /// The member's side: the answer to one joining host (for `PeerListener`'s join handler).
  public func admit(_ request: Data, from peerAddress: String) -> Data {
    let reply: JoinReply
    do {
      let (grant, membership) = try exclusively("this host did not join") {
        try Self.guarded("the host was not admitted") { try admit(request) }
      }
      tell(membership)
      reply = .granted(grant)
    } catch {
      reply = .refused(
        error as? ClusterError
          ?? ClusterError(.refused, "the host was not admitted", why: "\(error)", next: "try again"))
    }
    // Plain structs of strings and numbers always encode; an empty answer would be refused by the other side.
    return (try? JSONEncoder().encode(reply)) ?? Data()
  }

  private func admit(_ data: Data) throws -> (JoinGrant, ClusterMembership) {
    let what = "this host did not join"
    guard data.count <= JoinRequest.bytesMax, let request = try? JSONDecoder().decode(JoinRequest.self, from: data),
      request.version == JoinRequest.versionNow
    else {
      throw ClusterError(
        .refused, what, why: "the member does not understand the request",
        next: "install the same version of vmha on both hosts and repeat the command")
    }
    let certificateRequest = Array(request.certificateRequest.utf8)
    let key = try NodeKey.fingerprint(ofRequest: certificateRequest)
    let now = monotonicNow()
    do {
      // Before anything about the cluster is said.
      try tickets.check(token: request.token, by: key, now: now)
    } catch let refusal as JoinTicketBook.Refusal {
      throw ClusterError(
        .wrongToken, what, why: "\(refusal)", next: "run 'vmha cluster ticket' on the other host and use its line")
    }
    let membership = try member()
    let node = try place(for: request, in: membership)
    let authority = try ClusterAuthority(
      certificatePEM: DurableFile.read(paths.authorityFile), keyPEM: DurableFile.read(paths.authorityKeyFile))
    let certificate = try authority.sign(request: certificateRequest, node: node.name)
    let configuration = try Self.configuration(membership.configuration, with: node, request)
    let heartbeatKey = try DurableFile.read(paths.heartbeatKeyFile)
    // The ticket is used up before the cluster changes, so that no second host can come in by it.
    try tickets.redeem(token: request.token, by: key, now: now)
    let isNew = configuration != membership.configuration
    let result = isNew ? try commit(Array(configuration.xml().utf8)) : membership
    let grant = JoinGrant(
      authorityCertificate: String(decoding: authority.certificatePEM, as: UTF8.self),
      authorityKey: String(decoding: authority.keyPEM, as: UTF8.self),
      nodeCertificate: String(decoding: certificate, as: UTF8.self), heartbeatKey: Data(heartbeatKey),
      configuration: Data(try DurableFile.read(paths.clusterFile)))
    return (grant, result)
  }

  /// The free place, or the peer's own place for a host of the same name.
  private func place(for request: JoinRequest, in membership: ClusterMembership) throws -> ClusterNode {
    let what = "this host did not join"
    guard ClusterAuthority.isNodeName(request.nodeName) else {
      throw ClusterError(.invalid, what, why: "'\(request.nodeName)' cannot be a node's name", next: "give --node-name")
    }
    guard request.nodeName != membership.node.name else {
      throw ClusterError(
        .nodeNameTaken, what, why: "the node that is in the cluster has the same name, '\(request.nodeName)'",
        next: "give this host another name, or use --node-name")
    }
    if let peer = membership.peer, peer.name != request.nodeName {
      throw ClusterError(
        .otherCluster, what,
        why:
          "cluster '\(membership.configuration.name)' already has two nodes, "
          + "'\(membership.node.name)' and '\(peer.name)'",
        next: "only a host named '\(peer.name)' may take that node's place")
    }
    return ClusterNode(id: membership.node.id.peer, name: request.nodeName)
  }

  private static func configuration(
    _ old: ClusterConfiguration, with node: ClusterNode, _ request: JoinRequest
  ) throws -> ClusterConfiguration {
    let what = "this host did not join"
    let names = old.links.map(\.name)
    guard Set(request.addresses.keys) == Set(names) else {
      throw ClusterError(
        .wrongLinks, what,
        why:
          "the cluster's links are \(names.joined(separator: ", ")), given were "
          + request.addresses.keys.sorted().joined(separator: ", "),
        next: "give --link NAME=ADDRESS once for each of them")
    }
    var new = old
    new.nodes = (old.nodes.filter { $0.id != node.id } + [node]).sorted { $0.id < $1.id }
    for index in new.links.indices { new.links[index].addresses[node.id] = request.addresses[new.links[index].name] }
    if new != old { new.revision = old.revision + 1 }
    try validate(new, what: what)
    return new
  }
}
