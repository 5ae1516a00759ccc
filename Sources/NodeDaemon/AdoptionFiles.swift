import CHostShims
import Glibc
import HostSystem
import Replication

/// Moving and copying disk files so that a crash at any point leaves the whole file in the old or in the new place, or in both.
enum AdoptionFiles {
  /// Bytes copied between two looks at progress.
  static let pieceBytes = 4 << 20
  private static let partSuffix = ".vmha-part"
  /// ioctl_ficlone(2): shares the blocks where the file system can.
  private static let cloneRequest: UInt = 0x4004_9409
  /// lseek(2): the overlay of glibc does not show these.
  private static let seekData: Int32 = 3
  private static let seekHole: Int32 = 4

  static func status(_ path: String) throws -> stat? {
    var status = stat()
    do {
      try HostCalls.perform("adoption.stat", path: path) { lstat(path, &status) }
      return status
    } catch let error as HostError where error.errno == ENOENT || error.errno == ENOTDIR {
      return nil
    }
  }

  static func modified(_ status: stat) -> Int64 {
    Int64(status.st_mtim.tv_sec) * 1_000_000_000 + Int64(status.st_mtim.tv_nsec)
  }

  static func parent(_ path: String) -> String {
    let above = path.split(separator: "/").dropLast().joined(separator: "/")
    return "/" + above
  }

  /// Its last part.
  static func name(of path: String) -> String { path.split(separator: "/").last.map(String.init) ?? "" }

  // MARK: Within one mount

  /// Done already, or not there and optional: nothing happens. Both there: refused.
  static func rename(from: String, to: String, isOptional: Bool) throws {
    switch (try status(from), try status(to)) {
    case (nil, .some): break
    case (.some, nil):
      try HostCalls.perform("adoption.rename", path: from) { Glibc.rename(from, to) }
    case (.some, .some): throw bothThere(from, to)
    case (nil, nil):
      guard isOptional else { throw HostError.system("adoption.rename", path: from, errno: ENOENT) }
      return
    }
    // Also when it was done before: that time may have ended before the folders were on the disk.
    try DurableFile.syncFolder(parent(to))
    try DurableFile.syncFolder(parent(from))
  }

  private static func bothThere(_ from: String, _ to: String) -> HostError {
    HostError(.invalid, "adoption.rename", path: to, "there is another file of this name; \(from) was not moved")
  }

  // MARK: Across mounts

  /// Copies contents, holes, owner, mode and times. Not extended attributes: security labels and the owner at run time are set by
  /// libvirt at each start of the guest. `progress` gets the bytes done so far; what it throws ends the copy, and nothing
  /// of it stays.
  static func copy(_ move: AdoptionMove, progress: (UInt64) throws -> Void) throws {
    guard let source = try status(move.from) else {
      if move.isOptional { return }
      throw HostError.system("adoption.copy", path: move.from, errno: ENOENT)
    }
    guard UInt64(source.st_size) == move.bytes, modified(source) == move.modified else {
      throw HostError(.invalid, "adoption.copy", path: move.from, "it was changed while this went on")
    }
    if let done = try status(move.to) {
      guard done.st_size == source.st_size, modified(done) == move.modified else { throw bothThere(move.from, move.to) }
      // As above: its source may go next, on another disk.
      try DurableFile.syncFolder(parent(move.to))
      try progress(move.bytes)
      return
    }
    let part = move.to + partSuffix
    let input = try HostCalls.perform("adoption.open", path: move.from) { open(move.from, O_RDONLY | O_CLOEXEC) }
    defer { close(input) }
    let flags = O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW
    let output = try HostCalls.perform("adoption.create", path: part) { open(part, flags, 0o600) }
    defer { close(output) }
    do {
      if ioctl(output, cloneRequest, input) != 0 {
        try copyData(from: input, to: output, bytes: source.st_size, path: part, progress: progress)
      }
      try copyAttributes(from: input, to: output, source: source, path: part)
      try HostCalls.perform("adoption.sync", path: part) { fsync(output) }
      try verify(input: input, output: output, move: move)
      try HostCalls.perform("adoption.rename", path: move.to) { Glibc.rename(part, move.to) }
    } catch {
      unlink(part)  // Half a copy is of no use to anybody; the error counts.
      throw error
    }
    try DurableFile.syncFolder(parent(move.to))
    try progress(move.bytes)
  }

  private static func copyData(
    from input: Int32, to output: Int32, bytes: off_t, path: String, progress: (UInt64) throws -> Void
  ) throws {
    try HostCalls.perform("adoption.truncate", path: path) { ftruncate(output, bytes) }
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: pieceBytes, alignment: 4096)
    defer { buffer.deallocate() }
    var offset: off_t = 0
    while let data = try nextData(input, from: offset, path: path) {
      offset = data
      let end = try HostCalls.perform("adoption.seek", path: path) { lseek(input, data, seekHole) }
      while offset < end {
        let count = try HostCalls.perform("adoption.read", path: path) {
          pread(input, buffer.baseAddress, min(pieceBytes, Int(end - offset)), offset)
        }
        if count == 0 { break }
        var written = 0
        while written < count {
          written += try HostCalls.perform("adoption.write", path: path) {
            pwrite(output, buffer.baseAddress.map { $0 + written }, count - written, offset + off_t(written))
          }
        }
        offset += off_t(count)
        try progress(UInt64(offset))
      }
    }
    try progress(UInt64(bytes))
  }

  /// nil = only a hole follows.
  private static func nextData(_ file: Int32, from offset: off_t, path: String) throws -> off_t? {
    do {
      return try HostCalls.perform("adoption.seek", path: path) { lseek(file, offset, seekData) }
    } catch let error as HostError where error.errno == ENXIO {
      return nil
    }
  }

  private static func copyAttributes(from input: Int32, to output: Int32, source: stat, path: String) throws {
    try HostCalls.perform("adoption.owner", path: path) { fchown(output, source.st_uid, source.st_gid) }
    try HostCalls.perform("adoption.mode", path: path) { fchmod(output, source.st_mode & 0o7777) }
    // Last, because everything above changes them.
    let times = [source.st_atim, source.st_mtim]
    try HostCalls.perform("adoption.times", path: path) { futimens(output, times) }
  }

  private static func verify(input: Int32, output: Int32, move: AdoptionMove) throws {
    var source = stat()
    var copy = stat()
    try HostCalls.perform("adoption.stat", path: move.from) { fstat(input, &source) }
    try HostCalls.perform("adoption.stat", path: move.to) { fstat(output, &copy) }
    guard copy.st_size == source.st_size, UInt64(source.st_size) == move.bytes, modified(source) == move.modified else {
      throw HostError(.invalid, "adoption.copy", path: move.from, "it was changed while it was copied")
    }
  }

  /// Takes a copy back. The source must still be there.
  static func uncopy(_ move: AdoptionMove) throws {
    try DurableFile.remove(move.to + partSuffix)
    guard try status(move.to) != nil else { return }
    guard try status(move.from) != nil else {
      throw HostError(.invalid, "adoption.uncopy", path: move.to, "\(move.from) is gone: this is the only copy left")
    }
    try DurableFile.remove(move.to)
  }

  /// Deletes the source of a finished copy.
  static func discardSource(_ move: AdoptionMove) throws {
    guard try status(move.from) != nil else { return }
    guard try status(move.to) != nil else {
      throw HostError(.invalid, "adoption.discard", path: move.from, "its copy \(move.to) is not there; it was kept")
    }
    try DurableFile.remove(move.from)
  }

  // MARK: Identity

  /// A file that enters or leaves a module is no longer the one that the maps speak of: outside it may be written unnoticed.
  /// A file that is not there is no error.
  static func dropIdentity(_ path: String) throws {
    do {
      let file = try HostCalls.perform("adoption.open", path: path) { open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) }
      defer { close(file) }
      try HostCalls.perform("adoption.identity", path: path) { vmha_remove_attribute(file, FileIdentity.attribute) }
    } catch let error as HostError where [ENOENT, ENODATA, EOPNOTSUPP].contains(error.errno) {}
  }

  // MARK: Folders

  /// Removes a folder if it is empty; one that is not there is no error. Answers whether it is gone.
  @discardableResult
  static func removeFolderIfEmpty(_ path: String) throws -> Bool {
    do {
      try HostCalls.perform("adoption.rmdir", path: path) { rmdir(path) }
      try DurableFile.syncFolder(parent(path))
      return true
    } catch let error as HostError where error.errno == ENOENT {
      return true
    } catch let error as HostError where error.errno == ENOTEMPTY || error.errno == EEXIST {
      return false
    }
  }

  /// Names in a folder, sorted; empty if it is not there.
  static func names(in path: String) throws -> [String] {
    do { return try folderNames(path, operation: "adoption.list").sorted() } catch let error as HostError
      where error.errno == ENOENT
    { return [] }
  }

  /// Deletes a folder with all it holds; symbolic links are deleted, not followed.
  static func removeTree(_ path: String) throws {
    for name in try names(in: path) {
      let child = "\(path)/\(name)"
      guard let found = try status(child) else { continue }
      if found.st_mode & S_IFMT == S_IFDIR {
        try removeTree(child)
      } else {
        try HostCalls.perform("adoption.delete", path: child) { unlink(child) }
      }
    }
    try removeFolderIfEmpty(path)
  }
}
