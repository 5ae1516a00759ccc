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
  private struct Entry {
    let at: Int64
    let order: Int
    let run: () -> Void
    func precedes(_ other: Entry) -> Bool { (at, order) < (other.at, other.order) }
  }
  private var heap: [Entry] = []
  private var count = 0

  var nextAt: Int64? { heap.first?.at }

  mutating func add(_ at: Int64, _ run: @escaping () -> Void) {
    count += 1
    heap.append(Entry(at: at, order: count, run: run))
    var child = heap.count - 1
    while child > 0, heap[child].precedes(heap[(child - 1) / 2]) {
      heap.swapAt(child, (child - 1) / 2)
      child = (child - 1) / 2
    }
  }

  mutating func removeFirst() -> () -> Void {
    let first = heap[0]
    let last = heap.removeLast()
    if !heap.isEmpty {
      heap[0] = last
      var parent = 0
      while true {
        var least = parent
        for child in [2 * parent + 1, 2 * parent + 2] where child < heap.count {
          if heap[child].precedes(heap[least]) { least = child }
        }
        if least == parent { break }
        heap.swapAt(parent, least)
        parent = least
      }
    }
    return first.run
  }
}
