import Glibc
import HostSystem

/// Who has files open, found without touching the files.
enum OpenFiles {
  /// Processes and loop devices by path. Paths must be without symbolic links. Processes that end meanwhile are left out.
  static func users(of paths: Set<String>) throws -> [String: [String]] {
    var found: [String: [String]] = [:]
    for process in try AdoptionFiles.names(in: "/proc") where process.allSatisfy({ $0.isASCII && $0.isNumber }) {
      guard let folder = opendir("/proc/\(process)/fd") else { continue }
      defer { closedir(folder) }
      var seen: Set<String> = []
      while let entry = readdir(folder) {
        guard let target = link(dirfd(folder), entry), paths.contains(target), seen.insert(target).inserted else {
          continue
        }
        found[target, default: []].append("process \(process)\(name(process))")
      }
    }
    for device in try AdoptionFiles.names(in: "/sys/block") where device.hasPrefix("loop") {
      guard let bytes = try? DurableFile.readIfPresent("/sys/block/\(device)/loop/backing_file") else { continue }
      let path = String(decoding: bytes.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)
      if paths.contains(path) { found[path, default: []].append("loop device /dev/\(device)") }
    }
    return found
  }

  private static func link(_ folder: Int32, _ entry: UnsafeMutablePointer<dirent>) -> String? {
    var buffer = [UInt8](repeating: 0, count: Int(PATH_MAX))
    let count = withUnsafePointer(to: &entry.pointee.d_name) {
      $0.withMemoryRebound(to: CChar.self, capacity: 256) { name in
        buffer.withUnsafeMutableBytes { raw in
          raw.withMemoryRebound(to: CChar.self) { text in
            text.baseAddress.map { readlinkat(folder, name, $0, text.count) } ?? -1
          }
        }
      }
    }
    guard count > 0 else { return nil }
    return String(decoding: buffer[..<count], as: UTF8.self)
  }

  private static func name(_ process: String) -> String {
    // Only a word for the message: a process that has just ended has no name any more.
    guard let bytes = try? DurableFile.read("/proc/\(process)/comm") else { return "" }
    return " (\(String(decoding: bytes.prefix { $0 != UInt8(ascii: "\n") }, as: UTF8.self)))"
  }
}
