import Model

/// R3: which zones of which file may differ from the peer's copy, on this node. Pure: one lock around it, no I/O, no
/// clock. What becomes durable leaves in batches (`takeBatch`), in order, and counts only when `stored` says so.
///
/// A write goes like this: `touch` its range; true = apply and send it now. False = `want` the range, have the batch
/// stored, then `touch` again (and `want` again if that is still false).
///
/// Clearing is done in rounds: `beginRound`, a joint flush issued after that, `endRound`. A round that is never ended
/// clears nothing.
///
/// R3: what a process read counts as durable only when this very process has made it so. The one before it may have died
/// between a write and its sync, and what is read then is in the page cache only. So marks that were read are no more than
/// pending, and the first batch has to be stored by a checkpoint of `snapshot`, which makes them durable.
public struct IntentMap: Sendable {
  /// A file's place in the map.
  public typealias Slot = Int

  public static let zoneBytes = ResyncPlan.zoneBytes
  /// Zones that can be told apart in one file (16 TiB).
  public static let zonesMax = 1 << 24
  /// A longer range of bytes is marked as the whole file.
  public static let rangeZonesMax = 1 << 16
  /// Zones set ahead of a sequential stream, so that it never waits for the disk.
  public static let readAheadZones = 32
  /// Ranges cleared in one round, so that a set never queues behind more than this; the rest is left to the next.
  public static let clearRangesPerRoundMax = 2048

  /// States of a zone, or of a mark, in the order of what `touch` may rely on.
  enum Mark {
    /// Not set, or its clearing is decided.
    static let none: UInt8 = 0
    /// Read when the map was opened, and not yet made durable by this process.
    static let read: UInt8 = 1
    /// Wanted, and not yet durable.
    static let pending: UInt8 = 2
    /// Durable, and would be cleared at the end of the running round.
    static let candidate: UInt8 = 3
    /// Durable, not touched since the last round began.
    static let idle: UInt8 = 4
    /// Durable since the last round began, not touched.
    static let fresh: UInt8 = 5
    /// Durable, and touched since the last round began.
    static let touched: UInt8 = 6
    static let firstDurable = candidate
  }

  /// Zones in one page of `cells`.
  static let pageZones = 1024
  /// Pages of all files: 64 MiB. A file that finds none left is marked as a whole from then on.
  static let pagesMax = 1 << 16
  static let noPage: Int32 = -1

  struct File: Sendable {
    var identity: FileIdentity
    /// For each `pageZones` zones the page that holds them, or `noPage`.
    var pages: [Int32] = []
    var whole = Mark.none
    /// It got no page for some zone: its writes rely on `whole`.
    var isCoarse = false
  }

  struct Pending: Sendable {
    var slot: Slot
    var epoch: UInt64
    var change: IntentChange
  }

  var files: [File] = []
  private var slots: [FileIdentity: Slot] = [:]
  /// States of zones, page after page.
  var cells: [UInt8] = []
  private var freePages: [Int32] = []
  private let pagesMax: Int

  var everything = Mark.none
  /// Raised when all is cleared: what was on its way to the disk before then counts no more.
  private(set) var epoch: UInt64 = 0
  /// Not yet in a batch.
  var pending: [Pending] = []
  /// In the batch that was taken and is not yet stored.
  private var inFlight: (number: UInt64, changes: [Pending])?
  private var batches: UInt64 = 0
  /// No batch was stored yet, and there are marks that were read.
  private var hasRead = false

  var round: UInt64 = 0
  var isRoundOpen = false

  /// Zones that are set or about to be, of all files, those set ahead included.
  public internal(set) var zonesSet = 0

  /// What `recovered` says is not durable before the first batch is stored. That everything may differ may stand for a
  /// file that could not be read this time, and can be the next time: so it is part of that batch.
  public init(_ recovered: IntentSnapshot) { self.init(recovered, pagesMax: IntentMap.pagesMax) }

  init(_ recovered: IntentSnapshot, pagesMax: Int) {
    self.pagesMax = pagesMax
    if recovered.isEverything { markEverything() }
    for (identity, file) in recovered.files {
      let slot = slot(for: identity)
      hasRead = true
      files[slot].whole = file.isWhole ? Mark.read : Mark.none
      for range in file.zones.ranges { recover(range, slot) }
    }
  }

  private mutating func recover(_ range: Range<UInt32>, _ slot: Slot) {
    for zone in Int(range.lowerBound)..<min(Int(range.upperBound), IntentMap.zonesMax) {
      guard !files[slot].isCoarse else { return }
      guard let index = makeCell(slot, zone) else {
        // The file has the zones, not yet the mark that writes to others will rely on.
        files[slot].isCoarse = true
        return markWhole(slot)
      }
      if cells[index] == Mark.none { zonesSet += 1 }
      cells[index] = Mark.read
    }
  }

  public mutating func slot(for file: FileIdentity) -> Slot {
    if let slot = slots[file] { return slot }
    let slot = files.count
    files.append(File(identity: file))
    slots[file] = slot
    return slot
  }

  // MARK: - the write path

  /// R3: true = every zone of the range is durably set, and counts as written to in this round: go on. False =
  /// nothing changed. May add zones ahead of a sequential stream to the pending changes; nobody has to wait for them.
  public mutating func touch(_ slot: Slot, bytes: Range<UInt64>) -> Bool {
    let first = bytes.lowerBound / IntentMap.zoneBytes
    let last = (bytes.upperBound &- 1) / IntentMap.zoneBytes
    if first == last, first < UInt64(IntentMap.zonesMax), state(slot, Int(first)) == Mark.touched { return true }
    return touchOthers(slot, bytes)
  }

  /// R3: makes what is missing of the range part of the pending changes; what is set counts as written to in this
  /// round. Repeatable. Sequential writes get more than they ask for.
  public mutating func want(_ slot: Slot, bytes: Range<UInt64>) {
    guard !bytes.isEmpty else { return }
    guard !files[slot].isCoarse, let zones = IntentMap.zones(of: bytes) else { return markWhole(slot) }
    var firstMissing: Int?
    for zone in zones {
      switch state(slot, zone) {
      case Mark.none: firstMissing = firstMissing ?? zone
      case Mark.read, Mark.pending: break
      default: stamp(slot, zone)
      }
    }
    guard let firstMissing else { return }
    guard setPending(slot, firstMissing..<zones.upperBound) else {
      files[slot].isCoarse = true
      return markWhole(slot)
    }
    setAhead(slot, of: firstMissing, from: zones.upperBound)
  }

  /// The whole file may differ; `touch` relies on it for ranges that end beyond `zonesMax` or are too long. Durable
  /// when `stored` says so, as with `want`.
  public mutating func markWhole(_ slot: Slot) {
    switch files[slot].whole {
    case Mark.none:
      files[slot].whole = Mark.pending
      add(.whole(files[slot].identity, true), slot)
    case Mark.read, Mark.pending: break
    default: files[slot].whole = Mark.touched
    }
  }

  private mutating func touchOthers(_ slot: Slot, _ bytes: Range<UInt64>) -> Bool {
    guard !bytes.isEmpty else { return true }
    guard !files[slot].isCoarse, let zones = IntentMap.zones(of: bytes) else {
      guard files[slot].whole >= Mark.firstDurable else { return false }
      files[slot].whole = Mark.touched
      return true
    }
    for zone in zones where state(slot, zone) < Mark.firstDurable { return false }
    var newest: Int?
    for zone in zones {
      // Only a first touch is a sign of a stream; hot zones are touched again in every round.
      if state(slot, zone) == Mark.fresh { newest = zone }
      stamp(slot, zone)
    }
    if let newest { setAhead(slot, of: newest, from: newest + 1) }
    return true
  }

  /// When the zones before this one are in use too, the next ones will be. The longer the run, the more; a random
  /// write next to another one costs little.
  private mutating func setAhead(_ slot: Slot, of zone: Int, from start: Int) {
    var run = 0
    while run < IntentMap.readAheadZones / 4, zone - run > 0, isInUse(slot, zone - run - 1) { run += 1 }
    guard run > 0 else { return }
    let count = 4 * run
    // At least half of it is there: no need yet.
    guard state(slot, min(start + count / 2, IntentMap.zonesMax) - 1) == Mark.none else { return }
    _ = setPending(slot, min(start, IntentMap.zonesMax)..<min(start + count, IntentMap.zonesMax))
  }

  private func isInUse(_ slot: Slot, _ zone: Int) -> Bool {
    let mark = state(slot, zone)
    return mark == Mark.touched || mark == Mark.pending
  }

  /// false if there is no room for some of them; the ones before are pending then.
  private mutating func setPending(_ slot: Slot, _ zones: Range<Int>) -> Bool {
    var start: Int?
    var hasRoom = true
    var end = zones.lowerBound
    for zone in zones {
      guard let index = makeCell(slot, zone) else {
        hasRoom = false
        break
      }
      end = zone + 1
      if cells[index] == Mark.none {
        cells[index] = Mark.pending
        zonesSet += 1
        start = start ?? zone
      } else if let first = start {
        addZones(slot, first..<zone, isSet: true)
        start = nil
      }
    }
    if let start { addZones(slot, start..<end, isSet: true) }
    return hasRoom
  }

  /// Adds a set, or else a clear, of these zones; one that goes on where the last one ended becomes part of it.
  mutating func addZones(_ slot: Slot, _ zones: Range<Int>, isSet: Bool) {
    func change(_ zones: Range<UInt32>) -> IntentChange {
      isSet ? .set(files[slot].identity, zones) : .clear(files[slot].identity, zones)
    }
    let range = UInt32(zones.lowerBound)..<UInt32(zones.upperBound)
    if let last = pending.last, last.slot == slot, last.epoch == epoch, let before = last.change.zones(isSet: isSet),
      before.upperBound == range.lowerBound
    {
      pending[pending.count - 1].change = change(before.lowerBound..<range.upperBound)
    } else {
      add(change(range), slot)
    }
  }

  mutating func add(_ change: IntentChange, _ slot: Slot) {
    pending.append(Pending(slot: slot, epoch: epoch, change: change))
  }

  // MARK: - making it durable

  /// There is something for a next batch.
  public var hasPending: Bool { hasRead || !pending.isEmpty }

  /// The next changes, in order; nil if there is nothing to be stored, or while the batch before is neither stored nor failed.
  /// A checkpoint of a `snapshot` taken after this, under the same lock or later, stores the batch as well; the first batch
  /// must be stored so, and holds no change if all that is to be made durable was read.
  public mutating func takeBatch() -> IntentBatch? {
    guard inFlight == nil, hasPending else { return nil }
    var changes: [Pending] = []
    if pending.count <= IntentBatch.changesMax {
      swap(&changes, &pending)
    } else {
      changes = Array(pending[..<IntentBatch.changesMax])
      pending.removeFirst(IntentBatch.changesMax)
    }
    batches += 1
    inFlight = (batches, changes)
    return IntentBatch(number: batches, changes: changes.map(\.change))
  }

  /// The batch that was taken is durable: its sets may be relied on.
  public mutating func stored(_ number: UInt64) {
    guard let batch = inFlight, batch.number == number else {
      preconditionFailure("intents: batch \(number) was stored, but is not the one that was taken")
    }
    inFlight = nil
    settleRead()
    for item in batch.changes {
      switch item.change {
      case .everything(true):
        if everything == Mark.pending, item.epoch == epoch { everything = Mark.fresh }
      case .everything(false), .reset: break
      // The slot was forgotten or cleared since: what is there now, if anything, waits for its own store.
      case _ where item.epoch != epoch: break
      case .set(_, let zones): settle(item.slot, zones)
      case .whole(_, true): if files[item.slot].whole == Mark.pending { files[item.slot].whole = Mark.fresh }
      default: break
      }
    }
  }

  /// R3: a checkpoint of this process holds what was read.
  private mutating func settleRead() {
    guard hasRead else { return }
    hasRead = false
    for slot in files.indices where files[slot].whole == Mark.read { files[slot].whole = Mark.idle }
    for index in cells.indices where cells[index] == Mark.read { cells[index] = Mark.idle }
  }

  private mutating func settle(_ slot: Slot, _ zones: Range<UInt32>) {
    for zone in Int(zones.lowerBound)..<Int(zones.upperBound) {
      guard let index = cellIndex(slot, zone), cells[index] == Mark.pending else { continue }
      cells[index] = Mark.fresh
    }
  }

  /// The batch that was taken could not be stored. It may be on the disk all the same, so its changes go first again,
  /// in a new batch; until that one is stored none of its sets may be relied on.
  public mutating func failed(_ number: UInt64) {
    guard let batch = inFlight, batch.number == number else {
      preconditionFailure("intents: batch \(number) failed, but is not the one that was taken")
    }
    inFlight = nil
    pending.insert(contentsOf: batch.changes, at: 0)
  }

  // MARK: - all files

  /// R8.4: nothing differs. Slots stay valid.
  public mutating func clearAll() {
    for slot in files.indices { dropZones(slot) }
    everything = Mark.none
    epoch += 1
    // Whatever was waiting is undone by the reset.
    pending.removeAll()
    addForAll(.reset)
  }

  /// Any file may differ, those included that the map does not know. Cleared by a round, like all others.
  public mutating func markEverything() {
    switch everything {
    case Mark.none:
      everything = Mark.pending
      addForAll(.everything(true))
    case Mark.pending: break
    default: everything = Mark.touched
    }
  }

  mutating func addForAll(_ change: IntentChange) {
    pending.append(Pending(slot: -1, epoch: epoch, change: change))
  }

  private mutating func dropZones(_ slot: Slot) {
    for page in files[slot].pages where page != IntentMap.noPage {
      let start = Int(page) * IntentMap.pageZones
      for index in start..<start + IntentMap.pageZones where cells[index] != Mark.none { zonesSet -= 1 }
      release(page)
    }
    files[slot].pages = []
    files[slot].whole = Mark.none
    files[slot].isCoarse = false
  }

  // MARK: - cells

  /// The zones of a range of bytes; nil = it counts as the whole file.
  static func zones(of bytes: Range<UInt64>) -> Range<Int>? {
    let first = bytes.lowerBound / zoneBytes
    let last = (bytes.upperBound - 1) / zoneBytes
    guard last < UInt64(zonesMax), last - first < UInt64(rangeZonesMax) else { return nil }
    return Int(first)..<Int(last) + 1
  }

  @inline(__always)
  func cellIndex(_ slot: Slot, _ zone: Int) -> Int? {
    let number = zone / IntentMap.pageZones
    guard number < files[slot].pages.count else { return nil }
    let page = files[slot].pages[number]
    return page == IntentMap.noPage ? nil : Int(page) * IntentMap.pageZones + zone % IntentMap.pageZones
  }

  @inline(__always)
  func state(_ slot: Slot, _ zone: Int) -> UInt8 {
    guard let index = cellIndex(slot, zone) else { return Mark.none }
    return cells[index]
  }

  func stampable(_ slot: Slot, _ zone: Int) -> Int? {
    guard let index = cellIndex(slot, zone), cells[index] >= Mark.firstDurable else { return nil }
    return index
  }

  private mutating func stamp(_ slot: Slot, _ zone: Int) {
    if let index = stampable(slot, zone) { cells[index] = Mark.touched }
  }

  /// nil if all pages are in use.
  private mutating func makeCell(_ slot: Slot, _ zone: Int) -> Int? {
    if let index = cellIndex(slot, zone) { return index }
    let page: Int32
    if let free = freePages.popLast() {
      page = free
    } else {
      let count = cells.count / IntentMap.pageZones
      guard count < pagesMax else { return nil }
      page = Int32(count)
      cells.append(contentsOf: repeatElement(Mark.none, count: IntentMap.pageZones))
    }
    let number = zone / IntentMap.pageZones
    let missing = number + 1 - files[slot].pages.count
    if missing > 0 { files[slot].pages.append(contentsOf: repeatElement(IntentMap.noPage, count: missing)) }
    files[slot].pages[number] = page
    return cellIndex(slot, zone)
  }

  mutating func release(_ page: Int32) {
    let start = Int(page) * IntentMap.pageZones
    for index in start..<start + IntentMap.pageZones { cells[index] = Mark.none }
    freePages.append(page)
    if freePages.count * IntentMap.pageZones == cells.count {
      freePages = []
      cells = []
    }
  }
}

extension IntentMap {
  // MARK: - what it says

  /// Everything may differ; `zones(of:)` says so for each file.
  public var isEverything: Bool { everything != Mark.none }

  /// What may differ in this file, with what is not durable yet; not what is about to be cleared.
  public func zones(of file: FileIdentity) -> FileContent {
    guard !isEverything else { return .whole }
    return slots[file].map { zones($0) } ?? .zones([])
  }

  /// As `zones(of:)`.
  public func zones(_ slot: Slot) -> FileContent {
    isEverything || files[slot].whole != Mark.none ? .whole : .zones(zoneSet(slot).ranges)
  }

  /// All that is set and all that is about to be, for a checkpoint. After that checkpoint, changes that were pending
  /// when it was taken may be appended to it, again and in part: that does no harm.
  public func snapshot() -> IntentSnapshot {
    var snapshot = IntentSnapshot(isEverything: isEverything)
    for slot in files.indices {
      var file = IntentSnapshot.File()
      file.isWhole = files[slot].whole != Mark.none
      file.zones = zoneSet(slot)
      if file.isWhole || !file.zones.isEmpty { snapshot.files[files[slot].identity] = file }
    }
    return snapshot
  }

  private func zoneSet(_ slot: Slot) -> ZoneSet {
    var set = ZoneSet()
    for (number, page) in files[slot].pages.enumerated() where page != IntentMap.noPage {
      forEachRun(page, of: { $0 != Mark.none }) { run in
        let base = number * IntentMap.pageZones
        set.append(UInt32(base + run.lowerBound)..<UInt32(base + run.upperBound))
      }
      // Keeps the work and the memory bounded; a smaller set would be a lie, a larger one is only slower.
      if set.ranges.count > 2 * IntentSnapshot.rangesPerFileMax {
        set.coarsen(countMax: IntentSnapshot.rangesPerFileMax)
      }
    }
    set.coarsen(countMax: IntentSnapshot.rangesPerFileMax)
    return set
  }

  /// Runs of cells in a page that are as wanted, as offsets in the page.
  func forEachRun(_ page: Int32, of isWanted: (UInt8) -> Bool, _ body: (Range<Int>) -> Void) {
    let start = Int(page) * IntentMap.pageZones
    var first: Int?
    for offset in 0..<IntentMap.pageZones {
      if isWanted(cells[start + offset]) {
        first = first ?? offset
      } else if let begin = first {
        body(begin..<offset)
        first = nil
      }
    }
    if let first { body(first..<IntentMap.pageZones) }
  }
}

extension IntentChange {
  /// The zones of a set, or else of a clear; nil for every other change.
  fileprivate func zones(isSet: Bool) -> Range<UInt32>? {
    switch self {
    case .set(_, let zones): isSet ? zones : nil
    case .clear(_, let zones): isSet ? nil : zones
    case .whole, .everything, .reset: nil
    }
  }
}
