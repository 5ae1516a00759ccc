import ControlAPI
import Foundation
import HTTPTypes
import Hummingbird
import NIOCore
import NIOFoundationCompat

// Bodies of requests that carry more than a name. Every member is optional, and so is the body.
struct StartBody: Codable, Sendable {
  var force: Bool?
}
struct StopBody: Codable, Sendable {
  var timeoutSeconds: Int?
  enum CodingKeys: String, CodingKey { case timeoutSeconds = "timeout_s" }
}
struct RemoveBody: Codable, Sendable {
  var purgeCopy: Bool?
  enum CodingKeys: String, CodingKey { case purgeCopy = "purge_copy" }
}
struct ExportBody: Codable, Sendable {
  var directory: String
}
struct VerifyBody: Codable, Sendable {
  var repair: Bool?
}
struct Nothing: Codable, Sendable {}
struct OperationAnswer: Codable, Sendable {
  var operation: OperationID
}

/// Paths under /v1 and what they call. docs/api.md lists them.
struct ControlRoutes: Sendable {
  /// Longest `stop` limit that is accepted, in seconds.
  static let stopTimeoutSecondsMax = 24 * 3600

  let service: any ControlService

  func router() -> Router<BasicRequestContext> {
    let router = Router()
    router.add(middleware: ErrorAnswers())
    let v1 = router.group("v1")
    v1.get("status") { _, _ in try answer(await service.status()) }
    v1.get("log") { request, _ in
      let query = try LogQuery(request)
      return try answer(await service.log(since: query.since, module: query.module, limit: query.limit))
    }
    v1.get("timeline") { request, _ in
      let query = try LogQuery(request, limitDefault: Timeline.limitDefault, limitMax: Timeline.limitMax)
      return try answer(await service.timeline(module: query.module, limit: query.limit))
    }
    v1.get("events/stream") { request, _ in
      try await EventStreamAnswer(service: service, query: LogQuery(request)).response()
    }
    addModules(to: v1)
    addBranches(to: v1)
    addAdoption(to: v1)
    addCluster(to: v1)
    return router
  }

  private func addModules(to v1: RouterGroup<BasicRequestContext>) {
    v1.get("modules/:name/decisions") { _, context in try json(await service.decisions(name(context))) }
    v1.get("modules/:name") { _, context in try answer(await service.module(name(context))) }
    v1.post("modules/:name/start") { request, context in
      let body = try await bodyOrNil(StartBody.self, request)
      return try answer(await service.startModule(name(context), force: body?.force ?? false), status: .accepted)
    }
    v1.post("modules/:name/stop") { request, context in
      let seconds = try await bodyOrNil(StopBody.self, request)?.timeoutSeconds
      if let seconds, !(0...Self.stopTimeoutSecondsMax).contains(seconds) {
        throw ControlError(
          .invalidRequest, "a stop limit of \(seconds) s is not possible",
          why: "allowed are 0 to \(Self.stopTimeoutSecondsMax) s")
      }
      return try answer(await service.stopModule(name(context), timeoutSeconds: seconds), status: .accepted)
    }
    v1.post("modules/:name/swap") { _, context in
      try answer(await service.swapModule(name(context)), status: .accepted)
    }
    v1.post("modules/:name/crash-guest") { _, context in
      try answer(await service.crashGuest(name(context)), status: .accepted)
    }
    v1.post("modules/:name/set") { request, context in
      try await service.setModule(name(context), body(ModuleChanges.self, request))
      return try answer(Nothing())
    }
    v1.post("modules/:name/verify") { request, context in
      let repair = try await bodyOrNil(VerifyBody.self, request)?.repair ?? false
      let operation = try await service.verifyModule(name(context), repair: repair)
      return try answer(OperationAnswer(operation: operation), status: .accepted)
    }
    v1.post("modules/:name/verify/stop") { _, context in
      try await service.stopVerification(name(context))
      return try answer(Nothing())
    }
    v1.post("modules/:name/remove") { request, context in
      let purge = try await bodyOrNil(RemoveBody.self, request)?.purgeCopy ?? false
      let operation = try await service.remove(name(context), purgeCopy: purge)
      return try answer(OperationAnswer(operation: operation), status: .accepted)
    }
  }

  private func addBranches(to v1: RouterGroup<BasicRequestContext>) {
    v1.post("modules/:name/resolve") { request, context in
      try answer(await service.resolve(name(context), body(ResolveRequest.self, request)), status: .accepted)
    }
    v1.get("modules/:name/branches") { _, context in try answer(await service.branches(name(context))) }
    v1.post("modules/:name/branches/:branch/export") { request, context in
      let directory = try await body(ExportBody.self, request).directory
      let operation = try await service.exportBranch(
        name(context), context.parameters.require("branch"), to: directory)
      return try answer(OperationAnswer(operation: operation), status: .accepted)
    }
    v1.post("modules/:name/branches/:branch/drop") { _, context in
      let operation = try await service.dropBranch(name(context), context.parameters.require("branch"))
      return try answer(OperationAnswer(operation: operation), status: .accepted)
    }
  }

  private func addAdoption(to v1: RouterGroup<BasicRequestContext>) {
    v1.post("add/plan") { request, _ in try answer(await service.planAdd(body(AddRequest.self, request))) }
    v1.post("add") { request, _ in
      let operation = try await service.add(body(AddRequest.self, request))
      return try answer(OperationAnswer(operation: operation), status: .accepted)
    }
    v1.get("operations/:id") { _, context in
      try answer(await service.operation(OperationID(rawValue: context.parameters.require("id"))))
    }
  }

  private func addCluster(to v1: RouterGroup<BasicRequestContext>) {
    v1.get("cluster") { _, _ in try answer(await service.clusterShow()) }
    v1.post("cluster/init") { request, _ in
      try answer(await service.clusterInitialise(body(ClusterInitialiseRequest.self, request)))
    }
    v1.post("cluster/ticket") { _, _ in try answer(await service.clusterTicket()) }
    v1.post("cluster/join") { request, _ in
      try answer(await service.clusterJoin(body(ClusterJoinRequest.self, request)))
    }
    v1.post("cluster/set") { request, _ in
      try answer(await service.clusterSet(body(ClusterChanges.self, request)))
    }
    v1.post("check") { _, _ in try answer(await service.check()) }
  }
}

/// `since`, `module` and `limit` of a query string.
struct LogQuery: Sendable {
  /// Events given when `limit` is not.
  static let limitDefault = 100
  var since: Int64?
  var module: String?
  var limit: Int

  init(
    _ request: Request, limitDefault: Int = Self.limitDefault, limitMax: Int = JournalPage.limitMax
  ) throws(ControlError) {
    let parameters = request.uri.queryParameters
    if let text = parameters["since"] {
      guard let number = Int64(text), number >= 0 else {
        throw LogQuery.wrong("since", text, "a cursor from a log answer")
      }
      since = number
    }
    module = parameters["module"].map(String.init)
    limit = limitDefault
    if let text = parameters["limit"] {
      guard let number = Int(text), (1...limitMax).contains(number) else {
        throw LogQuery.wrong("limit", text, "1 to \(limitMax)")
      }
      limit = number
    }
  }

  private static func wrong(_ member: String, _ text: Substring, _ allowed: String) -> ControlError {
    ControlError(.invalidRequest, "'\(text)' is no value for '\(member)'", why: "allowed: \(allowed)")
  }
}

/// Turns whatever a route throws into the one shape of an error.
private struct ErrorAnswers: RouterMiddleware {
  func handle(
    _ request: Request, context: BasicRequestContext,
    next: (Request, BasicRequestContext) async throws -> Response
  ) async throws -> Response {
    do {
      return try await next(request, context)
    } catch let error as ControlError {
      return try answer(error, status: HTTPResponse.Status(code: error.httpStatus))
    } catch let error as HTTPError {
      return try answer(translate(error, request), status: error.status)
    } catch is NIOTooManyBytesError {
      return try answer(
        ControlError(
          .invalidRequest, "the request is too large", why: "the limit is \(ControlCoding.bodyBytesMax) bytes"),
        status: .contentTooLarge)
    } catch {
      return try answer(
        ControlError(.failed, "vmhad could not do this", why: "\(error)", next: "see: vmha log"),
        status: .internalServerError)
    }
  }

  private func translate(_ error: HTTPError, _ request: Request) -> ControlError {
    switch error.status {
    case .notFound, .methodNotAllowed:
      ControlError(
        .noSuchRoute, "there is no \(request.method.rawValue) \(request.uri.path)",
        why: "this vmhad does not know it", next: "see docs/api.md; the command and vmhad may be of different versions",
        httpStatus: error.status.code)
    default:
      ControlError(.invalidRequest, error.body ?? "the request is wrong", httpStatus: error.status.code)
    }
  }
}

private func answer(_ value: some Encodable, status: HTTPResponse.Status = .ok) throws -> Response {
  json(try ControlCoding.encode(value), status: status)
}

private func json(_ body: Data, status: HTTPResponse.Status = .ok) -> Response {
  Response(
    status: status, headers: [.contentType: "application/json"],
    body: ResponseBody(byteBuffer: ByteBuffer(data: body)))
}

/// The router hands path parts over as they came, with their %XX.
private func name(_ context: BasicRequestContext) throws -> String {
  let text = try context.parameters.require("name")
  guard let name = text.removingPercentEncoding else {
    throw ControlError(.invalidRequest, "'\(text)' is no name", why: "a % must be followed by two hexadecimal digits")
  }
  return name
}

private func body<Value: Decodable>(_ type: Value.Type, _ request: Request) async throws -> Value {
  var request = request
  let buffer = try await request.collectBody(upTo: ControlCoding.bodyBytesMax)
  return try ControlCoding.decode(type, from: Data(buffer: buffer))
}

private func bodyOrNil<Value: Decodable>(_ type: Value.Type, _ request: Request) async throws -> Value? {
  var request = request
  let buffer = try await request.collectBody(upTo: ControlCoding.bodyBytesMax)
  return buffer.readableBytes == 0 ? nil : try ControlCoding.decode(type, from: Data(buffer: buffer))
}
