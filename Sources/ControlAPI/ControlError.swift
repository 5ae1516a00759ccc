/// An answer that is not a success: what went wrong, why, and what to do about it. The body of every HTTP error.
public struct ControlError: Error, Sendable, Codable, Hashable, CustomStringConvertible {
  /// Stable words that programs may depend on. Unknown ones (from a newer vmhad) are kept as they are.
  public struct Code: RawRepresentable, Sendable, Codable, Hashable, CustomStringConvertible {
    public let rawValue: String
    public init(rawValue: String) { self.rawValue = rawValue }
    public var description: String { rawValue }

    /// The request itself is wrong: an unknown field value, a bad name.
    public static let invalidRequest = Code(rawValue: "invalid_request")
    public static let noSuchModule = Code(rawValue: "no_such_module")
    /// libvirt knows no VM of this name.
    public static let noSuchVM = Code(rawValue: "no_such_vm")
    public static let noSuchOperation = Code(rawValue: "no_such_operation")
    public static let noSuchRoute = Code(rawValue: "no_such_route")
    /// The module's state does not allow it now; nothing was changed.
    public static let refused = Code(rawValue: "refused")
    /// This host belongs to no cluster yet.
    public static let noCluster = Code(rawValue: "no_cluster")
    public static let alreadyInCluster = Code(rawValue: "already_in_cluster")
    public static let peerUnreachable = Code(rawValue: "peer_unreachable")
    /// Join: the token is wrong, used or too old.
    public static let wrongToken = Code(rawValue: "wrong_token")
    /// Join: the address answers with another cluster's certificate.
    public static let wrongFingerprint = Code(rawValue: "wrong_fingerprint")
    /// `add`: the checks found errors (they are in `details`).
    public static let checksFailed = Code(rawValue: "checks_failed")
    /// Another operation works on this module.
    public static let busy = Code(rawValue: "busy")
    public static let hypervisorUnavailable = Code(rawValue: "hypervisor_unavailable")
    public static let timedOut = Code(rawValue: "timed_out")
    /// Made by the client: nothing answers on the socket.
    public static let daemonNotRunning = Code(rawValue: "daemon_not_running")
    /// Made by the client: the socket may not be opened by this user.
    public static let permissionDenied = Code(rawValue: "permission_denied")
    /// Made by the client: the answer was not understood, or the connection broke in the middle.
    public static let badAnswer = Code(rawValue: "bad_answer")
    /// Something failed while doing it; `message` and `why` say how far it came.
    public static let failed = Code(rawValue: "failed")
  }

  public var code: Code
  /// What went wrong, one line without a full stop at its end.
  public var message: String
  /// Why, one line; nil if the message says it.
  public var why: String?
  /// What to do next; a command where there is one.
  public var next: String?
  /// 4xx: nothing was changed. 5xx: it may be half done, and `why` says what.
  public var httpStatus: Int
  /// Further lines, such as the findings of failed checks.
  public var details: [String]?

  public init(
    _ code: Code, _ message: String, why: String? = nil, next: String? = nil, httpStatus: Int? = nil,
    details: [String]? = nil
  ) {
    self.code = code
    self.message = message
    self.why = why
    self.next = next
    self.httpStatus = httpStatus ?? ControlError.statusUsual(for: code)
    self.details = details
  }

  /// True if the answer promises that nothing was changed.
  public var nothingChanged: Bool { (400..<500).contains(httpStatus) }

  public var description: String {
    ([message] + [why, next].compactMap { $0 } + (details ?? [])).joined(separator: "\n")
  }

  enum CodingKeys: String, CodingKey {
    case code, message, why, next, details
    case httpStatus = "http_status"
  }

  private static func statusUsual(for code: Code) -> Int {
    switch code {
    case .invalidRequest, .wrongToken, .wrongFingerprint: 400
    case .permissionDenied: 403
    case .noSuchModule, .noSuchVM, .noSuchOperation, .noSuchRoute: 404
    case .refused, .noCluster, .alreadyInCluster, .checksFailed, .busy: 409
    case .peerUnreachable, .hypervisorUnavailable, .daemonNotRunning: 503
    case .timedOut: 504
    default: 500
    }
  }
}

extension ControlError {
  public static func noSuchModule(_ name: String) -> ControlError {
    ControlError(
      .noSuchModule, "no protected VM is named '\(name)'", why: "vmha protects no module of this name in this cluster",
      next: "see them with: vmha status; protect a VM with: vmha add \(name)")
  }

  public static func noCluster() -> ControlError {
    ControlError(
      .noCluster, "this host belongs to no cluster", why: "there is no /etc/vmha/cluster.xml",
      next: "make one: vmha cluster init --help; or join one: vmha cluster join --help")
  }
}
