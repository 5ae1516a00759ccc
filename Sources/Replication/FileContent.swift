/// What of a file may differ between source and target of a resync.
public enum FileContent: Hashable, Sendable {
  /// The target has just made it, empty: data is sent, holes are there already.
  case fresh
  /// The target has contents of which nothing is known.
  case whole
  /// Only these zones of `ResyncPlan.zoneBytes`, ascending and apart.
  case zones([Range<UInt32>])

  /// What either side's map says.
  public func union(_ other: FileContent) -> FileContent {
    switch (self, other) {
    case (.fresh, _), (_, .fresh): .fresh
    case (.whole, _), (_, .whole): .whole
    case (.zones(let a), .zones(let b)): .zones(ZoneSet(a).union(ZoneSet(b)).ranges)
    }
  }

  /// Bytes to look at in a file of `size` bytes, ascending and apart.
  public func byteRanges(size: UInt64) -> [Range<UInt64>] {
    switch self {
    case .fresh, .whole: return size > 0 ? [0..<size] : []
    case .zones(let zones):
      return zones.compactMap { zone in
        let start = UInt64(zone.lowerBound) * ResyncPlan.zoneBytes
        let end = min(UInt64(zone.upperBound) * ResyncPlan.zoneBytes, size)
        return start < end ? start..<end : nil
      }
    }
  }
}

/// Key of one resync's hashes.
public struct HashKey: Hashable, Sendable {
  public var first: UInt64
  public var second: UInt64
  public init(_ first: UInt64, _ second: UInt64) {
    self.first = first
    self.second = second
  }
}

/// 128-bit hash of one block under the key of its resync.
public struct BlockHash: Hashable, Sendable {
  public var first: UInt64
  public var second: UInt64
  public init(_ first: UInt64, _ second: UInt64) {
    self.first = first
    self.second = second
  }
}
