import MirrorModule
import Model
import Testing

@testable import Simulation

@Suite struct LineageTests {
  private static func hello(
    _ node: NodeID, _ branches: [UInt64], _ standing: Standing = .uptodate, alone: Bool = false, guest: Bool = false,
    continuous: Bool = false, wroteLast: Bool = false, lost: Bool = false, proves: Bool = false
  ) -> Hello {
    var record = DurableRecord(
      generation: Generation(number: UInt32(branches.count), branch: BranchID(rawValue: branches.last ?? 0)),
      standing: standing)
    record.history = branches.map { BranchID(rawValue: $0) }
    if lost { record.recordLost = true }
    var hello = Hello(
      node: node, record: record, isAlone: alone, guestRunning: guest, continuous: continuous, provesNewest: proves)
    hello.wroteLast = wroteLast
    return hello
  }

  struct Row: Sendable, CustomTestStringConvertible {
    let name: String
    let a: Hello
    let b: Hello
    /// 0 = split, 3 = no source, 4 and 5 = the first or the second one awaits its proof.
    let source: Int
    var testDescription: String { name }
  }

  static let table: [Row] = [
    Row(name: "descent", a: hello(.first, [1, 2]), b: hello(.second, [1]), source: 1),
    Row(name: "descent the other way", a: hello(.first, [1]), b: hello(.second, [1, 2]), source: 2),
    Row(name: "never by number", a: hello(.first, [1, 5, 6, 7]), b: hello(.second, [1, 2]), source: 0),
    Row(name: "equal numbers, other branch", a: hello(.first, [1, 2]), b: hello(.second, [1, 3]), source: 0),
    Row(name: "nothing there", a: hello(.first, [1]), b: hello(.second, [0], .inconsistent), source: 1),
    Row(
      name: "nothing anywhere", a: hello(.first, [0], .inconsistent), b: hello(.second, [0], .inconsistent), source: 3),
    Row(
      name: "the descendant is unusable", a: hello(.first, [1, 2], .inconsistent), b: hello(.second, [1]), source: 3),
    Row(
      name: "outdated beside a lost record", a: hello(.first, [1, 2], .outdated), b: hello(.second, [0], .inconsistent),
      source: 3),
    Row(name: "outdated beside an older copy", a: hello(.first, [1, 2], .outdated), b: hello(.second, [1]), source: 3),
    Row(
      name: "same branch, outdated and half copied", a: hello(.first, [1], .outdated),
      b: hello(.second, [1], .inconsistent),
      source: 1),
    Row(
      name: "an ancestor alone does not win", a: hello(.first, [1], alone: true), b: hello(.second, [1, 2]), source: 2),
    Row(name: "same branch, one half copied", a: hello(.first, [1], .inconsistent), b: hello(.second, [1]), source: 2),
    Row(name: "both alone", a: hello(.first, [1], alone: true), b: hello(.second, [1], alone: true), source: 0),
    Row(
      name: "alone before guest", a: hello(.first, [1], guest: true), b: hello(.second, [1], alone: true), source: 2),
    Row(
      name: "guest before continuous", a: hello(.first, [1], continuous: true), b: hello(.second, [1], guest: true),
      source: 2),
    Row(
      name: "continuous before last writer", a: hello(.first, [1], wroteLast: true),
      b: hello(.second, [1], continuous: true), source: 2),
    Row(name: "up to date before outdated", a: hello(.first, [1], .outdated), b: hello(.second, [1]), source: 2),
    Row(name: "last writer before number", a: hello(.first, [1]), b: hello(.second, [1], wroteLast: true), source: 2),
    Row(name: "equal", a: hello(.first, [1]), b: hello(.second, [1]), source: 1),
    Row(
      name: "both records lost", a: hello(.first, [0], .inconsistent, lost: true),
      b: hello(.second, [0], .inconsistent, lost: true), source: 3),
    Row(
      name: "a lost record beside a new copy", a: hello(.first, [0], .inconsistent, lost: true),
      b: hello(.second, [0], .inconsistent), source: 3),
    Row(
      name: "a lost record beside half a copy", a: hello(.first, [0], .inconsistent, lost: true),
      b: hello(.second, [1], .inconsistent), source: 3),
    Row(
      name: "a lost record beside an outdated copy", a: hello(.first, [1, 2], .outdated, proves: true),
      b: hello(.second, [0], .inconsistent, lost: true), source: 3),
    Row(
      name: "a lost record beside a copy that was in sync",
      a: hello(.first, [1, 2], guest: true, continuous: true, wroteLast: true),
      b: hello(.second, [0], .inconsistent, lost: true), source: 4),
    Row(
      name: "the same from the other side", a: hello(.first, [0], .inconsistent, guest: true, lost: true),
      b: hello(.second, [1]), source: 5),
    Row(
      name: "a lost record beside one that is alone", a: hello(.first, [0], .inconsistent, lost: true),
      b: hello(.second, [1], alone: true), source: 2),
    Row(
      name: "a lost record beside a proof", a: hello(.first, [1], proves: true),
      b: hello(.second, [0], .inconsistent, lost: true), source: 1),
    Row(name: "both outdated", a: hello(.first, [1], .outdated), b: hello(.second, [1], .outdated), source: 1),
  ]

  private func source(_ decision: Reconnection) -> Int {
    switch decision {
    case .source(let node, _): node.rawValue
    case .split: 0
    case .noSource: 3
    case .awaitsProof(let node): 3 + node.rawValue
    }
  }

  @Test(arguments: table) func decides(row: Row) { #expect(source(Lineage.decide(row.a, row.b)) == row.source) }

  /// Both nodes compute the same, and an unusable copy is never the source.
  @Test func bothNodesAgree() {
    var random = Random(state: 7)
    for _ in 0..<50_000 {
      let hellos = [NodeID.first, .second].map { node in
        let branches = (0...random.below(3)).map { _ in UInt64(random.below(4)) }
        let lost = random.chance(20)
        let standing = lost ? .inconsistent : [Standing.uptodate, .outdated, .inconsistent][random.below(3)]
        return Self.hello(
          node, lost ? [0] : branches, standing, alone: !lost && random.chance(30), guest: random.chance(30),
          continuous: random.chance(50), wroteLast: random.chance(50), lost: lost, proves: random.chance(20))
      }
      let decision = Lineage.decide(hellos[0], hellos[1])
      #expect(decision == Lineage.decide(hellos[1], hellos[0]))
      guard case .source(let node, _) = decision else { continue }
      let (source, other) = (hellos[node.rawValue - 1], hellos[node.peer.rawValue - 1])
      #expect(source.standing != .inconsistent)
      if other.recordLost == true { #expect(source.isAlone || source.provesNewest == true) }
    }
  }
}
