import CFuse3
import Glibc
import HostSystem

/// An errno value, thrown by system calls that a guest's request maps to one to one.
struct Errno: Error, Hashable, CustomStringConvertible {
  let code: Int32
  init(_ code: Int32) { self.code = code }
  static var last: Errno { Errno(errno) }
  var description: String { "\(String(cString: strerror(code))) (errno \(code))" }
}

/// Calls `body` until it is not interrupted by a signal; -1 becomes the errno.
@inline(__always)
func retrying<Value: SignedInteger>(_ body: () -> Value) throws(Errno) -> Value {
  while true {
    let value = body()
    if value >= 0 { return value }
    let code = errno
    if code != EINTR { throw Errno(code) }
  }
}

/// As `retrying`, for a change of the backing directory: labelled as in `HostCalls`, so that a test can make it fail, or stop
/// the world there. `object` is the descriptor that is changed, or that of the folder.
@inline(__always)
private func changing<Value: SignedInteger>(
  _ label: String, _ object: Int32, _ body: () -> Value
) throws(Errno) -> Value {
  if let code = HostCalls.fault(label, Backing.pathForMessage(object)) { throw Errno(code) }
  return try retrying(body)
}

/// Names are bytes, as the kernel has them. `body` gets them with a terminating zero.
func withName<Value>(
  _ name: [UInt8], _ body: (UnsafePointer<CChar>) throws(Errno) -> Value
) throws(Errno) -> Value {
  let text = name.map { CChar(bitPattern: $0) } + [0]
  var result: Result<Value, Errno> = .failure(Errno(EINVAL))
  text.withUnsafeBufferPointer { buffer in
    guard let base = buffer.baseAddress else { return }
    do throws(Errno) { result = .success(try body(base)) } catch { result = .failure(error) }
  }
  return try result.get()
}

let symlinkBytesMax = 4095
let attributeBytesMax = 65536

/// System calls on objects below a backing directory. An object is named by an O_PATH descriptor, or by an O_PATH
/// descriptor of its folder and a name; absolute paths and symbolic links are never followed.
enum Backing {
  static func openFolder(_ path: String) throws(Errno) -> Int32 {
    try retrying { open(path, VMHA_O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) }
  }

  static func lookUp(_ folder: Int32, _ name: [UInt8]) throws(Errno) -> Int32 {
    try withName(name) { (text) throws(Errno) in
      try retrying { openat(folder, text, VMHA_O_PATH | O_NOFOLLOW | O_CLOEXEC) }
    }
  }

  /// A descriptor for reading or writing the data of an object known by an O_PATH descriptor.
  static func reopen(_ object: Int32, flags: Int32) throws(Errno) -> Int32 {
    let path = procPath(object)
    // O_NOATIME keeps reads from writing to the disk; only an owner or root may ask for it.
    do throws(Errno) { return try retrying { open(path, flags | VMHA_O_NOATIME | O_CLOEXEC) } } catch {
      guard error.code == EPERM else { throw error }
    }
    return try retrying { open(path, flags | O_CLOEXEC) }
  }

  static func status(_ object: Int32) throws(Errno) -> stat {
    var attributes = stat()
    _ = try retrying { fstat(object, &attributes) }
    return attributes
  }

  static func procPath(_ descriptor: Int32) -> String { "/proc/self/fd/\(descriptor)" }

  /// For messages only. `offset`: where in the file it was.
  static func pathForMessage(_ descriptor: Int32, at offset: UInt64? = nil) -> String {
    var bytes = [CChar](repeating: 0, count: 4096)
    let count = readlink(procPath(descriptor), &bytes, bytes.count - 1)
    let path =
      count > 0
      ? String(decoding: bytes[..<count].map { UInt8(bitPattern: $0) }, as: UTF8.self) : "(descriptor \(descriptor))"
    return offset.map { "\(path) at byte \($0)" } ?? path
  }

  static func linkTarget(_ object: Int32) throws(Errno) -> [UInt8] {
    var bytes = [CChar](repeating: 0, count: symlinkBytesMax + 1)
    let count = try retrying { readlinkat(object, "", &bytes, bytes.count) }
    return bytes[..<count].map { UInt8(bitPattern: $0) }
  }

  // MARK: names

  /// Creates a regular file and opens it. Fails with EEXIST if the name is taken.
  static func create(_ folder: Int32, _ name: [UInt8], flags: Int32, mode: mode_t) throws(Errno) -> Int32 {
    try withName(name) { (text) throws(Errno) in
      try changing("backing.create", folder) {
        openat(folder, text, flags | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode)
      }
    }
  }

  static func makeFolder(_ folder: Int32, _ name: [UInt8], mode: mode_t) throws(Errno) {
    try withName(name) { (text) throws(Errno) in
      _ = try changing("backing.mkdir", folder) { mkdirat(folder, text, mode) }
    }
  }

  static func makeNode(_ folder: Int32, _ name: [UInt8], mode: mode_t) throws(Errno) {
    try withName(name) { (text) throws(Errno) in
      _ = try changing("backing.mknod", folder) { mknodat(folder, text, mode, 0) }
    }
  }

  static func makeSymlink(_ folder: Int32, _ name: [UInt8], target: [UInt8]) throws(Errno) {
    try withName(target) { (pointee) throws(Errno) in
      try withName(name) { (text) throws(Errno) in
        _ = try changing("backing.symlink", folder) { symlinkat(pointee, folder, text) }
      }
    }
  }

  static func makeLink(_ object: Int32, _ folder: Int32, _ name: [UInt8]) throws(Errno) {
    try withName(name) { (text) throws(Errno) in
      _ = try changing("backing.link", folder) { linkat(object, "", folder, text, VMHA_AT_EMPTY_PATH) }
    }
  }

  static func remove(_ folder: Int32, _ name: [UInt8], isFolder: Bool) throws(Errno) {
    try withName(name) { (text) throws(Errno) in
      _ = try changing("backing.unlink", folder) { unlinkat(folder, text, isFolder ? AT_REMOVEDIR : 0) }
    }
  }

  static func rename(
    _ folder: Int32, _ name: [UInt8], to newFolder: Int32, _ newName: [UInt8], flags: UInt32
  ) throws(Errno) {
    try withName(name) { (from) throws(Errno) in
      try withName(newName) { (to) throws(Errno) in
        _ = try changing("backing.rename", folder) { vmha_rename(folder, from, newFolder, to, flags) }
      }
    }
  }

  // MARK: attributes

  static func setOwner(_ object: Int32, user: uid_t, group: gid_t) throws(Errno) {
    _ = try changing("backing.chown", object) {
      fchownat(object, "", user, group, VMHA_AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW)
    }
  }

  static func setMode(_ object: Int32, _ mode: mode_t) throws(Errno) {
    let path = procPath(object)
    _ = try changing("backing.chmod", object) { chmod(path, mode & 0o7777) }
  }

  static func setSize(_ object: Int32, _ size: UInt64) throws(Errno) {
    guard let length = off_t(exactly: size) else { throw Errno(EFBIG) }
    let path = procPath(object)
    _ = try changing("backing.truncate", object) { truncate(path, length) }
  }

  static func setTimes(_ object: Int32, access: timespec, modification: timespec) throws(Errno) {
    let times = [access, modification]
    _ = try changing("backing.times", object) { utimensat(object, "", times, VMHA_AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW) }
  }

  // MARK: extended attributes (the link in /proc leads to the object itself, also if that is a symbolic link)

  static func getAttribute(
    _ object: Int32, _ name: [UInt8], into buffer: UnsafeMutableRawBufferPointer
  ) throws(Errno) -> Int {
    let path = procPath(object)
    return try withName(name) { (text) throws(Errno) in
      try retrying { getxattr(path, text, buffer.baseAddress, buffer.count) }
    }
  }

  static func listAttributes(
    _ object: Int32, into buffer: UnsafeMutableBufferPointer<CChar>
  ) throws(Errno) -> Int {
    let path = procPath(object)
    return try retrying { listxattr(path, buffer.baseAddress, buffer.count) }
  }

  static func setAttribute(_ object: Int32, _ name: [UInt8], _ value: [UInt8], flags: Int32) throws(Errno) {
    let path = procPath(object)
    try withName(name) { (text) throws(Errno) in
      _ = try changing("backing.setxattr", object) { setxattr(path, text, value, value.count, flags) }
    }
  }

  static func removeAttribute(_ object: Int32, _ name: [UInt8]) throws(Errno) {
    let path = procPath(object)
    try withName(name) { (text) throws(Errno) in
      _ = try changing("backing.removexattr", object) { removexattr(path, text) }
    }
  }

  // MARK: data

  /// The longest file that the file system of a folder takes, in bytes; no file system tells, so an unnamed file is made that long.
  /// One that makes no unnamed files is taken to have no limit.
  static func fileBytesMax(_ folder: Int32) -> UInt64 {
    let file = open(procPath(folder), VMHA_O_TMPFILE | O_RDWR | O_CLOEXEC, 0o600)
    guard file >= 0 else { return UInt64(Int64.max) }
    defer { close(file) }
    // The first is possible, the second is not.
    var (low, high) = (Int64(0), Int64.max)
    guard ftruncate(file, off_t(high)) != 0 else { return UInt64(high) }
    while high - low > 1 {
      let middle = low + (high - low) / 2
      if ftruncate(file, off_t(middle)) == 0 {
        low = middle
      } else {
        // A disk that refuses for another reason says nothing about lengths, and is found out by the first write.
        guard errno == EFBIG || errno == EINVAL else { return UInt64(Int64.max) }
        high = middle
      }
    }
    return UInt64(low)
  }

  /// Bytes handed to the kernel at once. A larger write makes a folio of its own size in the page cache, and ext4 (since
  /// Linux 6.16) looks at every block of a folio at each later small write into it: after writes of 1 MiB a write of 4 KiB
  /// took 17 us of CPU instead of 3, while writing 1 MiB in pieces takes no longer.
  private static let pieceBytesMax = 32 << 10

  /// Writes everything, or throws; a disk that takes only part of it is full.
  static func writeAll(_ file: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) throws(Errno) {
    var done = 0
    while done < bytes.count {
      guard let start = bytes.baseAddress else { return }
      let from = off_t(offset) + off_t(done)
      let count = try changing("backing.write", file) {
        pwrite(file, start + done, min(bytes.count - done, pieceBytesMax), from)
      }
      if count == 0 { throw Errno(ENOSPC) }
      done += count
    }
  }

  /// The largest folio of the page cache.
  private static let folioBytesMax: UInt64 = 2 << 20

  /// Clean pages of these bytes go, so that a read shows what the disk holds. The kernel keeps a folio that reaches beyond the
  /// range, so the range is widened to whole folios. Advice: nothing depends on its answer.
  static func dropClean(_ file: Int32, offset: UInt64, length: UInt64) {
    let folios = wholeFolios(offset: offset, length: length)
    posix_fadvise(file, off_t(folios.lowerBound), off_t(folios.count), POSIX_FADV_DONTNEED)
  }

  static func wholeFolios(offset: UInt64, length: UInt64) -> Range<UInt64> {
    offset / folioBytesMax * folioBytesMax..<(offset + length + folioBytesMax - 1) / folioBytesMax * folioBytesMax
  }

  /// Reads until the buffer is full or the file ends; answers the number of bytes.
  static func readAll(
    _ file: Int32, into bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    var done = 0
    while done < bytes.count {
      guard let start = bytes.baseAddress else { return 0 }
      let from = off_t(offset) + off_t(done)
      let count = try changing("backing.read", file) { pread(file, start + done, bytes.count - done, from) }
      if count == 0 { break }
      done += count
    }
    return done
  }

  /// What the disk holds (see `dropClean`), for a comparison that passes over everything: what nobody had in the page cache before
  /// does not stay there, so that it does not push out what a guest uses.
  static func readFromDisk(
    _ file: Int32, into bytes: UnsafeMutableRawBufferPointer, at offset: UInt64
  ) throws(Errno) -> Int {
    let last = offset + UInt64(max(bytes.count, 1)) - 1
    let wasCached = vmha_is_cached(file, off_t(offset)) == 1 && vmha_is_cached(file, off_t(last)) == 1
    dropClean(file, offset: offset, length: UInt64(bytes.count))
    defer { if !wasCached { posix_fadvise(file, off_t(offset), off_t(bytes.count), POSIX_FADV_DONTNEED) } }
    return try readAll(file, into: bytes, at: offset)
  }

  static func allocate(_ file: Int32, mode: Int32, offset: UInt64, length: UInt64) throws(Errno) {
    guard let from = off_t(exactly: offset), let count = off_t(exactly: length) else { throw Errno(EFBIG) }
    _ = try changing("backing.allocate", file) { vmha_allocate(file, mode, from, count) }
  }

  static func sync(_ file: Int32, dataOnly: Bool) throws(Errno) {
    _ = try changing(dataOnly ? "backing.datasync" : "backing.sync", file) { dataOnly ? fdatasync(file) : fsync(file) }
  }

  /// Everything of the file system that `folder`, an O_PATH descriptor, lies on.
  static func syncFileSystem(_ folder: Int32) throws(Errno) {
    let descriptor = try reopen(folder, flags: O_RDONLY | O_DIRECTORY)
    defer { close(descriptor) }
    _ = try changing("backing.syncfs", descriptor) { vmha_sync_file_system(descriptor) }
  }
}
