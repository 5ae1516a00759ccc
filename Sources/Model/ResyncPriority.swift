/// Which modules are resynchronised before others when several wait for it. In module.xml and in the API by these words.
public enum ResyncPriority: String, Codable, Sendable, Hashable, CaseIterable, Comparable {
  case high, normal, low

  private var rank: Int {
    switch self {
    case .high: 2
    case .normal: 1
    case .low: 0
    }
  }
  public static func < (a: Self, b: Self) -> Bool { a.rank < b.rank }
}
