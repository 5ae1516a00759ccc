public enum Severity: String, Sendable, Codable, Hashable, CaseIterable, Comparable {
  case info, notice, warning, error
  private var rank: Int {
    switch self {
    case .info: 0
    case .notice: 1
    case .warning: 2
    case .error: 3
    }
  }
  public static func < (a: Severity, b: Severity) -> Bool { a.rank < b.rank }
}

/// What kind of thing happened. An open set: readers must let unknown kinds pass.
public struct EventKind: RawRepresentable, Sendable, Codable, Hashable, CustomStringConvertible {
  public let rawValue: String
  public init(rawValue: String) { self.rawValue = rawValue }
  public var description: String { rawValue }

  /// vmhad started or stops.
  public static let daemon = EventKind(rawValue: "daemon")
  /// An operator's command, from the API.
  public static let command = EventKind(rawValue: "command")
  public static let nodeUp = EventKind(rawValue: "node_up")
  public static let nodeLost = EventKind(rawValue: "node_lost")
  public static let link = EventKind(rawValue: "link")
  public static let cluster = EventKind(rawValue: "cluster")
  /// A module's state or readiness on a node changed; details `state`, `readiness`.
  public static let state = EventKind(rawValue: "state")
  /// The module's core decided something else that a reader wants to know.
  public static let decision = EventKind(rawValue: "decision")
  /// A node obtained the right to be alone, or became PRIM by a swap: from here it may start the guest.
  public static let promoted = EventKind(rawValue: "promoted")
  public static let guestStarting = EventKind(rawValue: "guest_starting")
  /// libvirt reports the guest running.
  public static let guestStarted = EventKind(rawValue: "guest_started")
  /// The guest went off by itself or by a clean stop.
  public static let guestStopped = EventKind(rawValue: "guest_stopped")
  /// QEMU died, or the guest crashed.
  public static let guestDied = EventKind(rawValue: "guest_died")
  /// The guest was suspended (frozen writes) or resumed.
  public static let guestPaused = EventKind(rawValue: "guest_paused")
  public static let guestResumed = EventKind(rawValue: "guest_resumed")
  public static let session = EventKind(rawValue: "session")
  public static let resyncStarted = EventKind(rawValue: "resync_started")
  public static let resyncDone = EventKind(rawValue: "resync_done")
  public static let split = EventKind(rawValue: "split")
  public static let diskError = EventKind(rawValue: "disk_error")
  public static let engine = EventKind(rawValue: "engine")
  public static let hook = EventKind(rawValue: "hook")
  /// Both copies were compared, or a comparison ended before.
  public static let verification = EventKind(rawValue: "verification")
  public static let adoption = EventKind(rawValue: "adoption")
  /// About the journal itself: entries dropped, a damaged file put aside.
  public static let journal = EventKind(rawValue: "journal")
}

/// One line of a node's history, as `vmha log` prints it.
public struct JournalEvent: Sendable, Codable, Hashable {
  /// Rises with every event of this node's journal; the cursor of queries. 0 until the journal has stored it.
  public var id: Int64
  public var time: WallTime
  /// CLOCK_BOOTTIME of the node that wrote it, in nanoseconds: for intervals between events of one node and boot.
  public var monotonicNanoseconds: Int64
  /// Name of the node it happened on.
  public var node: String
  public var module: String?
  public var kind: EventKind
  public var severity: Severity
  /// The rule of docs/protocol.md that decided it: "R4".
  public var rule: String?
  public var sentence: String
  public var details: [String: String]

  public init(
    id: Int64 = 0, time: WallTime = .now(), monotonicNanoseconds: Int64, node: String, module: String? = nil,
    kind: EventKind, severity: Severity = .info, rule: String? = nil, sentence: String, details: [String: String] = [:]
  ) {
    self.id = id
    self.time = time
    self.monotonicNanoseconds = monotonicNanoseconds
    self.node = node
    self.module = module
    self.kind = kind
    self.severity = severity
    self.rule = rule
    self.sentence = sentence
    self.details = details
  }

  enum CodingKeys: String, CodingKey {
    case id, time, node, module, kind, severity, rule, sentence, details
    case monotonicNanoseconds = "monotonic_ns"
  }
}

/// Events in rising order of id.
public struct JournalPage: Sendable, Codable, Hashable {
  /// Most events in one page.
  public static let limitMax = 1000
  public var events: [JournalEvent]
  /// Ask with `since` = this for what comes after.
  public var cursor: Int64
  public init(events: [JournalEvent], cursor: Int64) {
    self.events = events
    self.cursor = cursor
  }
}
