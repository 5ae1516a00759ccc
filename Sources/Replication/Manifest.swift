/// One name in the source's tree, sent to make the target's tree the same. Parents come before their children, the
/// root first. A file with several names has one entry a name, all with the same id.
public struct ManifestEntry: Hashable, Sendable {
  public var id: FileID
  /// nil for the root.
  public var place: ManifestPlace?
  /// `st_mode`: type and permission bits.
  public var mode: UInt32
  public var owner: UInt32
  public var group: UInt32
  /// Bytes; zero for anything but a regular file.
  public var size: UInt64
  /// `st_rdev` of device nodes, else zero.
  public var device: UInt64
  public var accessed: FileTime
  public var modified: FileTime
  /// Of symbolic links only.
  public var target: LinkTarget?

  public init(
    id: FileID, place: ManifestPlace?, mode: UInt32, owner: UInt32, group: UInt32, size: UInt64 = 0,
    device: UInt64 = 0, accessed: FileTime = .zero, modified: FileTime = .zero, target: LinkTarget? = nil
  ) {
    self.id = id
    self.place = place
    self.mode = mode
    self.owner = owner
    self.group = group
    self.size = size
    self.device = device
    self.accessed = accessed
    self.modified = modified
    self.target = target
  }

  public var type: FileType? { FileType(mode: mode) }
}

public struct ManifestPlace: Hashable, Sendable {
  public var parent: FileID
  public var name: FileName
  public init(parent: FileID, name: FileName) {
    self.parent = parent
    self.name = name
  }
}

/// The type bits of `st_mode`.
public enum FileType: UInt32, Hashable, Sendable {
  case fifo = 0o010000
  case characterDevice = 0o020000
  case directory = 0o040000
  case blockDevice = 0o060000
  case regular = 0o100000
  case symlink = 0o120000
  case socket = 0o140000
  public init?(mode: UInt32) { self.init(rawValue: mode & 0o170000) }
}

/// A whole manifest, checked: what it describes can be a tree.
public struct Manifest: Hashable, Sendable {
  public let identityOnly: Bool
  /// Of the hashes of this resync.
  public let key: HashKey
  /// Root first, parents before children.
  public let entries: [ManifestEntry]
  /// The path of each entry, in the same order.
  public let paths: [TreePath]
  public let attributes: [FileID: [AttributeName: [UInt8]]]
}

/// The manifest does not describe a tree: end the session.
public struct ManifestError: Error, Hashable, Sendable, CustomStringConvertible {
  public enum Code: Hashable, Sendable {
    case outOfOrder, tooMany, noRoot, noParent, repeatedName, contradiction, wrongCount
  }
  public var code: Code
  public var message: String
  init(_ code: Code, _ message: String) {
    self.code = code
    self.message = "the peer's manifest is not a tree: \(message)"
  }
  public var description: String { message }
}

/// Puts a manifest together from its frames, in the order they come.
public struct ManifestCollector: Sendable {
  private var identityOnly: Bool?
  private var key = HashKey(0, 0)
  private var entries: [ManifestEntry] = []
  private var paths: [TreePath] = []
  private var attributes: [FileID: [AttributeName: [UInt8]]] = [:]
  private var attributeCount = 0
  private var directories: [FileID: TreePath] = [:]
  private var firstOf: [FileID: Int] = [:]
  private var places: Set<ManifestPlace> = []

  public init() {}

  /// Between `manifestBegin` and `manifestEnd`.
  public var isOpen: Bool { identityOnly != nil }

  /// Takes the four manifest kinds; returns the manifest at its end. After an error the collector is of no use.
  public mutating func take(_ body: FrameBody) throws(ManifestError) -> Manifest? {
    switch body {
    case .manifestBegin(let identityOnly, let key):
      guard self.identityOnly == nil else { throw ManifestError(.outOfOrder, "it begins twice") }
      self.identityOnly = identityOnly
      self.key = key
      return nil
    case .manifestEntry(let entry):
      try checkOpen()
      try add(entry)
      return nil
    case .manifestAttribute(let file, let name, let value):
      try checkOpen()
      guard entries.last?.id == file, attributes[file, default: [:]].updateValue(value, forKey: name) == nil else {
        throw ManifestError(.outOfOrder, "attribute \(name) of \(file) comes twice or not behind its entry")
      }
      attributeCount += 1
      return nil
    case .manifestEnd(let entryCount, let attributeCount):
      return try finish(entryCount, attributeCount)
    default:
      throw ManifestError(.outOfOrder, "a \(body.kind) frame is in the middle of it")
    }
  }

  private func checkOpen() throws(ManifestError) {
    guard identityOnly != nil else { throw ManifestError(.outOfOrder, "it has no beginning") }
    guard entries.count + attributeCount < FrameLimits.manifestCountMax else {
      throw ManifestError(.tooMany, "more than \(FrameLimits.manifestCountMax) entries and attributes")
    }
  }

  private mutating func add(_ entry: ManifestEntry) throws(ManifestError) {
    let path = try path(of: entry)
    if let first = firstOf[entry.id] {
      var same = entry
      same.place = entries[first].place
      guard entry.type != .directory, same == entries[first] else {
        throw ManifestError(.contradiction, "\(entry.id) comes as '\(paths[first])' and, different, as '\(path)'")
      }
    } else {
      firstOf[entry.id] = entries.count
    }
    if entry.type == .directory { directories[entry.id] = path }
    entries.append(entry)
    paths.append(path)
  }

  private mutating func path(of entry: ManifestEntry) throws(ManifestError) -> TreePath {
    guard let place = entry.place else {
      guard entries.isEmpty else { throw ManifestError(.noRoot, "it has two roots") }
      return TreePath()
    }
    guard !entries.isEmpty else { throw ManifestError(.noRoot, "it does not start with its root") }
    guard let parent = directories[place.parent] else {
      throw ManifestError(.noParent, "'\(place.name)' is in \(place.parent), which is no directory sent before")
    }
    guard places.insert(place).inserted else {
      throw ManifestError(.repeatedName, "'\(parent.appending(place.name))' comes twice")
    }
    return parent.appending(place.name)
  }

  private mutating func finish(_ entryCount: UInt32, _ attributeCount: UInt32) throws(ManifestError) -> Manifest {
    guard let identityOnly, !entries.isEmpty else { throw ManifestError(.noRoot, "it ends without a root") }
    guard entries.count == Int(entryCount), self.attributeCount == Int(attributeCount) else {
      throw ManifestError(
        .wrongCount,
        "\(entries.count) entries and \(self.attributeCount) attributes came, \(entryCount) and \(attributeCount) "
          + "were sent"
      )
    }
    let manifest = Manifest(
      identityOnly: identityOnly, key: key, entries: entries, paths: paths, attributes: attributes)
    self = ManifestCollector()
    return manifest
  }
}
