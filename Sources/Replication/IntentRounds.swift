/// A round of clearing that has begun.
public struct IntentRound: Hashable, Sendable {
  let number: UInt64
  /// Zones and marks that the end of this round would clear; with none there is no need to flush.
  public let candidates: Int
}

extension IntentMap {
  /// R3, under the write lock: chooses what a flush that is issued after this may clear: what was not touched for one
  /// full round and no unacknowledged request touches; the marks of whole files and of everything at once. `busy` must
  /// hold every request that was touched and is not acknowledged by both nodes. Only while in sync. Ends a round
  /// before it without clearing.
  public mutating func beginRound(busy: [(Slot, Range<UInt64>)]) -> IntentRound {
    age()
    for (slot, bytes) in busy where !bytes.isEmpty { hold(slot, bytes) }
    round += 1
    isRoundOpen = true
    return IntentRound(number: round, candidates: countCandidates())
  }

  /// R3, under the write lock: the flush issued after the beginning of this round was acknowledged by both nodes, in
  /// the session in which the round began, and that is still in sync. Clears the candidates that were not touched
  /// since. Does nothing for a round that is not the last one begun.
  public mutating func endRound(_ ended: IntentRound) {
    guard isRoundOpen, ended.number == round else { return }
    isRoundOpen = false
    if everything == Mark.candidate {
      everything = Mark.none
      addForAll(.everything(false))
    }
    var rangesLeft = IntentMap.clearRangesPerRoundMax
    for slot in files.indices {
      if files[slot].whole == Mark.candidate, rangesLeft > 0 {
        rangesLeft -= 1
        files[slot].whole = Mark.none
        files[slot].isCoarse = false
        add(.whole(files[slot].identity, false), slot)
      }
      clearZones(slot, &rangesLeft)
    }
  }

  private mutating func age() {
    if everything >= Mark.firstDurable { everything = Mark.candidate }
    for slot in files.indices {
      if files[slot].whole >= Mark.firstDurable { files[slot].whole = Mark.candidate }
    }
    // Cells of free pages are `none` and stay so.
    cells.withUnsafeMutableBufferPointer { cells in
      for index in cells.indices {
        let mark = cells[index]
        cells[index] = mark >= Mark.fresh ? Mark.idle : mark == Mark.idle ? Mark.candidate : mark
      }
    }
  }

  private mutating func hold(_ slot: Slot, _ bytes: Range<UInt64>) {
    guard files.indices.contains(slot) else { return }
    let zones = IntentMap.zones(of: bytes)
    if zones == nil || files[slot].isCoarse, files[slot].whole >= Mark.firstDurable { files[slot].whole = Mark.touched }
    for zone in zones ?? 0..<0 {
      if let index = stampable(slot, zone) { cells[index] = Mark.touched }
    }
  }

  private func countCandidates() -> Int {
    var count = everything == Mark.candidate ? 1 : 0
    for file in files where file.whole == Mark.candidate { count += 1 }
    cells.withUnsafeBufferPointer { cells in
      for mark in cells where mark == Mark.candidate { count += 1 }
    }
    return count
  }

  private mutating func clearZones(_ slot: Slot, _ rangesLeft: inout Int) {
    for number in files[slot].pages.indices {
      let page = files[slot].pages[number]
      guard page != IntentMap.noPage, rangesLeft > 0 else { continue }
      var runs: [Range<Int>] = []
      forEachRun(page, of: { $0 == Mark.candidate }) { runs.append($0) }
      let start = Int(page) * IntentMap.pageZones
      for run in runs.prefix(rangesLeft) {
        for offset in run { cells[start + offset] = Mark.none }
        zonesSet -= run.count
        let base = number * IntentMap.pageZones
        addZones(slot, base + run.lowerBound..<base + run.upperBound, isSet: false)
      }
      rangesLeft -= min(rangesLeft, runs.count)
      if !cells[start..<start + IntentMap.pageZones].contains(where: { $0 != Mark.none }) {
        release(page)
        files[slot].pages[number] = IntentMap.noPage
      }
    }
  }
}
