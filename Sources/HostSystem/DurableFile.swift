import Glibc

/// Files that are whole or absent after a crash at any point: temporary file, write, fsync, rename, fsync of the
/// folder. One writer per path at a time.
public enum DurableFile {
  /// The largest file `read` takes in.
  public static let bytesMax = 64 << 20

  /// Replaces the file at `path`. When this returns, the new contents survive a power cut; when it throws, the old or
  /// the new contents are there, never a mixture. Labels: durable.open, .mode, .write, .sync, .rename, .folder.
  public static func write(_ bytes: some Sequence<UInt8>, to path: String, mode: mode_t = 0o600) throws {
    let temporary = temporaryPath(path)
    do {
      try writeContents(Array(bytes), temporary, path: path, mode: mode)
      try HostCalls.perform("durable.rename", path: path) { rename(temporary, path) }
    } catch {
      // Whatever failed, the temporary file is of no use; the error below is the one that counts.
      unlink(temporary)
      throw error
    }
    try syncFolder(parent(of: path))
  }

  private static func writeContents(_ bytes: [UInt8], _ temporary: String, path: String, mode: mode_t) throws {
    let flags = O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW
    let file = try HostCalls.perform("durable.open", path: path) { open(temporary, flags, 0o600) }
    defer { close(file) }
    // Not left to the umask: a key must not become readable, a configuration must not become unreadable.
    try HostCalls.perform("durable.mode", path: path) { fchmod(file, mode) }
    try bytes.withUnsafeBytes { try writeAll($0, to: file, label: "durable.write", path: path) }
    try HostCalls.perform("durable.sync", path: path) { fsync(file) }
  }

  /// For a file system without room: writes over the file that is there, which needs none as long as it fits into its blocks (and
  /// these are not copied on write). After a crash on the way neither the old nor the new contents may be there, so only for one of
  /// two copies that are told apart by a checksum. When it throws and the new contents were not synced, the first 8 bytes are zero:
  /// what is not durable must not be read as if it were. Labels: durable.reopen, .overwrite, .shorten, .sync, .folder.
  static func overwrite(_ bytes: [UInt8], at path: String) throws {
    let file = try HostCalls.perform("durable.reopen", path: path) { open(path, O_WRONLY | O_CLOEXEC | O_NOFOLLOW) }
    defer { close(file) }
    do {
      try bytes.withUnsafeBytes { try writeAll($0, to: file, label: "durable.overwrite", path: path) }
      try HostCalls.perform("durable.shorten", path: path) { ftruncate(file, off_t(bytes.count)) }
      try HostCalls.perform("durable.sync", path: path) { fsync(file) }
    } catch {
      // It takes no room either; the error above is the one that counts.
      _ = pwrite(file, [UInt8](repeating: 0, count: 8), 8, 0)
      throw error
    }
    // The file may have been renamed to this name just now, and the room have run out behind that.
    try syncFolder(parent(of: path))
  }

  /// The whole file, at most `bytesMax`. Throws `HostError` with errno ENOENT if it does not exist.
  public static func read(_ path: String, bytesMax: Int = DurableFile.bytesMax) throws -> [UInt8] {
    let file = try HostCalls.perform("file.open", path: path) { open(path, O_RDONLY | O_CLOEXEC) }
    defer { close(file) }
    var contents: [UInt8] = []
    var chunk = [UInt8](repeating: 0, count: 64 << 10)
    while true {
      let capacity = chunk.count
      let count = try HostCalls.perform("file.read", path: path) { Glibc.read(file, &chunk, capacity) }
      if count == 0 { return contents }
      contents += chunk[..<count]
      guard contents.count <= bytesMax else {
        throw HostError(.limit, "file.read", path: path, "larger than \(bytesMax) bytes")
      }
    }
  }

  /// nil if it does not exist.
  public static func readIfPresent(_ path: String, bytesMax: Int = DurableFile.bytesMax) throws -> [UInt8]? {
    do {
      return try read(path, bytesMax: bytesMax)
    } catch let error as HostError where error.errno == ENOENT {
      return nil
    }
  }

  /// As `readIfPresent` for a file of `write`, for whoever acts on it: what it answers, nil too, survives a power cut. A process
  /// before this one may have ended between its rename and its fsync of the folder, and then it is in the page cache only.
  /// Labels: durable.folder, file.open, file.read.
  public static func readDurable(_ path: String, bytesMax: Int = DurableFile.bytesMax) throws -> [UInt8]? {
    try confirmNames(in: parent(of: path))
    return try readIfPresent(path, bytesMax: bytesMax)
  }

  /// R0: makes durable what a process before this one wrote over a file (`overwrite`). One that is not there is no error.
  static func confirmContents(of path: String) throws {
    do {
      let file = try HostCalls.perform("durable.reopen", path: path) { open(path, O_RDONLY | O_CLOEXEC) }
      defer { close(file) }
      try HostCalls.perform("durable.sync", path: path) { fsync(file) }
    } catch let error as HostError where error.errno == ENOENT {}
  }

  /// R0: makes durable what a process before this one made, renamed or removed in this folder. One that is not there is no error.
  static func confirmNames(in folder: String) throws {
    do { try syncFolder(folder) } catch let error as HostError where error.errno == ENOENT {}
  }

  /// Removes the file durably; it is no error if it is not there.
  public static func remove(_ path: String) throws {
    do {
      try HostCalls.perform("durable.remove", path: path) { unlink(path) }
    } catch let error as HostError where error.errno == ENOENT {
      // Somebody may have removed it just now, and ended before that was durable.
      return try confirmNames(in: parent(of: path))
    }
    try syncFolder(parent(of: path))
  }

  /// Makes the folder and its parents, durably. An existing one keeps its mode.
  public static func makeFolder(_ path: String, mode: mode_t = 0o755) throws {
    do {
      try HostCalls.perform("folder.make", path: path) { mkdir(path, mode) }
    } catch let error as HostError where error.errno == EEXIST {
      var status = stat()
      try HostCalls.perform("folder.stat", path: path) { stat(path, &status) }
      guard status.st_mode & S_IFMT == S_IFDIR else { throw error }
      // Somebody may have made it just now, and ended before its name was durable.
    } catch let error as HostError where error.errno == ENOENT {
      let above = parent(of: path)
      guard above != path else { throw error }
      try makeFolder(above, mode: 0o755)
      return try makeFolder(path, mode: mode)
    }
    try syncFolder(parent(of: path))
  }

  /// Makes entries created, renamed or removed in this folder survive a power cut.
  public static func syncFolder(_ path: String) throws {
    let folder = try HostCalls.perform("durable.folder", path: path) {
      open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    }
    defer { close(folder) }
    try HostCalls.perform("durable.folder", path: path) { fsync(folder) }
  }

  static func writeAll(_ bytes: UnsafeRawBufferPointer, to file: Int32, label: String, path: String) throws {
    var rest = bytes[...]
    while !rest.isEmpty {
      let piece = UnsafeRawBufferPointer(rebasing: rest)
      rest = rest.dropFirst(
        try HostCalls.perform(label, path: path) { Glibc.write(file, piece.baseAddress, piece.count) })
    }
  }

  /// Where the new contents of `path` are written before they take its place.
  public static func temporaryPath(_ path: String) -> String {
    let folder = parent(of: path)
    let name = path.split(separator: "/").last ?? ""
    return "\(folder == "/" ? "" : folder)/.\(name).new"
  }

  /// "/" for a name directly below the root, "." for a bare name.
  public static func parent(of path: String) -> String {
    guard let slash = path.lastIndex(of: "/") else { return "." }
    return slash == path.startIndex ? "/" : String(path[..<slash])
  }
}
