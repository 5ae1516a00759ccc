/// Durations as people write them: a whole number and a unit, `250ms`, `3s`, `2m`, `24h`, `7d`.
public enum TimeText {
  private static let units: [(name: String, milliseconds: Int64)] = [
    ("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000),
  ]
  /// Longer is refused, so that no sum of durations can overflow.
  public static let daysMax: Int64 = 3650

  /// nil unless it is a whole number with one of the units, at most `daysMax` days.
  public static func parse(_ text: String) -> Duration? {
    let digits = text.prefix { $0.isASCII && $0.isNumber }
    let unit = text.dropFirst(digits.count)
    guard let number = Int64(digits), let found = units.first(where: { $0.name == unit }) else { return nil }
    let (milliseconds, overflow) = number.multipliedReportingOverflow(by: found.milliseconds)
    guard !overflow, milliseconds <= daysMax * 86_400_000 else { return nil }
    return .milliseconds(milliseconds)
  }

  /// In the largest unit that says it exactly; parts of a millisecond are dropped.
  public static func format(_ duration: Duration) -> String {
    let (seconds, attoseconds) = duration.components
    let milliseconds = seconds * 1000 + attoseconds / 1_000_000_000_000_000
    let unit = units.last { milliseconds != 0 && milliseconds % $0.milliseconds == 0 } ?? units[0]
    return "\(milliseconds / unit.milliseconds)\(unit.name)"
  }
}
