import ControlAPI
import Glibc
import HostSystem
import Model
import ModuleConfig
import Synchronization

extension JournalEvent {
  /// Whether `vmha why` tells it of this module (nil = any).
  func isPart(ofTimeline module: String?) -> Bool {
    if self.module == nil { return severity > .info }
    return module == nil || self.module == module
  }
}

/// A part of a node's journal, as the other one asks for it.
struct JournalPiece: Codable, Sendable {
  static let eventsMax = 500
  /// Texts of one piece; a message between the nodes takes 4 MiB.
  static let textBytesMax = 1 << 20

  var events: [JournalEvent]
  /// The id of the newest event there is.
  var lastID: Int64
  var now: WallTime

  /// Cut so that it fits into one message; at least one event.
  init(_ page: JournalPage, lastID: Int64, now: WallTime) {
    self.lastID = lastID
    self.now = now
    events = []
    var bytes = 0
    for event in page.events {
      bytes += event.sentence.utf8.count + event.details.reduce(256) { $0 + $1.key.utf8.count + $1.value.utf8.count }
      if bytes > Self.textBytesMax, !events.isEmpty { break }
      events.append(event)
    }
  }
}

/// A copy of the peer's journal, so that the last words of a node that died can be read on the other one. Fetched while the nodes are
/// linked; nothing depends on it.
final class PeerJournal: Sendable {
  static let rowCountMax = 50_000

  private struct State {
    var store: JournalStore
    var lastID: Int64
    var knownUntil: WallTime?
    var aheadMilliseconds: Int64 = 0
  }

  private let state: Mutex<State>

  /// A damaged file is put aside, and the copy made anew.
  init(path: String) throws {
    let opened = try JournalStore.open(path)
    let newest = try opened.store.read(after: nil, through: .max, module: nil, limit: 1).last
    state = Mutex(State(store: opened.store, lastID: newest?.id ?? 0, knownUntil: newest?.time))
  }

  /// Ask for what comes after this.
  var cursor: Int64 { state.withLock { $0.lastID } }

  /// Stores a piece that was asked for between `asked` and `answered` (this node's clock); true if there is more to ask for.
  func take(_ piece: JournalPiece, asked: WallTime, answered: WallTime) throws -> Bool {
    try state.withLock { state in
      if piece.lastID < state.lastID {
        // The peer's journal began anew: its host was set up again.
        try state.store.removeAll()
        state.lastID = 0
        state.knownUntil = nil
        return true
      }
      let ahead = piece.now.milliseconds - (asked.milliseconds + answered.milliseconds) / 2
      state.aheadMilliseconds = abs(ahead) > Timeline.clockToleranceMilliseconds ? ahead : 0
      let events = piece.events.filter { $0.id > state.lastID }.map { event in
        var event = event
        event.time.milliseconds -= state.aheadMilliseconds
        return event
      }
      try state.store.write(events, rowCountMax: Self.rowCountMax)
      state.lastID = events.last?.id ?? state.lastID
      let isWhole = piece.events.isEmpty || state.lastID >= piece.lastID
      state.knownUntil = isWhole ? asked : events.last?.time ?? state.knownUntil
      return !isWhole && !events.isEmpty
    }
  }

  func timeline(of module: String?, limit: Int) throws -> (events: [JournalEvent], knownUntil: WallTime?, ahead: Int64)
  {
    try state.withLock { state in
      (
        try state.store.timeline(of: module, through: state.lastID, limit: limit), state.knownUntil,
        state.aheadMilliseconds
      )
    }
  }
}

extension Daemon {
  static let peerJournalEvery: Duration = .seconds(2)
  private static let peerJournalTimeout: Duration = .seconds(5)

  /// While the nodes are linked. A failure shows as an old `peerKnownUntil`; it is no news of its own.
  func followPeerJournal(_ copy: PeerJournal) {
    while !isStopping(within: Self.peerJournalEvery) {
      var isMore = peerAlive == true
      while isMore, !isStopping(within: .zero) {
        do { isMore = try fetchPeerJournal(copy) } catch { isMore = false }
      }
    }
  }

  private func fetchPeerJournal(_ copy: PeerJournal) throws -> Bool {
    let asked = WallTime.now()
    guard case .journal(let piece) = try callPeer(.journal(since: copy.cursor), timeout: Self.peerJournalTimeout) else {
      return false
    }
    return try copy.take(piece, asked: asked, answered: .now())
  }

  func journalPiece(since cursor: Int64) throws -> JournalPiece {
    let lastID = journal.lastID
    let page = try journal.page(since: cursor, module: nil, limit: JournalPiece.eventsMax)
    return JournalPiece(page, lastID: lastID, now: .now())
  }

  func timeline(of module: String?, limit: Int) throws -> Timeline {
    let own = try journal.timeline(of: module, limit: limit)
    guard snapshot().cluster?.nodes.count == 2 else { return Timeline(events: own) }
    let copied = try peerJournal?.timeline(of: module, limit: limit)
    var timeline = Timeline(
      events: Timeline.merged(own, copied?.events ?? []).suffix(limit), peer: peerName)
    timeline.peerKnownUntil = copied?.knownUntil
    timeline.peerClockAheadMilliseconds = copied.flatMap { $0.ahead == 0 ? nil : $0.ahead }
    return timeline
  }
}
