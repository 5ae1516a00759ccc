import ControlAPI

/// Follows an `add`, `remove` or `verify` to its end: each step on a line, and a bar while bytes are copied or compared.
struct OperationProgress {
  /// Cells of the bar.
  static let barWidth = 30

  let tool: Tool
  let isQuiet: Bool

  /// How it ended; throws the operation's error.
  @discardableResult
  func follow(_ id: OperationID) async throws -> OperationStatus {
    let start = ContinuousClock.now
    var shownSteps = 0
    var hasBar = false
    while true {
      let status = try await look(id)
      if !isQuiet {
        if hasBar && (status.steps.count > shownSteps || status.finished) {
          tool.console.write("\r\u{1B}[K")
          hasBar = false
        }
        // The closing sentence is the last step too.
        let isClosed = status.finished && status.steps.last == status.sentence && status.error == nil
        let steps = isClosed ? status.steps.dropLast() : status.steps[...]
        for step in steps.dropFirst(shownSteps) {
          let elapsed = Wording.seconds(ContinuousClock.now - start)
          tool.console.line("\(String(repeating: " ", count: max(0, 7 - elapsed.count)))\(elapsed)  \(step)")
        }
        shownSteps = max(shownSteps, status.steps.count)
        if tool.console.isTerminal && !status.finished && status.bytesTotal > 0 {
          tool.console.write("\r\u{1B}[K         " + Self.bar(status))
          hasBar = true
        }
      }
      if status.finished {
        if let error = status.error { throw error }
        if !isQuiet { tool.console.line(status.sentence) }
        return status
      }
      try await Task.sleep(for: tool.pollInterval)
    }
  }

  private func look(_ id: OperationID) async throws -> OperationStatus {
    do {
      return try await tool.client.operation(id)
    } catch let error as ControlError where error.code == .daemonNotRunning || error.code == .noSuchOperation {
      throw ControlError(
        .failed, "vmhad ended while it worked on this", why: error.message,
        next: "every step is written down: when vmhad runs again, repeat the command and it is completed or undone",
        httpStatus: 500)
    }
  }

  /// ", 48.0 MiB/s, 3 min left".
  private static func rate(_ status: OperationStatus) -> String {
    guard let rate = status.bytesPerSecond, rate > 0 else { return "" }
    let left = status.secondsLeft.map { ", \(Wording.roughly(seconds: Int64($0))) left" } ?? ""
    return ", \(Wording.bytes(rate))/s\(left)"
  }

  /// "[##########--------------------]  33 %  1.0 GiB of 3.0 GiB".
  static func bar(_ status: OperationStatus) -> String {
    let total = max(status.bytesTotal, 1)
    let done = min(status.bytesDone, total)
    let full = Int(Double(done) / Double(total) * Double(barWidth))
    let percent = String(Int(Double(done) / Double(total) * 100))
    return "[" + String(repeating: "#", count: full) + String(repeating: "-", count: barWidth - full) + "] "
      + String(repeating: " ", count: max(0, 3 - percent.count)) + percent
      + " %  \(Wording.bytes(done)) of \(Wording.bytes(status.bytesTotal))" + rate(status)
  }
}
