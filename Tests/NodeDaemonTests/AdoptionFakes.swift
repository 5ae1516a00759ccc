import Foundation
import Glibc
import HostSystem
import Model
import ModuleConfig
import Synchronization
import Testing
import VirtualMachines

@testable import NodeDaemon

/// libvirt in memory, with faults on demand.
final class FakeHypervisor: Hypervisor {
  struct Domain: Hashable, Sendable {
    var identity: DomainIdentity
    var xml: String
    var isAutostarted = false
    var state = GuestState.shutOff
    var hasSavedState = false
    var snapshotCount = 0
  }
  struct State: Sendable {
    var domains: [String: Domain] = [:]
    var networks: [String: Bool] = ["default": true]
    var volumes: [String: String] = [:]
    var machineProblem: String?
    var isDown = false
    /// The call of this number, counted from 0, fails; nil = none.
    var failingCall: Int?
    var calls = 0
  }
  private let state = Mutex(State())

  func change<T: Sendable>(_ body: (inout sending State) -> sending T) -> T { state.withLock(body) }

  private func call<T: Sendable>(
    _ operation: String, _ body: (inout State) -> Result<T, HypervisorError>
  ) throws(HypervisorError) -> T {
    let result: Result<T, HypervisorError> = state.withLock { state in
      if state.isDown { return .failure(HypervisorError(.notConnected, operation, "libvirt is down")) }
      state.calls += 1
      if let failing = state.failingCall, state.calls - 1 == failing {
        return .failure(HypervisorError(.failed, operation, "a fault was injected"))
      }
      return body(&state)
    }
    return try result.get()
  }

  private static func missing(_ name: String) -> HypervisorError {
    HypervisorError(.noSuchDomain, "find", domain: name, "none")
  }

  private static func facts(_ domain: Domain) -> DomainFacts {
    DomainFacts(
      identity: domain.identity, state: domain.state, isAutostarted: domain.isAutostarted,
      hasSavedState: domain.hasSavedState, snapshotCount: domain.snapshotCount)
  }

  private func with<T: Sendable>(
    _ name: String, _ body: (inout Domain) -> T
  ) throws(HypervisorError) -> T {
    try call("domain") { state in
      guard var domain = state.domains[name] else { return .failure(Self.missing(name)) }
      let result = body(&domain)
      state.domains[name] = domain
      return .success(result)
    }
  }

  func state(of name: String) throws(HypervisorError) -> GuestStatus {
    try with(name) { GuestStatus(state: $0.state, reason: "") }
  }
  func processID(of name: String) throws(HypervisorError) -> Int32? { nil }
  func start(_ name: String, limit: Duration) throws(HypervisorError) { try with(name) { $0.state = .running } }
  func requestShutdown(_ name: String) throws(HypervisorError) { try with(name) { $0.state = .shutOff } }
  func destroy(_ name: String) throws(HypervisorError) { try with(name) { $0.state = .shutOff } }
  func announce(_ name: String) throws(HypervisorError) { try with(name) { _ in } }
  func suspend(_ name: String) throws(HypervisorError) { try with(name) { $0.state = .paused } }
  func resume(_ name: String) throws(HypervisorError) { try with(name) { $0.state = .running } }
  func domainXML(of name: String, inactive: Bool) throws(HypervisorError) -> String { try with(name) { $0.xml } }

  @discardableResult
  func define(xml: String) throws(HypervisorError) -> DomainIdentity {
    let identity = try DomainDefinition(xml: xml).identity
    return try call("define") { state in
      for other in state.domains.values
      where (other.identity.name == identity.name) != (other.identity.uuid == identity.uuid) {
        return .failure(HypervisorError(.taken, "define", domain: identity.name, "taken"))
      }
      state.domains[identity.name, default: Domain(identity: identity, xml: "")].xml = xml
      return .success(identity)
    }
  }
  func undefine(_ name: String, discardingNotes: Bool) throws(HypervisorError) {
    try call("undefine") { state in
      state.domains.removeValue(forKey: name) == nil ? .failure(Self.missing(name)) : .success(())
    }
  }
  func setAutostart(_ name: String, _ isOn: Bool) throws(HypervisorError) { try with(name) { $0.isAutostarted = isOn } }
  func facts(of name: String) throws(HypervisorError) -> DomainFacts? {
    try call("facts") { .success($0.domains[name].map(Self.facts)) }
  }
  func find(name: String) throws(HypervisorError) -> DomainIdentity? {
    try call("find") { .success($0.domains[name]?.identity) }
  }
  func find(uuid: String) throws(HypervisorError) -> DomainIdentity? {
    try call("find") { state in .success(state.domains.values.first { $0.identity.uuid == uuid }?.identity) }
  }
  func list() throws(HypervisorError) -> [DomainFacts] {
    try call("list") { .success($0.domains.values.map(Self.facts).sorted { $0.identity.name < $1.identity.name }) }
  }
  func isNetworkActive(_ name: String) throws(HypervisorError) -> Bool? {
    try call("network") { .success($0.networks[name]) }
  }
  func volumePath(pool: String, volume: String) throws(HypervisorError) -> String {
    try call("volume") { state in
      state.volumes["\(pool)/\(volume)"].map { .success($0) }
        ?? .failure(HypervisorError(.noSuchVolume, "volume", "none"))
    }
  }
  func checkMachine(_ machine: DomainMachine) throws(HypervisorError) {
    try call("machine") { state in
      state.machineProblem.map { .failure(HypervisorError(.unsupported, "machine", $0)) } ?? .success(())
    }
  }
  func setEventHandler(_ handler: (@Sendable (HypervisorEvent) -> Void)?) {}
  var connection: HypervisorConnection { HypervisorConnection(isUp: true, since: Instant(nanoseconds: 0), why: "") }
}

/// Two hosts in one folder. Both see their disks below `<folder>/a/...`, as two real hosts have the same paths: what is sent to the
/// second host is translated to `<folder>/b/...` and back.
final class TwoHosts: Sendable {
  let folder: String
  let here = FakeHypervisor()
  let there = FakeHypervisor()
  let paths: HostPaths
  let peerPaths: HostPaths
  struct Link: Sendable {
    var isDown = false
    var calls = 0
    /// The call of this number fails: before it reached the other node, or after (the reply is lost).
    var failingCall: Int?
    var failsAfter = false
    var withdrawn: [String] = []
    /// Of the other node's copy.
    var record = Stored<DurableRecord>.absent
    var records: Set<ModuleName> = []
    var recordFails = false
  }
  let link = Mutex(Link())
  private let seeds = Mutex(SeedJobs())
  /// As after a crash of the other node's vmhad.
  func forgetSeedJobs() { seeds.withLock { $0 = SeedJobs() } }

  init(folder: String) throws {
    self.folder = folder
    paths = HostPaths(root: "\(folder)/a")
    peerPaths = HostPaths(root: "\(folder)/b")
    for paths in [paths, peerPaths] {
      for path in [paths.modules, "\(paths.state)/modules", "\(paths.root)/images", "\(paths.root)/etc/libvirt/hooks"] {
        try DurableFile.makeFolder(path)
      }
      let hook = "#!/bin/sh\n# is protected by vmha\n"
      try DurableFile.write(Array(hook.utf8), to: "\(paths.root)/etc/libvirt/hooks/qemu", mode: 0o755)
    }
  }

  var images: String { "\(folder)/a/images" }
  var peerImages: String { "\(folder)/b/images" }

  private func translated<T: Codable>(_ value: T, from: String, to: String) throws -> T {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.withoutEscapingSlashes]
    let text = String(decoding: try encoder.encode(value), as: UTF8.self)
    return try JSONDecoder().decode(T.self, from: Data(text.replacing(from, with: to).utf8))
  }

  private func ask(_ request: AdoptionPeerRequest) throws -> AdoptionPeerReply {
    let (fails, failsAfter) = link.withLock { link -> (Bool, Bool) in
      defer { link.calls += 1 }
      return (link.isDown || link.failingCall == link.calls, !link.isDown && link.failsAfter)
    }
    let failure = HostError(.timedOut, "peer", "no answer")
    if fails, !failsAfter { throw failure }
    let handler = AdoptionPeerHandler(paths: peerPaths, node: .second, hypervisor: there, seeds: seeds.withLock { $0 })
    { _ in
    } willWithdraw: { withdrawal in
      self.link.withLock { $0.withdrawn.append(withdrawal.name.text) }
    } record: { _ in
      self.link.withLock { $0.record }
    }
    let reply = handler.handle(try translated(request, from: "\(folder)/a/", to: "\(folder)/b/"))
    if fails { throw failure }
    return try translated(reply, from: "\(folder)/b/", to: "\(folder)/a/")
  }

  var actions: AdoptionActions {
    AdoptionActions(
      peer: { try self.ask($0) },
      createRecord: { module in
        if self.link.withLock({ $0.recordFails }) { throw HostError(.system, "record", errno: EIO, "") }
        _ = self.link.withLock { $0.records.insert(module.name) }
      }, discardRecord: { name in _ = self.link.withLock { $0.records.remove(name) } })
  }

  /// A new daemon, as after a restart.
  var adoption: Adoption { Adoption(paths: paths, node: .first, hypervisor: here, actions: actions) }

  func executor(_ checkpoint: @escaping (String) throws(AdoptionCrash) -> Void) -> AdoptionExecutor {
    AdoptionExecutor(
      paths: paths, hypervisor: here, actions: actions, progress: { _ in }, checkpoint: checkpoint)
  }

  /// Runs `work` with a crash at one checkpoint: that of this number, from 0, among those whose names begin with `prefix`.
  /// Returns its name; nil = there are not as many, and the work went on to its end.
  func crash(_ work: AdoptionWork, at point: Int, ofThose prefix: String = "") throws -> String? {
    var seen = 0
    var crash: String?
    do {
      try executor { (name) throws(AdoptionCrash) in
        guard name.hasPrefix(prefix) else { return }
        defer { seen += 1 }
        if seen == point {
          crash = name
          throw AdoptionCrash()
        }
      }.run(work)
    } catch is AdoptionCrash {}
    return crash
  }

  /// The same on the way back: the last step that can be taken back fails. True = it crashed.
  func crashGoingBack(_ work: AdoptionWork, at point: Int) throws -> Bool {
    link.withLock { $0.recordFails = true }
    defer { link.withLock { $0.recordFails = false } }
    do { return try crash(work, at: point, ofThose: "undo") != nil } catch is AdoptionError { return false }
  }

  /// Everything on both hosts' disks and in both libvirts, in a form that can be compared.
  func snapshot() throws -> [String] {
    var lines: [String] = []
    for host in ["a", "b"] { try Self.list("\(folder)/\(host)", into: &lines) }
    for (name, hypervisor) in [("a", here), ("b", there)] {
      let domains = hypervisor.change { $0.domains }
      for domain in domains.values.sorted(by: { $0.identity.name < $1.identity.name }) {
        lines.append("\(name): \(domain.identity.name) autostart \(domain.isAutostarted)\n\(domain.xml)")
      }
    }
    lines.append("records \(link.withLock { $0.records.map(\.text).sorted() })")
    return lines
  }

  static func list(_ path: String, into lines: inout [String]) throws {
    let status = try #require(try AdoptionFiles.status(path))
    if status.st_mode & S_IFMT == S_IFDIR {
      lines.append("\(path)/ \(String(status.st_mode & 0o7777, radix: 8))")
      for name in try AdoptionFiles.names(in: path) { try list("\(path)/\(name)", into: &lines) }
    } else {
      let contents = try DurableFile.read(path)
      // Not a loop of our own: without optimisation that takes longer than all the rest.
      var hasher = Hasher()
      contents.withUnsafeBytes { hasher.combine(bytes: $0) }
      lines.append("\(path) \(String(status.st_mode & 0o7777, radix: 8)) \(contents.count) \(hasher.finalize())")
    }
  }
}

/// A folder of its own that goes with the scope; in memory, because these tests sync thousands of times.
func withAdoptionFolder<T>(below parent: String = "/dev/shm", _ body: (String) throws -> T) throws -> T {
  var template = Array("\(parent)/vmha-test-XXXXXX".utf8CString)
  let made = template.withUnsafeMutableBufferPointer { $0.baseAddress.flatMap { mkdtemp($0) } }
  let folder = String(cString: try #require(made))
  defer { _ = try? AdoptionFiles.removeTree(folder) }
  return try body(folder)
}

func errorOf(_ body: () throws -> Void) -> AdoptionError? {
  do {
    try body()
    return nil
  } catch { return error as? AdoptionError }
}

func qemuImage(_ arguments: String...) throws {
  let result = try ChildProcess.run(["qemu-img"] + arguments, timeout: .seconds(30))
  try #require(result.status == 0, "\(result.errorText)")
}
