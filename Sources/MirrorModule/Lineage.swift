import Model

/// R7: who is the source when the two nodes meet again. Both nodes compute it from the same two hellos and agree.
public enum Reconnection: Sendable, Hashable {
  case source(NodeID, why: String)
  /// Neither history contains the other's branch (R12).
  case split
  /// Neither copy can be used as it is.
  case noSource
  /// The other node lost its record and may have been alone; this one is up to date and has not shown yet that its copy is the newest.
  case awaitsProof(NodeID)
}

public enum Lineage {
  public static func decide(_ a: Hello, _ b: Hello) -> Reconnection {
    precondition(a.node != b.node, "two hellos of one node")
    if a.recordLost == true { return besideLostRecord(b) }
    if b.recordLost == true { return besideLostRecord(a) }
    if a.generation.branch == b.generation.branch { return sameBranch(a, b) }
    // R7: by descent, never by number.
    let aDescends = b.generation.branch == .empty || a.history.contains(b.generation.branch)
    let bDescends = a.generation.branch == .empty || b.history.contains(a.generation.branch)
    switch (aDescends, bDescends) {
    case (true, false): return usable(a, "its history contains the other's branch")
    case (false, true): return usable(b, "its history contains the other's branch")
    default: return .split
    }
  }

  /// R0, R7: an empty history proves nothing about a copy whose record was lost, whatever the other one's says.
  private static func besideLostRecord(_ other: Hello) -> Reconnection {
    guard other.recordLost != true, other.standing == .uptodate else { return .noSource }
    let isProven = other.provesNewest == true
    guard other.isAlone || isProven else { return .awaitsProof(other.node) }
    return .source(
      other.node, why: "the other node lost its record, and this copy is \(isProven ? "the newest" : "served alone")")
  }

  /// R6: an outdated copy knows that a newer one was written. It ends to be outdated by itself only on the same branch, where nobody
  /// has used the consent; beside another copy, one whose record was lost above all, only the operator can say that it counts.
  private static func usable(_ hello: Hello, _ why: String) -> Reconnection {
    hello.standing == .uptodate ? .source(hello.node, why: why) : .noSource
  }

  private static func sameBranch(_ a: Hello, _ b: Hello) -> Reconnection {
    switch (a.standing == .inconsistent, b.standing == .inconsistent) {
    case (true, true): return .noSource
    case (true, false): return .source(b.node, why: "the other copy is in the middle of a resync")
    case (false, true): return .source(a.node, why: "the other copy is in the middle of a resync")
    case (false, false): break
    }
    if a.isAlone && b.isAlone { return .split }
    // R7: nobody is assumed equal; alone > running guest > continuous > uptodate > last writer > node id.
    let order: [(String, (Hello) -> Bool)] = [
      ("it is alone", { $0.isAlone }), ("its guest is running", { $0.guestRunning }),
      ("it did not lose power since it was in sync", { $0.continuous }),
      ("its copy is up to date", { $0.standing == .uptodate }), ("it wrote last", { $0.wroteLast }),
    ]
    for (why, holds) in order where holds(a) != holds(b) {
      return .source(holds(a) ? a.node : b.node, why: why)
    }
    return .source(min(a.node, b.node), why: "both are equal and it has the lower number")
  }
}
