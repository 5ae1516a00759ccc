import CFuse3
import CPosixCalls
import Glibc

/// Everything about a tree that two copies of it must have in common.
struct TreePicture {
  /// 2020. A time before it was set on purpose and must be the same; a later one came by itself, and each copy has its own.
  static let newYear = 1_577_836_800

  struct Options: OptionSet {
    let rawValue: Int
    /// Where data and holes are. A resync may make holes of zeros, and data of what was only reserved.
    static let layout = Options(rawValue: 1)
    /// The extended attributes that are vmha's own, which no mount shows.
    static let identities = Options(rawValue: 2)
  }

  private(set) var lines: [String: String] = [:]
  private(set) var files: [String] = []
  private let path: String
  private let options: Options
  private var groups: [UInt64: String] = [:]

  init(_ path: String, _ options: Options) throws {
    self.path = path
    self.options = options
    try take("", [])
  }

  /// What any stat must say.
  static func text(_ status: stat) -> String {
    let type = status.st_mode & S_IFMT
    let size = type == S_IFDIR ? 0 : status.st_size
    let text =
      "\(String(status.st_mode, radix: 8)) links \(status.st_nlink) \(status.st_uid):\(status.st_gid) size \(size)"
    // A link's time of access changes when it is read in the backing folder; there is no way to read it without that.
    let accessed = type == S_IFLNK ? "" : " accessed \(time(status.st_atim))"
    return text + accessed + " modified \(time(status.st_mtim))"
  }

  private static func time(_ time: timespec) -> String {
    time.tv_sec < newYear || time.tv_sec > 2_100_000_000 ? "\(time.tv_sec).\(time.tv_nsec)" : "lately"
  }

  private func whole(_ name: [UInt8]) -> [CChar] { (Array(path.utf8) + name + [0]).map { CChar(bitPattern: $0) } }

  private mutating func take(_ shown: String, _ name: [UInt8]) throws {
    var status = stat()
    let text = whole(name)
    guard lstat(text, &status) == 0 else { throw TestFailure("lstat \(shown): \(errno)") }
    var line = Self.text(status)
    if status.st_mode & S_IFMT != S_IFDIR {
      line += " is \(groups[UInt64(status.st_ino), default: shown])"
      if groups[UInt64(status.st_ino)] == nil { groups[UInt64(status.st_ino)] = shown }
    }
    line += try attributes(text)
    switch status.st_mode & S_IFMT {
    case S_IFDIR:
      for child in try children(text) { try take(shown + "/" + StepPath(child).description, name + [0x2F] + child) }
    case S_IFLNK:
      var target = [CChar](repeating: 0, count: 5000)
      let count = readlink(text, &target, target.count)
      line += " -> \(StepPath(target[..<max(count, 0)].map { UInt8(bitPattern: $0) }))"
    case S_IFREG:
      files.append(shown)
      contents[shown] = name
      if options.contains(.layout) { line += " data \(try layout(text))" }
    default: break
    }
    lines[shown] = line
  }

  private var contents: [String: [UInt8]] = [:]

  private func children(_ text: [CChar]) throws -> [[UInt8]] {
    guard let stream = opendir(text) else { throw TestFailure("opendir: \(errno)") }
    defer { closedir(stream) }
    var names: [[UInt8]] = []
    while let entry = readdir(stream) {
      let name = withUnsafeBytes(of: &entry.pointee.d_name) { Array($0.prefix { $0 != 0 }) }
      if name != [0x2E], name != [0x2E, 0x2E] { names.append(name) }
    }
    return names.sorted { $0.lexicographicallyPrecedes($1) }
  }

  private func attributes(_ text: [CChar]) throws -> String {
    var names = [CChar](repeating: 0, count: 65536)
    let count = posix_list_attributes(text, &names, names.count)
    guard count >= 0 else { return " attributes: errno \(errno)" }
    var found: [String] = []
    for name in names[..<count].split(separator: 0) {
      let shown = String(decoding: name.map { UInt8(bitPattern: $0) }, as: UTF8.self)
      if shown.hasPrefix("trusted.vmha."), !options.contains(.identities) { continue }
      var value = [UInt8](repeating: 0, count: 65536)
      let size = posix_get_attribute(text, Array(name) + [0], &value, value.count)
      found.append("\(shown)=\(value[..<max(size, 0)])")
    }
    return found.isEmpty ? "" : " " + found.sorted().joined(separator: " ")
  }

  private func layout(_ text: [CChar]) throws -> String {
    let file = open(text, O_RDONLY)
    guard file >= 0 else { throw TestFailure("open: \(errno)") }
    defer { close(file) }
    // What is in memory only counts as data, or not, by the kernel's mood.
    guard fsync(file) == 0 else { throw TestFailure("fsync: \(errno)") }
    posix_fadvise(file, 0, 0, POSIX_FADV_DONTNEED)
    return Self.data(file).map { "\($0.lowerBound)..<\($0.upperBound)" }.joined(separator: ",")
  }

  private static func data(_ file: Int32) -> [Range<Int>] {
    var ranges: [Range<Int>] = []
    var from = 0
    while true {
      let start = lseek(file, from, 3)
      guard start >= 0 else { return ranges }
      let end = lseek(file, start, 4)
      guard end > start else { return ranges }
      ranges.append(start..<end)
      from = end
    }
  }

  // MARK: comparing

  /// The first few differences, a line each; empty = the same.
  func differences(from other: TreePicture) throws -> [String] {
    var found: [String] = []
    for name in Set(lines.keys).union(other.lines.keys).sorted() where lines[name] != other.lines[name] {
      found.append("'\(name)': \(lines[name] ?? "missing")\n      and: \(other.lines[name] ?? "missing")")
      if found.count > 5 { return found }
    }
    guard found.isEmpty else { return found }
    for name in files {
      guard let one = contents[name], let two = other.contents[name] else { continue }
      if let place = try Self.firstDifference(whole(one), other.whole(two)) {
        found.append("'\(name)' differs at byte \(place)")
      }
    }
    return found
  }

  private static func firstDifference(_ one: [CChar], _ two: [CChar]) throws -> Int? {
    let (a, b) = (open(one, O_RDONLY), open(two, O_RDONLY))
    defer {
      close(a)
      close(b)
    }
    guard a >= 0, b >= 0 else { throw TestFailure("cannot open two files to compare them: \(errno)") }
    let piece = 1 << 18
    var (left, right) = ([UInt8](repeating: 0, count: piece), [UInt8](repeating: 0, count: piece))
    // Zeros and holes are the same thing, so both have to be looked at wherever either holds data.
    for range in data(a) + data(b) {
      var offset = range.lowerBound
      while offset < range.upperBound {
        let count = min(piece, range.upperBound - offset)
        let (m, n) = (pread(a, &left, count, offset), pread(b, &right, count, offset))
        guard m == n, m > 0 else { return offset }
        if memcmp(left, right, m) != 0 { return offset + (0..<m).prefix { left[$0] == right[$0] }.count }
        offset += m
      }
    }
    return nil
  }
}
