/// A set of zones of one file as ranges: sorted, disjoint, not adjacent, none empty. For what is stored and sent;
/// costs grow with the number of ranges.
public struct ZoneSet: Hashable, Sendable {
  public private(set) var ranges: [Range<UInt32>] = []

  public init() {}

  /// From ranges in any order; empty ones are left out.
  public init(_ ranges: [Range<UInt32>]) {
    for range in ranges { insert(range) }
  }

  public var isEmpty: Bool { ranges.isEmpty }
  /// Number of zones.
  public var count: Int { ranges.reduce(0) { $0 + $1.count } }

  public func contains(_ zone: UInt32) -> Bool {
    let index = firstIndex(endingAfter: zone)
    return index < ranges.count && ranges[index].lowerBound <= zone
  }

  public mutating func insert(_ range: Range<UInt32>) {
    guard !range.isEmpty else { return }
    // Adjacent ranges melt into one, so the one that ends exactly where this one starts counts as well.
    let first = range.lowerBound == 0 ? 0 : firstIndex(endingAfter: range.lowerBound - 1)
    var end = first
    var lower = range.lowerBound
    var upper = range.upperBound
    while end < ranges.count, ranges[end].lowerBound <= range.upperBound {
      lower = min(lower, ranges[end].lowerBound)
      upper = max(upper, ranges[end].upperBound)
      end += 1
    }
    ranges.replaceSubrange(first..<end, with: CollectionOfOne(lower..<upper))
  }

  public mutating func remove(_ range: Range<UInt32>) {
    guard !range.isEmpty else { return }
    let first = firstIndex(endingAfter: range.lowerBound)
    var end = first
    var rest: [Range<UInt32>] = []
    while end < ranges.count, ranges[end].lowerBound < range.upperBound {
      let old = ranges[end]
      if old.lowerBound < range.lowerBound { rest.append(old.lowerBound..<range.lowerBound) }
      if old.upperBound > range.upperBound { rest.append(range.upperBound..<old.upperBound) }
      end += 1
    }
    ranges.replaceSubrange(first..<end, with: rest)
  }

  /// Linear in both.
  public func union(_ other: ZoneSet) -> ZoneSet {
    var result = ZoneSet()
    result.ranges.reserveCapacity(ranges.count + other.ranges.count)
    var (left, right) = (ranges[...], other.ranges[...])
    while let a = left.first ?? right.first {
      if let b = right.first, left.isEmpty || b.lowerBound < a.lowerBound {
        result.append(b)
        right = right.dropFirst()
      } else {
        result.append(a)
        left = left.dropFirst()
      }
    }
    return result
  }

  /// Puts a range behind all others, or melts it into the last one, in constant time. Its start must not lie before
  /// the start of the last one.
  mutating func append(_ range: Range<UInt32>) {
    guard !range.isEmpty else { return }
    guard let last = ranges.last, range.lowerBound <= last.upperBound else { return ranges.append(range) }
    precondition(range.lowerBound >= last.lowerBound, "zone ranges are appended in order")
    ranges[ranges.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
  }

  /// Fills the smallest gaps until at most `countMax` ranges are left: more zones, never fewer.
  mutating func coarsen(countMax: Int) {
    var gapMax: UInt32 = 1
    while ranges.count > max(countMax, 1) {
      var kept = 0
      for index in ranges.indices.dropFirst() {
        if ranges[index].lowerBound - ranges[kept].upperBound <= gapMax {
          ranges[kept] = ranges[kept].lowerBound..<ranges[index].upperBound
        } else {
          kept += 1
          ranges[kept] = ranges[index]
        }
      }
      ranges.removeLast(ranges.count - kept - 1)
      gapMax = gapMax > .max / 2 ? .max : gapMax * 2
    }
  }

  private func firstIndex(endingAfter zone: UInt32) -> Int {
    var low = 0
    var high = ranges.count
    while low < high {
      let middle = (low + high) / 2
      if ranges[middle].upperBound <= zone { low = middle + 1 } else { high = middle }
    }
    return low
  }
}
