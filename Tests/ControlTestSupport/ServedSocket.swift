import ControlAPI
import ControlHTTP
import Foundation
import Logging

/// Runs `body` with a server for `service` on a socket of its own, and stops and removes both afterwards.
public func withServer<Value: Sendable>(
  _ service: any ControlService, _ body: @escaping @Sendable (_ socketPath: String) async throws -> Value
) async throws -> Value {
  let folder = FileManager.default.temporaryDirectory.appending(path: "vmha-\(UUID().uuidString.prefix(13))")
  try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
  defer { try? FileManager.default.removeItem(at: folder) }
  let path = folder.appending(path: "vmhad.sock").path
  var logger = Logger(label: "test")
  logger.logLevel = .critical
  let server = ControlServer(service: service, socketPath: path, group: nil, logger: logger)
  let (ready, continuation) = AsyncStream<Void>.makeStream()
  return try await withThrowingTaskGroup(of: Value?.self) { group in
    group.addTask {
      try await server.run { continuation.finish() }
      return nil
    }
    group.addTask {
      for await _ in ready {}
      return try await body(path)
    }
    defer { group.cancelAll() }
    while let result = try await group.next() {
      if let value = result { return value }
    }
    throw CancellationError()
  }
}
