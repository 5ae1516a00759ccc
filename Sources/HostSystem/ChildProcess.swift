import CHostShims
import Glibc
import Model
import Synchronization

/// Programs that vmha runs.
public enum ChildProcess {
  public struct Result: Sendable, Hashable {
    /// Exit code 0...255; 128 + signal if a signal ended it.
    public let status: Int32
    public let output: [UInt8]
    public let errors: [UInt8]
    public var outputText: String { String(decoding: output, as: UTF8.self) }
    public var errorText: String { String(decoding: errors, as: UTF8.self) }
  }

  /// How often a child is looked at that has closed its output, or that handed it to a grandchild.
  private static let reapPoll: Duration = .milliseconds(20)

  /// Runs a program to its end. `arguments[0]` is looked up in PATH. At `timeout` its whole process group is killed and
  /// `.timedOut` thrown; `.limit` likewise when it writes more than `outputBytesMax` to either stream. Always reaped.
  /// Throws `HostError`.
  public static func run(
    _ arguments: [String], input: [UInt8] = [], environment: [String: String]? = nil, timeout: Duration,
    outputBytesMax: Int = 16 << 20
  ) throws -> Result {
    let name = arguments.first ?? ""
    ignoreBrokenPipes()
    var pipes = try Pipes()
    defer { pipes.closeAll() }
    let child = try spawn(arguments, environment, pipes.childEnds, newSession: false)
    pipes.closeChildEnds()
    do {
      var exchange = Exchange(pipes: pipes, input: input, outputBytesMax: outputBytesMax)
      let (status, output, errors) = try exchange.run(child: child, until: monotonicNow() + timeout, name: name)
      return Result(status: vmha_exit_code(status), output: output, errors: errors)
    } catch let error as HostError {
      // Not reaped yet, so the group's id cannot belong to anybody else.
      kill(-child, SIGKILL)
      reap(child)
      if error.code == .timedOut {
        throw HostError(.timedOut, "run", path: name, "not finished after \(timeout); it was killed")
      }
      throw error
    }
  }

  /// Starts a program in its own session that lives on when this process ends. Standard input is /dev/null; output is
  /// appended to `log` (mode 0640) or goes to /dev/null. While this process lives it reaps the child; `onExit` then
  /// gets its status.
  @discardableResult
  public static func spawnDetached(
    _ arguments: [String], environment: [String: String]? = nil, log: String? = nil,
    onExit: (@Sendable (_ status: Int32) -> Void)? = nil
  ) throws -> Int32 {
    let null = try HostCalls.perform("spawn.null") { open("/dev/null", O_RDWR | O_CLOEXEC) }
    defer { close(null) }
    let output =
      if let log {
        try HostCalls.perform("spawn.log", path: log) { open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0o640) }
      } else { null }
    defer { if output != null { close(output) } }
    let child = try spawn(arguments, environment, (null, output, output), newSession: true)
    do {
      try HostThread.start(name: "reap-\(child)", stackBytes: 256 << 10) {
        let status = reap(child)
        onExit?(vmha_exit_code(status))
      }
    } catch {
      kill(-child, SIGKILL)
      reap(child)
      throw error
    }
    return child
  }

  @discardableResult
  private static func reap(_ child: pid_t) -> Int32 {
    var status: Int32 = 0
    while waitpid(child, &status, 0) == -1 && errno == EINTR {}
    return status
  }

  private static func spawn(
    _ arguments: [String], _ environment: [String: String]?, _ stdio: (Int32, Int32, Int32), newSession: Bool
  ) throws -> pid_t {
    guard let program = arguments.first else { throw HostError(.invalid, "spawn", "no program given") }
    var words = arguments.map { strdup($0) }
    defer { words.forEach { free($0) } }
    words.append(nil)
    var variables = environment?.map { strdup("\($0.key)=\($0.value)") } ?? []
    defer { variables.forEach { free($0) } }
    variables.append(nil)
    var child = pid_t()
    let result = try HostCalls.performThrowing("spawn", path: program) {
      variables.withUnsafeMutableBufferPointer { variables in
        vmha_spawn(
          &child, program, words, environment == nil ? environ : variables.baseAddress, stdio.0, stdio.1, stdio.2,
          newSession ? 1 : 0)
      }
    }
    guard result == 0 else {
      let hint = result == ENOENT ? "the program '\(program)' is not installed" : ""
      throw HostError(.system, "spawn", path: program, errno: result, hint)
    }
    return child
  }

  /// Three pipes; -1 = closed.
  private struct Pipes {
    var input: [Int32] = [-1, -1]
    var output: [Int32] = [-1, -1]
    var errors: [Int32] = [-1, -1]

    init() throws {
      do {
        try HostCalls.perform("spawn.pipe") { vmha_pipe(&input) }
        try HostCalls.perform("spawn.pipe") { vmha_pipe(&output) }
        try HostCalls.perform("spawn.pipe") { vmha_pipe(&errors) }
      } catch {
        closeAll()
        throw error
      }
      for end in [input[1], output[0], errors[0]] { _ = fcntl(end, F_SETFL, O_NONBLOCK) }
    }
    var childEnds: (Int32, Int32, Int32) { (input[0], output[1], errors[1]) }
    static func shut(_ end: inout Int32) {
      if end >= 0 { close(end) }
      end = -1
    }
    mutating func closeChildEnds() {
      Self.shut(&input[0])
      Self.shut(&output[1])
      Self.shut(&errors[1])
    }
    mutating func closeAll() {
      closeChildEnds()
      Self.shut(&input[1])
      Self.shut(&output[0])
      Self.shut(&errors[0])
    }
  }

  /// Feeds and drains the pipes until the child has ended.
  private struct Exchange {
    let input: [UInt8]
    let outputBytesMax: Int
    var toChild: Int32
    var fromChild: [Int32]
    var sent = 0
    var received: [[UInt8]] = [[], []]

    init(pipes: borrowing Pipes, input: [UInt8], outputBytesMax: Int) {
      self.input = input
      self.outputBytesMax = outputBytesMax
      // Own copies of the numbers only: `Pipes` closes them.
      toChild = pipes.input[1]
      fromChild = [pipes.output[0], pipes.errors[0]]
    }

    mutating func run(child: pid_t, until deadline: Instant, name: String) throws -> (Int32, [UInt8], [UInt8]) {
      var status: Int32 = 0
      while true {
        let ended = waitpid(child, &status, WNOHANG) == child
        let left = deadline - monotonicNow()
        guard ended || left > .zero else { throw HostError(.timedOut, "run", path: name, "") }
        try pump(wait: ended ? .zero : min(left, reapPoll), name: name)
        if ended { return (status, received[0], received[1]) }
      }
    }

    private mutating func pump(wait: Duration, name: String) throws {
      if sent == input.count { endInput() }
      var entries = [
        pollfd(fd: toChild, events: Int16(POLLOUT), revents: 0),
        pollfd(fd: fromChild[0], events: Int16(POLLIN), revents: 0),
        pollfd(fd: fromChild[1], events: Int16(POLLIN), revents: 0),
      ]
      _ = try HostCalls.perform("run.poll", path: name) { poll(&entries, 3, wait.pollMilliseconds) }
      if entries[0].revents != 0 { feed() }
      for stream in 0..<2 where entries[stream + 1].revents != 0 { try drain(stream, name: name) }
    }

    /// A negative descriptor is skipped by poll; the descriptor itself is closed at once, so that the child sees the
    /// end.
    private mutating func endInput() {
      guard toChild >= 0 else { return }
      // Replaced rather than closed: `Pipes` still holds the number and closes it later.
      let null = open("/dev/null", O_WRONLY | O_CLOEXEC)
      if null >= 0 {
        dup2(null, toChild)
        close(null)
      }
      toChild = -1
    }

    private mutating func feed() {
      let count = input[sent...].withUnsafeBytes { Glibc.write(toChild, $0.baseAddress, $0.count) }
      if count > 0 {
        sent += count
      } else if errno != EAGAIN, errno != EINTR {
        // The child does not want the rest; its status says whether that was right.
        sent = input.count
      }
    }

    private mutating func drain(_ stream: Int, name: String) throws {
      var chunk = [UInt8](repeating: 0, count: 64 << 10)
      while fromChild[stream] >= 0 {
        let count = Glibc.read(fromChild[stream], &chunk, 64 << 10)
        if count == 0 {
          fromChild[stream] = -1
        } else if count > 0 {
          received[stream] += chunk[..<count]
          guard received[stream].count <= outputBytesMax else {
            throw HostError(.limit, "run", path: name, "more than \(outputBytesMax) bytes of output; it was killed")
          }
        } else if errno != EINTR {
          return
        }
      }
    }
  }
}
