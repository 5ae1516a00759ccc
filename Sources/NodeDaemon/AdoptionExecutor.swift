import Foundation
import Glibc
import HostSystem
import Model
import ModuleConfig
import VirtualMachines

/// The durable note of an add or remove that is going on: written before the first step, after every step, and removed at the end.
struct AdoptionJournal: Codable, Hashable {
  enum Phase: String, Codable { case doing, undoing }
  var version = 1
  var work: AdoptionWork
  var phase: Phase
  /// Steps before this one are done (doing), or this one and later ones are undone (undoing).
  var next: Int

  static let bytesMax = 8 << 20
}

/// What the daemon does at certain steps. Each must be repeatable.
public struct AdoptionActions: Sendable {
  /// Asks the other node; throws if it cannot be reached.
  public var peer: @Sendable (AdoptionPeerRequest) throws -> AdoptionPeerReply
  /// The module's first durable record on this node (R0), and whatever the daemon keeps beside it.
  public var createRecord: @Sendable (ModuleConfiguration) throws -> Void
  /// Takes that back, also when it was never made.
  public var discardRecord: @Sendable (ModuleName) throws -> Void
  public init(
    peer: @escaping @Sendable (AdoptionPeerRequest) throws -> AdoptionPeerReply,
    createRecord: @escaping @Sendable (ModuleConfiguration) throws -> Void,
    discardRecord: @escaping @Sendable (ModuleName) throws -> Void
  ) {
    self.peer = peer
    self.createRecord = createRecord
    self.discardRecord = discardRecord
  }
}

/// Does the steps of a plan, and undoes them. A crash at any point leaves a journal from which `resume` goes on.
struct AdoptionExecutor {
  let paths: HostPaths
  let hypervisor: any Hypervisor
  let actions: AdoptionActions
  let progress: (AdoptionProgress) -> Void
  /// For tests: called between the steps; what it throws ends everything on the spot, as a crash would.
  var checkpoint: (_ point: String) throws(AdoptionCrash) -> Void = { _ in }

  /// While the other node copies what was carried there: how often it is asked, and how long it may be out of reach.
  static let seedPollMicrosecondsMax: UInt32 = 500_000
  static let seedSilenceMax: Duration = .seconds(60)

  func journalPath(_ name: ModuleName) -> String { "\(paths.moduleState(name))/adoption.json" }

  func journal(_ name: ModuleName) throws -> AdoptionJournal? {
    guard let bytes = try DurableFile.readDurable(journalPath(name), bytesMax: AdoptionJournal.bytesMax) else {
      return nil
    }
    return try AdoptionCoding.decode(AdoptionJournal.self, from: bytes, path: journalPath(name))
  }

  private func write(_ journal: AdoptionJournal) throws {
    try DurableFile.makeFolder(paths.moduleState(journal.work.name), mode: 0o700)
    try DurableFile.write(try AdoptionCoding.encode(journal), to: journalPath(journal.work.name))
  }

  private func forget(_ name: ModuleName) throws {
    try DurableFile.remove(journalPath(name))
    try AdoptionFiles.removeFolderIfEmpty(paths.moduleState(name))
  }

  // MARK: Running

  /// Does the work from its beginning. Throws `AdoptionError`: `undone` or `unfinished`.
  func run(_ work: AdoptionWork) throws {
    let journal = AdoptionJournal(work: work, phase: .doing, next: 0)
    do {
      try write(journal)
    } catch {
      throw AdoptionError(
        .undone, what: "\(work.kind) \(work.name)", why: "\(error)", next: "nothing was changed; repeat the command")
    }
    try resume(journal)
  }

  /// Goes on where the journal says: forward, or back.
  func resume(_ journal: AdoptionJournal) throws {
    if journal.phase == .undoing { return try undo(journal, because: nil) }
    var journal = journal
    var copied = journal.work.steps.prefix(journal.next).reduce(UInt64(0)) { $0 + $1.bytes }
    while journal.next < journal.work.steps.count {
      let step = journal.work.steps[journal.next]
      let total = journal.work.bytesToCopy
      progress(AdoptionProgress(sentence: step.sentence, bytesDone: copied, bytesTotal: total))
      try checkpoint("before \(journal.next)")
      do {
        try perform(step) { bytes in
          progress(AdoptionProgress(sentence: step.sentence, bytesDone: copied + bytes, bytesTotal: total))
        }
        try checkpoint("done \(journal.next)")
        copied += step.bytes
        journal.next += 1
        try write(journal)
      } catch let crash as AdoptionCrash {
        throw crash
      } catch {
        try fail(journal, error)
      }
    }
    do {
      try forget(journal.work.name)
    } catch {
      throw unfinished(journal, error)
    }
  }

  private func fail(_ journal: AdoptionJournal, _ error: any Error) throws -> Never {
    let begun = journal.work.steps.prefix(journal.next + 1)
    if begun.contains(where: \.isFinal) { throw unfinished(journal, error) }
    try undo(
      AdoptionJournal(work: journal.work, phase: .undoing, next: min(journal.next + 1, journal.work.steps.count)),
      because: error)
    throw AdoptionError(
      .undone, what: "\(journal.work.kind) \(journal.work.name)", why: "\(error)",
      next: "everything is as it was; mend the cause and repeat the command")
  }

  private func unfinished(_ journal: AdoptionJournal, _ error: any Error) -> AdoptionError {
    AdoptionError(
      .unfinished, what: "\(journal.work.kind) \(journal.work.name)", why: "\(error)",
      next: "mend the cause and repeat 'vmha \(journal.work.kind) \(journal.work.name)': it goes on where it stopped")
  }

  /// Takes everything back, last step first. `because`: what made it necessary.
  func undo(_ journal: AdoptionJournal, because cause: (any Error)?) throws {
    var journal = journal
    journal.phase = .undoing
    do {
      try write(journal)
      while journal.next > 0 {
        let step = journal.work.steps[journal.next - 1]
        let sentence = "take back: \(step.sentence)"
        progress(AdoptionProgress(sentence: sentence, bytesDone: 0, bytesTotal: 0))
        try checkpoint("undo before \(journal.next - 1)")
        try revert(step)
        try checkpoint("undo done \(journal.next - 1)")
        journal.next -= 1
        try write(journal)
      }
      try forget(journal.work.name)
    } catch let crash as AdoptionCrash {
      throw crash
    } catch {
      let first = cause.map { "\($0); taking it back failed: " } ?? ""
      throw AdoptionError(
        .unfinished, what: "\(journal.work.kind) \(journal.work.name)", why: "\(first)\(error)",
        next: "mend the cause and repeat 'vmha \(journal.work.kind) \(journal.work.name)' to finish taking it back")
    }
  }

  // MARK: Steps

  private func perform(_ step: AdoptionStep, progress: (UInt64) -> Void) throws {
    switch step {
    case .guardModule(let name): try DurableFile.makeFolder(paths.module(name), mode: 0o755)
    case .makeFolder(let path, let mode): try DurableFile.makeFolder(path, mode: mode_t(mode))
    case .rename(let move):
      try AdoptionFiles.rename(from: move.from, to: move.to, isOptional: move.isOptional)
      try AdoptionFiles.dropIdentity(move.to)
    case .copy(let move): try AdoptionFiles.copy(move, progress: progress)
    case .rebase(let image, let format, let backingFormat, _, let to):
      try rebase(image, format: format, backingFormat: backingFormat, to: to)
    case .writeModule(let files): try AdoptionModuleFolder(paths: paths).write(files)
    case .installOnPeer(let files): _ = try ask(.install(files))
    case .seedPeer(let seeding): try seed(seeding, progress: progress)
    case .define(let name, let xml, let autostart, _, _): try define(name, xml: xml, autostart: autostart)
    case .createRecord(let module): try actions.createRecord(module)
    case .saveDefinition(let path, let xml):
      try DurableFile.makeFolder(AdoptionFiles.parent(path), mode: 0o700)
      try DurableFile.write(Array(xml.utf8), to: path)
    case .discardSource(let move): try AdoptionFiles.discardSource(move)
    case .withdrawFromPeer(let withdrawal): _ = try ask(.withdraw(withdrawal))
    case .removeModule(let name):
      try actions.discardRecord(name)
      try AdoptionModuleFolder(paths: paths).remove(name)
    // Only ever the module's own two folders; one that still holds something is left, as the plan has said.
    case .removeFolder(let path): try AdoptionFiles.removeFolderIfEmpty(path)
    }
  }

  private func revert(_ step: AdoptionStep) throws {
    switch step {
    case .guardModule(let name): try AdoptionFiles.removeFolderIfEmpty(paths.module(name))
    case .makeFolder(let path, _): try AdoptionFiles.removeFolderIfEmpty(path)
    // Whichever of the two is there is the file; both absent was so before, or is an error that the next start shows.
    case .rename(let move): try AdoptionFiles.rename(from: move.to, to: move.from, isOptional: true)
    case .copy(let move): try AdoptionFiles.uncopy(move)
    case .rebase(let image, let format, let backingFormat, let from, _):
      if try AdoptionFiles.status(image) != nil {
        try rebase(image, format: format, backingFormat: backingFormat, to: from)
      }
    case .writeModule(let files): try AdoptionModuleFolder(paths: paths).remove(files.module.name, keepingGuard: true)
    case .seedPeer(let seeding): _ = try ask(.unseed(seeding))
    case .installOnPeer(let files): _ = try ask(.withdraw(Self.withdrawal(files.module, .removeIfEmpty)))
    case .define(let name, _, _, let oldXML, let oldAutostart):
      try define(name, xml: oldXML, autostart: oldAutostart)
    case .createRecord(let module): try actions.discardRecord(module.name)
    case .saveDefinition(let path, _): try DurableFile.remove(path)
    case .discardSource, .withdrawFromPeer, .removeModule, .removeFolder:
      preconditionFailure("a final step is never taken back")
    }
  }

  static func withdrawal(
    _ module: ModuleConfiguration, _ copy: AdoptionWithdrawal.Copy, for kept: DurableRecord? = nil
  ) -> AdoptionWithdrawal {
    AdoptionWithdrawal(
      name: module.name, uuid: module.uuid, backingDirectory: module.backingDirectory, mountPoint: module.mountPoint,
      copy: copy, keptRecord: kept)
  }

  private func define(_ name: String, xml: String, autostart: Bool) throws {
    if let facts = try hypervisor.facts(of: name), facts.state.isActive {
      throw AdoptionError(
        .conflict, what: name, why: "it was started meanwhile", next: "shut it down: virsh shutdown \(name)")
    }
    try hypervisor.define(xml: xml)
    try hypervisor.setAutostart(name, autostart)
  }

  private func rebase(_ image: String, format: String, backingFormat: String, to reference: String) throws {
    let before = try AdoptionFiles.status(image)
    try DiskImageTool.setBacking(of: image, format: format, to: reference, backingFormat: backingFormat)
    let file = try HostCalls.perform("adoption.open", path: image) { open(image, O_RDWR | O_CLOEXEC) }
    defer { close(file) }
    // The header has changed, the contents have not: an unchanged time keeps a repeated copy from being refused.
    if let before {
      let times = [before.st_atim, before.st_mtim]
      try HostCalls.perform("adoption.times", path: image) { futimens(file, times) }
    }
    try HostCalls.perform("adoption.sync", path: image) { fsync(file) }
  }

  /// The other node goes on copying by itself; it is asked how far it is until it is done. A link that breaks meanwhile has
  /// `seedSilenceMax` to come back.
  private func seed(_ seeding: AdoptionSeeding, progress: (UInt64) -> Void) throws {
    var heard: Instant?
    var pause: UInt32 = 10_000
    while true {
      do {
        switch try ask(.seed(seeding)) {
        case .done: return
        case .seeding(let bytes): progress(bytes)
        default:
          throw AdoptionError(
            .peer, what: "the carried copy", why: "the other node gave another answer than was asked for",
            next: "install the same version of vmha on both nodes")
        }
        heard = monotonicNow()
      } catch let error as AdoptionError {
        throw error
      } catch {
        guard let last = heard, monotonicNow() - last < Self.seedSilenceMax else { throw error }
      }
      usleep(pause)
      pause = min(pause * 2, Self.seedPollMicrosecondsMax)
    }
  }

  private func ask(_ request: AdoptionPeerRequest) throws -> AdoptionPeerReply {
    let reply = try HostCalls.performThrowing("adoption.peer") { try actions.peer(request) }
    if case .failed(let error) = reply { throw error }
    return reply
  }
}

/// Ends an executor as a crash would. Tests only.
struct AdoptionCrash: Error {}

/// JSON with keys in a fixed order, so that equal values are equal bytes.
enum AdoptionCoding {
  static func encode(_ value: some Encodable) throws -> [UInt8] {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.sortedKeys, .prettyPrinted]
    return Array(try encoder.encode(value))
  }

  static func decode<T: Decodable>(_ type: T.Type, from bytes: [UInt8], path: String) throws -> T {
    do {
      return try JSONDecoder().decode(type, from: Data(bytes))
    } catch {
      throw HostError(.invalid, "adoption.decode", path: path, "\(error)")
    }
  }
}
