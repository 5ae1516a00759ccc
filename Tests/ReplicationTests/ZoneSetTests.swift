import Testing

@testable import Replication

@Suite struct ZoneSetTests {
  @Test(arguments: 0..<50 as Range<UInt64>) func behavesAsASet(seed: UInt64) {
    var random = SeededGenerator(seed: seed)
    var set = ZoneSet()
    var other = ZoneSet()
    var model: Set<UInt32> = []
    var otherModel: Set<UInt32> = []
    for _ in 0..<200 {
      let start = UInt32.random(in: 0..<60, using: &random)
      let range = start..<start + UInt32.random(in: 0..<8, using: &random)
      switch Int.random(in: 0..<3, using: &random) {
      case 0:
        set.insert(range)
        model.formUnion(range)
      case 1:
        set.remove(range)
        model.subtract(range)
      default:
        other.insert(range)
        otherModel.formUnion(range)
        if random.chance(10) { (other, otherModel) = (ZoneSet(), []) }
      }
      expectSame(set, model)
      expectSame(set.union(other), model.union(otherModel))
      var coarse = set
      coarse.coarsen(countMax: 3)
      #expect(coarse.ranges.count <= 3 && set.ranges.allSatisfy { $0.allSatisfy(coarse.contains) })
    }
  }

  private func expectSame(_ set: ZoneSet, _ model: Set<UInt32>) {
    #expect((0..<80 as Range<UInt32>).allSatisfy { set.contains($0) == model.contains($0) })
    #expect(set.count == model.count)
    #expect(zip(set.ranges, set.ranges.dropFirst()).allSatisfy { $0.upperBound < $1.lowerBound })
    #expect(set == ZoneSet(set.ranges.reversed()))
  }

  @Test func unionOfIntents() {
    #expect(FileContent.zones([1..<2]).union(.zones([2..<3, 9..<10])) == .zones([1..<3, 9..<10]))
    #expect(FileContent.zones([1..<2]).union(.whole) == .whole)
    #expect(FileContent.whole.union(.zones([])) == .whole)
  }

  @Test func coarseningFillsTheSmallestGaps() {
    var set = ZoneSet([0..<1, 2..<3, 10..<11, 1000..<1001])
    set.coarsen(countMax: 3)
    #expect(set.ranges == [0..<3, 10..<11, 1000..<1001])
    set.coarsen(countMax: 1)
    #expect(set.ranges == [0..<1001])
    var edges = ZoneSet([0..<1, UInt32.max - 1..<UInt32.max])
    edges.coarsen(countMax: 1)
    #expect(edges.ranges == [0..<UInt32.max])
  }
}
