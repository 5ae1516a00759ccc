import FoundationEssentials
import Glibc
import HostSystem
import Model
import Synchronization

/// What is known of one archived branch: `branch.json` beside its files (docs/on-disk-format.md).
struct BranchRecord: Sendable, Codable, Hashable {
  static let versionNow = 1
  var version = Self.versionNow
  var module: ModuleName
  /// Name of the node whose copy it was.
  var node: String
  var generation: Generation
  /// The generation that was kept.
  var kept: Generation
  /// When the branch began and when its files were last changed, milliseconds since 1970; nil = not known.
  var since: Int64?
  var lastWrite: Int64?
  var archivedAt: Int64
  /// Bytes on disk, holes apart.
  var bytes: UInt64
  var files: Int
}

/// Branches of one module that lost a split, each kept as the whole tree it was (R12): `<backing directory>@branches/<branch>`
/// on the node whose copy it was, beside the copy, so that a file system with reflinks shares what is the same.
///
/// A branch is there as a whole or not at all: it is made under another name, made durable, and renamed. What a crash leaves
/// behind under such a name is garbage, removed by the next call that changes something. Blocks for as long as the disks need.
struct BranchArchive: Sendable {
  /// Longest copy of a tree; a limit against a hung disk, not against a large one.
  static let copyTimeout: Duration = .seconds(48 * 3600)
  static let removeTimeout: Duration = .seconds(3600)
  /// What stays free on the file system beside the archive.
  static let reserveBytes: UInt64 = 256 << 20
  /// Archived branches of one module; beyond it none is added before one is dropped.
  static let branchesMax = 100

  let module: ModuleName
  let backingDirectory: String

  /// No module's own folder can have this name: '@' is in none.
  var directory: String { "\(backingDirectory)@branches" }
  private func folder(_ branch: BranchID) -> String { "\(directory)/\(branch)" }
  func files(_ branch: BranchID) -> String { "\(folder(branch))/files" }
  private static let unfinished = ".unfinished-"
  /// Folders of archives that are being made in this process.
  private static let beingMade = Mutex<Set<String>>([])

  // MARK: looking

  func list() throws -> [BranchRecord] {
    guard access(directory, F_OK) == 0 else { return [] }
    var found: [BranchRecord] = []
    for name in try folderNames(directory, operation: "branch.list") where !name.hasPrefix(".") {
      found.append(try read("\(directory)/\(name)"))
    }
    return found.sorted { ($0.archivedAt, $0.generation.number) < ($1.archivedAt, $1.generation.number) }
  }

  /// nil = there is none.
  func find(_ branch: BranchID) throws -> BranchRecord? {
    access(folder(branch), F_OK) == 0 ? try read(folder(branch)) : nil
  }

  private func read(_ folder: String) throws -> BranchRecord {
    let path = "\(folder)/branch.json"
    do {
      let record = try JSONDecoder().decode(BranchRecord.self, from: Data(DurableFile.read(path)))
      guard record.version == BranchRecord.versionNow else {
        throw HostError(.invalid, "branch.read", path: path, "version \(record.version) is not known here")
      }
      return record
    } catch let error as DecodingError { throw HostError(.invalid, "branch.read", path: path, "\(error)") }
  }

  // MARK: making

  /// R12: keeps the tree as it is now. Durable when it returns. Nobody may write to it meanwhile; a change is noticed and refused.
  /// A branch that is archived already (the step behind this one was lost in a crash) is made anew.
  func archive(_ record: BranchRecord) throws -> BranchRecord {
    try DurableFile.makeFolder(directory, mode: 0o700)
    try removeUnfinished()
    let branch = record.generation.branch
    let before = try TreeSurvey(backingDirectory)
    try checkRoom(for: branch, before.bytes)
    let part = "\(directory)/\(Self.unfinished)\(branch)-\(randomUInt64())"
    Self.beingMade.withLock { _ = $0.insert(part) }
    defer { Self.beingMade.withLock { _ = $0.remove(part) } }
    do {
      try HostCalls.perform("branch.folder", path: part) { mkdir(part, 0o700) }
      try Self.copy(backingDirectory, to: "\(part)/files", label: "branch.copy")
      guard try TreeSurvey(backingDirectory) == before else {
        throw HostError(.invalid, "branch.archive", path: backingDirectory, "it was changed while it was archived")
      }
      var record = record
      record.bytes = before.bytes
      record.files = before.files
      record.lastWrite = before.lastWrite
      try DurableFile.write([UInt8](JSONEncoder().encode(record)), to: "\(part)/branch.json")
      try Self.sync(part)
      try commit(part, branch)
      return record
    } catch {
      try Self.removeTree(part)
      throw error
    }
  }

  /// The one step that makes it a branch.
  private func commit(_ part: String, _ branch: BranchID) throws {
    if access(folder(branch), F_OK) == 0 {
      let old = "\(directory)/\(Self.unfinished)\(branch)-old-\(randomUInt64())"
      try HostCalls.perform("branch.rename", path: old) { rename(folder(branch), old) }
    }
    try HostCalls.perform("branch.rename", path: part) { rename(part, folder(branch)) }
    try DurableFile.syncFolder(directory)
    try DurableFile.syncFolder(DurableFile.parent(of: directory))
    try removeUnfinished()
  }

  // MARK: space

  /// Bytes an archive of the present tree would take: about none where the file system shares them.
  func bytesNeeded(_ bytes: UInt64) throws -> UInt64 { try canShare() ? 0 : bytes }

  func bytesFree() throws -> UInt64 { try Self.bytesFree(in: DurableFile.parent(of: backingDirectory)) }

  private static func bytesFree(in folder: String) throws -> UInt64 {
    var answer = statvfs()
    try HostCalls.perform("branch.space", path: folder) { statvfs(folder, &answer) }
    return UInt64(answer.f_bavail) * UInt64(answer.f_frsize)
  }

  /// Whether a branch of this size can be kept beside the others.
  func checkRoom(for branch: BranchID, _ bytes: UInt64) throws {
    guard try find(branch) != nil || list().count < Self.branchesMax else {
      throw HostError(
        .limit, "branch.archive", path: directory, "\(Self.branchesMax) branches are kept already: drop one first")
    }
    let needed = try bytesNeeded(bytes) + Self.reserveBytes
    let free = try bytesFree()
    guard free >= needed else {
      throw HostError(
        .limit, "branch.archive", path: directory,
        "it needs \(byteText(needed)) and \(byteText(free)) are free: make room there, or drop an older branch")
    }
  }

  /// Whether this file system can give two files the same blocks.
  private func canShare() throws -> Bool {
    try DurableFile.makeFolder(directory, mode: 0o700)
    let probe = "\(directory)/\(Self.unfinished)probe-\(randomUInt64())"
    defer {
      unlink(probe)
      unlink("\(probe)-copy")
    }
    try DurableFile.write([UInt8](repeating: 1, count: 4096), to: probe)
    return try ChildProcess.run(["cp", "--reflink=always", probe, "\(probe)-copy"], timeout: .seconds(20)).status == 0
  }

  // MARK: export, drop

  /// The branch's files as they were, in a new folder. Only there as a whole.
  func export(_ branch: BranchID, to destination: String) throws {
    guard let record = try find(branch) else { throw missing(branch) }
    guard destination.hasPrefix("/"), access(destination, F_OK) != 0 else {
      throw HostError(
        .invalid, "branch.export", path: destination, "give an absolute path of a folder that is not there yet")
    }
    let above = DurableFile.parent(of: destination)
    let free = try Self.bytesFree(in: above)
    guard free >= record.bytes else {
      throw HostError(
        .limit, "branch.export", path: destination,
        "it has \(byteText(record.bytes)) and \(byteText(free)) are free there")
    }
    let part = "\(destination).part-\(randomUInt64())"
    do {
      try Self.copy(files(branch), to: part, label: "branch.export")
      try Self.removeIdentities(part)
      try Self.sync(part)
      try HostCalls.perform("branch.rename", path: destination) { rename(part, destination) }
      try DurableFile.syncFolder(above)
    } catch {
      try Self.removeTree(part)
      throw error
    }
  }

  func drop(_ branch: BranchID) throws {
    guard try find(branch) != nil else { throw missing(branch) }
    let doomed = "\(directory)/\(Self.unfinished)\(branch)-dropped-\(randomUInt64())"
    try HostCalls.perform("branch.rename", path: doomed) { rename(folder(branch), doomed) }
    try DurableFile.syncFolder(directory)
    try removeUnfinished()
  }

  private func missing(_ branch: BranchID) -> HostError {
    HostError(.invalid, "branch", path: folder(branch), "this node keeps no such branch of \(module): vmha branch list")
  }

  /// What a crash has left. Not what another thread is making now: a drop or a list must not take an archive's folder from under it.
  private func removeUnfinished() throws {
    for name in try folderNames(directory, operation: "branch.list") where name.hasPrefix(Self.unfinished) {
      let path = "\(directory)/\(name)"
      if !Self.beingMade.withLock({ $0.contains(path) }) { try Self.removeTree(path) }
    }
  }

  // MARK: trees

  /// Everything of the tree, its root's own attributes too: names, hard links, owners, modes, times, extended attributes, holes.
  /// The copy dies with vmhad, so that it never meets a later one's.
  private static func copy(_ source: String, to target: String, label: String) throws {
    try HostCalls.performThrowing(label, path: target) {
      try run(
        [
          "setpriv", "--pdeathsig", "KILL", "cp", "--archive", "--reflink=auto", "--sparse=always",
          "--no-target-directory",
        ]
          + ["--", source, target], timeout: copyTimeout)
    }
  }

  private static func removeTree(_ path: String) throws {
    guard access(path, F_OK) == 0 else { return }
    try run(["rm", "-rf", "--one-file-system", "--", path], timeout: removeTimeout)
  }

  private static func run(_ arguments: [String], timeout: Duration) throws {
    let result = try ChildProcess.run(arguments, timeout: timeout)
    guard result.status == 0 else {
      throw HostError(
        .invalid, "branch", path: arguments.last ?? "", "\(result.errorText.prefix(1000)) (status \(result.status))")
    }
  }

  /// Every file and folder of the tree, each before the folder that holds its name.
  private static func sync(_ root: String) throws {
    var all: [String] = []
    try TreeSurvey.visit(root) { path, status in
      if [S_IFREG, S_IFDIR].contains(status.st_mode & S_IFMT) { all.append(path) }
    }
    for path in all.reversed() {
      let file = try HostCalls.perform("branch.sync", path: path) { open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC) }
      defer { close(file) }
      try HostCalls.perform("branch.sync", path: path) { fsync(file) }
    }
  }

  /// vmha's own names for files mean nothing outside.
  private static func removeIdentities(_ root: String) throws {
    try TreeSurvey.visit(root) { path, status in
      guard status.st_mode & S_IFMT == S_IFREG else { return }
      try AdoptionFiles.dropIdentity(path)
    }
  }
}

/// A tree's names, sizes and times: whether it is still the same, and how large it is.
struct TreeSurvey: Sendable, Hashable {
  private(set) var files = 0
  /// On disk; a file with several names counts once.
  private(set) var bytes: UInt64 = 0
  /// The latest change of a file's contents, milliseconds since 1970.
  private(set) var lastWrite: Int64?
  private var state: [String: [Int]] = [:]

  init(_ root: String) throws {
    var seen: Set<UInt64> = []
    var found = TreeSurvey()
    try Self.visit(root) { path, status in
      found.state[path] = [
        Int(status.st_ino), Int(status.st_size), Int(status.st_mode), Int(status.st_mtim.tv_sec),
        status.st_mtim.tv_nsec, Int(status.st_ctim.tv_sec), status.st_ctim.tv_nsec,
      ]
      guard status.st_mode & S_IFMT == S_IFREG, seen.insert(UInt64(status.st_ino)).inserted else { return }
      found.files += 1
      found.bytes += UInt64(status.st_blocks) * 512
      let written = Int64(status.st_mtim.tv_sec) * 1000 + Int64(status.st_mtim.tv_nsec) / 1_000_000
      found.lastWrite = max(found.lastWrite ?? written, written)
    }
    self = found
  }

  private init() {}

  /// Parents before their children; symbolic links are not followed.
  static func visit(_ path: String, _ use: (String, stat) throws -> Void) throws {
    var status = stat()
    try HostCalls.perform("branch.stat", path: path) { lstat(path, &status) }
    try use(path, status)
    guard status.st_mode & S_IFMT == S_IFDIR else { return }
    for name in try folderNames(path, operation: "branch.list") { try visit("\(path)/\(name)", use) }
  }
}
