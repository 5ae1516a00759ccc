import ControlAPI
import FoundationEssentials
import Glibc
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import Replication
import SecureLinks
import Synchronization
import VirtualMachines

/// vmhad: the two nodes' heartbeat, one runner per module, the peer's requests and the operator's.
///
/// It interprets what the cores direct and never decides about roles itself. Its end or crash touches no guest: engines and
/// guests go on, and the next vmhad takes them over.
public final class Daemon: ModuleSurroundings, Sendable {
  /// A consent, or the peer's word that there is none, must come within this.
  static let consentTimeout: Duration = .seconds(2)
  /// How often the peer's account of the modules and the engines' reports are fetched.
  static let reportEvery: Duration = .seconds(1)
  static let reportTimeout: Duration = .seconds(2)
  /// How long a node that is heard may take to answer.
  private static let meetingTimeout: Duration = .seconds(5)
  private static let meetingRetry: Duration = .milliseconds(500)

  struct KnownLink: Sendable {
    var state: LinkState
    var since: WallTime
  }

  struct State: Sendable {
    var membership: ClusterMembership?
    var cluster: ClusterConfiguration? { membership?.configuration }
    var node: NodeID { membership?.node.id ?? .first }
    var nodeName: String
    var bootID: String
    var startedAt = WallTime.now()
    var runners: [ModuleName: ModuleRunner] = [:]
    /// Modules of this host that could not be loaded, and why.
    var unloaded: [ModuleName: String] = [:]
    var peerAlive: Bool?
    var peerSince: WallTime?
    var peerBoot: String?
    var links: [String: KnownLink] = [:]
    var peerReports: [ModuleName: ModuleReport] = [:]
    /// Modules of this node of which the peer's vmhad has said nothing since then, though it answers.
    var peerLacks: [ModuleName: Instant] = [:]
    var heartbeatWarnings: [StatusWarning] = []
    /// Of the modules that are SPLIT.
    var branchFacts: [ModuleName: BranchFacts] = [:]
    var services: ClusterServices?
    var adoption: Adoption?
    var verifications: [ModuleName: KnownVerification] = [:]
  }

  public let paths: HostPaths
  let launcher: EngineLauncher
  let journal: EventJournal
  let hypervisor: any Hypervisor
  let operations = Operations()
  let seeds = SeedJobs()
  let state: Mutex<State>
  let hooks: EventHooks
  private let lateArbiters = Mutex<Arbiters?>(nil)
  private let lateChecks = Mutex<ModuleChecks?>(nil)
  /// nil = its file cannot be opened; said in the journal.
  let peerJournal: PeerJournal?
  private let lateOffice = Mutex<ResyncOffice?>(nil)
  private let lateSetup = Mutex<ClusterSetup?>(nil)
  private let isOver = Monitor(false)

  /// `executables` is the folder that holds vmha-replicad.
  public init(paths: HostPaths, executables: String) throws {
    self.paths = paths
    launcher = EngineLauncher(paths: paths, executable: "\(executables)/vmha-replicad")
    try Self.makeFolders(paths)
    let name = try hostName()
    journal = try EventJournal(path: paths.journalFile, node: name) { print("vmhad: journal: \($0)") }
    let journal = journal
    do { peerJournal = try PeerJournal(path: paths.peerJournalFile) } catch {
      peerJournal = nil
      journal.append(
        JournalEvent(
          monotonicNanoseconds: monotonicNow().nanoseconds, node: name, kind: .journal, severity: .warning,
          sentence: "what happens on the other node is not kept here: \(paths.peerJournalFile): \(error)"))
    }
    hypervisor = try LibvirtHypervisor(uri: "qemu:///system")
    hooks = try EventHooks(paths: paths) { [journal] text in
      journal.append(
        JournalEvent(
          monotonicNanoseconds: monotonicNow().nanoseconds, node: name, kind: .hook, severity: .warning, sentence: text)
      )
    }
    state = Mutex(State(nodeName: name, bootID: try HostSystem.bootID()))
    let setup = try ClusterSetup(paths: paths) { [weak self] in self?.membershipChanged($0) }
    lateSetup.withLock { $0 = setup }
    let arbiters = Arbiters { [weak self] in self?.record(.cluster, $0 ? .warning : .notice, $1) }
    lateArbiters.withLock { $0 = arbiters }
    let office = ResyncOffice { [weak self] in self?.runner($0)?.takeTurn($1) }
    lateOffice.withLock { $0 = office }
    let checks = ModuleChecks { [weak self] in self?.moduleConfigurations ?? [] }
    lateChecks.withLock { $0 = checks }
  }

  private static func makeFolders(_ paths: HostPaths) throws {
    for (path, mode) in [
      (paths.configuration, 0o755), (paths.modules, 0o755), (paths.eventHooks, 0o755), (paths.state, 0o700),
      ("\(paths.state)/modules", 0o700), (paths.runtime, 0o755), ("\(paths.runtime)/engines", 0o700),
      ("\(paths.runtime)/permits", 0o755),
    ] as [(String, mode_t)] { try DurableFile.makeFolder(path, mode: mode) }
  }

  var checks: ModuleChecks {
    guard let checks = lateChecks.withLock({ $0 }) else { preconditionFailure("set in init") }
    return checks
  }

  var arbiters: Arbiters {
    guard let arbiters = lateArbiters.withLock({ $0 }) else { preconditionFailure("set in init") }
    return arbiters
  }

  var resyncs: ResyncOffice {
    guard let office = lateOffice.withLock({ $0 }) else { preconditionFailure("set in init") }
    return office
  }

  var clusterSetup: ClusterSetup {
    guard let setup = lateSetup.withLock({ $0 }) else { preconditionFailure("set in init") }
    return setup
  }

  func snapshot() -> State { state.withLock { $0 } }
  var moduleConfigurations: [ModuleConfiguration] { snapshot().runners.values.map(\.configuration) }
  func runner(_ name: ModuleName) -> ModuleRunner? { state.withLock { $0.runners[name] } }
  var nodeName: String { state.withLock { $0.nodeName } }
  var peerAlive: Bool? { state.withLock { $0.peerAlive } }
  var peerName: String {
    state.withLock { state in state.cluster?.node(state.node.peer)?.name ?? "the other node" }
  }

  // MARK: life

  /// Brings everything up that the configuration on disk names; then requests may come.
  public func start() throws {
    record(.daemon, .notice, "vmhad \(Self.version) started")
    hypervisor.setEventHandler { [weak self] in self?.hypervisorSaid($0) }
    if let membership = try ClusterMembership.load(paths) { try enter(membership) }
    try checks.start()
    try arbiters.start()
    try HostThread.start(name: "reports") { self.exchangeReports() }
    if let peerJournal { try HostThread.start(name: "peer-journal") { self.followPeerJournal(peerJournal) } }
    try HostThread.start(name: "branches") { self.watchBranches() }
    try HostThread.start(name: "records") { self.watchRecords() }
  }

  /// Lets go of everything: guests and engines go on without this process.
  public func stop() {
    isOver.withLock { $0 = true }
    checks.stop()
    arbiters.stop()
    let view = snapshot()
    view.services?.stop()
    for runner in view.runners.values { runner.detach() }
    record(.daemon, .notice, "vmhad stops; guests and engines go on")
    journal.close()
  }

  /// This host has become a member, or cluster.xml is another one.
  func membershipChanged(_ membership: ClusterMembership) {
    do {
      let services = state.withLock { state in
        state.membership = membership
        state.nodeName = membership.node.name
        return state.services
      }
      if let services { follow(membership, services) } else { try enter(membership) }
    } catch { record(.cluster, .error, "the change of the cluster is not in force: \(error); restart vmhad") }
  }

  private func follow(_ membership: ClusterMembership, _ services: ClusterServices) {
    services.use(membership)
    arbiters.use(membership.configuration, node: membership.node.id)
    for runner in snapshot().runners.values { runner.reconfigure(runner.configuration) }
    let cluster = membership.configuration
    record(.cluster, .notice, "cluster '\(cluster.name)', revision \(cluster.revision), is in force")
  }

  private func enter(_ membership: ClusterMembership) throws {
    state.withLock {
      $0.membership = membership
      $0.nodeName = membership.node.name
    }
    arbiters.use(membership.configuration, node: membership.node.id)
    let services = try ClusterServices(membership, daemon: self)
    state.withLock { $0.services = services }
    try loadModules()
    try services.listen(membership, daemon: self)
    record(.cluster, .notice, "node '\(membership.node.name)' of cluster '\(membership.configuration.name)'")
  }

  // MARK: the cores' surroundings

  func askPeer(_ request: ConsentRequest, module: ModuleName) throws -> ConsentReply {
    guard case .consent(let reply) = try callPeer(.consent(module, request), timeout: Self.consentTimeout) else {
      throw HostError(.invalid, "peer.consent", path: module.text, "the peer's answer was not one")
    }
    return reply
  }

  func journal(_ severity: CoreSeverity, _ reason: Reason, module: ModuleName) {
    record(.decision, severityWord(severity), reason.sentence, module: module.text, rule: reason.rule)
  }

  func record(
    _ kind: EventKind, _ severity: ControlAPI.Severity, _ sentence: String, module: String? = nil, rule: String? = nil,
    details: [String: String] = [:]
  ) {
    journal.append(
      JournalEvent(
        monotonicNanoseconds: monotonicNow().nanoseconds, node: nodeName, module: module, kind: kind,
        severity: severity, rule: rule, sentence: sentence, details: details))
  }

  func mirrorSettings(_ module: ModuleConfiguration, seed: UInt64) -> MirrorSettings {
    let view = snapshot()
    guard let cluster = view.cluster else { preconditionFailure("modules exist only in a cluster") }
    // `boot=wait`: the policy counts at run time only; a boot without the peer waits as long as the operator lets it.
    let bootWait = cluster.bootPolicy == .wait ? Duration.seconds(365 * 86_400) : cluster.bootWait
    var settings = MirrorSettings(
      module: module.name, node: view.node, nodeName: view.nodeName, peerName: peerName,
      preferred: module.preferredNode,
      arbiter: arbiterPolicy(cluster.arbiter(of: module.name)), detection: cluster.detection, bootWait: bootWait,
      stopTimeout: module.stopTimeout, restartsMax: module.restartsMax, restartWindow: module.restartWindow,
      bootID: view.bootID, seed: seed)
    settings.forceAfter = cluster.forceAfter == .zero ? nil : cluster.forceAfter
    settings.splitPolicy = cluster.splitPolicy == .keepPreferred ? .keepPreferred : .ask
    return settings
  }

  func engineConfiguration(_ module: ModuleConfiguration) -> EngineConfiguration {
    let view = snapshot()
    guard let cluster = view.cluster else { preconditionFailure("modules exist only in a cluster") }
    let links = cluster.replicationLinks.compactMap { link -> EngineLink? in
      guard let mine = link.addresses[view.node], let peers = link.addresses[view.node.peer] else { return nil }
      return EngineLink(name: link.name, localAddress: mine, peerAddress: peers)
    }
    return EngineConfiguration(
      module: module.name, node: view.node, peerName: peerName, port: ClusterPorts.engine(module.number), links: links,
      backingDirectory: module.backingDirectory, mountPoint: module.mountPoint,
      intentsFile: paths.intentsFile(module.name), authorityFile: paths.authorityFile,
      certificateFile: paths.nodeCertificateFile,
      keyFile: paths.nodeKeyFile, silenceMax: cluster.detection,
      // Over TCP: a lost packet comes again, so that four in a detection time are enough, and 25 idle modules cost little.
      keepalive: cluster.detection / 4, suspendAfter: cluster.suspendAfter)
  }

  func moduleChanged(_ module: ModuleName, from old: CoreStatus?, to new: CoreStatus) {
    for event in Milestones.between(old, new) {
      record(event.kind, event.severity, event.sentence, module: module.text, details: event.details)
    }
    let view = snapshot()
    if old?.state != new.state || old?.readiness != new.readiness, let cluster = view.cluster {
      let environment = StateChangeHook.environment(
        module: module, node: view.node, cluster: cluster, from: old?.state ?? .stop, to: new.state,
        readiness: new.readiness, sentence: new.sentence, time: "\(WallTime.now())")
      hooks.stateChanged(EventHooks.Change(module: module, environment: environment))
    }
    publishBeats()
  }

  func scriptEnvironment(_ module: ModuleConfiguration) -> [String: String] {
    let view = snapshot()
    guard let cluster = view.cluster else { return [:] }
    return ModuleScript.environment(
      module, node: view.node, cluster: cluster, reason: runner(module.name)?.status.sentence ?? "")
  }

  private func hypervisorSaid(_ event: HypervisorEvent) {
    switch event {
    case .started(let domain, _), .suspended(let domain, _), .resumed(let domain), .shuttingDown(let domain),
      .stopped(let domain, _), .crashed(let domain), .diskError(let domain, _, _, _, _):
      if let name = ModuleName(domain.name) { runner(name)?.hypervisorSaid(event) }
    case .defined, .undefined: break
    case .connectionLost(let why): record(.daemon, .warning, "libvirt does not answer: \(why)")
    case .connectionRestored:
      record(.daemon, .notice, "libvirt answers again")
      for runner in snapshot().runners.values { runner.hypervisorSaid(event) }
    }
  }

  func hypervisorDown() -> String? {
    let connection = hypervisor.connection
    return connection.isUp ? nil : connection.why
  }

  // MARK: the peer

  func peerChanged(alive: Bool) {
    let (runners, name) = state.withLock { state in
      state.peerAlive = alive
      state.peerSince = .now()
      return (Array(state.runners.values), state.cluster?.node(state.node.peer)?.name ?? "the other node")
    }
    record(
      alive ? .nodeUp : .nodeLost, alive ? .notice : .error,
      alive ? "\(name) is here" : "\(name) is lost: silent on every link")
    for runner in runners { runner.push(alive ? .nodeAlive : .nodeLost) }
    if !alive { state.withLock { $0.services }?.channel.dropConnections() }
    if alive { meetPeer(comparesCluster: true) }
  }

  func peerRestarted(boot: String) {
    let runners = state.withLock { state in
      state.peerBoot = boot
      return Array(state.runners.values)
    }
    for runner in runners { runner.push(.nodeRestarted) }
    meetPeer(comparesCluster: false)
  }

  func linkChanged(_ link: String, _ linkState: LinkState, _ why: String) {
    state.withLock { $0.links[link] = KnownLink(state: linkState, since: .now()) }
    record(
      .link, linkState == .up ? .notice : .warning,
      "link \(link): \(linkState.rawValue)" + (why.isEmpty ? "" : " (\(why))"),
      details: ["link": link])
  }

  func callPeer(_ request: PeerRequest, timeout: Duration) throws -> PeerReply {
    guard let services = state.withLock({ $0.services }) else { throw ControlError.noCluster() }
    let bytes = try services.channel.call(Data(JSONEncoder().encode(request)), timeout: timeout)
    let reply = try JSONDecoder().decode(PeerReply.self, from: bytes)
    if case .failed(let why) = reply { throw HostError(.invalid, "peer", path: peerName, why) }
    return reply
  }

  /// The operator's wishes meet: on each module the newer one holds on both nodes. A node that is heard may not answer yet, its
  /// vmhad is starting: it is asked again for a while, and only what fails then is told.
  private func meetPeer(comparesCluster: Bool) {
    do {
      try HostThread.start(name: "meet-peer") {
        let end = monotonicNow() + Self.meetingTimeout
        while true {
          do {
            guard case .wishes(let theirs) = try self.callPeer(self.ownWishes, timeout: Self.meetingTimeout) else {
              break
            }
            self.follow(theirs)
            break
          } catch {
            guard self.peerAlive == true, monotonicNow() < end, !self.isStopping(within: Self.meetingRetry) else {
              return self.record(.daemon, .warning, "the wishes for the modules were not exchanged: \(error)")
            }
          }
        }
        if comparesCluster { self.reconcileCluster() }
      }
    } catch { record(.daemon, .warning, "\(error)") }
  }

  private var ownWishes: PeerRequest { .wishes(snapshot().runners.mapValues(\.wish)) }

  func follow(_ wishes: [ModuleName: Wish]) {
    for (name, wish) in wishes {
      guard let runner = runner(name) else { continue }
      // What is not taken now is told again: by then the add or remove may be finished.
      if !wish.started || runner.wish.started || mayStart(name) { runner.push(.wish(wish)) }
    }
  }

  /// False also while it cannot be read whether an add or remove is unfinished.
  private func mayStart(_ name: ModuleName) -> Bool {
    do { return try unfinishedAdoption(name) == nil } catch { return false }
  }

  /// Waits; true as soon as this daemon stops.
  func isStopping(within time: Duration) -> Bool { isOver.wait(timeout: time, until: { $0 ? true : nil }) != nil }

  /// A thread of its own: any other one may wait for the disk that hangs.
  private func watchRecords() {
    var stuck: Set<ModuleName> = []
    while !isStopping(within: Self.reportEvery) {
      let now = Set(snapshot().runners.values.filter(\.isStuck).map(\.module))
      for name in now.subtracting(stuck) {
        record(
          .daemon, .error,
          "the disk of /var/lib/vmha hangs: what was decided is not durable after "
            + "\(secondsText(ModuleRunner.directivesStallMax)); this node gives no consent and uses no right until it is",
          module: name.text, rule: "R11")
      }
      if now != stuck { publishBeats() }
      stuck = now
    }
  }

  private func exchangeReports() {
    while !isStopping(within: Self.reportEvery) {
      let view = snapshot()
      for runner in view.runners.values { runner.askEngineForReport() }
      lookAfterVerifications()
      resyncs.look()
      guard view.peerAlive == true, !view.runners.isEmpty else { continue }
      // A failure here shows as `current: false` once the heartbeat is gone; it is no news of its own.
      guard case .report(let reports)? = try? callPeer(.report, timeout: Self.reportTimeout) else { continue }
      state.withLock { state in
        for report in reports { state.peerReports[report.module] = report }
        state.notePeerModules(Set(reports.map(\.module)), now: monotonicNow())
      }
      // A wish given to one node while the other could not be told must not wait for them to meet anew.
      for report in reports {
        if let runner = runner(report.module), report.wish.version > runner.wish.version {
          runner.push(.wish(report.wish))
        }
      }
    }
  }

  func ownReports() -> [ModuleReport] {
    let view = snapshot()
    let facts = view.branchFacts
    return view.runners.values.map { runner in
      let status = runner.status
      return ModuleReport(
        module: runner.module, status: status, wish: runner.wish, since: wallTime(of: status.since),
        engine: runner.engineReport, branch: facts[runner.module],
        verification: verification(of: runner).record, resyncAhead: resyncWait(runner))
    }
  }
}
