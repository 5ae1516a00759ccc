import CLibvirt

/// A call to the hypervisor that failed: what was asked for, why it was refused, and what to do.
public struct HypervisorError: Error, Codable, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Codable, Sendable, Hashable {
    /// libvirtd does not run or does not let us in.
    case notConnected
    /// No answer within the limit. It may still be done later.
    case timedOut
    case noSuchDomain
    case alreadyRunning
    case notRunning
    /// Another domain has this name or UUID.
    case taken
    /// The libvirt hook of this host refused it.
    case refusedByHook
    /// The definition is not accepted.
    case invalidDefinition
    /// The host lacks something that the domain needs.
    case unsupported
    /// Another operation on the domain is going on, or QEMU does not let go.
    case busy
    case noSuchNetwork
    case noSuchVolume
    case failed
  }
  public var code: Code
  /// `start`, `define`...
  public var operation: String
  public var domain: String
  public var message: String
  public var next: String

  public init(_ code: Code, _ operation: String, domain: String = "", _ message: String, next: String = "") {
    self.code = code
    self.operation = operation
    self.domain = domain
    self.message = message
    self.next = next
  }

  public var description: String {
    let subject = domain.isEmpty ? operation : "\(operation) \(domain)"
    return "\(subject): \(message)" + (next.isEmpty ? "" : "; \(next)")
  }
}

/// An error as libvirt's C library reports it: read on the thread of the call, before any other call.
struct LibvirtError: Sendable, Hashable {
  var code: virErrorNumber
  var origin: virErrorDomain
  var message: String

  static func last() -> LibvirtError {
    guard let error = virGetLastError() else {
      return LibvirtError(code: VIR_ERR_INTERNAL_ERROR, origin: VIR_FROM_NONE, message: "no reason given")
    }
    return LibvirtError(
      code: virErrorNumber(rawValue: UInt32(bitPattern: error.pointee.code)),
      origin: virErrorDomain(rawValue: UInt32(bitPattern: error.pointee.domain)),
      message: error.pointee.message.map { String(cString: $0) } ?? "no reason given")
  }

  /// The connection is gone, not the domain's fault.
  var isConnectionLoss: Bool {
    if code == VIR_ERR_NO_CONNECT || code == VIR_ERR_INVALID_CONN { return true }
    // What the RPC client says when the socket closes under a call has a general code.
    let isRemote = origin == VIR_FROM_RPC || origin == VIR_FROM_REMOTE
    return isRemote
      && (code == VIR_ERR_SYSTEM_ERROR || code == VIR_ERR_RPC || message.contains("client socket is closed")
        || message.contains("connection closed"))
  }

  func mapped(_ operation: String, domain: String) -> HypervisorError {
    func error(_ code: HypervisorError.Code, _ text: String? = nil, next: String = "") -> HypervisorError {
      HypervisorError(code, operation, domain: domain, text ?? message, next: next)
    }
    if isConnectionLoss || code == VIR_ERR_AUTH_FAILED || code == VIR_ERR_AUTH_UNAVAILABLE
      || (code == VIR_ERR_SYSTEM_ERROR && message.contains("Failed to connect socket"))
    {
      return error(.notConnected, next: "look at 'systemctl status libvirtd'")
    }
    switch code {
    case VIR_ERR_NO_DOMAIN:
      return error(.noSuchDomain, "libvirt knows no such VM on this host", next: "'virsh list --all' shows the names")
    case VIR_ERR_HOOK_SCRIPT_FAILED: return error(.refusedByHook, Self.hookText(message))
    case VIR_ERR_DOM_EXIST: return error(.taken)
    case VIR_ERR_OPERATION_FAILED where message.contains("already exists"): return error(.taken)
    case VIR_ERR_OPERATION_INVALID where message.contains("already running"): return error(.alreadyRunning)
    case VIR_ERR_OPERATION_INVALID where message.contains("is not running"): return error(.notRunning)
    case VIR_ERR_OPERATION_TIMEOUT:
      return error(.busy, next: "another operation on it hangs, often because its disk does")
    case VIR_ERR_RESOURCE_BUSY: return error(.busy)
    case VIR_ERR_SYSTEM_ERROR where message.contains("Failed to terminate process"):
      return error(.busy, next: "QEMU hangs in a disk request: abort the mount, then repeat")
    case VIR_ERR_XML_ERROR, VIR_ERR_XML_DETAIL, VIR_ERR_XML_INVALID_SCHEMA, VIR_ERR_PARSE_FAILED:
      return error(.invalidDefinition)
    case VIR_ERR_CONFIG_UNSUPPORTED, VIR_ERR_NO_SUPPORT, VIR_ERR_OPERATION_UNSUPPORTED, VIR_ERR_CPU_INCOMPATIBLE,
      VIR_ERR_ARGUMENT_UNSUPPORTED, VIR_ERR_INVALID_ARG:
      return error(.unsupported)
    case VIR_ERR_NO_NETWORK: return error(.noSuchNetwork)
    case VIR_ERR_NO_STORAGE_POOL, VIR_ERR_NO_STORAGE_VOL: return error(.noSuchVolume)
    default: return error(.failed)
    }
  }

  /// What the hook itself said: libvirt puts its own long sentence around it.
  static func hookText(_ message: String) -> String {
    let marker = "unexpected exit status 1: "
    guard let range = message.firstRange(of: marker) else { return message }
    let text = message[range.upperBound...]
    let lines = text.split(whereSeparator: \.isNewline)
    return lines.isEmpty ? message : lines.joined(separator: " ")
  }
}
