/// Order of changes to one file: a change may start when no earlier unfinished one overlaps it. So overlapping writes
/// reach the disk in the order they were admitted, on both nodes the same, and the others run side by side. A waiting
/// change holds back later ones that overlap it, so nothing starves. Costs grow with the changes in flight on the
/// file, not with its size.
public struct RangeOrder: Sendable {
  public struct Ticket: Hashable, Sendable {
    fileprivate let order: UInt64
  }
  /// A change that had to wait and may start now.
  public struct Started: Hashable, Sendable {
    public let ticket: Ticket
    public let request: UInt64
  }

  /// Overlaps everything: for what moves data within the file.
  public static let wholeFile: Range<UInt64> = 0..<UInt64.max

  private struct Entry: Sendable {
    let order: UInt64
    let range: Range<UInt64>
    let request: UInt64
    /// Earlier unfinished changes that overlap.
    var blockers: Int
  }

  /// In the order of admission.
  private var entries: [Entry] = []
  private var nextOrder: UInt64 = 0

  public init() {}

  /// Changes admitted and not completed.
  public var count: Int { entries.count }
  public var isEmpty: Bool { entries.isEmpty }

  /// `request` comes back in `Started` if the change has to wait. An empty range waits for nothing.
  public mutating func admit(_ range: Range<UInt64>, request: UInt64) -> (ticket: Ticket, startsNow: Bool) {
    var blockers = 0
    for entry in entries where entry.range.overlaps(range) { blockers += 1 }
    let order = nextOrder
    nextOrder += 1
    entries.append(Entry(order: order, range: range, request: request, blockers: blockers))
    return (Ticket(order: order), blockers == 0)
  }

  /// The change is done (or was given up). Appends what may start now, in the order of admission.
  public mutating func complete(_ ticket: Ticket, started: inout [Started]) {
    guard let index = index(of: ticket) else { preconditionFailure("a change was completed twice") }
    let done = entries.remove(at: index)
    for later in index..<entries.count where entries[later].range.overlaps(done.range) {
      entries[later].blockers -= 1
      if entries[later].blockers == 0 {
        started.append(Started(ticket: Ticket(order: entries[later].order), request: entries[later].request))
      }
    }
  }

  private func index(of ticket: Ticket) -> Int? {
    var low = 0
    var high = entries.count
    while low < high {
      let middle = (low + high) / 2
      if entries[middle].order < ticket.order { low = middle + 1 } else { high = middle }
    }
    return low < entries.count && entries[low].order == ticket.order ? low : nil
  }
}

extension FileOperation {
  /// The file whose contents or size this changes, and the bytes that depend on the order; nil = names and attributes
  /// only. A change of size depends on the order with everything behind the new end.
  public var orderedRange: (file: FileID, range: Range<UInt64>)? {
    switch self {
    case .write(let file, let offset, let length):
      return (file, offset..<offset + UInt64(length))
    case .setAttributes(let file, let change):
      guard let size = change.size else { return nil }
      return (file, size..<UInt64.max)
    case .allocate(let file, let mode, let offset, let length):
      return (file, mode.movesData ? offset..<UInt64.max : offset..<offset + length)
    default:
      return nil
    }
  }
}
