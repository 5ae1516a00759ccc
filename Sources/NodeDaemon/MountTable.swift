import Glibc
import HostSystem

/// What is mounted, from the kernel's list: never touches the mounts themselves, which may hang.
struct MountTable: Sendable {
  struct Entry: Sendable, Hashable {
    var id: Int
    var mountPoint: String
    var type: String
  }
  /// In the order of mounting.
  var entries: [Entry]

  static func read() throws -> MountTable {
    MountTable(text: String(decoding: try DurableFile.read("/proc/self/mountinfo"), as: UTF8.self))
  }

  /// Lines of proc(5) mountinfo; others are skipped.
  init(text: String) {
    entries = text.split(separator: "\n").compactMap { line in
      let words = line.split(separator: " ")
      guard words.count > 6, let id = Int(words[0]), let dash = words.firstIndex(of: "-"), dash + 1 < words.count else {
        return nil
      }
      return Entry(id: id, mountPoint: Self.unescaped(words[4]), type: String(words[dash + 1]))
    }
  }

  /// The kernel writes blanks and backslashes in paths as octal numbers: \040.
  private static func unescaped(_ word: Substring) -> String {
    var bytes: [UInt8] = []
    var rest = Array(word.utf8)[...]
    while let byte = rest.first {
      if byte == UInt8(ascii: "\\"), rest.count >= 4,
        let value = UInt8(String(decoding: rest.dropFirst().prefix(3), as: UTF8.self), radix: 8)
      {
        bytes.append(value)
        rest = rest.dropFirst(4)
      } else {
        bytes.append(byte)
        rest = rest.dropFirst()
      }
    }
    return String(decoding: bytes, as: UTF8.self)
  }

  /// `path` without symbolic links.
  func isMounted(at path: String) -> Bool { entries.contains { $0.mountPoint == path } }

  /// The mount that a path without symbolic links is on; 0 if unknown.
  func mount(of path: String) -> Int {
    var best: Entry?
    for entry in entries where Self.covers(entry.mountPoint, path) {
      if entry.mountPoint.utf8.count >= (best?.mountPoint.utf8.count ?? 0) { best = entry }
    }
    return best?.id ?? 0
  }

  static func covers(_ folder: String, _ path: String) -> Bool {
    folder == "/" || path == folder || path.hasPrefix(folder + "/")
  }
}
