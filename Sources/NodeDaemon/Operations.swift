import ControlAPI
import HostSystem
import Model
import Synchronization

/// Adds, removes and verifications that go on in the background; the finished ones are remembered for a while.
final class Operations: Sendable {
  /// Finished operations kept; the oldest go first.
  static let keptMax = 100

  private struct State {
    var all: [OperationID: OperationStatus] = [:]
    var order: [OperationID] = []
    var next = 1
  }
  private let state = Mutex(State())

  /// Refuses a second operation on the same module.
  func begin(_ kind: OperationStatus.Kind, module: String, sentence: String) throws -> OperationID {
    try state.withLock { state in
      if let other = state.all.values.first(where: { $0.module == module && !$0.finished }) {
        throw ControlError(
          .busy, "\(module) is being worked on", why: "\(other.kind.rawValue): \(other.sentence)",
          next: "wait for its end and repeat")
      }
      let id = OperationID(rawValue: "\(kind.rawValue)-\(state.next)")
      state.next += 1
      var status = OperationStatus(id: id, kind: kind, module: module, sentence: sentence)
      status.steps = [sentence]
      state.all[id] = status
      state.order.append(id)
      while state.order.count > Self.keptMax, let oldest = state.order.first, state.all[oldest]?.finished == true {
        state.all[oldest] = nil
        state.order.removeFirst()
      }
      return id
    }
  }

  /// The one that works on this module now.
  func unfinished(_ module: String) -> OperationStatus? {
    state.withLock { $0.all.values.first { $0.module == module && !$0.finished } }
  }

  func progress(_ id: OperationID, _ sentence: String, done: UInt64, total: UInt64) {
    state.withLock { state in
      guard var status = state.all[id] else { return }
      if status.sentence != sentence, status.steps.count < OperationStatus.stepCountMax {
        status.steps.append(sentence)
      }
      status.sentence = sentence
      status.bytesDone = done
      status.bytesTotal = total
      state.all[id] = status
    }
  }

  func progress(_ id: OperationID, _ report: VerifyReport) {
    state.withLock { state in
      guard var status = state.all[id] else { return }
      status.bytesDone = report.bytesDone
      status.bytesTotal = report.bytesTotal
      status.bytesPerSecond = report.bytesPerSecond
      status.secondsLeft = report.secondsLeft
      state.all[id] = status
    }
  }

  func finish(
    _ id: OperationID, _ sentence: String, error: ControlError? = nil, verification: VerificationResult? = nil
  ) {
    progress(id, sentence, done: 0, total: 0)
    state.withLock {
      $0.all[id]?.verification = verification
      $0.all[id]?.finished = true
      $0.all[id]?.error = error
    }
  }

  func status(_ id: OperationID) throws -> OperationStatus {
    guard let status = state.withLock({ $0.all[id] }) else {
      throw ControlError(
        .noSuchOperation, "no operation '\(id)'", why: "vmhad was restarted since, or it ended long ago",
        next: "see: vmha status; repeating a command completes what was begun")
    }
    return status
  }

  /// What is done to this module now, in words.
  func current(module: String) -> String? {
    state.withLock { $0.all.values.first { $0.module == module && !$0.finished } }
      .map { "\($0.kind.rawValue): \($0.sentence)" }
  }
}
