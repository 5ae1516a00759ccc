import ControlAPI
import Foundation
import GRDB
import HostSystem
import Model
import Synchronization

/// The node's history: a bounded SQLite table of `JournalEvent`s, written by a thread of its own.
///
/// `append` only pushes to a queue, so a slow or full disk never holds up whoever has something to say. What cannot be stored stays in
/// memory, is served from there, and is stored when the disk allows it again. A damaged file is put aside and a new one begun.
/// All members may be used from any thread.
public final class EventJournal: Sendable {
  /// Rows kept; older ones are removed.
  public static let rowCountMax = 200_000
  /// Events waiting for the journal's thread; more are dropped, counted, and the count is said in the journal.
  public static let queueCountMax = 10_000
  /// Events kept in memory while the file cannot be written; the oldest go first.
  public static let unsavedCountMax = 10_000
  /// A failed write is tried again after this, in seconds.
  public static let retrySeconds = 5
  /// Live readers: events kept for one that is slow.
  public static let listenerPendingCountMax = 1000
  /// How much of a sentence, and of each detail, is kept.
  public static let textBytesMax = 4096

  struct Limits: Sendable {
    var rowCountMax = EventJournal.rowCountMax
    var queueCountMax = EventJournal.queueCountMax
    var retry: Duration = .seconds(EventJournal.retrySeconds)
  }

  private struct Shared: Sendable {
    var queue: [JournalEvent] = []
    var droppedCount = 0
    var isStopping = false
    var isOver = false
    /// True from taking events off the queue until they are stored or kept in `unsaved`.
    var isWorking = false
    /// Have their ids, are not in the file.
    var unsaved: [JournalEvent] = []
    var lastID: Int64 = 0
    var trouble: String?
    var store: JournalStore?
    var listeners: [Int: AsyncStream<JournalEvent>.Continuation] = [:]
    var listenerNext = 0
  }

  private let path: String
  private let node: String
  private let limits: Limits
  private let report: @Sendable (String) -> Void
  private let shared = Monitor(Shared())

  /// Never waits for the disk and never fails: what is wrong with the file is said through `report` (one line for the
  /// daemon's log), in `trouble`, and in the journal itself. `node` is the name under which the journal writes about itself.
  public convenience init(path: String, node: String, report: @escaping @Sendable (String) -> Void) throws {
    try self.init(path: path, node: node, limits: Limits(), report: report)
  }

  init(path: String, node: String, limits: Limits, report: @escaping @Sendable (String) -> Void) throws {
    self.path = path
    self.node = node
    self.limits = limits
    self.report = report
    try HostThread.start(name: "journal") { [self] in run() }
  }

  /// Takes the event (its `id` is given by the journal). Costs a queue push; if the queue is full the event is dropped and counted.
  public func append(_ event: JournalEvent) {
    shared.withLock { shared in
      guard shared.queue.count < limits.queueCountMax, !shared.isStopping else {
        shared.droppedCount += 1
        return
      }
      shared.queue.append(event)
    }
  }

  /// Why events cannot be stored now; nil if they can. For the warnings of `status`.
  public var trouble: String? { shared.withLock { $0.trouble } }

  /// Events from now on, each after it was stored (or kept in memory). A slow reader loses some; ids show it.
  public func events() -> AsyncStream<JournalEvent> {
    let (stream, continuation) = AsyncStream<JournalEvent>.makeStream(
      bufferingPolicy: .bufferingNewest(Self.listenerPendingCountMax))
    let number = shared.withLock { shared in
      shared.listenerNext += 1
      if shared.isStopping { continuation.finish() } else { shared.listeners[shared.listenerNext] = continuation }
      return shared.listenerNext
    }
    continuation.onTermination = { [weak self] _ in
      self?.shared.withLock { _ = $0.listeners.removeValue(forKey: number) }
    }
    return stream
  }

  /// As `ControlService.log`. Throws `ControlError` if the file cannot be read. `limit` is taken into its bounds.
  public func page(since cursor: Int64?, module: String?, limit: Int) throws -> JournalPage {
    let limit = min(max(limit, 1), JournalPage.limitMax)
    // What is unsaved is taken first: an event that is stored in between is then found twice, never not at all.
    let (unsaved, lastID, store) = shared.withLock { ($0.unsaved, $0.lastID, $0.store) }
    var events: [JournalEvent]
    do {
      events = try store?.read(after: cursor, through: lastID, module: module, limit: limit) ?? []
    } catch {
      throw unreadable(error)
    }
    let storedID = events.last?.id ?? 0
    let more = unsaved.filter { event in
      event.id > max(storedID, cursor ?? 0) && (module == nil || event.module == module)
    }
    guard let cursor else { return JournalPage(events: (events + more).suffix(limit), cursor: lastID) }
    events = Array((events + more).prefix(limit))
    return JournalPage(
      events: events, cursor: events.count == limit ? events.last?.id ?? cursor : max(lastID, cursor))
  }

  /// As `JournalStore.timeline`, with what is not stored yet. Throws `ControlError` if the file cannot be read.
  public func timeline(of module: String?, limit: Int) throws -> [JournalEvent] {
    let (unsaved, lastID, store) = shared.withLock { ($0.unsaved, $0.lastID, $0.store) }
    let stored: [JournalEvent]
    do { stored = try store?.timeline(of: module, through: lastID, limit: limit) ?? [] } catch {
      throw unreadable(error)
    }
    let storedID = stored.last?.id ?? 0
    return (stored + unsaved.filter { $0.id > storedID && $0.isPart(ofTimeline: module) }).suffix(limit)
  }

  /// The cursor behind the newest event.
  public var lastID: Int64 { shared.withLock { $0.lastID } }

  private func unreadable(_ error: any Error) -> ControlError {
    ControlError(
      .failed, "the journal cannot be read", why: "\(path): \(error)", next: "see the log of vmhad: journalctl -u vmhad"
    )
  }

  /// Waits until everything appended so far is stored or kept in memory. True unless `timeout` came first.
  @discardableResult
  public func flush(timeout: Duration) -> Bool {
    shared.wait(timeout: timeout) { $0.queue.isEmpty && !$0.isWorking ? true : nil } ?? false
  }

  /// Stores what is queued and ends the thread and every live reader. Later events are dropped.
  public func close() {
    shared.withLock { $0.isStopping = true }
    _ = shared.wait(timeout: nil) { $0.isOver ? true : nil }
  }

  // MARK: The thread

  private struct Batch {
    var events: [JournalEvent]
    var droppedCount: Int
    var isStopping: Bool
  }

  private func run() {
    openStore()
    while true {
      let batch = nextBatch()
      var events = batch.events
      if batch.droppedCount > 0 {
        let sentence = "\(batch.droppedCount) events were dropped: they came faster than they could be stored"
        events.append(own(sentence, .warning))
      }
      store(events)
      if batch.isStopping { break }
    }
    let listeners = shared.withLock { shared in
      defer { shared.listeners = [:] }
      shared.isOver = true
      shared.store = nil
      return Array(shared.listeners.values)
    }
    for listener in listeners { listener.finish() }
  }

  /// The next events, or none when it is time to try again to store what is unsaved.
  private func nextBatch() -> Batch {
    let hasUnsaved = shared.withLock { !$0.unsaved.isEmpty || $0.store == nil }
    let batch = shared.wait(timeout: hasUnsaved ? limits.retry : nil) { shared -> Batch? in
      guard !shared.queue.isEmpty || shared.droppedCount > 0 || shared.isStopping else { return nil }
      defer {
        shared.queue = []
        shared.droppedCount = 0
        shared.isWorking = true
      }
      return Batch(events: shared.queue, droppedCount: shared.droppedCount, isStopping: shared.isStopping)
    }
    return batch ?? Batch(events: [], droppedCount: 0, isStopping: false)
  }

  private func store(_ arrived: [JournalEvent]) {
    let numbered = shared.withLock { shared in
      let numbered = Self.number(arrived, after: shared.lastID)
      shared.lastID = numbered.last?.id ?? shared.lastID
      shared.unsaved += numbered
      if shared.unsaved.count > Self.unsavedCountMax {
        shared.unsaved.removeFirst(shared.unsaved.count - Self.unsavedCountMax)
      }
      return numbered
    }
    if shared.withLock({ $0.store == nil }) { openStore() }
    saveUnsaved()
    shared.withLock { shared in
      shared.isWorking = false
      for event in numbered { shared.listeners.values.forEach { $0.yield(event) } }
    }
  }

  private func saveUnsaved() {
    let (unsaved, store) = shared.withLock { ($0.unsaved, $0.store) }
    guard let store, !unsaved.isEmpty else { return }
    do {
      try store.write(unsaved, rowCountMax: limits.rowCountMax)
      let hadTrouble = shared.withLock { shared in
        shared.unsaved = []
        defer { shared.trouble = nil }
        return shared.trouble != nil
      }
      if hadTrouble { say("the journal can be written again", .notice) }
    } catch {
      if JournalStore.isDamage(error) { shared.withLock { $0.store = nil } }
      fail("the journal \(path) cannot be written: \(error); events are kept in memory")
    }
  }

  private func openStore() {
    do {
      let opened = try JournalStore.open(path)
      shared.withLock { shared in
        // Events that came while there was no file: behind what it holds.
        let firstID = max(opened.lastID, shared.lastID - Int64(shared.unsaved.count))
        shared.unsaved = Self.number(shared.unsaved, after: firstID)
        shared.lastID = max(shared.unsaved.last?.id ?? 0, opened.lastID, shared.lastID)
        shared.store = opened.store
      }
      if let damage = opened.damage { say(damage, .error) }
    } catch {
      fail("the journal \(path) cannot be opened: \(error); events are kept in memory")
    }
  }

  private func fail(_ text: String) {
    let isNew = shared.withLock { shared in
      defer { shared.trouble = text }
      return shared.trouble == nil
    }
    if isNew { say(text, .error) }
  }

  private func say(_ sentence: String, _ severity: Severity) {
    report(sentence)
    append(own(sentence, severity))
  }

  private func own(_ sentence: String, _ severity: Severity) -> JournalEvent {
    JournalEvent(
      monotonicNanoseconds: monotonicNow().nanoseconds, node: node, kind: .journal, severity: severity,
      sentence: sentence)
  }

  private static func number(_ events: [JournalEvent], after last: Int64) -> [JournalEvent] {
    var last = last
    return events.map { event in
      var event = event
      last += 1
      event.id = last
      event.sentence = shortened(event.sentence)
      event.details = event.details.mapValues(shortened)
      return event
    }
  }

  private static func shortened(_ text: String) -> String {
    guard text.utf8.count > textBytesMax else { return text }
    return String(decoding: text.utf8.prefix(textBytesMax), as: UTF8.self) + "…"
  }
}
