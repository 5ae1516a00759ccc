import ControlAPI
import FoundationEssentials
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Replication
import SecureLinks

// What vmhad knows, in the words of the API. Never waits for anybody.
extension Daemon {
  public static var version: String { ProductVersion.text }

  func clusterStatus() -> ClusterStatus {
    let view = snapshot()
    var status = ClusterStatus(
      version: Self.version, time: .now(), cluster: view.cluster.map(identity), thisNode: view.nodeName)
    guard let cluster = view.cluster else {
      status.warnings = [
        StatusWarning(
          "this host belongs to no cluster", whatToDo: "vmha cluster init --help, or vmha cluster join --help")
      ]
      return status
    }
    status.nodes = cluster.nodes.map { nodeStatus($0, view) }
    status.links = cluster.links.map { linkStatus($0, cluster, view) }
    status.arbiter = arbiterText(cluster.arbiter, cluster)
    status.modules = view.runners.values.sorted { $0.configuration.number < $1.configuration.number }
      .map { moduleStatus($0, cluster, view) }
    status.warnings = warnings(cluster, view, status)
    return status
  }

  func identity(_ cluster: ClusterConfiguration) -> ClusterIdentity {
    ClusterIdentity(name: cluster.name, uuid: cluster.uuid, revision: cluster.revision)
  }

  func arbiterText(_ arbiter: Arbiter, _ cluster: ClusterConfiguration) -> String {
    let seconds = secondsText(cluster.detection)
    let etcd = "etcd at \(cluster.witness?.endpoints.joined(separator: ", ") ?? "-") decides who goes on"
    return switch arbiter {
    case .policyNone: "policy=none: goes on alone \(seconds) after the other node fell silent; can split"
    case .policyPing:
      "policy=ping: goes on alone \(seconds) after the other node fell silent if "
        + "\(cluster.pingAddresses.joined(separator: " or ")) answers; can split"
    case .wait: "wait: freezes until the other node consents or the operator decides"
    case .witness: "witness: \(etcd)"
    case .fence: "fence: goes on alone when the other node's power is proven off"
    case .witnessAndFence: "witness+fence: \(etcd), and the other node's power must be proven off"
    }
  }

  private func nodeStatus(_ node: ClusterNode, _ view: Daemon.State) -> NodeStatus {
    if node.id == view.node {
      return NodeStatus(name: node.name, id: node.id, reachable: true, since: view.startedAt, boot: view.bootID)
    }
    return NodeStatus(
      name: node.name, id: node.id, reachable: view.peerAlive == true, since: view.peerSince, boot: view.peerBoot)
  }

  private func linkStatus(_ link: ClusterLink, _ cluster: ClusterConfiguration, _ view: Daemon.State) -> LinkStatus {
    let known = view.links[link.name]
    var addresses: [String: String] = [:]
    for node in cluster.nodes { addresses[node.name] = link.addresses[node.id] }
    return LinkStatus(
      name: link.name, addresses: addresses, state: known?.state ?? .lost, since: known?.since,
      replication: link.replication)
  }

  func moduleStatus(_ runner: ModuleRunner, _ cluster: ClusterConfiguration, _ view: Daemon.State) -> ModuleStatus {
    let configuration = runner.configuration
    let mine = runner.status
    var nodes: [ModuleNodeStatus] = []
    for node in cluster.nodes {
      if node.id == view.node {
        var entry = nodeEntry(
          node, mine, current: runner.speaks, since: wallTime(of: mine.since), runner.engineReport)
        entry.branch = view.branchFacts[configuration.name]
        nodes.append(entry)
      } else if let report = view.peerReports[configuration.name] {
        var entry = nodeEntry(
          node, report.status, current: view.peerAlive == true, since: report.since, report.engine)
        entry.branch = report.branch
        nodes.append(entry)
      } else {
        nodes.append(
          ModuleNodeStatus(
            node: node.name, id: node.id, current: false, state: .stop, readiness: .blocked, standing: nil,
            generation: nil, guest: .unknown, sentence: "nothing is known of it since vmhad started here", since: nil))
      }
    }
    shareResync(&nodes)
    shareWait(resyncWait(runner) ?? view.peerReports[configuration.name]?.resyncAhead, &nodes)
    var status = ModuleStatus(
      name: configuration.name.text, number: configuration.number.rawValue,
      preferredNode: cluster.node(configuration.preferredNode)?.name ?? "",
      wish: runner.wish.started ? .started : .stopped,
      nodes: nodes)
    status.replicationLink = mine.inSync || mine.resync != nil ? runner.engineReport?.link : nil
    let primaryEngine =
      mine.state == .prim || mine.state == .alone ? runner.engineReport : view.peerReports[runner.module]?.engine
    status.resyncPriority = configuration.resyncPriority ?? .normal
    let kind = cluster.arbiter(of: configuration.name)
    status.arbiter = ModuleArbiter(
      kind: kind.rawValue, own: cluster.moduleArbiters[configuration.name] != nil, text: arbiterText(kind, cluster))
    status.requestsInFlight = primaryEngine?.requestsInFlight ?? 0
    status.lastEvent = lastEvent(of: configuration.name)
    status.check = checks.status(of: configuration)
    status.split = mine.isSplit
    status.operation = operations.current(module: configuration.name.text)
    status.verification = verificationStatus(runner, view)
    return status
  }

  private func lastEvent(of module: ModuleName) -> JournalEvent? {
    // A journal that cannot be read says so itself in `warnings`.
    (try? journal.page(since: nil, module: module.text, limit: 1))?.events.last
  }

  private func nodeEntry(
    _ node: ClusterNode, _ status: CoreStatus, current: Bool, since: WallTime?, _ engine: EngineReport?
  ) -> ModuleNodeStatus {
    var entry = ModuleNodeStatus(
      node: node.name, id: node.id, current: current, state: status.state, readiness: status.readiness,
      standing: status.standing, generation: status.generation.map(GenerationStatus.init),
      guest: current ? guestWord(status.guest) : .unknown, sentence: status.sentence, since: since)
    entry.resync = status.resync.map(ResyncStatus.init)
    entry.recordLost = status.recordLost
    return entry
  }

  /// The source knows; the target shows the same.
  private func shareWait(_ wait: ResyncWait?, _ nodes: inout [ModuleNodeStatus]) {
    for index in nodes.indices where nodes[index].current {
      let node = nodes[index]
      guard node.state == .alone || node.state == .second && node.readiness == .transient else { continue }
      nodes[index].resyncWait = wait
    }
  }

  /// nil = no resync of it waits for its turn here.
  func resyncWait(_ runner: ModuleRunner) -> ResyncWait? {
    resyncs.ahead(of: runner.module).map { ResyncWait(higherPriority: $0.higherPriority, others: $0.others) }
  }

  /// The source counts; the target shows the same figures.
  private func shareResync(_ nodes: inout [ModuleNodeStatus]) {
    guard let progress = nodes.compactMap(\.resync).first else { return }
    for index in nodes.indices where nodes[index].state == .second && nodes[index].readiness == .transient {
      nodes[index].resync = progress
    }
  }

  /// What the cores of both nodes found at their registers; one line for all modules that say the same.
  private func registerWarnings(_ view: Daemon.State) -> [StatusWarning] {
    var modules: [String: [String]] = [:]
    func note(_ why: String?, _ node: String, _ module: ModuleName) {
      if let why { modules["\(node): \(why)", default: []].append(module.text) }
    }
    for runner in view.runners.values { note(runner.status.arbiterTrouble, view.nodeName, runner.module) }
    for report in view.peerReports.values where view.peerAlive == true {
      note(report.status.arbiterTrouble, peerName, report.module)
    }
    return modules.sorted { $0.key < $1.key }.map { why, names in
      StatusWarning(
        "DEGRADED: \(why) (\(names.sorted().joined(separator: ", "))): a lost node would not be taken over",
        whatToDo: "vmha check")
    }
  }

  private func warnings(_ cluster: ClusterConfiguration, _ view: Daemon.State, _ status: ClusterStatus)
    -> [StatusWarning]
  {
    var warnings: [StatusWarning] = []
    if cluster.nodes.count < 2 {
      warnings.append(StatusWarning("the cluster has one node: nothing is protected", whatToDo: "vmha cluster ticket"))
    } else {
      warnings += Self.splitWarnings(cluster, view.runners.keys.sorted())
    }
    if cluster.forceAfter != .zero, cluster.nodes.count == 2 {
      let time = secondsText(cluster.forceAfter)
      warnings.append(
        StatusWarning(
          "can split: force-after: a copy that waits \(time) for a lost node is started by force, whatever it is worth",
          whatToDo: "vmha cluster set force-after=off; or accept it"))
    }
    for (part, sentence) in arbiters.troubles {
      let whose = Self.modules(asking: part, cluster, view.runners.keys.sorted())
      warnings.append(StatusWarning("DEGRADED: \(sentence)\(whose)", whatToDo: "vmha check"))
    }
    warnings += registerWarnings(view)
    if cluster.links.count < 2 {
      warnings.append(
        StatusWarning(
          "only one link: its loss looks like the loss of a node", whatToDo: "vmha cluster set --add-link …"))
    }
    if let down = hypervisorDown() {
      warnings.append(StatusWarning("libvirt does not answer here: \(down)", whatToDo: "systemctl status libvirtd"))
    }
    if let end = view.membership?.context.validUntil, let expiry = Optional(wallTime(of: end)),
      expiry - WallTime.now() < .seconds(30 * 86_400)
    {
      warnings.append(
        StatusWarning("this node's certificate ends at \(expiry)", whatToDo: "see docs/operating/certificates.md"))
    }
    for (name, why) in view.unloaded.sorted(by: { $0.key < $1.key }) {
      warnings.append(
        StatusWarning(
          "module \(name) cannot be loaded on \(view.nodeName) and is not protected here: \(why)",
          whatToDo: "mend \(paths.moduleFile(name)); it is tried again every \(secondsText(Self.moduleRetryPause))"))
    }
    warnings += peerLackWarnings(view)
    if let trouble = journal.trouble {
      warnings.append(
        StatusWarning("the journal cannot be written: \(trouble)", whatToDo: "free space in \(paths.state)"))
    }
    // One that cannot be read has said so in the journal when vmhad began.
    for (name, kind) in (try? Adoption.unfinished(paths: paths)) ?? [:]
    where operations.current(module: name.text) == nil {
      warnings.append(
        StatusWarning("'vmha \(kind) \(name)' was interrupted", whatToDo: "repeat it, here: vmha \(kind) \(name)"))
    }
    for module in status.modules where module.split {
      warnings.append(
        StatusWarning(
          "\(module.name) is SPLIT: both copies were written and both are kept",
          whatToDo: "look at both: vmha status \(module.name); then choose: vmha resolve \(module.name) --keep NODE"))
    }
    return warnings + status.modules.compactMap(differenceWarning) + view.heartbeatWarnings
  }
}

func secondsText(_ duration: Duration) -> String {
  let milliseconds = duration.milliseconds
  return milliseconds % 1000 == 0 ? "\(milliseconds / 1000) s" : "\(milliseconds) ms"
}
