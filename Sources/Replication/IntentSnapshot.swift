/// One change of the durable map. Each is idempotent; their order matters.
public enum IntentChange: Hashable, Sendable {
  case set(FileIdentity, Range<UInt32>)
  case clear(FileIdentity, Range<UInt32>)
  /// The mark of the file as a whole, beside its zones.
  case whole(FileIdentity, Bool)
  /// The mark of all files, known or not, beside everything else.
  case everything(Bool)
  /// Nothing differs: all files' zones and marks, and the mark of all.
  case reset
}

/// Changes that become durable together, or not at all.
public struct IntentBatch: Hashable, Sendable {
  public static let changesMax = 4096
  /// 1, 2, 3, … in one life of an `IntentMap`.
  public let number: UInt64
  /// In the order in which they have to be applied; at most `changesMax`.
  public let changes: [IntentChange]
}

/// A whole map as a value: what is read from the disk, and what a checkpoint writes.
public struct IntentSnapshot: Hashable, Sendable {
  /// Files with marks; above that, everything may differ.
  public static let filesMax = 65536
  /// Ranges of one file; above that, small gaps between them are taken as different too.
  public static let rangesPerFileMax = 262_144

  public struct File: Hashable, Sendable {
    public var isWhole = false
    /// Kept beside `isWhole`: when that mark goes, these stay.
    public var zones = ZoneSet()
    public init() {}
  }

  public var isEverything: Bool
  public var files: [FileIdentity: File]

  public init(isEverything: Bool = false, files: [FileIdentity: File] = [:]) {
    self.isEverything = isEverything
    self.files = files
  }

  /// What a missing or damaged map says: compare all.
  public static let everything = IntentSnapshot(isEverything: true)

  public func zones(of file: FileIdentity) -> FileContent {
    guard !isEverything else { return .whole }
    guard let found = files[file] else { return .zones([]) }
    return found.isWhole ? .whole : .zones(found.zones.ranges)
  }

  public mutating func apply(_ change: IntentChange) {
    switch change {
    case .set(let file, let zones): files[file, default: File()].zones.insert(zones)
    case .clear(let file, let zones):
      files[file]?.zones.remove(zones)
      dropIfClean(file)
    case .whole(let file, true): files[file, default: File()].isWhole = true
    case .whole(let file, false):
      files[file]?.isWhole = false
      dropIfClean(file)
    case .everything(let isOn): isEverything = isOn
    case .reset: self = IntentSnapshot()
    }
  }

  private mutating func dropIfClean(_ file: FileIdentity) {
    if let found = files[file], !found.isWhole, found.zones.isEmpty { files[file] = nil }
  }
}
