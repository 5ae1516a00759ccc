import Model

/// Whose resync goes on: the modules whose source is this node share the link in turns, by priority, then by age. Pure: the user tells
/// what happens and asks with `next` who may begin.
///
/// Each node hands out the turns of the resyncs it is the source of, and no others: contents flow from the source only, so that
/// two nodes that are sources for each other's modules use the two directions of the link. Nothing has to be agreed with the peer, so
/// its loss, or a vmhad that begins anew, leaves no turn taken: a turn lasts as long as the module's resync session.
public struct ResyncTurns: Sendable {
  /// Resyncs that go on at once. Two, because one that compares, or waits for a disk, leaves the link to the other; more would only make
  /// each of them longer, and with it the time until the first module is protected again.
  public static let runningMax = 2
  /// A resync in which nothing has moved for so long holds nobody up: another may begin beside it.
  public static let silenceMax = Duration.seconds(30)

  private struct Entry: Sendable {
    let module: ModuleName
    let session: SessionID
    var priority: ResyncPriority
    var hasBegun: Bool
    var movedAt: Instant
  }
  /// In the order in which they asked.
  private var entries: [Entry] = []

  /// Those that come before one that waits.
  public struct Ahead: Sendable, Hashable {
    /// Of a higher priority, running or waiting.
    public var higherPriority: Int
    public var others: Int
    public init(higherPriority: Int, others: Int) {
      self.higherPriority = higherPriority
      self.others = others
    }
  }

  public init() {}

  /// The module's resync wants to begin. What it had before is over.
  public mutating func ask(_ module: ModuleName, _ session: SessionID, _ priority: ResyncPriority, now: Instant) {
    add(module, session, priority, hasBegun: false, now: now)
  }

  /// It goes on already: an earlier vmhad let it begin.
  public mutating func goesOn(_ module: ModuleName, _ session: SessionID, _ priority: ResyncPriority, now: Instant) {
    add(module, session, priority, hasBegun: true, now: now)
  }

  private mutating func add(
    _ module: ModuleName, _ session: SessionID, _ priority: ResyncPriority, hasBegun: Bool, now: Instant
  ) {
    end(module)
    entries.append(
      Entry(module: module, session: session, priority: priority, hasBegun: hasBegun, movedAt: now))
  }

  /// It is done, or its session is lost.
  public mutating func end(_ module: ModuleName) { entries.removeAll { $0.module == module } }

  public mutating func moved(_ module: ModuleName, now: Instant) { change(module) { $0.movedAt = now } }

  public mutating func prioritise(_ module: ModuleName, _ priority: ResyncPriority) {
    change(module) { $0.priority = priority }
  }

  private mutating func change(_ module: ModuleName, _ body: (inout Entry) -> Void) {
    if let index = entries.firstIndex(where: { $0.module == module }) { body(&entries[index]) }
  }

  /// Who may begin now; each is told once.
  public mutating func next(now: Instant) -> [(module: ModuleName, session: SessionID)] {
    var free = Self.runningMax - entries.filter { $0.hasBegun && now - $0.movedAt < Self.silenceMax }.count
    var begun: [(ModuleName, SessionID)] = []
    while free > 0, let index = firstWaiting() {
      entries[index].hasBegun = true
      entries[index].movedAt = now
      begun.append((entries[index].module, entries[index].session))
      free -= 1
    }
    return begun
  }

  private func firstWaiting() -> Int? {
    let waiting = entries.indices.filter { !entries[$0].hasBegun }
    guard let highest = waiting.map({ entries[$0].priority }).max() else { return nil }
    return waiting.first { entries[$0].priority == highest }
  }

  /// nil = it does not wait.
  public func ahead(of module: ModuleName) -> Ahead? {
    guard let index = entries.firstIndex(where: { $0.module == module && !$0.hasBegun }) else { return nil }
    let own = entries[index]
    let higher = entries.filter { $0.priority > own.priority }.count
    let others = entries.enumerated().filter { position, other in
      other.priority <= own.priority && position != index
        && (other.hasBegun || (other.priority == own.priority && position < index))
    }
    return Ahead(higherPriority: higher, others: others.count)
  }
}
