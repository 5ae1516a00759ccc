import Model

/// A domain known to the hypervisor. libvirt keeps both unique on a host.
public struct DomainIdentity: Codable, Sendable, Hashable {
  public var name: String
  /// Lower-case, with dashes.
  public var uuid: String
  public init(name: String, uuid: String) {
    self.name = name
    self.uuid = uuid
  }
}

/// What a guest is doing, as libvirt sees it.
public enum GuestState: String, Codable, Sendable, Hashable, CaseIterable {
  case running
  case paused
  /// The guest has accepted the request and is on its way down.
  case shuttingDown
  case shutOff
  case crashed
  /// Suspended by its own power management.
  case sleeping
  case unknown

  /// Whether a QEMU process exists, so that files may be open.
  public var isActive: Bool {
    switch self {
    case .running, .paused, .shuttingDown, .sleeping: true
    case .shutOff: false
    // After on_crash=preserve the process is still there.
    case .crashed, .unknown: true
    }
  }
}

public struct GuestStatus: Codable, Sendable, Hashable {
  public var state: GuestState
  /// libvirt's reason for the state, in words: `I/O error`, `migration`, `destroyed`...
  public var reason: String
  public init(state: GuestState, reason: String) {
    self.state = state
    self.reason = reason
  }
}

/// What `vmha add` needs to know about a domain beyond its XML.
public struct DomainFacts: Codable, Sendable, Hashable {
  public var identity: DomainIdentity
  public var state: GuestState
  /// false: it lives only as long as it runs.
  public var isPersistent: Bool
  public var isAutostarted: Bool
  public var hasSavedState: Bool
  /// Snapshots and checkpoints that libvirt keeps notes about.
  public var snapshotCount: Int
  public init(
    identity: DomainIdentity, state: GuestState, isPersistent: Bool = true, isAutostarted: Bool = false,
    hasSavedState: Bool = false, snapshotCount: Int = 0
  ) {
    self.identity = identity
    self.state = state
    self.isPersistent = isPersistent
    self.isAutostarted = isAutostarted
    self.hasSavedState = hasSavedState
    self.snapshotCount = snapshotCount
  }
}

public enum StartCause: String, Codable, Sendable, Hashable { case booted, migrated, restored, snapshot, wakeUp, other }
public enum SuspendCause: String, Codable, Sendable, Hashable {
  case command, migration, ioError, watchdog, restored, snapshot, libvirtError, other
}
public enum StopCause: String, Codable, Sendable, Hashable {
  case shutdown, destroyed
  /// The guest itself crashed.
  case crashed
  case migrated, saved
  /// QEMU died or was killed.
  case failed
  case snapshot, other
}

public enum HypervisorEvent: Codable, Sendable, Hashable {
  case started(DomainIdentity, StartCause)
  case suspended(DomainIdentity, SuspendCause)
  case resumed(DomainIdentity)
  /// QEMU is about to go: the guest powered off, or was asked to.
  case shuttingDown(DomainIdentity)
  case stopped(DomainIdentity, StopCause)
  case crashed(DomainIdentity)
  case defined(DomainIdentity)
  case undefined(DomainIdentity)
  /// A disk error reached QEMU. `device` is QEMU's alias; `isPaused`: the guest was stopped because of it. QEMU often gives no reason.
  case diskError(DomainIdentity, path: String, device: String, isPaused: Bool, reason: String)
  /// From here on events may have been missed until `connectionRestored`; then ask for the state of every guest.
  case connectionLost(why: String)
  case connectionRestored
}

/// Whether libvirt answers.
public struct HypervisorConnection: Codable, Sendable, Hashable {
  public var isUp: Bool
  /// Since when it is so.
  public var since: Instant
  /// Why it is down; empty when up.
  public var why: String
  public init(isUp: Bool, since: Instant, why: String) {
    self.isUp = isUp
    self.since = since
    self.why = why
  }
}

/// What vmha needs of a hypervisor. Every call returns within its time limit, whatever state libvirt is in; all may be called from any
/// thread. Domains are named by their libvirt name. All throw `HypervisorError`.
public protocol Hypervisor: Sendable {
  func state(of name: String) throws(HypervisorError) -> GuestStatus
  /// The guest's QEMU process, nil when there is none. Reads files only: works while libvirt hangs.
  func processID(of name: String) throws(HypervisorError) -> Int32?
  /// Boots the guest. A saved memory image is discarded: the disks may have gone on without it on the other node.
  /// `limit` bounds the wait, not the start, which libvirt may still complete after `timedOut`.
  func start(_ name: String, limit: Duration) throws(HypervisorError)
  /// Presses the power button (ACPI). Returns at once; the guest may take its time, or ignore it.
  func requestShutdown(_ name: String) throws(HypervisorError)
  /// Ends QEMU. An error `notRunning` means that the work is done.
  func destroy(_ name: String) throws(HypervisorError)
  func suspend(_ name: String) throws(HypervisorError)
  func resume(_ name: String) throws(HypervisorError)
  /// Has QEMU (4.0 or newer) tell the LAN at which port the guest's network cards are, five times within 2 s. Returns at once. An error
  /// `notRunning` if there is no guest that could be found there.
  func announce(_ name: String) throws(HypervisorError)
  /// The definition: as it will be at the next start (`inactive`), or as it runs now. Includes secrets such as VNC passwords.
  func domainXML(of name: String, inactive: Bool) throws(HypervisorError) -> String
  /// Makes or replaces a persistent definition.
  @discardableResult
  func define(xml: String) throws(HypervisorError) -> DomainIdentity
  /// Removes the definition, never a file: NVRAM and TPM state are kept. `discardingNotes`: also drops a saved memory image and
  /// snapshot notes, which else refuse it.
  func undefine(_ name: String, discardingNotes: Bool) throws(HypervisorError)
  func setAutostart(_ name: String, _ isOn: Bool) throws(HypervisorError)
  /// nil if there is no such domain.
  func facts(of name: String) throws(HypervisorError) -> DomainFacts?
  /// nil if no domain has this name.
  func find(name: String) throws(HypervisorError) -> DomainIdentity?
  /// nil if no domain has this UUID.
  func find(uuid: String) throws(HypervisorError) -> DomainIdentity?
  /// Every domain, running or not.
  func list() throws(HypervisorError) -> [DomainFacts]
  /// nil if libvirt has no network of this name.
  func isNetworkActive(_ name: String) throws(HypervisorError) -> Bool?
  /// The file behind a volume of a storage pool.
  func volumePath(pool: String, volume: String) throws(HypervisorError) -> String
  /// Whether this host can run such a machine; throws `unsupported` with the reason if not.
  func checkMachine(_ machine: DomainMachine) throws(HypervisorError)
  /// Replaces the receiver of events. Called on libvirt's event thread: it must only queue them. nil = nobody.
  func setEventHandler(_ handler: (@Sendable (HypervisorEvent) -> Void)?)
  var connection: HypervisorConnection { get }
}

/// What of a domain's definition a host must be able to provide.
public struct DomainMachine: Codable, Sendable, Hashable {
  /// kvm or qemu.
  public var type: String
  public var architecture: String
  /// pc-i440fx-7.2, pc-q35-7.2...
  public var machine: String
  /// nil = the host's default one.
  public var emulator: String?
  public init(type: String, architecture: String, machine: String, emulator: String?) {
    self.type = type
    self.architecture = architecture
    self.machine = machine
    self.emulator = emulator
  }
}
