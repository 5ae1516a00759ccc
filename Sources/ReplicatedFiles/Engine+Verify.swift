import Glibc
import HostSystem
import Model
import Replication

/// `verify`: on a thread of its own, told by the report only, so that no vmhad has to be there.
extension Engine {
  func verify(_ request: VerifyRequest) throws {
    guard let root = state.withLock({ $0.root }), isMounted else {
      throw EngineError(.state, "this node is not the primary")
    }
    let isFree = state.withLock { state -> Bool in
      guard !state.isVerifying else { return false }
      state.isVerifying = true
      state.verify = VerifyReport(id: request.id, repairs: request.repairs, startedAtMs: wallClockMs())
      return true
    }
    guard isFree else { throw EngineError(.busy, "another verification is in progress") }
    do {
      try HostThread.start(name: "verify", stackBytes: 2 << 20) { [self] in compare(request, root: root.number) }
    } catch {
      finishVerify(.interrupted(why: "\(error)"))
    }
  }

  private func compare(_ request: VerifyRequest, root: Int32) {
    var outcome = VerifyReport.Outcome.complete
    do throws(EngineError) {
      try mirror.verify(request, root: root) { run in
        state.withLock { state in
          guard var report = state.verify else { return }
          run.fill(&report, now: monotonicNow())
          state.verify = report
        }
      }
    } catch { outcome = .interrupted(why: error.message) }
    finishVerify(outcome)
  }

  private func finishVerify(_ outcome: VerifyReport.Outcome) {
    state.withLock { state in
      state.verify?.outcome = outcome
      state.verify?.endedAtMs = wallClockMs()
      state.verify?.secondsLeft = nil
      state.isVerifying = false
    }
    state.wake()
    Log.note("verification: \(outcome)")
  }

  /// Before the files are closed and the order of writes begins anew.
  func endVerify() {
    mirror.stopVerify()
    _ = state.wait(timeout: Mirror.drainTimeout) { $0.isVerifying ? nil : true }
  }
}

/// For people only.
private func wallClockMs() -> Int64 {
  var time = timespec()
  clock_gettime(CLOCK_REALTIME, &time)
  return Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000
}
