import Glibc

extension DurableFile {
  /// Damaged files of one name that are kept; beyond it the oldest is removed.
  public static let keptAsideMax = 4
  private static let asideMark = ".damaged-"

  /// Renames a file that cannot be used to `path.damaged-STAMP`, durably, so that it can still be looked at. It is no error if it
  /// is not there. Stamps sort by age. Throws `HostError`: the file is under its own name or the new one; repeat it.
  /// Labels: aside.rename, aside.list, durable.remove, durable.folder.
  public static func setAside(_ path: String, stamp: String) throws {
    do {
      try HostCalls.perform("aside.rename", path: path) { rename(path, path + asideMark + stamp) }
    } catch let error as HostError where error.errno == ENOENT {
      // Somebody may have done it just now, and ended before it was durable.
      return try confirmNames(in: parent(of: path))
    }
    try syncFolder(parent(of: path))
    let kept = try aside(path)
    for name in kept.dropLast(keptAsideMax) { try remove(name) }
  }

  /// Everything that was set aside of this file.
  public static func removeAside(_ path: String) throws {
    for name in try aside(path) { try remove(name) }
  }

  /// Paths, the oldest first.
  static func aside(_ path: String) throws -> [String] {
    let folder = parent(of: path)
    let prefix = "\(path.split(separator: "/").last ?? "")\(asideMark)"
    do {
      return try HostCalls.performThrowing("aside.list", path: folder) {
        try folderNames(folder, operation: "aside.list")
      }
      .filter { $0.hasPrefix(prefix) }.sorted().map { "\(folder)/\($0)" }
    } catch let error as HostError where error.errno == ENOENT {
      return []
    }
  }
}
