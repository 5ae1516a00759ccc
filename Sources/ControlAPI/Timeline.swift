/// What happened to a module, or to all, as both nodes tell it: the source of `vmha why`.
public struct Timeline: Sendable, Codable, Hashable {
  /// Most events in one answer.
  public static let limitMax = 2000
  public static let limitDefault = 500
  /// Clocks of the hosts that differ by less are taken as they are: a message between them takes as long.
  public static let clockToleranceMilliseconds: Int64 = 250

  /// In the order in which they happened; those of one node always in that node's own order. What concerns no module (nodes, links,
  /// vmhad itself) is among them if it is worth a notice.
  public var events: [JournalEvent]
  /// The other node; nil without one.
  public var peer: String?
  /// Up to here what happened on the peer is known on this node; nil = nothing is.
  public var peerKnownUntil: WallTime?
  /// How far the peer's clock is ahead of this node's, if that is more than `clockToleranceMilliseconds`. The times of the peer's
  /// events are already those of this node's clock.
  public var peerClockAheadMilliseconds: Int64?

  public init(events: [JournalEvent], peer: String? = nil) {
    self.events = events
    self.peer = peer
  }

  enum CodingKeys: String, CodingKey {
    case events, peer
    case peerKnownUntil = "peer_known_until"
    case peerClockAheadMilliseconds = "peer_clock_ahead_ms"
  }

  /// Two accounts, each in its own order, become one by time.
  public static func merged(_ a: [JournalEvent], _ b: [JournalEvent]) -> [JournalEvent] {
    var result: [JournalEvent] = []
    result.reserveCapacity(a.count + b.count)
    var (i, j) = (0, 0)
    while i < a.count, j < b.count {
      if b[j].time < a[i].time {
        result.append(b[j])
        j += 1
      } else {
        result.append(a[i])
        i += 1
      }
    }
    return result + a[i...] + b[j...]
  }

  /// This much quiet separates one incident from the next, except inside a resync.
  public static let quietSeconds: Int64 = 60

  /// The events in groups that belong together, oldest first. With `module`, only groups in which something happened to it.
  public func incidents(of module: String?) -> [[JournalEvent]] {
    var groups: [[JournalEvent]] = []
    var isCopying: Set<String> = []
    for event in events {
      let isNear =
        groups.last?.last.map { (event.time - $0.time).components.seconds < Self.quietSeconds || !isCopying.isEmpty }
        ?? false
      if isNear { groups[groups.count - 1].append(event) } else { groups.append([event]) }
      note(event, &isCopying)
    }
    guard let module else { return groups }
    return groups.filter { group in group.contains { $0.module == module } }
  }

  /// A copy that began has an end: done, given up, or the node with it.
  private func note(_ event: JournalEvent, _ isCopying: inout Set<String>) {
    guard let module = event.module else {
      if event.kind == .daemon || event.kind == .nodeLost { isCopying = [] }
      return
    }
    switch event.kind {
    case .resyncStarted: isCopying.insert(module)
    case .resyncDone, .state, .promoted, .split: isCopying.remove(module)
    default: break
    }
  }
}
