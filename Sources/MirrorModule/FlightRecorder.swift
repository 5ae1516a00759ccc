import Model

/// The last decisions of one core, and the core as it was before them: enough to decide all of it again.
///
/// A dump of it from a host is a test case as it stands: `replay` must find nothing.
public struct FlightRecorder: Sendable, Codable, Hashable {
  /// Decisions kept. One that had no effect at all is not kept.
  public static let entriesMax = 512

  public struct Entry: Sendable, Codable, Hashable {
    public var event: Event
    public var at: Instant
    public var directives: [Directive]
  }

  /// The core before the first entry.
  private var start: MirrorModule
  public private(set) var entries: [Entry] = []

  private let limit: Int

  public init(_ core: MirrorModule, entriesMax: Int = FlightRecorder.entriesMax) {
    start = core
    limit = entriesMax
  }

  /// Lets `core` handle the event, and notes what came of it.
  public mutating func handle(_ event: Event, at time: Instant, by core: inout MirrorModule) -> [Directive] {
    var before = core
    let directives = core.handle(event, at: time)
    if directives.allSatisfy(\.isWakeUp) {
      // A look at the clock, a beat that says nothing new: the same core decides the same with or without it.
      before.now = core.now
      if core == before { return directives }
    }
    entries.append(Entry(event: event, at: time, directives: directives))
    if entries.count > limit {
      let first = entries.removeFirst()
      _ = start.handle(first.event, at: first.at)
    }
    return directives
  }

  /// The first entry that this program decides otherwise than the one that made the dump; nil = none.
  public func replay() -> (entry: Entry, now: [Directive])? {
    var core = start
    for entry in entries {
      let directives = core.handle(entry.event, at: entry.at)
      guard directives == entry.directives else { return (entry, directives) }
    }
    return nil
  }
}

extension Directive {
  fileprivate var isWakeUp: Bool {
    if case .wake = self { return true }
    return false
  }
}
