import Glibc

/// A host call that failed: what was done, to what, why, and what to do about it where that is known.
public struct HostError: Error, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Sendable, Hashable {
    /// The kernel refused; `errno` says why.
    case system
    /// The other side, or the queue, has ended.
    case closed
    case timedOut
    /// A named limit was exceeded.
    case limit
    /// The contents are not what they must be.
    case invalid
    /// Somebody else is using it.
    case inUse
  }
  public let code: Code
  /// The label of the call, as given to `HostCalls.perform`.
  public let operation: String
  public let path: String
  /// 0 when the kernel had no part in it.
  public let errno: Int32
  public let message: String

  /// The file system, or what this user may have of it, is full.
  var isNoSpace: Bool { [ENOSPC, EDQUOT].contains(errno) }

  public init(_ code: Code, _ operation: String, path: String = "", errno: Int32 = 0, _ message: String) {
    self.code = code
    self.operation = operation
    self.path = path
    self.errno = errno
    self.message = message
  }

  /// From the errno of a call that has just failed.
  public static func system(_ operation: String, path: String, errno: Int32) -> HostError {
    HostError(.system, operation, path: path, errno: errno, hint(errno))
  }

  private static func hint(_ number: Int32) -> String {
    switch number {
    case ENOSPC, EDQUOT: "the file system is full: free some space and repeat"
    case EROFS: "the file system is read-only, often after a disk error: see the kernel log"
    case EIO: "the disk reports an error: see the kernel log"
    case EACCES, EPERM: "not permitted: vmha needs to run as root"
    case EMFILE, ENFILE: "too many open files: raise the limit (LimitNOFILE)"
    default: ""
    }
  }

  public var description: String {
    var text = operation
    if !path.isEmpty { text += " \(path)" }
    if errno != 0 { text += ": \(errnoText(errno)) (errno \(errno))" }
    if !message.isEmpty { text += ": \(message)" }
    return text
  }
}

/// The C library's text for an errno value.
public func errnoText(_ number: Int32) -> String {
  withUnsafeTemporaryAllocation(of: CChar.self, capacity: 256) { buffer in
    guard let base = buffer.baseAddress else { return "error \(number)" }
    guard strerror_r(number, base, buffer.count) == 0 else { return "error \(number)" }
    return String(cString: base)
  }
}
