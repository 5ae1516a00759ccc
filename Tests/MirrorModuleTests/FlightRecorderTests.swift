import FoundationEssentials
import Glibc
import Model
import Testing

@testable import MirrorModule
@testable import Simulation

@Suite struct FlightRecorderTests {
  /// As it travels: through JSON.
  private func travelled(_ recorder: FlightRecorder) throws -> FlightRecorder {
    try JSONDecoder().decode(FlightRecorder.self, from: JSONEncoder().encode(recorder))
  }

  /// VMHA_DUMP = a file that `vmha why VM --decisions` wrote on a host: only that one, and where it is decided otherwise.
  @Test func aDumpIsDecidedAgainAsItWas() throws {
    if let path = getenv("VMHA_DUMP") {
      let dump = try JSONDecoder().decode(FlightRecorder.self, from: Data(contents(String(cString: path))))
      if let (entry, now) = dump.replay() { Issue.record("\(entry.event) led to \(entry.directives), now to \(now)") }
      return
    }
    var longest = 0
    for seed in 1...UInt64(20) {
      let run = RandomRun(seed: seed, arbiter: seed.isMultiple(of: 2) ? .none : .wait)
      #expect(run.failure() == nil)
      for daemon in run.world.nodes.compactMap(\.daemon) {
        let dump = try travelled(daemon.recorder)
        #expect(dump == daemon.recorder)
        #expect(dump.replay() == nil)
        longest = max(longest, dump.entries.count)
      }
    }
    // Else nothing was ever dropped from a front.
    #expect(longest == SimDaemon.recordedMax)
  }

  @Test func anotherDecisionIsFound() throws {
    let world = World(World.Options())
    let settings = world.node(.first).settings
    var core = MirrorModule(settings: settings)
    var recorder = FlightRecorder(core)
    let wish = Wish(started: true, version: 1)
    let directives = recorder.handle(
      .loaded(record: nil, wish: wish, guest: .off), at: Instant(nanoseconds: 1), by: &core)
    #expect(directives.contains(.startEngine))
    let text = String(decoding: try JSONEncoder().encode(recorder), as: UTF8.self)
    let lie = text.replacing("\"startEngine\"", with: "\"killEngine\"")
    let found = try JSONDecoder().decode(FlightRecorder.self, from: Data(lie.utf8)).replay()
    #expect(found?.now == directives)
  }

  @Test func whatHasNoEffectIsNotKept() throws {
    let world = World(World.Options())
    let settings = world.node(.first).settings
    var core = MirrorModule(settings: settings)
    var recorder = FlightRecorder(core)
    _ = recorder.handle(
      .loaded(record: nil, wish: Wish(started: true, version: 1), guest: .off), at: Instant(nanoseconds: 1), by: &core)
    for step in 2..<100 { _ = recorder.handle(.timer, at: Instant(nanoseconds: Int64(step)), by: &core) }
    #expect(recorder.entries.count == 1)
  }

  private func contents(_ path: String) throws -> [UInt8] {
    let file = try #require(fopen(path, "r"))
    defer { fclose(file) }
    var bytes: [UInt8] = []
    var buffer = [UInt8](repeating: 0, count: 1 << 16)
    while case let count = fread(&buffer, 1, buffer.count, file), count > 0 { bytes += buffer[..<count] }
    return bytes
  }
}
