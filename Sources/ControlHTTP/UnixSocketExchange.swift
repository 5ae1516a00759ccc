import Foundation
import NIOCore
import NIOFoundationCompat
import NIOHTTP1
import NIOPosix

/// One HTTP/1.1 exchange with the daemon behind a unix socket, on a connection of its own: vmha makes a few calls a
/// second at most. (A whole HTTP client would bring a second TLS library along, a third of a build from nothing.)
struct UnixSocketExchange {
  static let connectTimeout: TimeAmount = .seconds(5)
  /// Body parts that wait for a slow reader before the socket is no longer read.
  static let partsPending = 64

  let socketPath: String
  let method: HTTPMethod
  let uri: String
  let body: Data?

  /// The peer's bytes after the head, part by part; nil at the end of the answer.
  struct Body {
    fileprivate var parts: NIOAsyncChannelInboundStream<HTTPClientResponsePart>.AsyncIterator

    mutating func next() async throws -> ByteBuffer? {
      while let part = try await parts.next() {
        switch part {
        case .head: continue
        case .body(let bytes): return bytes
        case .end: return nil
        }
      }
      try Task.checkCancellation()
      throw ExchangeError.endedEarly
    }

    /// The whole body. Throws when it is longer than `bytesMax`.
    mutating func collect(upTo bytesMax: Int) async throws -> Data {
      var data = Data()
      while let bytes = try await next() {
        guard data.count + bytes.readableBytes <= bytesMax else { throw ExchangeError.tooLong(bytesMax) }
        data.append(contentsOf: bytes.readableBytesView)
      }
      return data
    }
  }

  /// Sends the request and hands the answer to `read`; the connection is closed when that returns or throws.
  func perform<Result: Sendable>(
    _ read: (HTTPResponseHead, inout Body) async throws -> Result
  ) async throws -> Result {
    let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
      .connectTimeout(Self.connectTimeout)
      .connect(unixDomainSocketPath: socketPath) { channel in
        channel.eventLoop.makeCompletedFuture {
          try channel.pipeline.syncOperations.addHTTPClientHandlers()
          return try NIOAsyncChannel<HTTPClientResponsePart, HTTPClientRequestPart>(
            wrappingChannelSynchronously: channel,
            configuration: .init(
              backPressureStrategy: .init(lowWatermark: Self.partsPending / 4, highWatermark: Self.partsPending)))
        }
      }
    return try await channel.executeThenClose { inbound, outbound in
      var headers = HTTPHeaders([("Host", "vmhad"), ("Connection", "close")])
      if let body {
        headers.add(name: "Content-Type", value: "application/json")
        headers.add(name: "Content-Length", value: String(body.count))
      }
      var request: [HTTPClientRequestPart] = [
        .head(HTTPRequestHead(version: .http1_1, method: method, uri: uri, headers: headers))
      ]
      if let body { request.append(.body(.byteBuffer(ByteBuffer(data: body)))) }
      // The daemon may answer and close before it was told the end of the request: then the answer counts.
      var unsent: (any Error)?
      do { try await outbound.write(contentsOf: request + [.end(nil)]) } catch { unsent = error }
      var parts = inbound.makeAsyncIterator()
      guard case .head(let head)? = try await parts.next() else {
        try Task.checkCancellation()
        throw unsent ?? ExchangeError.endedEarly
      }
      var answer = Body(parts: parts)
      return try await read(head, &answer)
    }
  }

  /// `perform`, given up after `timeout` with `ExchangeError.timedOut`.
  func perform<Result: Sendable>(
    within timeout: Duration, _ read: @escaping @Sendable (HTTPResponseHead, inout Body) async throws -> Result
  ) async throws -> Result {
    try await withThrowingTaskGroup(of: Result.self) { group in
      group.addTask { try await perform(read) }
      group.addTask {
        try await Task.sleep(for: timeout)
        throw ExchangeError.timedOut
      }
      defer { group.cancelAll() }
      guard let result = try await group.next() else { throw ExchangeError.endedEarly }
      return result
    }
  }
}

enum ExchangeError: Error, CustomStringConvertible {
  case timedOut
  case endedEarly
  case tooLong(Int)

  var description: String {
    switch self {
    case .timedOut: "no answer in time"
    case .endedEarly: "the connection ended before the answer did"
    case .tooLong(let bytesMax): "the answer is longer than \(bytesMax) bytes"
    }
  }
}
