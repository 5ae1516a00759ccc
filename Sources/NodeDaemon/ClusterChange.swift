import FoundationEssentials
import HostSystem
import Model
import ModuleConfig
import SecureLinks

// Changing cluster.xml on both nodes: the peer first, so that the node that was asked never has what the other refused.

extension ClusterSetup {
  /// Asks the peer's daemon and gives its answer.
  public typealias AskPeer = (ClusterPeerRequest) throws -> ClusterPeerReply

  /// Writes a changed configuration on both nodes, its revision raised by one. `new` must come from the present
  /// revision (`.changedMeanwhile` otherwise). With two nodes both must be reachable: `.unreachable` means that
  /// nothing was changed, `.unanswered` that the peer's copy may be; `reconcile` or repeating the command completes it.
  /// Throws `ClusterError`.
  public func change(to new: ClusterConfiguration, peer ask: AskPeer) throws -> ClusterMembership {
    let what = "cluster.xml was not changed"
    let membership = try changing(
      what, prepare: { try Self.guarded(what) { try plan(new, what) } },
      ask: { plan in
        if plan.old.peer != nil { try put(plan.xml, expected: plan.old.configurationHash, what: what, ask) }
      },
      finish: { plan in try Self.guarded(what) { try commit(plan.xml) } })
    tell(membership)
    return membership
  }

  private func plan(_ new: ClusterConfiguration, _ what: String) throws -> (old: ClusterMembership, xml: [UInt8]) {
    let old = try member()
    var changed = new
    changed.revision = old.configuration.revision + 1
    try Self.validate(changed, what: what)
    guard new.revision == old.configuration.revision else {
      throw ClusterError(
        .changedMeanwhile, what,
        why: "the change was made from revision \(new.revision), but the file has \(old.configuration.revision) now",
        next: "repeat the command")
    }
    guard new.uuid == old.configuration.uuid, new.nodes == old.configuration.nodes else {
      throw ClusterError(
        .invalid, what, why: "the cluster's id and its nodes cannot be changed", next: "change links and times only")
    }
    try checkOwnAddresses(changed, old)
    return (old, Array(changed.xml().utf8))
  }

  private func checkOwnAddresses(_ new: ClusterConfiguration, _ old: ClusterMembership) throws {
    let links = new.links.map { link in
      ClusterOwnLink(name: link.name, address: link.addresses[old.node.id] ?? "", replication: link.replication)
    }
    try checkAddresses(links, except: old.localAddresses)
  }

  private func put(_ xml: [UInt8], expected: String, what: String, _ ask: AskPeer) throws {
    let reply: ClusterPeerReply
    do {
      reply = try ask(.put(configuration: Data(xml), expected: expected))
    } catch {
      let isUnseen = (error as? PeerError).map { $0.code != .outcomeUnknown } ?? false
      throw ClusterError(
        isUnseen ? .unreachable : .unanswered, what, why: "the other node must store it too: \(error)",
        next: "see 'vmha status'; repeat the command when both nodes are up")
    }
    if case .refused(let error) = reply { throw error }
  }

  /// After the nodes met: the higher revision wins; both nodes call it. true = this node's file was replaced. Equal
  /// revisions with different contents are an error: an operator edited one by hand.
  public func reconcile(peer ask: AskPeer) throws -> Bool {
    let reply: ClusterPeerReply
    do {
      reply = try ask(.get)
    } catch {
      throw ClusterError(
        .unreachable, "cluster.xml was not compared", why: "\(error)", next: "it is repeated when the nodes meet again")
    }
    switch reply {
    case .refused(let error): throw error
    case .current(let data):
      let membership = try exclusively("cluster.xml was not compared") {
        try Self.guarded("cluster.xml could not be taken over") { try takeNewer(Array(data)) }
      }
      if let membership { tell(membership) }
      return membership != nil
    }
  }

  private func takeNewer(_ xml: [UInt8]) throws -> ClusterMembership? {
    let own = try member()
    guard hexadecimal(sha256(xml)) != own.configurationHash else { return nil }
    let theirs = try ClusterConfiguration(xml: xml, file: "the peer's cluster.xml")
    try Self.checkSameCluster(theirs, own)
    guard theirs.revision != own.configuration.revision else {
      throw ClusterError(
        .damaged, "the two copies of cluster.xml differ",
        why: "both say revision \(theirs.revision), but their contents are not the same",
        next: "copy the right one to the other node, raise its revision by one on both, and restart vmhad there")
    }
    return theirs.revision > own.configuration.revision ? try commit(xml) : nil
  }

  /// The peer's side of `change` and `reconcile`.
  public func answer(_ request: ClusterPeerRequest) -> ClusterPeerReply {
    do {
      let (data, changed) = try exclusively("cluster.xml was not changed on the other node") {
        try Self.guarded("the other node could not store cluster.xml") { try perform(request) }
      }
      if let changed { tell(changed) }
      return .current(configuration: data)
    } catch {
      return .refused(
        error as? ClusterError ?? ClusterError(.damaged, "cluster.xml was not changed", why: "\(error)", next: "repeat")
      )
    }
  }

  private func perform(_ request: ClusterPeerRequest) throws -> (Data, ClusterMembership?) {
    let own = try member()
    switch request {
    case .get: return (Data(try DurableFile.read(paths.clusterFile)), nil)
    case .put(let data, let expected):
      let hash = hexadecimal(sha256(Array(data)))
      // Repeated after a lost answer.
      if hash == own.configurationHash { return (data, nil) }
      let what = "cluster.xml was not changed"
      guard own.configurationHash == expected else {
        throw ClusterError(
          .changedMeanwhile, what,
          why: "the other node '\(own.node.name)' has another cluster.xml (revision \(own.configuration.revision))",
          next: "wait until the nodes have compared their copies (seconds), then repeat the command")
      }
      let new = try ClusterConfiguration(xml: Array(data), file: "the changed cluster.xml")
      try Self.checkSameCluster(new, own)
      try checkOwnAddresses(new, own)
      return (data, try commit(Array(data)))
    }
  }

  private static func checkSameCluster(_ new: ClusterConfiguration, _ own: ClusterMembership) throws {
    guard new.uuid == own.configuration.uuid, new.node(own.node.id) == own.node else {
      throw ClusterError(
        .otherCluster, "cluster.xml was not changed",
        why:
          "it is of cluster \(new.uuid) with other nodes; this is '\(own.node.name)' of cluster "
          + own.configuration.uuid,
        next: "check which host answers at the peer's addresses")
    }
  }
}
