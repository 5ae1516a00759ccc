import ControlAPI
import FoundationEssentials
import Glibc
import HostSystem
import MirrorModule
import Model
import ModuleConfig

/// When this node's present branch began. For people only: no decision looks at it.
struct BranchNote: Sendable, Codable, Hashable {
  var branch: BranchID
  /// Milliseconds since 1970.
  var since: Int64

  static func read(_ path: String) -> BranchNote? {
    guard let bytes = try? DurableFile.readIfPresent(path) else { return nil }
    return try? JSONDecoder().decode(BranchNote.self, from: Data(bytes))
  }
}

// R12: what the shell does for a split.
extension ModuleRunner {
  var archive: BranchArchive { BranchArchive(module: module, backingDirectory: configuration.backingDirectory) }

  /// Behind the record and all that follows from it. Its loss costs a date in `vmha status`, so it stops nothing.
  func noteBranch(_ branch: BranchID) {
    let path = surroundings.paths.branchNote(module)
    guard BranchNote.read(path)?.branch != branch else { return }
    do {
      let note = BranchNote(branch: branch, since: WallTime.now().milliseconds)
      try DurableFile.write([UInt8](JSONEncoder().encode(note)), to: path)
    } catch { surroundings.journal(.warning, Reason("the age of this branch is not kept: \(error)"), module: module) }
  }

  func branchSince(_ branch: BranchID) -> Int64? {
    BranchNote.read(surroundings.paths.branchNote(module)).flatMap { $0.branch == branch ? $0.since : nil }
  }

  /// On a thread of its own: it may take as long as the whole disk image needs.
  func archive(_ generation: Generation, kept: Generation) {
    let branch = generation.branch
    do {
      try HostThread.start(name: "archive-\(module.text)", stackBytes: 4 << 20) { [self] in
        do {
          let made = try archive.archive(
            BranchRecord(
              module: module, node: surroundings.nodeName, generation: generation, kept: kept,
              since: branchSince(branch), archivedAt: WallTime.now().milliseconds, bytes: 0, files: 0))
          surroundings.journal(
            .notice,
            Reason(
              "branch \(branch) is archived in \(archive.directory): \(made.files) files, \(byteText(made.bytes))",
              rule: "R12"), module: module)
          push(.branchArchived(branch))
        } catch { push(.branchArchiveFailed(branch, why: "\(error)")) }
      }
    } catch { push(.branchArchiveFailed(branch, why: "\(error)")) }
  }
}
