import ArgumentParser
import ControlHTTP
import Glibc
import HostSystem
import Logging
import NodeDaemon

/// The node daemon: `vmhad`. Run by systemd (vmhad.service), or by the lab.
@main
struct VmhaDaemon: AsyncParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmhad", abstract: "vmha's node daemon: heartbeat, module decisions, control socket.",
    version: Daemon.version)

  @Option(help: "Folder that stands for / (tests only).")
  var root = ""

  @Option(help: "Folder that holds vmha-replicad; by default the one vmhad is in.")
  var executables: String?

  func run() async throws {
    LoggingSystem.bootstrap { StreamLogHandler.standardError(label: $0) }
    var logger = Logger(label: "vmhad")
    logger.logLevel = .notice
    ignoreBrokenPipes()
    Self.blockEndSignals()
    let paths = HostPaths(root: root)
    let daemon: Daemon
    do {
      daemon = try Daemon(paths: paths, executables: executables ?? Self.ownFolder())
      try daemon.start()
    } catch {
      logger.error("vmhad cannot start: \(error)")
      throw ExitCode.failure
    }
    let server = ControlServer(service: daemon, socketPath: paths.controlSocket, group: "vmha", logger: logger)
    let serving = Task { try await server.run() }
    try HostThread.start(name: "signals") {
      Self.waitForEnd()
      serving.cancel()
    }
    defer { daemon.stop() }
    do { try await serving.value } catch {
      logger.error("vmhad ends: \(error)")
      throw ExitCode.failure
    }
  }

  private static func ownFolder() throws -> String {
    try runningProgram().split(separator: "/").dropLast().reduce("") { "\($0)/\($1)" }
  }

  private static func endSignals() -> sigset_t {
    var set = sigset_t()
    sigemptyset(&set)
    sigaddset(&set, SIGTERM)
    sigaddset(&set, SIGINT)
    return set
  }

  /// For this thread and every one that is made from here on; one thread then waits for them.
  private static func blockEndSignals() {
    var set = endSignals()
    pthread_sigmask(SIG_BLOCK, &set, nil)
  }

  /// Blocks until SIGTERM or SIGINT.
  private static func waitForEnd() {
    var set = endSignals()
    var caught: Int32 = 0
    sigwait(&set, &caught)
  }
}
