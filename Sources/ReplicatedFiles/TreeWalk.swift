import CFuse3
import Glibc
import Replication

/// One object found in a tree.
struct FoundObject {
  let path: TreePath
  /// O_PATH; belongs to the walk and is closed after the visit.
  let descriptor: Int32
  let status: stat
  let target: LinkTarget?

  /// The root is number 1, as in the kernel's view of the mount.
  var id: FileID { FileID(rawValue: path.names.isEmpty ? NodeTable.rootNumber : UInt64(status.st_ino)) }
  var type: mode_t { status.st_mode & S_IFMT }
}

/// Visits a tree, parents before their children, by descriptors only. Symbolic links are not followed and other file
/// systems are refused: their contents would not be replicated.
enum TreeWalk {
  /// Folders below each other. Deeper trees are refused: each level holds a descriptor open. No path of 4096 bytes, the most the
  /// kernel takes, leads deeper.
  static let depthMax = 2048

  /// With `skipsVanished` what is removed during the walk is passed over; without, the tree must hold still.
  static func visit(
    root: Int32, skipsVanished: Bool = false, _ use: (FoundObject) throws(EngineError) -> Void
  ) throws(EngineError) {
    let status: stat
    do { status = try Backing.status(root) } catch { throw unreadable(TreePath(), error) }
    try use(FoundObject(path: TreePath(), descriptor: root, status: status, target: nil))
    let walk = Walk(device: status.st_dev, skipsVanished: skipsVanished)
    var levels = try Level(of: root, TreePath(), walk).map { [$0] } ?? []
    defer { for level in levels { level.end() } }
    while let level = levels.indices.last {
      guard let name = levels[level].names.popLast() else {
        levels.removeLast().end()
        continue
      }
      guard let found = try object(name, in: levels[level], walk) else { continue }
      var isKept = false
      defer { if !isKept { close(found.descriptor) } }
      try use(found)
      guard found.type == S_IFDIR, let below = try Level(of: found.descriptor, found.path, walk) else { continue }
      levels.append(below)
      isKept = true
    }
  }

  private struct Walk {
    let device: dev_t
    let skipsVanished: Bool
    func passesOver(_ error: Errno) -> Bool { skipsVanished && error.code == ENOENT }
  }

  /// A folder whose children are being visited.
  private struct Level {
    let folder: Int32
    let path: TreePath
    /// Those that are left, the next one last.
    var names: [FileName]

    /// Takes `folder` over unless it throws or answers nil = it has vanished. The root stays its owner's.
    init?(of folder: Int32, _ path: TreePath, _ walk: Walk) throws(EngineError) {
      guard path.names.count < depthMax else {
        throw EngineError(.backing, "\(path) lies deeper than \(depthMax) folders, which vmha does not replicate")
      }
      do { names = try list(folder).reversed() } catch {
        if walk.passesOver(error) { return nil }
        throw unreadable(path, error)
      }
      self.folder = folder
      self.path = path
    }

    func end() { if !path.names.isEmpty { close(folder) } }
  }

  /// Its descriptor is the caller's. nil = it has vanished.
  private static func object(_ name: FileName, in level: Level, _ walk: Walk) throws(EngineError) -> FoundObject? {
    let path = level.path.appending(name)
    let object: Int32
    do { object = try Backing.lookUp(level.folder, name.bytes) } catch {
      if walk.passesOver(error) { return nil }
      throw unreadable(path, error)
    }
    do throws(EngineError) {
      let found = try described(object, path)
      guard found.status.st_dev == walk.device else {
        throw EngineError(
          .backing, "\(path) is another file system mounted below the backing directory: unmount it there first")
      }
      return found
    } catch {
      close(object)
      throw error
    }
  }

  static func described(_ object: Int32, _ path: TreePath) throws(EngineError) -> FoundObject {
    do throws(Errno) {
      let status = try Backing.status(object)
      let isLink = status.st_mode & S_IFMT == S_IFLNK
      return FoundObject(
        path: path, descriptor: object, status: status,
        target: isLink ? LinkTarget(try Backing.linkTarget(object)) : nil)
    } catch { throw unreadable(path, error) }
  }

  static func unreadable(_ path: TreePath, _ error: Errno) -> EngineError {
    EngineError(.backing, "cannot read '\(path)' in the backing directory: \(error)")
  }

  /// Names in a folder, without `.` and `..`.
  static func list(_ folder: Int32) throws(Errno) -> [FileName] {
    let descriptor = try Backing.reopen(folder, flags: O_RDONLY | O_DIRECTORY)
    guard let stream = fdopendir(descriptor) else {
      let error = Errno.last
      close(descriptor)
      throw error
    }
    defer { closedir(stream) }
    var names: [FileName] = []
    while true {
      errno = 0
      guard let entry = readdir(stream) else {
        if errno != 0 { throw Errno.last }
        return names
      }
      let bytes = withUnsafeBytes(of: &entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
      if let name = FileName(bytes) { names.append(name) }
    }
  }

  static func extendedAttributes(_ found: FoundObject) throws(EngineError) -> [AttributeName: [UInt8]] {
    do { return try extendedAttributes(found.descriptor) } catch {
      if error.code == ENOTSUP { return [:] }
      throw EngineError(.backing, "cannot read the extended attributes of '\(found.path)': \(error)")
    }
  }

  private static func extendedAttributes(_ object: Int32) throws(Errno) -> [AttributeName: [UInt8]] {
    let listed = try Backing.listAttributes(object, into: UnsafeMutableBufferPointer(start: nil, count: 0))
    guard listed > 0 else { return [:] }
    var names = [CChar](repeating: 0, count: attributeBytesMax)
    let used = try withErrno { (result: inout Result<Int, Errno>) in
      names.withUnsafeMutableBufferPointer { buffer in
        do throws(Errno) { result = .success(try Backing.listAttributes(object, into: buffer)) } catch {
          result = .failure(error)
        }
      }
    }
    var found: [AttributeName: [UInt8]] = [:]
    for part in names[..<used].split(separator: 0) {
      guard let name = AttributeName(part.map { UInt8(bitPattern: $0) }) else { continue }
      var value = [UInt8](repeating: 0, count: attributeBytesMax)
      let count = try withErrno { (result: inout Result<Int, Errno>) in
        value.withUnsafeMutableBytes { buffer in
          do throws(Errno) { result = .success(try Backing.getAttribute(object, name.bytes, into: buffer)) } catch {
            result = .failure(error)
          }
        }
      }
      found[name] = Array(value[..<count])
    }
    return found
  }

  /// The closures of the standard library do not pass typed errors through.
  private static func withErrno(_ body: (inout Result<Int, Errno>) -> Void) throws(Errno) -> Int {
    var result: Result<Int, Errno> = .success(0)
    body(&result)
    return try result.get()
  }

  /// Makes every file and folder durable; the tree may change meanwhile. With `dropsCache` a guest that starts next reads what the
  /// disk holds: after a failed write-back the cache has, clean, what the disk has not.
  static func sync(root: Int32, dropsCache: Bool = false) throws(Errno) {
    var failure: Errno?
    do {
      try visit(root: root, skipsVanished: true) { (found) throws(EngineError) in
        guard failure == nil, found.type == S_IFREG || found.type == S_IFDIR else { return }
        do throws(Errno) {
          let file = try Backing.reopen(found.descriptor, flags: O_RDONLY)
          defer { close(file) }
          try Backing.sync(file, dataOnly: false)
          if dropsCache { posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED) }
        } catch { if error.code != ENOENT { failure = error } }
      }
    } catch { failure = failure ?? Errno(EIO) }
    if let failure { throw failure }
  }
}

extension ManifestEntry {
  init(_ found: FoundObject, parent: FileID?) {
    let isFile = found.type == S_IFREG
    let isDevice = found.type == S_IFBLK || found.type == S_IFCHR
    var place: ManifestPlace?
    if let parent, let name = found.path.names.last { place = ManifestPlace(parent: parent, name: name) }
    self.init(
      id: found.id, place: place, mode: UInt32(found.status.st_mode), owner: found.status.st_uid,
      group: found.status.st_gid, size: isFile ? UInt64(found.status.st_size) : 0,
      device: isDevice ? UInt64(found.status.st_rdev) : 0, accessed: FileTime(found.status.st_atim),
      modified: FileTime(found.status.st_mtim), target: found.target)
  }
}

extension TreeEntry {
  init(_ found: FoundObject, attributes: [AttributeName: [UInt8]]) {
    let isDevice = found.type == S_IFBLK || found.type == S_IFCHR
    self.init(
      path: found.path, inode: UInt64(found.status.st_ino), mode: UInt32(found.status.st_mode),
      owner: found.status.st_uid, group: found.status.st_gid,
      size: found.type == S_IFREG ? UInt64(found.status.st_size) : 0,
      device: isDevice ? UInt64(found.status.st_rdev) : 0, accessed: FileTime(found.status.st_atim),
      modified: FileTime(found.status.st_mtim), target: found.target, attributes: attributes)
  }
}
