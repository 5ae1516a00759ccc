import Foundation
import Glibc

/// What a command said and how it ended.
struct Output: Sendable, CustomStringConvertible {
  var words: [String]
  /// 128 + signal if it was killed.
  var code: Int32
  var out: String
  var err: String
  var seconds: Double

  var ok: Bool { code == 0 }
  var all: String { out + err }
  var description: String {
    "'\(words.joined(separator: " "))' ended with \(code) after \(String(format: "%.1f", seconds)) s: \(all)"
  }
}

struct CommandFailure: Error, CustomStringConvertible {
  var description: String
}

/// A child process. Its output goes to files, not pipes, and its end is what waitpid says: what it starts in turn (nodes,
/// daemons) may live on with everything it inherited. Foundation's Process waits for all of those.
final class Command: @unchecked Sendable {
  private let folder: URL
  private let words: [String]
  private let begun = DispatchTime.now()
  private var pid: pid_t = 0

  /// Starts it at once.
  init(_ words: [String]) throws {
    self.words = words
    folder = FileManager.default.temporaryDirectory.appendingPathComponent("labtest-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    var actions = posix_spawn_file_actions_t()
    posix_spawn_file_actions_init(&actions)
    defer { posix_spawn_file_actions_destroy(&actions) }
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
    for (descriptor, name) in [(Int32(1), "out"), (2, "err")] {
      let path = folder.appendingPathComponent(name).path
      posix_spawn_file_actions_addopen(&actions, descriptor, path, O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    }
    // The threads of a test run block signals; a child must not begin so.
    var attributes = posix_spawnattr_t()
    var mask = sigset_t()
    posix_spawnattr_init(&attributes)
    defer { posix_spawnattr_destroy(&attributes) }
    sigemptyset(&mask)
    posix_spawnattr_setsigmask(&attributes, &mask)
    posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
    var arguments: [UnsafeMutablePointer<CChar>?] = words.map { strdup($0) }
    defer { for argument in arguments { free(argument) } }
    arguments.append(nil)
    let code = posix_spawn(&pid, words[0], &actions, &attributes, arguments, environ)
    guard code == 0 else {
      try FileManager.default.removeItem(at: folder)
      throw CommandFailure(description: "cannot start \(words[0]): \(String(cString: strerror(code)))")
    }
  }

  /// What it has written to its standard output until now.
  func outSoFar() throws -> String { try text("out") }

  /// Asks it to end (SIGTERM), for commands that run until they are told.
  func stop() { kill(pid, SIGTERM) }

  /// Waits for its end, once; kills it, and throws, if that takes longer than `limit` seconds from its start.
  func finish(within limit: Double) async throws -> Output {
    var status: Int32 = 0
    while true {
      let ended = waitpid(pid, &status, WNOHANG)
      if ended == pid { break }
      if ended < 0 && errno != EINTR {
        throw CommandFailure(description: "waitpid: \(String(cString: strerror(errno)))")
      }
      if seconds > limit {
        kill(pid, SIGKILL)
        waitpid(pid, &status, 0)
        throw CommandFailure(description: "no end after \(limit) s: \(try output(status))")
      }
      try await Task.sleep(for: .milliseconds(10))
    }
    return try output(status)
  }

  private var seconds: Double {
    Double(DispatchTime.now().uptimeNanoseconds - begun.uptimeNanoseconds) / 1e9
  }

  private func output(_ status: Int32) throws -> Output {
    let signal = status & 0x7f
    let output = Output(
      words: words, code: signal == 0 ? (status >> 8) & 0xff : 128 + signal, out: try text("out"), err: try text("err"),
      seconds: seconds)
    try FileManager.default.removeItem(at: folder)
    return output
  }

  private func text(_ name: String) throws -> String {
    String(decoding: try Data(contentsOf: folder.appendingPathComponent(name)), as: UTF8.self)
  }
}
