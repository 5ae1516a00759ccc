import ControlAPI
import Foundation
import NIOCore
import NIOHTTP1

/// `ControlService` as a client sees it: the daemon behind a unix socket. Throws `ControlError` only.
public struct ControlClient: ControlService {
  /// Limits of one call. Plans and cluster changes wait for the peer, so they get more.
  public static let callTimeout: Duration = .seconds(20)
  public static let peerCallTimeout: Duration = .seconds(90)

  public let socketPath: String

  public init(socketPath: String) { self.socketPath = socketPath }

  public func status() async throws -> ClusterStatus { try await call(.GET, "/v1/status") }
  public func module(_ name: String) async throws -> ModuleStatus { try await call(.GET, path(name)) }

  public func startModule(_ name: String, force: Bool) async throws -> Acceptance {
    try await call(.POST, path(name, "start"), StartBody(force: force))
  }
  public func stopModule(_ name: String, timeoutSeconds: Int?) async throws -> Acceptance {
    try await call(.POST, path(name, "stop"), StopBody(timeoutSeconds: timeoutSeconds))
  }
  public func swapModule(_ name: String) async throws -> Acceptance { try await call(.POST, path(name, "swap")) }
  public func crashGuest(_ name: String) async throws -> Acceptance { try await call(.POST, path(name, "crash-guest")) }

  public func resolve(_ name: String, _ request: ResolveRequest) async throws -> Acceptance {
    try await call(.POST, path(name, "resolve"), request, timeout: Self.peerCallTimeout)
  }
  public func branches(_ name: String) async throws -> [ArchivedBranch] { try await call(.GET, path(name, "branches")) }
  public func exportBranch(_ name: String, _ branch: String, to directory: String) async throws -> OperationID {
    let answer: OperationAnswer = try await call(
      .POST, path(name, "branches/\(escaped(branch))/export"), ExportBody(directory: directory))
    return answer.operation
  }
  public func dropBranch(_ name: String, _ branch: String) async throws -> OperationID {
    let answer: OperationAnswer = try await call(.POST, path(name, "branches/\(escaped(branch))/drop"))
    return answer.operation
  }
  public func setModule(_ name: String, _ changes: ModuleChanges) async throws {
    let _: Nothing = try await call(.POST, path(name, "set"), changes, timeout: Self.peerCallTimeout)
  }
  public func verifyModule(_ name: String, repair: Bool) async throws -> OperationID {
    let answer: OperationAnswer = try await call(.POST, path(name, "verify"), VerifyBody(repair: repair))
    return answer.operation
  }
  public func stopVerification(_ name: String) async throws {
    let _: Nothing = try await call(.POST, path(name, "verify/stop"))
  }

  public func planAdd(_ request: AddRequest) async throws -> AddPlan {
    try await call(.POST, "/v1/add/plan", request, timeout: Self.peerCallTimeout)
  }
  public func add(_ request: AddRequest) async throws -> OperationID {
    let answer: OperationAnswer = try await call(.POST, "/v1/add", request, timeout: Self.peerCallTimeout)
    return answer.operation
  }
  public func remove(_ name: String, purgeCopy: Bool) async throws -> OperationID {
    let answer: OperationAnswer = try await call(
      .POST, path(name, "remove"), RemoveBody(purgeCopy: purgeCopy), timeout: Self.peerCallTimeout)
    return answer.operation
  }
  public func operation(_ id: OperationID) async throws -> OperationStatus {
    try await call(.GET, "/v1/operations/\(escaped(id.rawValue))")
  }

  public func clusterInitialise(_ request: ClusterInitialiseRequest) async throws -> JoinTicket {
    try await call(.POST, "/v1/cluster/init", request, timeout: Self.peerCallTimeout)
  }
  public func clusterTicket() async throws -> JoinTicket { try await call(.POST, "/v1/cluster/ticket") }
  public func clusterJoin(_ request: ClusterJoinRequest) async throws -> ClusterDescription {
    try await call(.POST, "/v1/cluster/join", request, timeout: Self.peerCallTimeout)
  }
  public func clusterShow() async throws -> ClusterDescription { try await call(.GET, "/v1/cluster") }
  public func clusterSet(_ changes: ClusterChanges) async throws -> ClusterDescription {
    try await call(.POST, "/v1/cluster/set", changes, timeout: Self.peerCallTimeout)
  }

  public func check() async throws -> CheckReport {
    try await call(.POST, "/v1/check", timeout: Self.peerCallTimeout)
  }

  public func log(since cursor: Int64?, module: String?, limit: Int) async throws -> JournalPage {
    try await call(.GET, "/v1/log" + query(since: cursor, module: module, limit: limit))
  }

  public func timeline(module: String?, limit: Int) async throws -> Timeline {
    try await call(.GET, "/v1/timeline" + query(since: nil, module: module, limit: limit))
  }

  public func decisions(_ name: String) async throws -> Data {
    try await body(.GET, path(name, "decisions"), nil, Self.callTimeout)
  }

  public func events() -> AsyncStream<JournalEvent> {
    let (stream, continuation) = AsyncStream<JournalEvent>.makeStream(
      bufferingPolicy: .bufferingNewest(EventStreamAnswer.pendingCountMax))
    let task = Task {
      // A stream cannot fail, only end; who wants the reason follows with `follow`.
      try? await follow(since: nil, module: nil) { continuation.yield($0) }
      continuation.finish()
    }
    continuation.onTermination = { _ in task.cancel() }
    return stream
  }

  /// Calls `body` for every event after `cursor` (nil = from now on), in order and without gaps, until vmhad ends the
  /// stream (returns), the connection breaks or `body` throws (throws), or the task is cancelled (throws).
  public func follow(
    since cursor: Int64?, module: String?, _ body: (JournalEvent) async throws -> Void
  ) async throws {
    let uri = "/v1/events/stream" + query(since: cursor, module: module, limit: nil)
    do {
      try await UnixSocketExchange(socketPath: socketPath, method: .GET, uri: uri, body: nil).perform { head, answer in
        guard head.status == .ok else { throw try await failure(head, &answer) }
        var parser = ServerSentEvents()
        while let part = try await answer.next() {
          for data in try parser.feed(part.readableBytesView) {
            let event = try ControlCoding.decode(JournalEvent.self, from: data)
            // What `body` throws is the caller's, not a broken connection.
            do { try await body(event) } catch { throw Passed(error: error) }
          }
        }
      }
    } catch let passed as Passed {
      throw passed.error
    } catch {
      throw explained(error)
    }
  }

  private struct Passed: Error { let error: any Error }

  private func path(_ name: String, _ action: String? = nil) -> String {
    "/v1/modules/\(escaped(name))" + (action.map { "/\($0)" } ?? "")
  }

  private func query(since: Int64?, module: String?, limit: Int?) -> String {
    let parts = [since.map { "since=\($0)" }, module.map { "module=\(escaped($0))" }, limit.map { "limit=\($0)" }]
      .compactMap { $0 }
    return parts.isEmpty ? "" : "?" + parts.joined(separator: "&")
  }
}

extension ControlClient {
  private func call<Answer: Decodable>(
    _ method: HTTPMethod, _ path: String, timeout: Duration = callTimeout
  ) async throws -> Answer {
    try await exchange(method, path, nil, timeout)
  }

  private func call<Answer: Decodable>(
    _ method: HTTPMethod, _ path: String, _ body: some Encodable, timeout: Duration = callTimeout
  ) async throws -> Answer {
    try await exchange(method, path, try ControlCoding.encode(body), timeout)
  }

  private func exchange<Answer: Decodable>(
    _ method: HTTPMethod, _ path: String, _ body: Data?, _ timeout: Duration
  ) async throws -> Answer {
    let data = try await self.body(method, path, body, timeout)
    do {
      return try ControlCoding.decode(Answer.self, from: data)
    } catch {
      throw ControlError(
        .badAnswer, "the answer of vmhad was not understood", why: error.why,
        next: "vmha and vmhad may be of different versions: vmha version")
    }
  }

  private func body(_ method: HTTPMethod, _ path: String, _ body: Data?, _ timeout: Duration) async throws -> Data {
    let exchange = UnixSocketExchange(socketPath: socketPath, method: method, uri: path, body: body)
    do {
      return try await exchange.perform(within: timeout) { head, answer in
        guard (200..<300).contains(head.status.code) else { throw try await failure(head, &answer) }
        return try await answer.collect(upTo: ControlCoding.bodyBytesMax)
      }
    } catch {
      throw explained(error)
    }
  }

  /// The error that vmhad answered with.
  private func failure(
    _ head: HTTPResponseHead, _ answer: inout UnixSocketExchange.Body
  ) async throws -> ControlError {
    let data = try await answer.collect(upTo: ControlCoding.bodyBytesMax)
    if let error = try? ControlCoding.decode(ControlError.self, from: data) { return error }
    return ControlError(
      .badAnswer, "vmhad answered with HTTP status \(head.status.code)",
      why: String(decoding: data.prefix(200), as: UTF8.self), next: "see its log: journalctl -u vmhad")
  }

  /// What the caller is told: the daemon's own error, a cancellation, or why the exchange broke.
  private func explained(_ error: any Error) -> any Error {
    error is CancellationError || error is ControlError ? error : broken(error)
  }

  /// Why an exchange broke. The socket itself is asked, because that tells a daemon that is down from one that hangs.
  private func broken(_ error: any Error) -> ControlError {
    switch probeSocket(socketPath) {
    case .absent, .dead:
      ControlError(
        .daemonNotRunning, "vmhad is not running on this host", why: "nothing answers on \(socketPath)",
        next: "systemctl start vmhad")
    case .forbidden:
      ControlError(
        .permissionDenied, "you may not use vmha on this host", why: "\(socketPath) is for root and the group vmha",
        next: "use sudo, or: usermod -aG vmha USER, and log in again")
    case .broken(let why):
      ControlError(.daemonNotRunning, "vmhad cannot be reached", why: why, next: "systemctl status vmhad")
    case .answers:
      if case ExchangeError.timedOut = error {
        ControlError(
          .timedOut, "vmhad did not answer in time", why: "it accepted the connection and stayed silent",
          next: "see what it does: journalctl -u vmhad -e", httpStatus: 504)
      } else {
        ControlError(
          .badAnswer, "the connection to vmhad broke", why: "\(error)",
          next: "it may just have restarted: look with vmha status, and repeat the command")
      }
    }
  }
}

/// Everything but letters, digits and `-._~` as %XX.
private func escaped(_ text: String) -> String {
  var result = ""
  for byte in text.utf8 {
    switch byte {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "-"), UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "~"):
      result.unicodeScalars.append(Unicode.Scalar(byte))
    default:
      let digits = String(byte, radix: 16, uppercase: true)
      result += byte < 16 ? "%0\(digits)" : "%\(digits)"
    }
  }
  return result
}
