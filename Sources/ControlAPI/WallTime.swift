import Foundation
import Glibc

/// A point in wall-clock time, in milliseconds since 1970-01-01T00:00:00Z; in JSON `"2026-11-22T20:56:14.123Z"`.
/// For people and for lining up the journals of two hosts, never for decisions: hosts' clocks may differ and jump.
public struct WallTime: Sendable, Hashable, Comparable, CustomStringConvertible {
  public var milliseconds: Int64

  public init(milliseconds: Int64) { self.milliseconds = milliseconds }

  public static func now() -> WallTime {
    WallTime(milliseconds: Int64((Date().timeIntervalSince1970 * 1000).rounded(.down)))
  }

  public static func < (a: WallTime, b: WallTime) -> Bool { a.milliseconds < b.milliseconds }

  /// `b` to `a`, negative if `a` is earlier.
  public static func - (a: WallTime, b: WallTime) -> Duration { .milliseconds(a.milliseconds - b.milliseconds) }

  public static func + (a: WallTime, b: Duration) -> WallTime {
    let (seconds, attoseconds) = b.components
    return WallTime(milliseconds: a.milliseconds + seconds * 1000 + attoseconds / 1_000_000_000_000_000)
  }

  /// ISO 8601, UTC, three digits of fraction.
  public var description: String {
    var seconds = time_t(milliseconds.quotientFloored(by: 1000))
    let fraction = milliseconds - Int64(seconds) * 1000
    var parts = tm()
    gmtime_r(&seconds, &parts)
    return
      "\(padded(parts.tm_year + 1900, 4))-\(padded(parts.tm_mon + 1, 2))-\(padded(parts.tm_mday, 2))T"
      + "\(padded(parts.tm_hour, 2)):\(padded(parts.tm_min, 2)):\(padded(parts.tm_sec, 2))"
      + ".\(padded(Int32(fraction), 3))Z"
  }

  /// Reads `description` back, also with no fraction or one of any length; UTC (`Z`) only.
  public init?(_ text: String) {
    let bytes = Array(text.utf8)
    guard bytes.count >= 20, bytes.count <= 40, bytes.last == UInt8(ascii: "Z"), bytes[4] == UInt8(ascii: "-"),
      bytes[7] == UInt8(ascii: "-"), bytes[10] == UInt8(ascii: "T"), bytes[13] == UInt8(ascii: ":"),
      bytes[16] == UInt8(ascii: ":"),
      let year = number(bytes[0..<4]), let month = number(bytes[5..<7]), let day = number(bytes[8..<10]),
      let hour = number(bytes[11..<13]), let minute = number(bytes[14..<16]), let second = number(bytes[17..<19]),
      (1...12).contains(month), (1...31).contains(day), hour < 24, minute < 60, second < 61
    else { return nil }
    var fraction: Int64 = 0
    if bytes.count > 20 {
      let digits = bytes[20..<(bytes.count - 1)]
      guard bytes[19] == UInt8(ascii: "."), !digits.isEmpty, let head = number(digits.prefix(3)),
        digits.allSatisfy({ (48...57).contains($0) })
      else { return nil }
      fraction = Int64(head) * [0, 100, 10, 1][min(digits.count, 3)]
    }
    var parts = tm()
    parts.tm_year = Int32(year - 1900)
    parts.tm_mon = Int32(month - 1)
    parts.tm_mday = Int32(day)
    parts.tm_hour = Int32(hour)
    parts.tm_min = Int32(minute)
    parts.tm_sec = Int32(second)
    milliseconds = Int64(timegm(&parts)) * 1000 + fraction
  }

  /// Local time of day for tables: `20:56:14`.
  public var localTimeOfDay: String {
    let parts = localParts
    return "\(padded(parts.tm_hour, 2)):\(padded(parts.tm_min, 2)):\(padded(parts.tm_sec, 2))"
  }

  /// Local date for tables: `2026-11-22`.
  public var localDate: String {
    let parts = localParts
    return "\(padded(parts.tm_year + 1900, 4))-\(padded(parts.tm_mon + 1, 2))-\(padded(parts.tm_mday, 2))"
  }

  /// The same to the millisecond: `20:56:14.123`.
  public var localTimeOfDayExact: String {
    "\(localTimeOfDay).\(padded(Int32(milliseconds - milliseconds.quotientFloored(by: 1000) * 1000), 3))"
  }

  private var localParts: tm {
    var seconds = time_t(milliseconds.quotientFloored(by: 1000))
    var parts = tm()
    localtime_r(&seconds, &parts)
    return parts
  }
}

extension WallTime: Codable {
  public init(from decoder: any Decoder) throws {
    let text = try decoder.singleValueContainer().decode(String.self)
    guard let time = WallTime(text) else {
      throw DecodingError.dataCorrupted(
        .init(codingPath: decoder.codingPath, debugDescription: "'\(text)' is not a time like 2026-11-22T20:56:14Z"))
    }
    self = time
  }
  public func encode(to encoder: any Encoder) throws {
    var container = encoder.singleValueContainer()
    try container.encode(description)
  }
}

extension Int64 {
  fileprivate func quotientFloored(by divisor: Int64) -> Int64 {
    let (quotient, remainder) = quotientAndRemainder(dividingBy: divisor)
    return remainder < 0 ? quotient - 1 : quotient
  }
}

private func padded(_ value: Int32, _ width: Int) -> String {
  let digits = String(value)
  return String(repeating: "0", count: max(0, width - digits.count)) + digits
}

private func number(_ digits: ArraySlice<UInt8>) -> Int? {
  var value = 0
  for digit in digits {
    guard (48...57).contains(digit) else { return nil }
    value = value * 10 + Int(digit - 48)
  }
  return value
}
