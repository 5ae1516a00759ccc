import FoundationEssentials
import HostSystem
import MirrorModule
import Model

/// What one module keeps on this node's disk beside its files: the durable record (R0) and the operator's wish.
struct ModuleStore: Sendable {
  enum Record {
    case valid(DurableRecord)
    case absent
    /// R0: neither copy can be read.
    case unreadable
  }

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

  func readRecord() -> Record {
    switch pair.read() {
    case .value(let payload, _, _):
      // One damaged copy does no harm: `write` leaves the same record in both.
      guard let record = try? JSONDecoder().decode(DurableRecord.self, from: Data(payload)) else { return .unreadable }
      return .valid(record)
    case .absent: return .absent
    case .unreadable: return .unreadable
    }
  }

  /// Durable when it returns.
  func write(_ record: DurableRecord) throws {
    try makeFolder()
    let payload = [UInt8](try JSONEncoder().encode(record))
    // Twice, so that both copies say the same and damage to either one loses nothing; after the first it is durable.
    try pair.write(payload)
    try pair.write(payload)
  }

  func removeAll() throws {
    try pair.remove()
    try DurableFile.remove(wishFile)
    try DurableFile.remove(branchNote)
    try DurableFile.remove(syncNote)
    try DurableFile.remove(verificationFile)
    try DurableFile.remove(limitsFile)
    // A map must not outlive the copies it speaks of.
    try DurableFile.remove(intentsFile)
  }

  private var wishFile: String { "\(directory)/wish.json" }

  func readWish() -> Wish {
    guard let bytes = try? DurableFile.read(wishFile),
      let wish = try? JSONDecoder().decode(Wish.self, from: Data(bytes))
    else { return Wish(started: false, version: 0) }
    return wish
  }

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
    let parent = directory.split(separator: "/").dropLast().joined(separator: "/")
    try DurableFile.makeFolder("/" + parent, mode: 0o700)
    try DurableFile.makeFolder(directory, mode: 0o700)
  }
}
