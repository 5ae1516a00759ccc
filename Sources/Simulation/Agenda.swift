/// SplitMix64: every choice of a run comes from its seed.
struct Random {
  var state: UInt64
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
  mutating func below(_ bound: Int) -> Int { Int(next() % UInt64(bound)) }
  mutating func chance(_ percent: Int) -> Bool { below(100) < percent }
  mutating func milliseconds(_ range: ClosedRange<Int>) -> Duration {
    .milliseconds(range.lowerBound + below(range.upperBound - range.lowerBound + 1))
  }
}

/// What happens next in virtual time: a heap ordered by time, then by order of planning.
struct Agenda {
  struct Action {
    let run: () -> Void
    /// Where it runs, and in which boot of it; nil = on no host.
    var host: (node: SimNode, boot: Int)?
  }
  /// Plain numbers, which cost nothing to move.
  private struct Entry {
    let at: Int64
    let order: Int
    /// Of its action in `actions`.
    let place: Int
    func precedes(_ other: Entry) -> Bool { at != other.at ? at < other.at : order < other.order }
  }
  private var heap: [Entry] = []
  private var actions: [Action?] = []
  private var freePlaces: [Int] = []
  private var count = 0

  var nextAt: Int64? { heap.first?.at }

  mutating func add(_ at: Int64, _ action: consuming Action) {
    count += 1
    heap.append(Entry(at: at, order: count, place: keep(action)))
    var child = heap.count - 1
    while child > 0, heap[child].precedes(heap[(child - 1) / 2]) {
      heap.swapAt(child, (child - 1) / 2)
      child = (child - 1) / 2
    }
  }

  private mutating func keep(_ action: consuming Action) -> Int {
    guard let place = freePlaces.popLast() else {
      actions.append(action)
      return actions.count - 1
    }
    actions[place] = action
    return place
  }

  mutating func removeFirst() -> Action {
    let first = heap[0]
    let last = heap.removeLast()
    if !heap.isEmpty {
      heap[0] = last
      var parent = 0
      while true {
        var least = parent
        let left = 2 * parent + 1
        if left < heap.count, heap[left].precedes(heap[least]) { least = left }
        if left + 1 < heap.count, heap[left + 1].precedes(heap[least]) { least = left + 1 }
        if least == parent { break }
        heap.swapAt(parent, least)
        parent = least
      }
    }
    guard let action = actions[first.place].take() else { preconditionFailure("each entry has its action") }
    freePlaces.append(first.place)
    return action
  }
}
