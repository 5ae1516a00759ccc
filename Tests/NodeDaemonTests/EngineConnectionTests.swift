import Glibc
import HostSystem
import Model
import Testing

@testable import NodeDaemon

/// vmhad's side of an engine, against a keeper's socket on which the test plays the engines.
@Suite struct EngineConnectionTests {
  private final class Heard: Sendable {
    let events = Monitor<[EngineEvent]>([])
    let replaced = Monitor<EngineReport?>(nil)
    let gone = Monitor<String?>(nil)
    let ended = Monitor<Int32?>(nil)

    /// Within 5 s.
    func hears(_ event: EngineEvent) -> Bool {
      events.wait(timeout: .seconds(5)) { events -> Bool? in events.contains(event) ? true : nil } != nil
    }
  }

  private struct Keeper {
    let listener: Int32
    let connection: EngineConnection
    let heard: Heard

    /// The next engine takes the connection and hears what it is to be.
    func engine() throws -> LineChannel {
      let socket = try #require(try UnixSocket.accept(listener, timeout: .seconds(10)))
      let channel = LineChannel(socket: socket)
      guard case .configure? = try channel.receive(EngineCommand.self, timeout: .seconds(10)) else {
        Issue.record("the first command is not configure")
        return channel
      }
      return channel
    }
  }

  private func report(held: Bool) -> EngineReport {
    var report = EngineReport(processID: 1, role: .primary, policy: .frozen)
    report.isMounted = true
    report.areReadsHeld = held
    return report
  }

  private func withKeeper(wordTimeout: Duration, _ body: (Keeper) throws -> Void) throws {
    try withAdoptionFolder { root in
      let paths = HostPaths(root: root)
      let name = try #require(ModuleName("vm1"))
      let socket = paths.engineSocket(name)
      try DurableFile.makeFolder(DurableFile.parent(of: socket))
      let listener = try UnixSocket.listen(path: socket)
      defer { close(listener) }
      let heard = Heard()
      let connection = EngineConnection(
        paths: paths, module: name, launcher: EngineLauncher(paths: paths, executable: "/bin/false"),
        onEvent: { event in heard.events.withLock { $0.append(event) } },
        onReplaced: { report, _ in heard.replaced.withLock { $0 = report } },
        onGone: { why in heard.gone.withLock { $0 = why } }, wordTimeout: wordTimeout,
        end: { process in
          heard.ended.withLock { $0 = process }
          // The keeper dies with it.
          shutdown(listener, Int32(SHUT_RDWR))
        })
      defer { connection.detach() }
      connection.start(
        EngineConfiguration(
          module: name, node: .first, peerName: "b", port: 1, links: [], backingDirectory: "/", mountPoint: "/",
          intentsFile: "/", authorityFile: "/", certificateFile: "/", keyFile: "/", silenceMax: .milliseconds(2250),
          keepalive: .milliseconds(300), suspendAfter: .milliseconds(1500)))
      try body(Keeper(listener: listener, connection: connection, heard: heard))
    }
  }

  /// R2: the lease of a guest's reads runs out while no engine is there to say so: the guest is to be suspended all the same.
  @Test func withoutAnEngineReadsCountAsHeld() throws {
    try withKeeper(wordTimeout: .seconds(20)) { keeper in
      let first = try keeper.engine()
      try first.send(EngineEvent.ready(report(held: false)))
      #expect(keeper.heard.hears(.ready(report(held: false))))
      let begin = monotonicNow()
      first.close()
      let second = try keeper.engine()
      #expect(keeper.heard.hears(.readsHeld))
      #expect(monotonicNow() - begin >= .milliseconds(1500))
      #expect(keeper.heard.replaced.withLock { $0 } == nil)
      try second.send(EngineEvent.ready(report(held: true)))
      #expect(keeper.heard.replaced.wait(timeout: .seconds(5)) { $0 }?.areReadsHeld == true)
      // Said once, and the next engine has the word again.
      try second.send(EngineEvent.readsReleased)
      #expect(keeper.heard.hears(.readsReleased))
      #expect(keeper.heard.events.withLock { $0.filter { $0 == .readsHeld }.count } == 1)
    }
  }

  /// One that comes back soon suspends nobody.
  @Test func aShortAbsenceHoldsNothing() throws {
    try withKeeper(wordTimeout: .seconds(20)) { keeper in
      let first = try keeper.engine()
      try first.send(EngineEvent.ready(report(held: false)))
      first.close()
      try keeper.engine().send(EngineEvent.ready(report(held: false)))
      #expect(keeper.heard.replaced.wait(timeout: .seconds(5)) { report -> EngineReport? in report } != nil)
      #expect(!keeper.heard.events.withLock { $0.contains(.readsHeld) })
    }
  }

  /// It takes connections and commands, and answers nothing: the module must not wait for it for ever.
  @Test(arguments: [false, true]) func anEngineThatHangsIsEnded(hasServed: Bool) throws {
    try withKeeper(wordTimeout: .milliseconds(900)) { keeper in
      let first = try keeper.engine()
      if hasServed { try first.send(EngineEvent.ready(report(held: false))) }
      // It is asked before it is given up.
      guard case .report? = try first.receive(EngineCommand.self, timeout: .seconds(5)) else {
        Issue.record("it is not asked")
        return
      }
      #expect(keeper.heard.ended.wait(timeout: .seconds(5)) { $0 } == getpid())
      #expect(keeper.heard.gone.wait(timeout: .seconds(20)) { why -> String? in why } != nil)
    }
  }

  /// As long as it says anything it works.
  @Test func anEngineThatAnswersIsLeftAlone() throws {
    try withKeeper(wordTimeout: .seconds(3)) { keeper in
      let engine = try keeper.engine()
      let end = monotonicNow() + .seconds(7)
      try engine.send(EngineEvent.ready(report(held: false)))
      while monotonicNow() < end {
        guard case .report? = try engine.receive(EngineCommand.self, timeout: .seconds(5)) else { continue }
        usleep(800_000)
        try engine.send(EngineEvent.ready(report(held: false)))
      }
      #expect(keeper.heard.ended.withLock { $0 } == nil && keeper.heard.gone.withLock { $0 } == nil)
    }
  }
}
