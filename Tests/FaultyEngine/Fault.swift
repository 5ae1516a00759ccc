import Glibc
import HostSystem
import Synchronization

/// The one call that fails, or where the world stands still.
final class Fault: Sendable {
  private let words: [String]
  private let isArmed: Atomic<Bool>
  private let seen = Atomic<Int>(0)

  init(_ text: String, isArmed: Bool) {
    words = text.split(separator: ":").map(String.init)
    self.isArmed = Atomic(isArmed)
  }

  func arm() { isArmed.store(true, ordering: .releasing) }

  /// The errno for this call; nil = make it.
  func meet(_ label: String) -> Int32? {
    guard isArmed.load(ordering: .acquiring), words.count >= 2 else { return nil }
    if words[0] == "record" {
      record(label)
      return nil
    }
    guard words.count == 3, label == words[1], seen.add(1, ordering: .relaxed).newValue == Int(words[2]) else {
      return nil
    }
    if let code = Int32(words[0]) { return code }
    kill(getpid(), SIGSTOP)
    // This call is never made, whenever the stop takes effect.
    while true { pause() }
  }

  private func record(_ label: String) {
    let log = open(words[1], O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
    let line = Array("\(label)\n".utf8)
    guard log >= 0, write(log, line, line.count) == line.count else { abort() }
    close(log)
  }
}
