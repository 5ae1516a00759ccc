import ControlAPI
import Model

/// How figures are written for people.
enum Wording {
  /// "64.0 MiB".
  static func bytes(_ count: UInt64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    var value = Double(count)
    var index = 0
    while value >= 1024 && index < units.count - 1 {
      value /= 1024
      index += 1
    }
    return index == 0 ? "\(count) B" : "\(oneDecimal(value)) \(units[index])"
  }

  static func oneDecimal(_ value: Double) -> String {
    let tenths = Int64((value * 10).rounded())
    return "\(tenths / 10).\(abs(tenths % 10))"
  }

  /// "12.3 s".
  static func seconds(_ duration: Duration) -> String {
    oneDecimal(Double(duration.components.seconds) + Double(duration.components.attoseconds) / 1e18) + " s"
  }

  /// "45 s", "12 min", "3 h 20 min", "5 d 2 h".
  static func roughly(seconds: Int64) -> String {
    switch seconds {
    case ..<0: return "0 s"
    case ..<120: return "\(seconds) s"
    case ..<7200: return "\(seconds / 60) min"
    case ..<172_800: return "\(seconds / 3600) h \(seconds % 3600 / 60) min"
    default: return "\(seconds / 86400) d \(seconds % 86400 / 3600) h"
    }
  }

  /// "25 %, 50.0 MiB/s, 1 s left".
  static func resync(_ resync: ResyncStatus) -> String {
    let percent = resync.bytesTotal == 0 ? 100 : resync.bytesDone * 100 / max(1, resync.bytesTotal)
    if let seconds = resync.stalledSeconds {
      return "\(min(percent, 100)) %, stalled: nothing moved for \(roughly(seconds: Int64(seconds)))"
    }
    var text = "\(min(percent, 100)) %, \(bytes(resync.bytesPerSecond))/s"
    if let left = resync.secondsLeft { text += ", \(roughly(seconds: Int64(left))) left" }
    return text
  }

  /// "waits for 2 resyncs of higher priority and 1 other".
  static func wait(_ wait: ResyncWait) -> String {
    func count(_ number: Int, _ what: String) -> String { "\(number) \(what)\(number == 1 ? "" : "s")" }
    var parts: [String] = []
    if wait.higherPriority > 0 { parts.append(count(wait.higherPriority, "resync") + " of higher priority") }
    if wait.others > 0 { parts.append(count(wait.others, parts.isEmpty ? "other resync" : "other")) }
    return parts.isEmpty ? "is about to begin" : "waits for " + parts.joined(separator: " and ")
  }

  static func list(_ names: [String]) -> String { names.joined(separator: ", ") }

  static func milliseconds(_ count: Int) -> String {
    count % 1000 == 0 ? "\(count / 1000) s" : "\(count) ms"
  }
}
