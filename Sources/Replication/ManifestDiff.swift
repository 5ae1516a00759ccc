/// A path below the root of a replicated tree; no names = the root itself.
public struct TreePath: Hashable, Sendable, CustomStringConvertible {
  public var names: [FileName]
  public init(_ names: [FileName] = []) { self.names = names }
  public func appending(_ name: FileName) -> TreePath { TreePath(names + [name]) }
  public var parent: TreePath? { names.isEmpty ? nil : TreePath(names.dropLast()) }
  /// For messages only.
  public var description: String { names.isEmpty ? "." : names.map(\.description).joined(separator: "/") }
}

/// What the target has at one path.
public struct TreeEntry: Hashable, Sendable {
  public var path: TreePath
  public var inode: UInt64
  public var mode: UInt32
  public var owner: UInt32
  public var group: UInt32
  /// Bytes; only looked at for regular files.
  public var size: UInt64
  public var device: UInt64
  public var accessed: FileTime
  public var modified: FileTime
  public var target: LinkTarget?
  public var attributes: [AttributeName: [UInt8]]
  public init(
    path: TreePath, inode: UInt64, mode: UInt32, owner: UInt32, group: UInt32, size: UInt64 = 0, device: UInt64 = 0,
    accessed: FileTime = .zero, modified: FileTime = .zero, target: LinkTarget? = nil,
    attributes: [AttributeName: [UInt8]] = [:]
  ) {
    self.path = path
    self.inode = inode
    self.mode = mode
    self.owner = owner
    self.group = group
    self.size = size
    self.device = device
    self.accessed = accessed
    self.modified = modified
    self.target = target
    self.attributes = attributes
  }
}

/// One step of making the target's tree equal to the manifest. No step follows a symbolic link.
public enum TreeAction: Hashable, Sendable {
  case remove(TreePath, isDirectory: Bool)
  /// Nothing is there. Make it with the entry's type, `device` or `target`; its attributes follow as a step of their
  /// own.
  case create(TreePath, ManifestEntry)
  case link(existing: TreePath, new: TreePath)
  /// In this order: owner and group, mode (not for symbolic links), size, and times last.
  case setAttributes(TreePath, AttributeChange)
  case setExtendedAttribute(TreePath, name: AttributeName, value: [UInt8])
  case removeExtendedAttribute(TreePath, name: AttributeName)

  /// Changes which objects there are, not only how they look. After an identity manifest there must be none of these.
  public var isStructural: Bool {
    switch self {
    case .remove, .create, .link: true
    case .setAttributes, .setExtendedAttribute, .removeExtendedAttribute: false
    }
  }
}

/// How to make a target's tree the same as a manifest, file contents apart.
public struct ManifestDiff {
  private let manifest: Manifest
  private let target: [TreeEntry]
  private let existing: [TreePath: TreeEntry]
  /// Target paths that already hold the right object.
  private let kept: Set<TreePath>

  /// `target` is in any order and includes the root.
  public init(manifest: Manifest, target: [TreeEntry]) {
    self.manifest = manifest
    self.target = target
    existing = Dictionary(target.map { ($0.path, $0) }, uniquingKeysWith: { _, last in last })
    kept = Self.keptPaths(manifest, existing)
  }

  /// Steps in order: removals, deepest first; then what is missing, parents first, a file before its further names;
  /// then attributes; then times, children before their directory.
  public func actions() -> [TreeAction] {
    var touched: Set<TreePath> = []
    var actions: [TreeAction] = []
    let surplus = target.filter { !kept.contains($0.path) && !$0.path.names.isEmpty }
    for entry in surplus.sorted(by: { $0.path.names.count > $1.path.names.count }) {
      actions.append(.remove(entry.path, isDirectory: FileType(mode: entry.mode) == .directory))
      if let parent = entry.path.parent { touched.insert(parent) }
    }
    var firstPath: [FileID: TreePath] = [:]
    for (entry, path) in zip(manifest.entries, manifest.paths) {
      let first = firstPath[entry.id]
      if first == nil { firstPath[entry.id] = path }
      guard !kept.contains(path) else { continue }
      if let first {
        actions.append(.link(existing: first, new: path))
      } else {
        actions.append(.create(path, entry))
      }
      if let parent = path.parent { touched.insert(parent) }
    }
    Self.appendAttributes(manifest, existing, kept: kept, touched: touched, to: &actions)
    return actions
  }

  /// The target's objects that stay, as regular files of the manifest.
  public func survivors() -> [FileID: TreeEntry] {
    var survivors: [FileID: TreeEntry] = [:]
    for (entry, path) in zip(manifest.entries, manifest.paths)
    where entry.type == .regular && survivors[entry.id] == nil && kept.contains(path) {
      survivors[entry.id] = existing[path]
    }
    return survivors
  }

  /// A target's inode is kept for one manifest id only: names the
  /// manifest has as different files are taken apart, and names of one file that the target has as different ones are
  /// put together.
  private static func keptPaths(_ manifest: Manifest, _ existing: [TreePath: TreeEntry]) -> Set<TreePath> {
    var kept: Set<TreePath> = []
    var idOfInode: [UInt64: FileID] = [:]
    var inodeOfID: [FileID: UInt64] = [:]
    var seen: Set<FileID> = []
    for (entry, path) in zip(manifest.entries, manifest.paths) {
      let isFirstName = seen.insert(entry.id).inserted
      guard let found = existing[path], isSameKind(entry, found) else { continue }
      if entry.type != .directory {
        if isFirstName {
          guard idOfInode[found.inode] == nil else { continue }
          idOfInode[found.inode] = entry.id
          inodeOfID[entry.id] = found.inode
        } else {
          guard inodeOfID[entry.id] == found.inode else { continue }
        }
      }
      kept.insert(path)
    }
    return kept
  }

  private static func isSameKind(_ entry: ManifestEntry, _ found: TreeEntry) -> Bool {
    guard let type = entry.type, type == FileType(mode: found.mode) else { return false }
    switch type {
    case .symlink: return entry.target == found.target
    case .blockDevice, .characterDevice: return entry.device == found.device
    case .regular, .directory, .fifo, .socket: return true
    }
  }

  private static func appendAttributes(
    _ manifest: Manifest, _ existing: [TreePath: TreeEntry], kept: Set<TreePath>, touched: Set<TreePath>,
    to actions: inout [TreeAction]
  ) {
    var done: Set<FileID> = []
    var times: [TreeAction] = []
    for (entry, path) in zip(manifest.entries, manifest.paths) where done.insert(entry.id).inserted {
      let found = kept.contains(path) ? existing[path] : nil
      var change = AttributeChange(mode: nil)
      if found?.owner != entry.owner { change.owner = entry.owner }
      if found?.group != entry.group { change.group = entry.group }
      // A change of owner clears the set-id bits, so the mode goes with it.
      let isOtherOwner = change.owner != nil || change.group != nil
      if entry.type != .symlink, isOtherOwner || found?.mode != entry.mode { change.mode = entry.mode & 0o7777 }
      if entry.type == .regular, found?.size != entry.size { change.size = entry.size }
      if change != AttributeChange() { actions.append(.setAttributes(path, change)) }
      appendExtended(manifest.attributes[entry.id] ?? [:], found?.attributes ?? [:], path, to: &actions)
      let isSameTime = found?.accessed == entry.accessed && found?.modified == entry.modified
      if !isSameTime || change.size != nil || touched.contains(path) {
        times.append(
          .setAttributes(path, AttributeChange(accessed: entry.accessed, modified: entry.modified)))
      }
    }
    actions += times.reversed()
  }

  private static func appendExtended(
    _ wanted: [AttributeName: [UInt8]], _ found: [AttributeName: [UInt8]], _ path: TreePath,
    to actions: inout [TreeAction]
  ) {
    for name in found.keys.sorted() where wanted[name] == nil {
      actions.append(.removeExtendedAttribute(path, name: name))
    }
    for (name, value) in wanted.sorted(by: { $0.key < $1.key }) where found[name] != value {
      actions.append(.setExtendedAttribute(path, name: name, value: value))
    }
  }
}
