import CFuse3
import CPosixCalls
import Glibc

/// What a step came to: everything that the caller of the system call could see.
struct Outcome: CustomStringConvertible {
  /// -1 = failed.
  var result: Int
  var errno: Int32 = 0
  /// Attributes, names, link targets, values.
  var seen = ""
  var bytes: [UInt8] = []

  func isSame(as other: Outcome) -> Bool {
    guard result == other.result, errno == other.errno, seen == other.seen, bytes.count == other.bytes.count else {
      return false
    }
    return memcmp(bytes, other.bytes, bytes.count) == 0
  }
  var description: String {
    let what = result == -1 ? "-1 \(String(cString: strerror(errno)))" : "\(result)"
    return what + (seen.isEmpty ? "" : " \(seen)") + (bytes.isEmpty ? "" : " (\(bytes.count) bytes)")
  }
}

/// One tree in which steps are done. Used by one thread, which has a umask of its own.
final class StepWorld {
  static let countMax = 5 << 18
  private static let pattern: [UInt8] = {
    var dice = Dice(seed: 77)
    return (0..<(countMax + 10_000) / 8 + 1).flatMap { _ in
      let word = dice.next()
      return (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * UInt64($0))) }
    }
  }()

  let path: String
  private let root: Int32
  private var slots = [Int32](repeating: -1, count: StepMaker.slots)

  /// Steps go on in `path`, which is made, beside nothing else: `../` of it belongs to the run too.
  init(_ path: String) throws {
    self.path = path + "/run"
    guard mkdir(path, 0o777) == 0, mkdir(self.path, 0o777) == 0, chmod(path, 0o777) == 0, chmod(self.path, 0o777) == 0
    else { throw TestFailure("cannot make \(path): \(String(cString: strerror(errno)))") }
    root = Glibc.open(self.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard root >= 0 else { throw TestFailure("cannot open \(path): \(String(cString: strerror(errno)))") }
  }
  deinit {
    for slot in slots where slot >= 0 { Glibc.close(slot) }
    Glibc.close(root)
  }

  func apply(_ step: Step) throws -> Outcome {
    umask(step.umask)
    guard posix_become(step.actor.rawValue, step.actor.rawValue) == 0 else {
      throw TestFailure("cannot become user \(step.actor.rawValue)")
    }
    defer {
      // Back to what the rest of the test needs.
      if posix_become(0, 0) != 0 { preconditionFailure("cannot become root again") }
      umask(0)
    }
    return perform(step.call)
  }

  private func perform(_ call: Call) -> Outcome {
    switch call {
    case .open, .close, .write, .append, .read, .setSize, .allocate, .seek, .sync, .copyRange, .statusOf, .setModeOf:
      onDescriptor(call)
    case .makeFolder, .removeFolder, .unlink, .rename, .link, .linkOpen, .symlink, .readLink, .makeNode, .list:
      onNames(call)
    default: onAttributes(call)
    }
  }

  private func outcome(_ result: Int, _ seen: @autoclosure () -> String = "") -> Outcome {
    result < 0 ? Outcome(result: -1, errno: errno) : Outcome(result: result, seen: seen())
  }
  private func outcome(_ result: Int32, _ seen: @autoclosure () -> String = "") -> Outcome {
    outcome(Int(result), seen())
  }

  private func with<Value>(_ path: StepPath, _ body: (UnsafePointer<CChar>) -> Value) -> Value {
    (path.bytes + [0]).withUnsafeBufferPointer { buffer in
      buffer.withMemoryRebound(to: CChar.self) { text in
        guard let base = text.baseAddress else { preconditionFailure("a path has its closing zero") }
        return body(base)
      }
    }
  }

  /// For calls that take no folder's descriptor.
  private func withWhole<Value>(_ path: StepPath, _ body: (UnsafePointer<CChar>) -> Value) -> Value {
    with(StepPath(Array("/proc/self/fd/\(root)/".utf8) + path.bytes), body)
  }

  // MARK: descriptors

  private func onDescriptor(_ call: Call) -> Outcome {
    switch call {
    case .open(let slot, let path, let flags, let mode):
      let file = with(path) { openat(root, $0, flags | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, mode) }
      guard file >= 0 else { return outcome(file) }
      if slots[slot] >= 0 { Glibc.close(slots[slot]) }
      slots[slot] = file
      return Outcome(result: 0)
    case .close(let slot):
      let result = Glibc.close(slots[slot])
      slots[slot] = -1
      return outcome(result)
    case .write(let slot, let offset, let count, let fill):
      return Self.pattern.withUnsafeBytes {
        outcome(pwrite(slots[slot], $0.baseAddress.map { $0 + fill }, count, offset))
      }
    case .append(let slot, let count, let fill):
      // A pipe would fill up at another moment in each world.
      guard isRegular(slots[slot]) else { return Outcome(result: 0, seen: "no file") }
      return Self.pattern.withUnsafeBytes { bytes in
        let result = Glibc.write(slots[slot], bytes.baseAddress.map { $0 + fill }, count)
        return outcome(result, "at \(lseek(slots[slot], 0, SEEK_CUR))")
      }
    case .read(let slot, let offset, let count):
      var bytes = [UInt8](repeating: 0, count: count)
      let result = pread(slots[slot], &bytes, count, offset)
      guard result >= 0 else { return outcome(result) }
      return Outcome(result: result, bytes: Array(bytes[..<result]))
    case .setSize(let slot, let size): return outcome(ftruncate(slots[slot], size))
    case .allocate(let slot, let mode, let offset, let count):
      return outcome(posix_allocate(slots[slot], mode, Int64(offset), Int64(count)))
    case .seek(let slot, let offset, let whence):
      // Of a folder it is the file system's own affair.
      guard isRegular(slots[slot]) else { return Outcome(result: 0, seen: "no file") }
      return seek(slots[slot], offset, whence)
    case .sync(let slot, let dataOnly): return outcome(dataOnly ? fdatasync(slots[slot]) : fsync(slots[slot]))
    case .copyRange(let from, let to, let offset, let toOffset, let count):
      return outcome(posix_copy_range(slots[from], Int64(offset), slots[to], Int64(toOffset), count))
    case .statusOf(let slot):
      var status = stat()
      return outcome(fstat(slots[slot], &status), TreePicture.text(status))
    case .setModeOf(let slot, let mode): return outcome(fchmod(slots[slot], mode))
    default: preconditionFailure("\(call) needs no descriptor")
    }
  }

  private func isRegular(_ file: Int32) -> Bool {
    var status = stat()
    return fstat(file, &status) == 0 && status.st_mode & S_IFMT == S_IFREG
  }

  /// Where data ends may differ: blocks that are reserved and were read are data to some kernels. So what is passed over has to be
  /// empty, and a file that has something to find is said to.
  private func seek(_ file: Int32, _ offset: Int, _ whence: Int32) -> Outcome {
    let result = lseek(file, offset, whence)
    let code = errno
    // The place stays the same in both worlds.
    lseek(file, offset & 0xFFFF, SEEK_SET)
    errno = code
    guard result >= 0, whence == 3 else { return result < 0 ? outcome(result) : Outcome(result: 0) }
    var bytes = [UInt8](repeating: 0, count: min(result - offset, 1 << 20))
    let count = pread(file, &bytes, bytes.count, offset)
    let isEmpty = bytes.prefix(max(count, 0)).allSatisfy { $0 == 0 }
    return Outcome(result: 0, seen: result >= offset && isEmpty ? "" : "data before \(result) was passed over")
  }

  // MARK: names

  private func onNames(_ call: Call) -> Outcome {
    switch call {
    case .makeFolder(let path, let mode): return outcome(with(path) { mkdirat(root, $0, mode) })
    case .removeFolder(let path): return outcome(with(path) { unlinkat(root, $0, AT_REMOVEDIR) })
    case .unlink(let path): return outcome(with(path) { unlinkat(root, $0, 0) })
    case .rename(let path, let new, let flags):
      return outcome(with(path) { from in with(new) { posix_rename(root, from, root, $0, flags) } })
    case .link(let path, let new):
      return outcome(with(path) { from in with(new) { linkat(root, from, root, $0, 0) } })
    case .linkOpen(let slot, let new):
      let open = StepPath("/proc/self/fd/\(slots[slot])")
      return outcome(with(open) { from in with(new) { linkat(AT_FDCWD, from, root, $0, AT_SYMLINK_FOLLOW) } })
    case .symlink(let target, let path):
      return outcome(with(target) { text in with(path) { symlinkat(text, root, $0) } })
    case .readLink(let path):
      var bytes = [CChar](repeating: 0, count: 5000)
      let result = with(path) { readlinkat(root, $0, &bytes, bytes.count) }
      guard result >= 0 else { return outcome(result) }
      return Outcome(result: result, bytes: bytes[..<result].map { UInt8(bitPattern: $0) })
    case .makeNode(let path, let mode): return outcome(with(path) { mknodat(root, $0, mode, 0) })
    case .list(let path): return list(path)
    default: preconditionFailure("\(call) is not about names")
    }
  }

  private func list(_ path: StepPath) -> Outcome {
    let folder = with(path) { openat(root, $0, O_RDONLY | O_DIRECTORY | O_CLOEXEC) }
    guard folder >= 0 else { return outcome(folder) }
    guard let stream = fdopendir(folder) else { return outcome(-1) }
    defer { closedir(stream) }
    var names: [String] = []
    errno = 0
    while let entry = readdir(stream) {
      let bytes = withUnsafeBytes(of: &entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
      names.append("\(StepPath(bytes)):\(entry.pointee.d_type)")
      errno = 0
    }
    guard errno == 0 else { return outcome(-1) }
    return Outcome(result: 0, seen: names.sorted().joined(separator: " "))
  }

  // MARK: attributes

  private func onAttributes(_ call: Call) -> Outcome {
    switch call {
    case .status(let path):
      var status = stat()
      return outcome(with(path) { fstatat(root, $0, &status, AT_SYMLINK_NOFOLLOW) }, TreePicture.text(status))
    case .truncate(let path, let size): return outcome(withWhole(path) { Glibc.truncate($0, size) })
    case .setMode(let path, let mode): return outcome(with(path) { fchmodat(root, $0, mode, 0) })
    case .setOwner(let path, let user, let group):
      return outcome(with(path) { fchownat(root, $0, user, group, AT_SYMLINK_NOFOLLOW) })
    case .setTimes(let path, let access, let modification):
      let times = [Self.time(access), Self.time(modification)]
      return outcome(with(path) { utimensat(root, $0, times, AT_SYMLINK_NOFOLLOW) })
    case .setAttribute(let path, let name, let value, let flags):
      return outcome(withWhole(path) { posix_set_attribute($0, name, value, value.count, flags) })
    case .getAttribute(let path, let name):
      var value = [UInt8](repeating: 0, count: 65536)
      let result = withWhole(path) { posix_get_attribute($0, name, &value, value.count) }
      return result < 0 ? outcome(result) : Outcome(result: result, bytes: Array(value[..<result]))
    case .listAttributes(let path):
      var names = [CChar](repeating: 0, count: 65536)
      let result = withWhole(path) { posix_list_attributes($0, &names, names.count) }
      guard result >= 0 else { return outcome(result) }
      let found = names[..<result].split(separator: 0).map {
        String(decoding: $0.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      }
      return Outcome(result: result, seen: found.sorted().joined(separator: " "))
    case .removeAttribute(let path, let name): return outcome(withWhole(path) { posix_remove_attribute($0, name) })
    case .access(let path, let mode): return outcome(with(path) { posix_access(root, $0, mode) })
    default: preconditionFailure("\(call) is not about attributes")
    }
  }

  private static func time(_ stamp: Stamp) -> timespec {
    switch stamp {
    case .now: timespec(tv_sec: 0, tv_nsec: (1 << 30) - 1)
    case .omit: timespec(tv_sec: 0, tv_nsec: (1 << 30) - 2)
    case .at(let seconds, let nanoseconds): timespec(tv_sec: seconds, tv_nsec: nanoseconds)
    }
  }
}
