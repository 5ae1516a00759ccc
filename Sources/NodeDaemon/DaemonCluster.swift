import ControlAPI
import FoundationEssentials
import HostSystem
import Model
import ModuleConfig
import SecureLinks

// The cluster commands of the API, in terms of `ClusterSetup`.
extension Daemon {
  static let clusterChangeTimeout: Duration = .seconds(10)

  public func clusterInitialise(_ request: ClusterInitialiseRequest) async throws -> JoinTicket {
    try await onThread {
      try self.translated {
        let ticket = try self.clusterSetup.initialise(
          clusterName: request.name, nodeName: request.nodeName, links: request.links.map(Self.ownLink))
        self.record(.cluster, .notice, "made the cluster '\(request.name)'")
        return Self.joinTicket(ticket)
      }
    }
  }

  public func clusterTicket() async throws -> JoinTicket {
    try await onThread { try self.translated { Self.joinTicket(try self.clusterSetup.newTicket()) } }
  }

  public func clusterJoin(_ request: ClusterJoinRequest) async throws -> ClusterDescription {
    try await onThread {
      try self.translated {
        let membership = try self.clusterSetup.join(
          address: request.address, fingerprint: request.fingerprint, token: request.token, nodeName: request.nodeName,
          links: request.links.map(Self.ownLink))
        return self.description(of: membership)
      }
    }
  }

  public func clusterShow() async throws -> ClusterDescription {
    guard let membership = snapshot().membership else { throw ControlError.noCluster() }
    return try await onThread { self.description(of: membership) }
  }

  public func clusterSet(_ changes: ClusterChanges) async throws -> ClusterDescription {
    guard !changes.isEmpty else {
      throw ControlError(.invalidRequest, "nothing to change was given", next: "see: vmha cluster set --help")
    }
    return try await onThread {
      guard let membership = self.snapshot().membership else { throw ControlError.noCluster() }
      let changed = try self.apply(changes, to: membership.configuration)
      return try self.translated {
        let membership = try self.changeStepwise(to: changed, from: membership, "the arbiter was not changed")
        return self.description(of: membership)
      }
    }
  }

  func changeCluster(to new: ClusterConfiguration, from old: ClusterMembership) throws -> ClusterMembership {
    var new = new
    new.revision = old.configuration.revision
    let membership = try clusterSetup.change(to: new) { try self.askCluster($0) }
    let arbiter = membership.configuration.arbiter
    record(
      .cluster, .notice,
      "cluster.xml changed by the operator, revision \(membership.configuration.revision)"
        + (arbiter == old.configuration.arbiter ? "" : "; arbiter \(arbiter.rawValue)"))
    for change in Self.ownArbiterChanges(from: old.configuration, to: membership.configuration) {
      record(.cluster, .notice, change.sentence, module: change.module.text, rule: "R5")
    }
    return membership
  }

  private func askCluster(_ request: ClusterPeerRequest) throws -> ClusterPeerReply {
    guard case .cluster(let reply) = try callPeer(.cluster(request), timeout: Self.clusterChangeTimeout) else {
      throw HostError(.invalid, "peer.cluster", path: peerName, "the peer's answer was not one")
    }
    return reply
  }

  /// After the nodes met, or one heard of the other's newer revision.
  func reconcileCluster() {
    do {
      _ = try clusterSetup.reconcile { try self.askCluster($0) }
    } catch { record(.cluster, .warning, "\(error)") }
  }

  func peerRevision(_ revision: UInt32) {
    guard let own = snapshot().cluster?.revision, own != Int(revision) else { return }
    do { try HostThread.start(name: "reconcile") { self.reconcileCluster() } } catch {
      record(.cluster, .warning, "\(error)")
    }
  }

  // MARK: words

  private static func ownLink(_ link: OwnLink) -> ClusterOwnLink {
    ClusterOwnLink(name: link.name, address: link.address, replication: link.replication)
  }

  private static func joinTicket(_ ticket: ClusterTicket) -> JoinTicket {
    JoinTicket(
      clusterName: ticket.clusterName, address: ticket.addresses.first ?? "", fingerprint: ticket.fingerprint,
      token: ticket.token, expires: WallTime.now() + ticket.lifetime, linkNames: ticket.linkNames,
      replaces: ticket.replaces)
  }

  private func description(of membership: ClusterMembership) -> ClusterDescription {
    let cluster = membership.configuration
    let names = Dictionary(cluster.nodes.map { ($0.id, $0.name) }, uniquingKeysWith: { first, _ in first })
    var description = ClusterDescription(
      identity: identity(cluster), nodes: cluster.nodes.map { .init(id: $0.id.rawValue, name: $0.name) },
      links: cluster.links.map { link in
        let addresses = link.addresses.map { (names[$0.key] ?? "\($0.key)", $0.value) }
        return .init(
          name: link.name, addresses: Dictionary(addresses, uniquingKeysWith: { first, _ in first }),
          replication: link.replication)
      }, pulseMilliseconds: Int(cluster.pulse.milliseconds), detectionMilliseconds: Int(cluster.detection.milliseconds),
      bootWaitMilliseconds: Int(cluster.bootWait.milliseconds),
      arbiter: cluster.arbiter.rawValue)
    description.bootPolicy = cluster.bootPolicy.rawValue
    description.forceAfterSeconds = Int(cluster.forceAfter.milliseconds / 1000)
    description.splitPolicy = cluster.splitPolicy.rawValue
    description.scrubIntervalSeconds = Int(cluster.scrubInterval.milliseconds / 1000)
    description.scrubRateMiB = cluster.scrubRateMiB
    description.arbiterSettings = Self.settings(of: cluster)
    if !cluster.moduleArbiters.isEmpty {
      description.moduleArbiters = .init(
        uniqueKeysWithValues: cluster.moduleArbiters.map { ($0.key.text, $0.value.rawValue) })
    }
    description.fingerprint = (try? CertificateFacts(file: paths.authorityFile)).map { hexadecimal($0.fingerprint) }
    description.certificateExpires = membership.context.validUntil.map { wallTime(of: $0) }
    description.warnings = cluster.warnings.map { StatusWarning($0.what, whatToDo: $0.whatToDo) }
    return description
  }

  private func apply(_ changes: ClusterChanges, to cluster: ClusterConfiguration) throws -> ClusterConfiguration {
    var changed = cluster
    if let pulse = changes.pulseMilliseconds { changed.pulse = .milliseconds(pulse) }
    if let detection = changes.detectionMilliseconds { changed.detection = .milliseconds(detection) }
    if let wait = changes.bootWaitMilliseconds { changed.bootWait = .milliseconds(wait) }
    if let text = changes.arbiter { changed.arbiter = try Self.word(text, "arbiter") }
    try Self.apply(changes.arbiterSettings ?? [:], to: &changed)
    if let text = changes.bootPolicy { changed.bootPolicy = try Self.word(text, "boot-policy") }
    if let seconds = changes.forceAfterSeconds { changed.forceAfter = .seconds(seconds) }
    if let text = changes.splitPolicy { changed.splitPolicy = try Self.word(text, "split-policy") }
    if let seconds = changes.scrubIntervalSeconds { changed.scrubInterval = .seconds(seconds) }
    if let rate = changes.scrubRateMiB { changed.scrubRateMiB = rate }
    for name in changes.removeLinks {
      guard changed.links.contains(where: { $0.name == name }) else {
        throw ControlError(.invalidRequest, "there is no link '\(name)'", next: "see: vmha cluster show")
      }
      changed.links.removeAll { $0.name == name }
    }
    for link in changes.addLinks { changed.links.append(try newLink(link, in: cluster)) }
    return changed
  }

  static func word<Word: RawRepresentable & CaseIterable>(
    _ text: String, _ what: String
  ) throws -> Word where Word.RawValue == String {
    guard let word = Word(rawValue: text) else {
      let known = Word.allCases.map(\.rawValue).joined(separator: ", ")
      throw ControlError(
        .invalidRequest, "there is no \(what) '\(text)'", why: "this version knows \(known)",
        next: "see: vmha cluster set --help")
    }
    return word
  }

  private func newLink(_ link: ClusterDescription.Link, in cluster: ClusterConfiguration) throws -> ClusterLink {
    var addresses: [NodeID: String] = [:]
    for (name, address) in link.addresses {
      guard let node = cluster.node(named: name) else {
        throw ControlError(
          .invalidRequest, "there is no node '\(name)'",
          why: "the nodes are " + cluster.nodes.map(\.name).joined(separator: ", "),
          next: "see: vmha cluster show")
      }
      addresses[node.id] = address
    }
    return ClusterLink(name: link.name, replication: link.replication, addresses: addresses)
  }

  /// As `vmha cluster set` takes them.
  private static func settings(of cluster: ClusterConfiguration) -> [String: String] {
    let witness = cluster.witness
    var settings = [
      "witness-endpoints": witness?.endpoints.joined(separator: ","), "witness-ca": witness?.authorityFile,
      "witness-certificate": witness?.certificateFile, "witness-key": witness?.keyFile, "witness-user": witness?.user,
      "witness-password-file": witness?.passwordFile,
      "ping": cluster.pingAddresses.isEmpty ? nil : cluster.pingAddresses.joined(separator: ","),
    ].compactMapValues { $0 }
    for (node, fence) in cluster.fences { settings["fence-\(node.rawValue)"] = "\(fence.agent):\(fence.optionsFile)" }
    return settings
  }

  // MARK: errors

  /// The cluster's errors in the API's words.
  func translated<Result>(_ work: () throws -> Result) throws -> Result {
    do { return try work() } catch let error as ClusterError {
      throw ControlError(
        Self.code(error.code), error.what, why: error.why, next: error.next,
        httpStatus: error.code == .unreachable ? 409 : nil)
    } catch let error as ConfigurationError {
      throw ControlError(
        .invalidRequest, "cluster.xml would not be valid", why: "\(error)", next: "see: vmha cluster show")
    }
  }

  private static func code(_ code: ClusterError.Code) -> ControlError.Code {
    switch code {
    case .alreadyMember: .alreadyInCluster
    case .notMember: .noCluster
    case .invalid, .addressNotHere, .wrongLinks: .invalidRequest
    case .wrongToken: .wrongToken
    case .wrongFingerprint: .wrongFingerprint
    case .unreachable, .unanswered: .peerUnreachable
    case .otherCluster, .nodeNameTaken, .refused: .refused
    case .changedMeanwhile: .busy
    case .damaged: .failed
    }
  }
}

func wallTime(of date: Date) -> WallTime { WallTime(milliseconds: Int64(date.timeIntervalSince1970 * 1000)) }
