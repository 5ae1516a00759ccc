import ArgumentParser
import ControlAPI

/// Exit codes of `vmha`, documented in vmha(8).
public enum ExitStatus: Int32, Sendable {
  case success = 0
  /// It was tried and failed, or the module came to rest elsewhere than asked.
  case failure = 1
  /// The command line is wrong.
  case usage = 2
  /// vmhad does not run, or this user may not talk to it.
  case unreachable = 3
  /// Refused; nothing was changed.
  case refused = 4
  /// It was begun and did not end in time; it may still.
  case timedOut = 5
  /// `verify`: the copies are not the same.
  case differs = 6

  init(_ error: ControlError) {
    switch error.code {
    case .daemonNotRunning, .permissionDenied: self = .unreachable
    case .timedOut: self = .timedOut
    default: self = error.nothingChanged ? .refused : .failure
    }
  }

  /// Of several commands, the code that says most: a difference before a failure before a refusal.
  static func worst(_ codes: [ExitStatus]) -> ExitStatus {
    let order: [ExitStatus] = [.unreachable, .differs, .failure, .timedOut, .refused, .usage, .success]
    return order.first { codes.contains($0) } ?? .success
  }
}

/// What every error looks like: what, why, what to do next.
enum ErrorRendering {
  static func lines(_ error: ControlError, _ console: Console) -> [String] {
    var lines = [Styled("error: ", .red).rendered(console) + error.message]
    lines += (error.details ?? []).map { "  - \($0)" }
    if let why = error.why { lines.append("why:   \(why)") }
    if let next = error.next { lines.append("next:  \(next)") }
    return lines
  }
}
