import CFuse3
import Glibc
import Replication

/// Makes this node's tree the same as the manifest of the peer, file contents apart.
enum TreeRepair {
  /// Answers what of each regular file has to be looked at, by this node's map. Files that are new here, or whose identity is
  /// not the source's, are marked before anything is changed: should this end half-way, the next resync finds them marked.
  static func apply(
    _ manifest: Manifest, root: Int32, intents: Intents
  ) throws(ReplicaFailure) -> [FileID: FileContent] {
    var found: [TreeEntry] = []
    do throws(EngineError) {
      try TreeWalk.visit(root: root) { (object) throws(EngineError) in
        found.append(TreeEntry(object, attributes: try TreeWalk.extendedAttributes(object)))
      }
    } catch { throw .disk(operation: "reading the tree", path: error.message, Errno(EIO)) }
    let diff = ManifestDiff(manifest: manifest, target: found)
    let actions = diff.actions()
    var contents: [FileID: FileContent] = [:]
    if manifest.identityOnly {
      try check(actions)
    } else {
      contents = try mark(manifest, diff.survivors(), intents)
    }
    for action in actions {
      do throws(Errno) { try perform(action, root) } catch {
        throw ReplicaTree.failure("\(action.path)", "the tree", error)
      }
    }
    return contents
  }

  private static func mark(
    _ manifest: Manifest, _ survivors: [FileID: TreeEntry], _ intents: Intents
  ) throws(ReplicaFailure) -> [FileID: FileContent] {
    let name = AttributeName(FileIdentities.attribute)
    func identity(_ attributes: [AttributeName: [UInt8]]?) -> FileIdentity? {
      name.flatMap { attributes?[$0] }.flatMap { FileIdentity(bytes: $0) }
    }
    var contents: [FileID: FileContent] = [:]
    var unknown: [FileIdentity] = []
    for entry in manifest.entries where entry.type == .regular && contents[entry.id] == nil {
      let wanted = identity(manifest.attributes[entry.id])
      let survivor = survivors[entry.id]
      if let wanted, let survivor, identity(survivor.attributes) == wanted {
        contents[entry.id] = intents.content(of: wanted)
      } else {
        contents[entry.id] = survivor == nil ? .fresh : .whole
        if let wanted { unknown.append(wanted) }
      }
    }
    do throws(Errno) { try intents.markWhole(unknown) } catch {
      throw .disk(operation: "write", path: "the write-intent map", error)
    }
    return contents
  }

  /// Roles were swapped in one session: both trees must hold the same objects already.
  private static func check(_ actions: [TreeAction]) throws(ReplicaFailure) {
    for action in actions {
      if case .setAttributes(let path, let change) = action, let size = change.size {
        throw .diverged("'\(path)' has \(size) bytes on the primary and another size here")
      }
      if action.isStructural { throw .diverged("'\(action.path)' is not the same on both nodes (\(action))") }
    }
  }

  private static func perform(_ action: TreeAction, _ root: Int32) throws(Errno) {
    switch action {
    case .remove(let path, let isDirectory):
      try inFolder(of: path, root) { (folder, name) throws(Errno) in
        try Backing.remove(folder, name.bytes, isFolder: isDirectory)
      }
    case .create(let path, let entry):
      try inFolder(of: path, root) { (folder, name) throws(Errno) in try create(entry, folder, name) }
    case .link(let existing, let new):
      try at(existing, root) { (object, _) throws(Errno) in
        try inFolder(of: new, root) { (folder, name) throws(Errno) in
          try Backing.makeLink(object, folder, name.bytes)
        }
      }
    case .setAttributes(let path, let change):
      try at(path, root) { (object, status) throws(Errno) in
        try ReplicaTree.set(change, on: object, type: status.st_mode & S_IFMT)
      }
    case .setExtendedAttribute(let path, let name, let value):
      try at(path, root) { (object, _) throws(Errno) in
        try Backing.setAttribute(object, name.bytes, value, flags: 0)
      }
    case .removeExtendedAttribute(let path, let name):
      try at(path, root) { (object, _) throws(Errno) in try Backing.removeAttribute(object, name.bytes) }
    }
  }

  private static func create(_ entry: ManifestEntry, _ folder: Int32, _ name: FileName) throws(Errno) {
    switch entry.type {
    case .directory: try Backing.makeFolder(folder, name.bytes, mode: 0o700)
    case .regular: close(try Backing.create(folder, name.bytes, flags: O_RDWR, mode: 0o600))
    case .symlink: try Backing.makeSymlink(folder, name.bytes, target: entry.target?.bytes ?? [])
    case .fifo, .socket, .characterDevice, .blockDevice:
      try withName(name.bytes) { (text) throws(Errno) in
        _ = try retrying { mknodat(folder, text, mode_t(entry.mode), dev_t(entry.device)) }
      }
    case nil: throw Errno(EINVAL)
    }
    guard entry.type != .symlink else { return }
    // A folder's default access list is for what is made in it; on the source this may have come there by a rename.
    let object = OwnedDescriptor(try Backing.lookUp(folder, name.bytes))
    for list in [AccessLists.ofObject, AccessLists.ofNewObjects] { try AccessLists.remove(list, from: object.number) }
  }

  // MARK: by path, from the root, never through a symbolic link

  private static func at(
    _ path: TreePath, _ root: Int32, _ body: (Int32, stat) throws(Errno) -> Void
  ) throws(Errno) {
    var object = dup(root)
    if object < 0 { throw Errno.last }
    defer { close(object) }
    for name in path.names {
      let next = try Backing.lookUp(object, name.bytes)
      close(object)
      object = next
    }
    try body(object, try Backing.status(object))
  }

  private static func inFolder(
    of path: TreePath, _ root: Int32, _ body: (Int32, FileName) throws(Errno) -> Void
  ) throws(Errno) {
    guard let parent = path.parent, let name = path.names.last else { throw Errno(EINVAL) }
    try at(parent, root) { (folder, _) throws(Errno) in try body(folder, name) }
  }
}

extension TreeAction {
  var path: TreePath {
    switch self {
    case .remove(let path, _), .create(let path, _), .link(_, let path), .setAttributes(let path, _),
      .setExtendedAttribute(let path, _, _), .removeExtendedAttribute(let path, _):
      return path
    }
  }
}
