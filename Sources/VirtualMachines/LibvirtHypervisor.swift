import CLibvirt
import Glibc
import HostSystem
import Model

/// The hypervisor of this host through libvirt. Starts its own threads; `close` ends them.
public final class LibvirtHypervisor: Hypervisor {
  /// Time limits of the calls.
  public struct Limits: Sendable, Hashable {
    /// Questions, and commands that libvirt answers at once.
    public var query: Duration = .seconds(5)
    /// suspend, resume, shutdown request: they need QEMU's answer.
    public var command: Duration = .seconds(10)
    /// libvirt sends SIGTERM, waits 10 s, SIGKILL, waits 5 s (and longer with host devices).
    public var destroy: Duration = .seconds(20)
    /// define, undefine, autostart.
    public var change: Duration = .seconds(20)
    public init() {}
  }

  private let lanes: CallLanes
  private let events: EventMonitor
  private let limits: Limits
  private let runtimeDirectory: String

  /// `runtimeDirectory`: where libvirt's QEMU driver keeps the process ids of its guests.
  public init(
    uri: String = "qemu:///system", limits: Limits = Limits(), runtimeDirectory: String = "/run/libvirt/qemu"
  ) throws(HypervisorError) {
    try LibvirtLibrary.prepare()
    self.limits = limits
    self.runtimeDirectory = runtimeDirectory
    lanes = CallLanes(uri: uri)
    events = try EventMonitor(uri: uri)
  }

  deinit { close() }

  /// Ends the threads; calls that come later fail with `notConnected`.
  public func close() {
    events.close()
    lanes.close()
  }

  public var connection: HypervisorConnection { events.connection }
  public func setEventHandler(_ handler: (@Sendable (HypervisorEvent) -> Void)?) { events.setHandler(handler) }

  // MARK: Calls about one domain

  private func withDomain<T: Sendable>(
    _ operation: String, _ name: String, limit: Duration, isRepeatable: Bool = true,
    _ body: @escaping @Sendable (OpaquePointer) throws(LibvirtFailure) -> T
  ) throws(HypervisorError) -> T {
    try lanes.call(operation, domain: name, limit: limit, isRepeatable: isRepeatable) {
      (connection) throws(LibvirtFailure) in
      guard let domain = virDomainLookupByName(connection, name) else { throw .last }
      defer { virDomainFree(domain) }
      return try body(domain)
    }
  }

  public func state(of name: String) throws(HypervisorError) -> GuestStatus {
    try withDomain("state", name, limit: limits.query) { (domain) throws(LibvirtFailure) in
      var state: CInt = 0
      var reason: CInt = 0
      try check(virDomainGetState(domain, &state, &reason, 0))
      return LibvirtWords.status(state: state, reason: reason)
    }
  }

  public func start(_ name: String, limit: Duration) throws(HypervisorError) {
    try withDomain("start", name, limit: limit, isRepeatable: false) { (domain) throws(LibvirtFailure) in
      try check(virDomainCreateWithFlags(domain, VIR_DOMAIN_START_FORCE_BOOT.rawValue))
    }
  }

  public func requestShutdown(_ name: String) throws(HypervisorError) {
    try withDomain("shutdown", name, limit: limits.command) { (domain) throws(LibvirtFailure) in
      try check(virDomainShutdownFlags(domain, VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN.rawValue))
    }
  }

  public func destroy(_ name: String) throws(HypervisorError) {
    try withDomain("destroy", name, limit: limits.destroy, isRepeatable: false) { (domain) throws(LibvirtFailure) in
      try check(virDomainDestroyFlags(domain, 0))
    }
  }

  public func suspend(_ name: String) throws(HypervisorError) {
    try withDomain("suspend", name, limit: limits.command) { (domain) throws(LibvirtFailure) in
      try check(virDomainSuspend(domain))
    }
  }

  public func resume(_ name: String) throws(HypervisorError) {
    try withDomain("resume", name, limit: limits.command) { (domain) throws(LibvirtFailure) in
      try check(virDomainResume(domain))
    }
  }

  /// libvirt has no call of its own for this, and notes in its log that its monitor was used by another ("tainted: custom-monitor").
  public func announce(_ name: String) throws(HypervisorError) {
    // The times, in ms, and the count are those of QEMU's own announcement after a migration.
    let command =
      #"{"execute":"announce-self","arguments":{"initial":50,"max":550,"rounds":5,"step":100}}"#
    try withDomain("announce", name, limit: limits.command) { (domain) throws(LibvirtFailure) in
      var answer: UnsafeMutablePointer<CChar>?
      defer { free(answer) }
      try check(virDomainQemuMonitorCommand(domain, command, &answer, 0))
    }
  }

  public func domainXML(of name: String, inactive: Bool) throws(HypervisorError) -> String {
    try withDomain("definition", name, limit: limits.query) { (domain) throws(LibvirtFailure) in
      let flags = VIR_DOMAIN_XML_SECURE.rawValue | (inactive ? VIR_DOMAIN_XML_INACTIVE.rawValue : 0)
      guard let text = virDomainGetXMLDesc(domain, flags) else { throw .last }
      defer { free(text) }
      return String(cString: text)
    }
  }

  public func undefine(_ name: String, discardingNotes: Bool) throws(HypervisorError) {
    try withDomain("undefine", name, limit: limits.change) { (domain) throws(LibvirtFailure) in
      var flags = VIR_DOMAIN_UNDEFINE_KEEP_NVRAM.rawValue | VIR_DOMAIN_UNDEFINE_KEEP_TPM.rawValue
      if discardingNotes {
        flags |=
          VIR_DOMAIN_UNDEFINE_MANAGED_SAVE.rawValue | VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA.rawValue
          | VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA.rawValue
      }
      guard virDomainUndefineFlags(domain, flags) != 0 else { return }
      let error = LibvirtError.last()
      // A driver that knows neither NVRAM nor TPM refuses the words; there is nothing to keep then.
      guard error.code == VIR_ERR_INVALID_ARG || error.code == VIR_ERR_NO_SUPPORT else { throw .libvirt(error) }
      try check(virDomainUndefine(domain))
    }
  }

  public func setAutostart(_ name: String, _ isOn: Bool) throws(HypervisorError) {
    try withDomain("autostart", name, limit: limits.change) { (domain) throws(LibvirtFailure) in
      try check(virDomainSetAutostart(domain, isOn ? 1 : 0))
    }
  }

  public func facts(of name: String) throws(HypervisorError) -> DomainFacts? {
    try orNil(.noSuchDomain) { () throws(HypervisorError) in
      try withDomain("facts", name, limit: limits.query) { (domain) throws(LibvirtFailure) in
        try LibvirtWords.facts(domain)
      }
    }
  }

  public func find(name: String) throws(HypervisorError) -> DomainIdentity? {
    try orNil(.noSuchDomain) { () throws(HypervisorError) in
      try withDomain("find", name, limit: limits.query) { (domain) throws(LibvirtFailure) in
        LibvirtWords.identity(domain)
      }
    }
  }

  // MARK: Calls about the host

  public func find(uuid: String) throws(HypervisorError) -> DomainIdentity? {
    try orNil(.noSuchDomain) { () throws(HypervisorError) in
      try lanes.call("find", domain: uuid, limit: limits.query, isRepeatable: true) {
        (connection) throws(LibvirtFailure) in
        guard let domain = virDomainLookupByUUIDString(connection, uuid) else { throw .last }
        defer { virDomainFree(domain) }
        return LibvirtWords.identity(domain)
      }
    }
  }

  @discardableResult
  public func define(xml: String) throws(HypervisorError) -> DomainIdentity {
    try lanes.call("define", domain: "", limit: limits.change, isRepeatable: true) {
      (connection) throws(LibvirtFailure) in
      guard let domain = virDomainDefineXMLFlags(connection, xml, 0) else { throw .last }
      defer { virDomainFree(domain) }
      return LibvirtWords.identity(domain)
    }
  }

  public func list() throws(HypervisorError) -> [DomainFacts] {
    try lanes.call("list", domain: "", limit: limits.query, isRepeatable: true) {
      (connection) throws(LibvirtFailure) in
      var domains: UnsafeMutablePointer<OpaquePointer?>?
      let count = virConnectListAllDomains(connection, &domains, 0)
      guard count >= 0, let domains else { throw .last }
      defer {
        for index in 0..<Int(count) { if let domain = domains[index] { virDomainFree(domain) } }
        free(domains)
      }
      var found: [DomainFacts] = []
      for index in 0..<Int(count) {
        guard let domain = domains[index] else { continue }
        do throws(LibvirtFailure) {
          found.append(try LibvirtWords.facts(domain))
        } catch .libvirt(let error) where error.code == VIR_ERR_NO_DOMAIN {
          continue  // Undefined since the list was made.
        }
      }
      return found.sorted { $0.identity.name < $1.identity.name }
    }
  }

  public func isNetworkActive(_ name: String) throws(HypervisorError) -> Bool? {
    try orNil(.noSuchNetwork) { () throws(HypervisorError) in
      try lanes.call("network", domain: name, limit: limits.query, isRepeatable: true) {
        (connection) throws(LibvirtFailure) in
        guard let network = virNetworkLookupByName(connection, name) else { throw .last }
        defer { virNetworkFree(network) }
        return virNetworkIsActive(network) == 1
      }
    }
  }

  public func volumePath(pool: String, volume: String) throws(HypervisorError) -> String {
    try lanes.call("volume", domain: "\(pool)/\(volume)", limit: limits.query, isRepeatable: true) {
      (connection) throws(LibvirtFailure) in
      guard let pool = virStoragePoolLookupByName(connection, pool) else { throw .last }
      defer { virStoragePoolFree(pool) }
      guard let volume = virStorageVolLookupByName(pool, volume) else { throw .last }
      defer { virStorageVolFree(volume) }
      guard let path = virStorageVolGetPath(volume) else { throw .last }
      defer { free(path) }
      return String(cString: path)
    }
  }

  public func checkMachine(_ machine: DomainMachine) throws(HypervisorError) {
    try lanes.call("machine", domain: machine.machine, limit: limits.query, isRepeatable: true) {
      (connection) throws(LibvirtFailure) in
      guard
        let text = virConnectGetDomainCapabilities(
          connection, machine.emulator, machine.architecture, machine.machine, machine.type, 0)
      else { throw .last }
      free(text)
    }
  }

  public func processID(of name: String) throws(HypervisorError) -> Int32? {
    try GuestProcess.find(name, runtimeDirectory: runtimeDirectory)
  }

  private func orNil<T>(
    _ code: HypervisorError.Code, _ body: () throws(HypervisorError) -> T
  ) throws(HypervisorError) -> T? {
    do throws(HypervisorError) {
      return try body()
    } catch {
      if error.code == code { return nil }
      throw error
    }
  }
}

/// libvirt's calls answer -1 on failure.
private func check(_ result: CInt) throws(LibvirtFailure) {
  if result < 0 { throw .last }
}
