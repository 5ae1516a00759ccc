import FoundationEssentials
import Glibc
import HostSystem
import MirrorModule
import Model

/// What one module keeps on this node's disk beside its files: the durable record (R0) and the operator's wish.
struct ModuleStore: Sendable {
  let directory: String
  private let intentsFile: String
  private let pair: DurablePair
  private let branchNote: String
  private let syncNote: String

  init(paths: HostPaths, module: ModuleName) {
    directory = paths.moduleState(module)
    intentsFile = paths.intentsFile(module)
    branchNote = paths.branchNote(module)
    syncNote = paths.syncNote(module)
    pair = DurablePair(path: "\(directory)/record")
  }

  /// R0. One damaged copy does no harm: `write` leaves the same record in both. Throws `HostError` if it is not known what the
  /// record is: the host did not let it be read, or it is of a later version.
  func readRecord() throws -> Stored<DurableRecord> {
    switch try pair.read() {
    case .value(let payload, _, _): Stored.decoding(payload, from: "\(directory)/record")
    case .absent: .absent
    case .damaged(let why): .damaged(why)
    }
  }

  /// The record's copies say the same, or only one of them is good: then both are written anew.
  func isRecordWhole() throws -> Bool { try pair.isWhole() }

  func setRecordAside(stamp: String) throws { try pair.setAside(stamp: stamp) }

  /// Durable when it returns.
  func write(_ record: DurableRecord) throws {
    try makeFolder()
    let encoder = JSONEncoder()
    // The same record is the same bytes, whenever it is written (`isRecordWhole`).
    encoder.outputFormatting = .sortedKeys
    let payload = [UInt8](try encoder.encode(record))
    // Twice, so that both copies say the same and damage to either one loses nothing; after the first it is durable.
    try pair.write(payload)
    try pair.write(payload)
  }

  func removeAll() throws {
    try pair.remove()
    try DurableFile.remove(wishFile)
    for file in [wishFile, limitsFile] { try DurableFile.removeAside(file) }
    try DurableFile.remove(branchNote)
    try DurableFile.remove(syncNote)
    try DurableFile.remove(verificationFile)
    try DurableFile.remove(limitsFile)
    // A map must not outlive the copies it speaks of.
    try DurableFile.remove(intentsFile)
  }

  var wishFile: String { "\(directory)/wish.json" }

  /// Throws `HostError` if the host did not let it be read.
  func readWish() throws -> Stored<Wish> { try Stored.reading(wishFile) }

  func write(_ wish: Wish) throws {
    try makeFolder()
    try DurableFile.write([UInt8](JSONEncoder().encode(wish)), to: wishFile)
  }

  private var verificationFile: String { "\(directory)/verification.json" }

  /// nil: nothing is known, or it cannot be read; then the copies count as never compared.
  func readVerification() -> VerificationRecord? {
    guard let bytes = try? DurableFile.read(verificationFile) else { return nil }
    return try? JSONDecoder().decode(VerificationRecord.self, from: Data(bytes))
  }

  func write(_ verification: VerificationRecord) throws {
    try makeFolder()
    try DurableFile.write([UInt8](JSONEncoder().encode(verification)), to: verificationFile)
  }

  var limitsFile: String { "\(directory)/limits.json" }

  func makeFolder() throws {
    let parent = DurableFile.parent(of: directory)
    // It is there since vmhad began, durably (`Daemon`).
    if access(parent, F_OK) != 0 { try DurableFile.makeFolder(parent, mode: 0o700) }
    try DurableFile.makeFolder(directory, mode: 0o700)
  }
}
