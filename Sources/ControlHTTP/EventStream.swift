import ControlAPI
import Foundation
import HTTPTypes
import Hummingbird
import NIOCore
import NIOFoundationCompat

/// Server-sent events of the journal: each with its id, `event: journal`, and the JSON of a `JournalEvent` as data.
///
/// Nothing is left out: where the live stream shows a gap (it may drop for a slow reader), the journal is asked.
struct EventStreamAnswer: Sendable {
  /// A comment is sent this often, so that a client that went away is noticed.
  static let keepaliveInterval: Duration = .seconds(15)
  /// Live events kept for a reader that is slow; the journal fills in what is dropped.
  static let pendingCountMax = 1000

  let service: any ControlService
  let query: LogQuery

  private enum Item: Sendable {
    case event(JournalEvent)
    case keepalive
    case end
  }

  func response() async throws -> Response {
    // Subscribed before the journal is read: what is written in between comes twice and is left out once.
    let live = service.events()
    let start: Int64
    if let since = query.since {
      start = since
    } else {
      start = try await service.log(since: nil, module: nil, limit: 1).cursor
    }
    return Response(
      status: .ok, headers: [.contentType: "text/event-stream", .cacheControl: "no-store"],
      body: ResponseBody { writer in
        var feed = EventFeed(service: service, module: query.module, cursor: start)
        try await Self.write(try await feed.backlog(), to: &writer)
        try await relay(live, &feed, to: &writer)
        try await writer.finish(nil)
      })
  }

  private func relay(
    _ live: AsyncStream<JournalEvent>, _ feed: inout EventFeed, to writer: inout any ResponseBodyWriter
  ) async throws {
    let (items, continuation) = AsyncStream<Item>.makeStream(bufferingPolicy: .bufferingNewest(Self.pendingCountMax))
    let forwarding = Task {
      for await event in live { continuation.yield(.event(event)) }
      continuation.yield(.end)
    }
    let ticking = Task {
      while !Task.isCancelled {
        guard (try? await Task.sleep(for: Self.keepaliveInterval)) != nil else { return }
        continuation.yield(.keepalive)
      }
    }
    defer {
      forwarding.cancel()
      ticking.cancel()
      continuation.finish()
    }
    // Tells the client that it is subscribed.
    try await writer.write(ByteBuffer(string: ": vmhad\n\n"))
    for await item in items {
      switch item {
      case .event(let event): try await Self.write(try await feed.take(event), to: &writer)
      case .keepalive: try await writer.write(ByteBuffer(string: ": keepalive\n\n"))
      case .end: return
      }
    }
  }

  private static func write(_ events: [JournalEvent], to writer: inout any ResponseBodyWriter) async throws {
    guard !events.isEmpty else { return }
    var buffer = ByteBuffer()
    for event in events {
      buffer.writeString("id: \(event.id)\nevent: journal\ndata: ")
      buffer.writeData(try ControlCoding.encode(event))
      buffer.writeString("\n\n")
    }
    try await writer.write(buffer)
  }
}

/// Turns a live stream that may have gaps and repeats into one that has neither.
struct EventFeed: Sendable {
  let service: any ControlService
  let module: String?
  var cursor: Int64

  /// Everything after the cursor that the journal holds now.
  mutating func backlog() async throws -> [JournalEvent] {
    var events: [JournalEvent] = []
    while true {
      let page = try await service.log(since: cursor, module: module, limit: JournalPage.limitMax)
      events += page.events
      let wasFull = page.events.count == JournalPage.limitMax
      guard page.cursor > cursor else { break }
      cursor = page.cursor
      guard wasFull else { break }
    }
    return events
  }

  /// The events that `event` makes due. One with id 0 could not be stored; it is passed on all the same.
  mutating func take(_ event: JournalEvent) async throws -> [JournalEvent] {
    if event.id == 0 { return matches(event) ? [event] : [] }
    if event.id <= cursor { return [] }
    if event.id > cursor + 1 { return try await backlog() }
    cursor = event.id
    return matches(event) ? [event] : []
  }

  private func matches(_ event: JournalEvent) -> Bool { module == nil || event.module == module }
}
