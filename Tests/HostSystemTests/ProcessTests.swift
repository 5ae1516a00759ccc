import Glibc
import HostSystem
import Model
import Synchronization
import Testing

@Suite struct ProcessTests {
  let folder: TemporaryFolder
  init() throws { folder = try TemporaryFolder() }

  @Test func runGivesStatusAndBothStreams() throws {
    let result = try ChildProcess.run(
      ["sh", "-c", "cat; echo bad >&2; exit 7"], input: Array("in".utf8), timeout: .seconds(5))
    #expect(result.status == 7 && result.outputText == "in" && result.errorText == "bad\n")
    let large = [UInt8](repeating: 65, count: 3 << 20)
    #expect(try ChildProcess.run(["cat"], input: large, timeout: .seconds(20)).output == large)
    // A child that does not read its input.
    #expect(try ChildProcess.run(["true"], input: large, timeout: .seconds(5)).status == 0)
    #expect(try ChildProcess.run(["sh", "-c", "kill -9 $$"], timeout: .seconds(5)).status == 137)
    #expect(
      try ChildProcess.run(["sh", "-c", "echo $X"], environment: ["X": "y"], timeout: .seconds(5)).outputText == "y\n")
  }

  @Test func runKillsTheWholeGroupInTime() throws {
    let start = monotonicNow()
    let pidFile = folder.file("pid")
    do {
      _ = try ChildProcess.run(["sh", "-c", "sleep 77 & echo $! > \(pidFile); wait"], timeout: .milliseconds(300))
      Issue.record("no time limit")
    } catch let error as HostError {
      #expect(error.code == .timedOut)
    }
    #expect(monotonicNow() - start < .seconds(60))
    let text = String(decoding: try DurableFile.read(pidFile), as: UTF8.self)
    let grandchild = try #require(pid_t(text.filter(\.isNumber)))
    var alive = true
    for _ in 0..<2000 where alive {
      usleep(10_000)
      // A killed orphan may stay a zombie until init reaps it.
      let status = try DurableFile.readIfPresent("/proc/\(grandchild)/stat").map { String(decoding: $0, as: UTF8.self) }
      alive = status.map { !$0.contains(") Z ") } ?? false
    }
    #expect(!alive)
  }

  @Test func runDoesNotWaitForAGrandchildThatKeepsThePipe() throws {
    let start = monotonicNow()
    let result = try ChildProcess.run(["sh", "-c", "sleep 30 & echo done"], timeout: .seconds(40))
    #expect(result.outputText == "done\n")
    #expect(monotonicNow() - start < .seconds(20))
  }

  @Test func runHasAnOutputLimitAndNamesAMissingProgram() throws {
    #expect(throws: HostError.self) { try ChildProcess.run(["yes"], timeout: .seconds(5), outputBytesMax: 1000) }
    do {
      _ = try ChildProcess.run(["/no/such/program"], timeout: .seconds(1))
      Issue.record("ran")
    } catch let error as HostError {
      #expect(error.errno == ENOENT && error.description.contains("/no/such/program"))
    }
  }

  @Test func detachedChildHasItsOwnSessionAndIsReaped() throws {
    let status = Monitor<Int32?>(nil)
    let log = folder.file("log")
    let pid = try ChildProcess.spawnDetached(["sh", "-c", "ps -o sid= -p $$; exit 3"], log: log) { code in
      status.withLock { $0 = code }
    }
    #expect(status.wait(timeout: .seconds(5)) { $0 } == 3)
    let text = String(decoding: try DurableFile.read(log), as: UTF8.self)
    #expect(text.filter(\.isNumber) == "\(pid)")
    #expect(kill(pid, 0) == -1 && errno == ESRCH)
  }

  @Test func workerKeepsOrderAndItsLimit() throws {
    let seen = Monitor<[Int]>([])
    let gate = Monitor(false)
    let worker = try Worker<Int>(name: "test-worker", eventsMax: 10) { event in
      _ = gate.wait(timeout: .seconds(5)) { $0 ? true : nil }
      seen.withLock { $0.append(event) }
    }
    var taken = 0
    for event in 0..<20 where worker.push(event) { taken += 1 }
    #expect((10...11).contains(taken))
    gate.withLock { $0 = true }
    worker.stop()
    #expect(seen.withLock { $0 } == Array(0..<taken))
    #expect(!worker.push(1))
  }

  @Test func workerWakesUpAtTheTimeSet() throws {
    let woken = Monitor<[Instant]>([])
    let worker = try Worker<Int>(
      name: "test-timer", eventsMax: 1, onWakeUp: { woken.withLock { $0.append(monotonicNow()) } }, handler: { _ in })
    let start = monotonicNow()
    worker.setWakeUp(at: start + .seconds(60))
    usleep(20_000)
    worker.setWakeUp(at: start + .milliseconds(150))
    let first = try #require(woken.wait(timeout: .seconds(5)) { $0.first })
    #expect(first - start >= .milliseconds(150) && first - start < .seconds(2))
    worker.setWakeUp(at: monotonicNow() + .milliseconds(50))
    worker.setWakeUp(at: nil)
    usleep(150_000)
    #expect(woken.withLock { $0.count } == 1)
    worker.stop()
  }
}
