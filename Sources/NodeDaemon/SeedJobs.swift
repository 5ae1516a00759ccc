import Glibc
import HostSystem
import Model
import ModuleConfig

/// Brings carried copies into the folders of their modules on this node, and back. One job for each module; what must be copied is
/// copied on a thread of its own, because a terabyte takes hours and a request of the other node must not.
///
/// Nothing of it is kept on the disk: a file that is in its new place is done, so a request that is repeated, also after a crash of
/// either node, goes on where the last one stopped. No file is ever overwritten, and none deleted whose other copy is not there.
public final class SeedJobs: Sendable {
  /// How long taking back waits for a copy to notice it; it looks after each `AdoptionFiles.pieceBytes`.
  private static let cancelTimeout: Duration = .seconds(20)

  private struct Job {
    let seeding: AdoptionSeeding
    var bytesDone: UInt64 = 0
    var isCancelled = false
    /// nil while it goes on.
    var end: Result<Void, AdoptionError>?
  }
  private let jobs = Monitor<[ModuleName: Job]>([:])

  public init() {}

  private static func error(_ why: String, _ next: String) -> AdoptionError {
    AdoptionError(.conflict, what: "the carried copy on the other node", why: why, next: next)
  }

  /// Begins, or tells how far it is. nil = done; else the bytes copied so far.
  func seed(_ seeding: AdoptionSeeding) throws -> UInt64? {
    let known = jobs.withLock { jobs -> Job? in
      guard let job = jobs[seeding.name] else {
        jobs[seeding.name] = Job(seeding: seeding)
        return nil
      }
      if job.end != nil { jobs[seeding.name] = nil }
      return job
    }
    if let known {
      guard known.seeding == seeding else {
        throw Self.error("another add of \(seeding.name) is still copying", "wait, and repeat the command")
      }
      guard let end = known.end else { return known.bytesDone }
      try end.get()
      return nil
    }
    do {
      try Self.check(seeding)
      for seed in seeding.seeds where !seed.isCopied {
        try AdoptionFiles.rename(from: seed.move.from, to: seed.move.to, isOptional: false)
        // It may be the copy of a module that was removed: what its maps said of it counts no more.
        try AdoptionFiles.dropIdentity(seed.move.to)
      }
      if seeding.seeds.contains(where: \.isCopied) {
        try HostThread.start(name: "seed-\(seeding.name)") { self.run(seeding) }
        return 0
      }
    } catch {
      jobs.withLock { $0[seeding.name] = nil }
      throw error
    }
    jobs.withLock { $0[seeding.name] = nil }
    return nil
  }

  private func run(_ seeding: AdoptionSeeding) {
    var end: Result<Void, AdoptionError> = .success(())
    do { try copy(seeding) } catch let error as AdoptionError {
      end = .failure(error)
    } catch {
      end = .failure(Self.error("\(error)", "mend the cause there and repeat the command"))
    }
    jobs.withLock { $0[seeding.name]?.end = end }
  }

  private func copy(_ seeding: AdoptionSeeding) throws {
    var before: UInt64 = 0
    for seed in seeding.seeds where seed.isCopied {
      try AdoptionFiles.copy(seed.move) { bytes in
        let isCancelled = jobs.withLock { jobs -> Bool in
          jobs[seeding.name]?.bytesDone = before + bytes
          return jobs[seeding.name]?.isCancelled ?? false
        }
        if isCancelled { throw Self.error("it was taken back", "repeat the command") }
      }
      before += seed.move.bytes
    }
  }

  /// Everything is where it was before `seed`. Repeatable.
  func unseed(_ seeding: AdoptionSeeding) throws {
    try Self.checkPaths(seeding)
    jobs.withLock { $0[seeding.name]?.isCancelled = true }
    let isOver = jobs.wait(timeout: Self.cancelTimeout) { jobs -> Bool? in
      guard let job = jobs[seeding.name] else { return true }
      guard job.end != nil else { return nil }
      jobs[seeding.name] = nil
      return true
    }
    guard isOver == true else {
      throw Self.error("a copy to \(seeding.backingDirectory) hangs", "see to that disk and repeat the command")
    }
    for seed in seeding.seeds.reversed() {
      if seed.isCopied {
        try AdoptionFiles.uncopy(seed.move)
      } else {
        // Whichever of the two is there is the file.
        try AdoptionFiles.rename(from: seed.move.to, to: seed.move.from, isOptional: true)
      }
    }
  }

  // MARK: checks

  /// All of it before anything is changed.
  private static func check(_ seeding: AdoptionSeeding) throws {
    try checkPaths(seeding)
    let users = try OpenFiles.users(of: Set(seeding.seeds.map(\.move.from)))
    for seed in seeding.seeds {
      let from = seed.move.from
      // Moved before; `rename` refuses if both are there.
      if try AdoptionFiles.status(seed.move.to) != nil, !seed.isCopied { continue }
      guard let status = try AdoptionFiles.status(from), status.st_mode & S_IFMT == S_IFREG, status.st_nlink == 1 else {
        throw error("\(from) is gone, or is no plain file of one name any more", "repeat the command")
      }
      guard UInt64(status.st_size) == seed.move.bytes, AdoptionFiles.modified(status) == seed.move.modified else {
        throw error("\(from) was changed while this went on", "repeat the command")
      }
      if let open = users[from] {
        throw error("\(from) is open in \(open.joined(separator: ", "))", "end that program and repeat the command")
      }
    }
  }

  /// Only ever from somewhere else into the module's own folder.
  private static func checkPaths(_ seeding: AdoptionSeeding) throws {
    let backing = seeding.backingDirectory
    let parent = AdoptionFiles.parent(backing)
    let isOwn = backing == ModuleConfiguration.backingDirectory(of: seeding.name, in: parent)
    for seed in seeding.seeds {
      let name = AdoptionFiles.name(of: seed.move.to)
      guard isOwn, seed.move.to == "\(backing)/\(name)", ![".", ".."].contains(name),
        seed.move.from.hasPrefix("/"), !MountTable.covers(backing, seed.move.from)
      else {
        throw error("\(seed.move.from) does not belong into \(backing)", "do not repeat it")
      }
    }
  }
}
