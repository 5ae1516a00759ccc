import CFuse3
import Glibc
import Replication
import SecureLinks

/// Why an operation of the peer could not be applied.
enum ReplicaFailure: Error {
  /// R11.
  case disk(operation: String, path: String, Errno)
  /// This tree is not what the primary thinks it is.
  case diverged(String)
}

/// One object of the replica, found by the primary's id.
final class ReplicaObject: @unchecked Sendable {
  /// O_PATH; keeps the object, also without a name.
  let descriptor: Int32
  let type: mode_t
  /// For data; opened when first needed. Used by the applying thread, and by fsync, which only reads the number.
  private(set) var data: OwnedDescriptor?
  var isDirty = false
  var needsWriteback = false

  init(descriptor: Int32, type: mode_t) {
    self.descriptor = descriptor
    self.type = type
  }
  deinit { close(descriptor) }

  func open() throws(Errno) -> OwnedDescriptor {
    if let data { return data }
    let flags = type == S_IFDIR ? O_RDONLY | O_DIRECTORY : O_RDWR
    let opened = OwnedDescriptor(try Backing.reopen(descriptor, flags: flags))
    data = opened
    return opened
  }
  func closeData() { data = nil }
}

/// The replica's files, and what the primary's operations do to them. Used under the replica's lock.
struct ReplicaTree {
  /// Data descriptors kept open; beyond it all are closed and opened again when needed.
  static let openFilesMax = 512

  let root: Int32
  private(set) var objects: [FileID: ReplicaObject] = [:]
  private var openCount = 0
  /// Changed since the last fsync of everything.
  private(set) var dirty: [FileID: ReplicaObject] = [:]

  /// `root` is borrowed.
  init(root: Int32) { self.root = root }

  var isEmpty: Bool { objects.isEmpty }

  // MARK: finding

  func object(_ id: FileID) throws(ReplicaFailure) -> ReplicaObject {
    guard let object = objects[id] else { throw .diverged("the primary names \(id), which is unknown here") }
    return object
  }

  mutating func data(_ id: FileID) throws(ReplicaFailure) -> (ReplicaObject, Int32) {
    let object = try object(id)
    guard object.type == S_IFREG else { throw .diverged("\(id) is no regular file here") }
    if object.data == nil {
      if openCount >= Self.openFilesMax {
        for other in objects.values { other.closeData() }
        openCount = 0
      }
      openCount += 1
    }
    do throws(Errno) { return (object, try object.open().number) } catch {
      throw failure("open", object, error)
    }
  }

  private mutating func touch(_ id: FileID, _ object: ReplicaObject) {
    object.needsWriteback = true
    guard !object.isDirty else { return }
    object.isDirty = true
    dirty[id] = object
  }

  /// What changed since the last call; the caller fsyncs it.
  mutating func takeDirty() -> [ReplicaObject] {
    let all = Array(dirty.values)
    dirty = [:]
    for object in all { object.isDirty = false }
    return all
  }

  /// One object, whose fsync is asked for; unknown ids (files without a name on the primary) answer nil.
  mutating func takeDirty(_ id: FileID) -> ReplicaObject? {
    guard let object = objects[id] else { return nil }
    object.isDirty = false
    dirty[id] = nil
    return object
  }

  func failure(_ operation: String, _ object: ReplicaObject, _ error: Errno) -> ReplicaFailure {
    Self.failure(operation, Backing.pathForMessage(object.descriptor), error)
  }

  /// What the primary could do and this side cannot: a full or broken disk, or another tree.
  static func failure(_ operation: String, _ path: String, _ error: Errno) -> ReplicaFailure {
    switch error.code {
    case ENOENT, EEXIST, ENOTEMPTY, ENOTDIR, EISDIR, ESTALE, ELOOP, EXDEV, ENODATA:
      .diverged("\(operation) of \(path), which worked on the primary, fails here: \(error)")
    default: .disk(operation: operation, path: path, error)
    }
  }

  // MARK: manifest

  /// After the tree was made equal to the manifest: finds every object by its name and keeps it under its id.
  mutating func adopt(_ manifest: Manifest) throws(ReplicaFailure) {
    objects = [:]
    dirty = [:]
    openCount = 0
    for (entry, path) in zip(manifest.entries, manifest.paths) where objects[entry.id] == nil {
      do throws(Errno) {
        let descriptor: Int32
        if let place = entry.place {
          guard let parent = objects[place.parent] else { throw Errno(ENOENT) }
          descriptor = try Backing.lookUp(parent.descriptor, place.name.bytes)
        } else {
          descriptor = dup(root)
          if descriptor < 0 { throw Errno.last }
        }
        let object = ReplicaObject(descriptor: descriptor, type: mode_t(entry.mode) & S_IFMT)
        objects[entry.id] = object
        // What was done to make it equal is not durable yet.
        object.isDirty = true
        dirty[entry.id] = object
      } catch { throw Self.failure("lookup", "\(path)", error) }
    }
  }

  // MARK: operations

  /// Applies one change; `bytes` are those of a write.
  mutating func apply(_ operation: FileOperation, _ bytes: UnsafeRawBufferPointer) throws(ReplicaFailure) {
    switch operation {
    case .write(let file, let offset, _): try write(file, offset, bytes)
    case .allocate(let file, let mode, let offset, let length):
      try allocate(file, mode, offset: offset, length: length)
    case .setAttributes(let file, let change):
      let object = try object(file)
      do throws(Errno) { try Self.set(change, on: object.descriptor, type: object.type) } catch {
        throw failure("change of attributes", object, error)
      }
      touch(file, object)
    case .setExtendedAttribute(let file, let name, let value):
      let object = try object(file)
      do throws(Errno) { try Backing.setAttribute(object.descriptor, name.bytes, value, flags: 0) } catch {
        throw failure("setxattr", object, error)
      }
      touch(file, object)
    case .removeExtendedAttribute(let file, let name):
      let object = try object(file)
      do throws(Errno) { try Backing.removeAttribute(object.descriptor, name.bytes) } catch {
        throw failure("removexattr", object, error)
      }
      touch(file, object)
    case .forget(let file):
      objects[file] = nil
      dirty[file] = nil
    default: try applyName(operation)
    }
  }

  mutating func write(_ file: FileID, _ offset: UInt64, _ bytes: UnsafeRawBufferPointer) throws(ReplicaFailure) {
    let (object, descriptor) = try data(file)
    do throws(Errno) { try Backing.writeAll(descriptor, bytes, at: offset) } catch {
      throw failure("write", object, error)
    }
    touch(file, object)
  }

  /// Bit n = block n is not what its hash says. What cannot be there (the file ends before) differs.
  mutating func compare(
    _ file: FileID, offset: UInt64, length: Int, _ hashes: [BlockHash], _ hasher: BlockHasher
  ) throws(ReplicaFailure) -> UInt32 {
    let (object, descriptor) = try data(file)
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: 64)
    defer { buffer.deallocate() }
    // R11: after a failed write-back the cache holds, clean, what the disk does not. Compared is what a power cut would leave:
    // only dirty pages stay, and those the flush of R8.2 writes, or fails.
    Backing.dropClean(descriptor, offset: offset, length: UInt64(length))
    let own: [BlockHash]
    do throws(Errno) {
      let count = try Backing.readAll(descriptor, into: buffer, at: offset)
      own = try blockHashes(UnsafeRawBufferPointer(rebasing: buffer[..<count]), hasher)
    } catch { throw failure("read", object, error) }
    var differing: UInt32 = 0
    for (block, hash) in hashes.enumerated() where block >= own.count || own[block] != hash {
      differing |= 1 << UInt32(block)
    }
    return differing
  }

  mutating func zero(_ file: FileID, offset: UInt64, length: UInt64) throws(ReplicaFailure) {
    try allocate(file, [.punchHole, .keepSize], offset: offset, length: length)
  }

  private mutating func allocate(
    _ file: FileID, _ mode: AllocationMode, offset: UInt64, length: UInt64
  ) throws(ReplicaFailure) {
    let (object, descriptor) = try data(file)
    do throws(Errno) {
      try Backing.allocate(descriptor, mode: Int32(bitPattern: mode.rawValue), offset: offset, length: length)
    } catch { throw failure("fallocate", object, error) }
    touch(file, object)
  }

  private mutating func applyName(_ operation: FileOperation) throws(ReplicaFailure) {
    switch operation {
    case .create(let parent, let name, let object):
      try make(parent, name, object) { (folder) throws(Errno) in
        close(try Backing.create(folder, name.bytes, flags: O_RDWR, mode: mode_t(object.mode) & 0o7777))
      }
    case .makeDirectory(let parent, let name, let object):
      try make(parent, name, object) { (folder) throws(Errno) in
        try Backing.makeFolder(folder, name.bytes, mode: mode_t(object.mode) & 0o7777)
      }
    case .makeNode(let parent, let name, let object, _):
      try make(parent, name, object) { (folder) throws(Errno) in
        try Backing.makeNode(folder, name.bytes, mode: mode_t(object.mode))
      }
    case .makeSymlink(let parent, let name, let object, let target):
      try make(parent, name, object) { (folder) throws(Errno) in
        try Backing.makeSymlink(folder, name.bytes, target: target.bytes)
      }
    case .link(let file, let parent, let name):
      let object = try object(file)
      try change(parent, "link \(name)") { (folder) throws(Errno) in
        try Backing.makeLink(object.descriptor, folder, name.bytes)
      }
    case .unlink(let parent, let name, let file):
      try remove(parent, name, file, isFolder: false)
    case .removeDirectory(let parent, let name, let file):
      try remove(parent, name, file, isFolder: true)
    case .rename(let parent, let name, let newParent, let newName, let flags):
      let target = try object(newParent)
      try change(parent, "rename \(name) to \(newName)") { (folder) throws(Errno) in
        try Backing.rename(folder, name.bytes, to: target.descriptor, newName.bytes, flags: flags.rawValue)
      }
      touch(newParent, target)
    default: throw .diverged("\(operation) is not a change of names")
    }
  }

  private mutating func change(
    _ parent: FileID, _ what: String, _ body: (Int32) throws(Errno) -> Void
  ) throws(ReplicaFailure) {
    let folder = try object(parent)
    do throws(Errno) { try body(folder.descriptor) } catch {
      throw Self.failure(what, Backing.pathForMessage(folder.descriptor), error)
    }
    touch(parent, folder)
  }

  private mutating func remove(
    _ parent: FileID, _ name: FileName, _ file: FileID, isFolder: Bool
  ) throws(ReplicaFailure) {
    let object = try object(file)
    try change(parent, isFolder ? "rmdir \(name)" : "unlink \(name)") { (folder) throws(Errno) in
      let found = OwnedDescriptor(try Backing.lookUp(folder, name.bytes))
      // Another object under this name: the trees have diverged.
      guard try Backing.status(found.number).st_ino == Backing.status(object.descriptor).st_ino else {
        throw Errno(ESTALE)
      }
      try Backing.remove(folder, name.bytes, isFolder: isFolder)
    }
  }

  private mutating func make(
    _ parent: FileID, _ name: FileName, _ object: NewObject, _ body: (Int32) throws(Errno) -> Void
  ) throws(ReplicaFailure) {
    let type = mode_t(object.mode) & S_IFMT
    var made: ReplicaObject?
    try change(parent, "create \(name)") { (folder) throws(Errno) in
      try body(folder)
      let descriptor = try Backing.lookUp(folder, name.bytes)
      let new = ReplicaObject(descriptor: descriptor, type: type)
      try Self.set(
        AttributeChange(
          mode: object.mode & 0o7777, owner: object.owner, group: object.group, accessed: object.accessed,
          modified: object.modified), on: descriptor, type: type)
      made = new
    }
    guard let made else { return }
    objects[object.id] = made
    touch(object.id, made)
  }

  /// Owner before mode (it clears set-id bits), times last.
  static func set(_ change: AttributeChange, on object: Int32, type: mode_t) throws(Errno) {
    if change.owner != nil || change.group != nil {
      try Backing.setOwner(object, user: change.owner ?? uid_t.max, group: change.group ?? gid_t.max)
    }
    if let mode = change.mode, type != S_IFLNK { try Backing.setMode(object, mode_t(mode)) }
    if let size = change.size { try Backing.setSize(object, size) }
    if change.accessed != nil || change.modified != nil {
      let omit = timespec(tv_sec: 0, tv_nsec: Int(VMHA_UTIME_OMIT))
      try Backing.setTimes(
        object, access: change.accessed?.timespec ?? omit, modification: change.modified?.timespec ?? omit)
    }
  }
}
