import CLibvirt
import Glibc

/// libvirt's numbers as our words.
enum LibvirtWords {
  static func identity(_ domain: OpaquePointer) -> DomainIdentity {
    var text = [CChar](repeating: 0, count: Int(VIR_UUID_STRING_BUFLEN))
    virDomainGetUUIDString(domain, &text)
    let name = virDomainGetName(domain).map { String(cString: $0) } ?? ""
    return DomainIdentity(
      name: name,
      uuid: text.withUnsafeBufferPointer { buffer in
        String(decoding: buffer.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
      })
  }

  static func facts(_ domain: OpaquePointer) throws(LibvirtFailure) -> DomainFacts {
    var state: CInt = 0
    var reason: CInt = 0
    var autostart: CInt = 0
    guard virDomainGetState(domain, &state, &reason, 0) >= 0 else { throw .last }
    let persistent = virDomainIsPersistent(domain)
    guard persistent >= 0 else { throw .last }
    // A domain that is not persistent has no autostart, saved state or snapshots; drivers other than QEMU may not know them either.
    let hasAutostart = virDomainGetAutostart(domain, &autostart) >= 0 && autostart == 1
    let hasSavedState = virDomainHasManagedSaveImage(domain, 0) == 1
    let snapshots = max(0, virDomainSnapshotNum(domain, 0)) + max(0, checkpointCount(domain))
    return DomainFacts(
      identity: identity(domain), state: status(state: state, reason: reason).state, isPersistent: persistent == 1,
      isAutostarted: hasAutostart, hasSavedState: hasSavedState, snapshotCount: Int(snapshots))
  }

  private static func checkpointCount(_ domain: OpaquePointer) -> CInt {
    var list: UnsafeMutablePointer<OpaquePointer?>?
    let count = virDomainListAllCheckpoints(domain, &list, 0)
    guard count > 0, let list else { return 0 }
    for index in 0..<Int(count) { if let checkpoint = list[index] { virDomainCheckpointFree(checkpoint) } }
    free(list)
    return count
  }

  static func status(state: CInt, reason: CInt) -> GuestStatus {
    let reason = UInt32(bitPattern: reason)
    switch virDomainState(rawValue: UInt32(bitPattern: state)) {
    case VIR_DOMAIN_RUNNING: return GuestStatus(state: .running, reason: "")
    // Blocked on a resource: a running guest, in the words of Xen.
    case VIR_DOMAIN_BLOCKED: return GuestStatus(state: .running, reason: "blocked")
    case VIR_DOMAIN_PAUSED: return GuestStatus(state: .paused, reason: pausedWords[Int(reason), default: ""])
    case VIR_DOMAIN_SHUTDOWN: return GuestStatus(state: .shuttingDown, reason: "")
    case VIR_DOMAIN_SHUTOFF: return GuestStatus(state: .shutOff, reason: shutOffWords[Int(reason), default: ""])
    case VIR_DOMAIN_CRASHED: return GuestStatus(state: .crashed, reason: "")
    case VIR_DOMAIN_PMSUSPENDED: return GuestStatus(state: .sleeping, reason: "")
    default: return GuestStatus(state: .unknown, reason: "state \(state)")
    }
  }

  private static let pausedWords: [String] = [
    "", "command", "migration", "save", "dump", "I/O error", "watchdog", "from snapshot", "shutting down", "snapshot",
    "crashed", "starting up", "post-copy", "post-copy failed", "API error",
  ]
  private static let shutOffWords: [String] = [
    "", "shut down", "destroyed", "crashed", "migrated", "saved", "failed", "from snapshot", "libvirtd",
  ]

  static func event(_ identity: DomainIdentity, _ event: CInt, detail: CInt) -> HypervisorEvent? {
    let detail = Int(detail)
    switch virDomainEventType(rawValue: UInt32(bitPattern: event)) {
    case VIR_DOMAIN_EVENT_DEFINED: return .defined(identity)
    case VIR_DOMAIN_EVENT_UNDEFINED: return .undefined(identity)
    case VIR_DOMAIN_EVENT_STARTED:
      return .started(identity, [.booted, .migrated, .restored, .snapshot, .wakeUp][detail, default: .other])
    case VIR_DOMAIN_EVENT_SUSPENDED:
      let causes: [SuspendCause] = [
        .command, .migration, .ioError, .watchdog, .restored, .snapshot, .libvirtError, .migration, .migration,
      ]
      return .suspended(identity, causes[detail, default: .other])
    case VIR_DOMAIN_EVENT_RESUMED: return .resumed(identity)
    case VIR_DOMAIN_EVENT_STOPPED:
      let causes: [StopCause] = [.shutdown, .destroyed, .crashed, .migrated, .saved, .failed, .snapshot]
      return .stopped(identity, causes[detail, default: .other])
    case VIR_DOMAIN_EVENT_SHUTDOWN: return .shuttingDown(identity)
    case VIR_DOMAIN_EVENT_PMSUSPENDED: return .suspended(identity, .other)
    case VIR_DOMAIN_EVENT_CRASHED: return .crashed(identity)
    default: return nil
    }
  }
}

extension Array {
  subscript(index: Int, default missing: Element) -> Element { indices.contains(index) ? self[index] : missing }
}
