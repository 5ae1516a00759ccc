import FoundationEssentials
import Model
import ModuleConfig
import Synchronization

/// R5: the registers of a cluster's modules in etcd. Every call is a linearizable read or one compare-and-swap, blocks its thread for at
/// most `HTTPSCalls.callMax` per endpoint (twice that if etcd wants a new token), and throws `ArbitrationError`.
public final class EtcdWitness: Sendable {
  private struct State {
    /// The endpoint that answered last is asked first.
    var preferred = 0
    var token: String?
  }
  private let configuration: WitnessConfiguration
  private let prefix: String
  private let calls: HTTPSCalls
  private let state = Mutex(State())

  /// `cluster`: the UUID that keeps this cluster's keys apart.
  public init(_ configuration: WitnessConfiguration, cluster: String) {
    self.configuration = configuration
    prefix = "/vmha/\(cluster)/"
    calls = HTTPSCalls(configuration)
  }

  public func key(of module: ModuleName) -> String { prefix + module.text }
  /// For rehearsals: written and compared by `vmha check`, never read for a decision.
  public func rehearsalKey(of node: NodeID) -> String { "\(prefix).check/\(node.rawValue)" }

  public func read(_ key: String) throws -> WitnessReading {
    let answer: EtcdRangeAnswer = try call("kv/range", EtcdRange(key: Data(key.utf8)))
    let entry = answer.kvs?.first
    let text = entry?.value.flatMap { try? JSONDecoder().decode(RegisterText.self, from: $0) }
    return WitnessReading(
      cluster: answer.header.cluster, revision: answer.header.revision, modRevision: entry?.modRevision.value ?? 0,
      createRevision: entry?.createRevision.value, register: text?.register)
  }

  /// True if it was written. A throw leaves open whether it was, or still will be.
  @discardableResult
  public func swap(_ key: String, expect: Int64, _ register: WitnessRegister) throws -> Bool {
    let value: Data
    do { value = try JSONEncoder().encode(RegisterText(register)) } catch {
      throw ArbitrationError(.failed, "the register cannot be written down: \(error)")
    }
    let answer: EtcdTransactionAnswer = try call(
      "kv/txn", EtcdCompareAndPut(key: Data(key.utf8), expect: expect, value: value))
    return answer.succeeded ?? false
  }

  // MARK: endpoints

  private func call<Answer: Decodable>(_ path: String, _ request: some Encodable) throws -> Answer {
    let body: [UInt8]
    do { body = Array(try JSONEncoder().encode(request)) } catch {
      throw ArbitrationError(.failed, "a request to etcd cannot be written down: \(error)")
    }
    let first = state.withLock { $0.preferred }
    var failures: [ArbitrationError] = []
    for step in configuration.endpoints.indices {
      let index = (first + step) % configuration.endpoints.count
      do {
        let answer: Answer = try callOne(configuration.endpoints[index], path, body)
        state.withLock { $0.preferred = index }
        return answer
      } catch let error as ArbitrationError {
        // A wrong password is wrong everywhere.
        if error.code == .refused || error.code == .configuration { throw error }
        failures.append(error)
      }
    }
    guard let first = failures.first else { throw ArbitrationError(.configuration, "no endpoint is configured") }
    throw ArbitrationError(first.code, failures.map(\.text).joined(separator: "; "))
  }

  private func callOne<Answer: Decodable>(_ endpoint: String, _ path: String, _ body: [UInt8]) throws -> Answer {
    let url = "\(endpoint)/v3/\(path)"
    var token = try currentToken(endpoint)
    var answer = try calls.post(url, body: body, authorization: token)
    if token != nil, isTokenRefused(answer) {
      // etcd forgets tokens after a time, and when it is restarted.
      token = try newToken(endpoint)
      answer = try calls.post(url, body: body, authorization: token)
    }
    guard answer.status == 200 else { throw failure(answer, endpoint) }
    do { return try JSONDecoder().decode(Answer.self, from: Data(answer.body)) } catch {
      throw ArbitrationError(.failed, "\(endpoint) answered what etcd 3.4 or later would not: \(error)")
    }
  }

  /// gRPC's code.
  private static let unauthenticated = 16

  private func isTokenRefused(_ answer: HTTPSCalls.Answer) -> Bool {
    answer.status == 401 || reason(answer).code == Self.unauthenticated
  }

  private func reason(_ answer: HTTPSCalls.Answer) -> (code: Int?, text: String) {
    let status = "HTTP status \(answer.status)"
    if let failure = try? JSONDecoder().decode(EtcdFailure.self, from: Data(answer.body)) {
      return (failure.code, failure.message ?? failure.error ?? status)
    }
    let text = String(decoding: answer.body.prefix(300), as: UTF8.self)
    // etcd's gateway takes no certificate with a name while users are on: it could be taken for one of them.
    let hint = text.contains("CommonName") ? "; use a client certificate without CN in its subject" : ""
    let line = text.prefix { !$0.isNewline }
    return (nil, line.isEmpty ? status : "\(status): \(line)\(hint)")
  }

  private func failure(_ answer: HTTPSCalls.Answer, _ endpoint: String) -> ArbitrationError {
    if answer.status == 404 {
      return ArbitrationError(.failed, "\(endpoint) knows no /v3: it is not etcd 3.4 or later")
    }
    let (code, text) = reason(answer)
    let (permissionDenied, invalidArgument) = (7, 3)
    if code == permissionDenied || code == Self.unauthenticated
      || code == invalidArgument && configuration.user == nil && text.contains("user name is empty")
    {
      let who = configuration.user.map { "user '\($0)'" } ?? "a client without a user (set witness-user)"
      return ArbitrationError(.refused, "\(endpoint) refuses \(who): \(text)")
    }
    return ArbitrationError(.failed, "\(endpoint) reports: \(text)")
  }

  // MARK: user and password

  private func currentToken(_ endpoint: String) throws -> String? {
    guard configuration.user != nil else { return nil }
    return try state.withLock { $0.token } ?? newToken(endpoint)
  }

  private func newToken(_ endpoint: String) throws -> String {
    guard let user = configuration.user, let file = configuration.passwordFile else {
      throw ArbitrationError(.configuration, "a witness user needs a password file")
    }
    let login = EtcdLogin(name: user, password: try SecretFile.password(file))
    let body: [UInt8]
    do { body = Array(try JSONEncoder().encode(login)) } catch {
      throw ArbitrationError(.configuration, "the user's name or password cannot be written down")
    }
    let answer = try calls.post("\(endpoint)/v3/auth/authenticate", body: body, authorization: nil)
    guard answer.status == 200 else {
      guard (400..<500).contains(answer.status) else { throw failure(answer, endpoint) }
      let text = reason(answer).text
      throw ArbitrationError(.refused, "\(endpoint) refuses user '\(user)' with the password of \(file): \(text)")
    }
    guard let token = try? JSONDecoder().decode(EtcdToken.self, from: Data(answer.body)).token else {
      throw ArbitrationError(.failed, "\(endpoint) gave no token to user '\(user)'")
    }
    state.withLock { $0.token = token }
    return token
  }
}
