import Model
import Testing

@testable import Replication

/// A tree in memory with the rules of a real one: no unlinking of full directories, no creating over something, link
/// counts.
private struct Tree: Equatable {
  struct Node: Equatable {
    var mode: UInt32
    var owner: UInt32
    var group: UInt32
    var size: UInt64 = 0
    var device: UInt64 = 0
    var accessed = FileTime.zero
    var modified = FileTime.zero
    var target: LinkTarget?
    var attributes: [AttributeName: [UInt8]] = [:]
    var type: FileType? { FileType(mode: mode) }
  }
  /// Any use of the tree sets the time of the folder to this.
  static let touchedAt = FileTime(seconds: 999_999, nanoseconds: 0) ?? .zero

  var nodes: [UInt64: Node] = [1: Node(mode: 0o040755, owner: 0, group: 0)]
  var names: [TreePath: UInt64] = [TreePath(): 1]
  var nextInode: UInt64 = 2

  var paths: [TreePath] {
    names.keys.sorted { a, b in
      a.names.count != b.names.count
        ? a.names.count < b.names.count : a.names.lexicographicallyPrecedes(b.names)
    }
  }

  /// Everything but inode numbers: for each path its node and the paths that are the same object.
  var shape: [TreePath: [String]] {
    var sharing: [UInt64: [TreePath]] = [:]
    for path in paths { sharing[names[path] ?? 0, default: []].append(path) }
    var shape: [TreePath: [String]] = [:]
    for (path, inode) in names { shape[path] = ["\(sharing[inode] ?? [])", "\(described(nodes[inode]))"] }
    return shape
  }

  private func described(_ node: Node?) -> String {
    guard let node else { return "nothing" }
    let attributes = node.attributes.sorted { $0.key < $1.key }.map { "\($0.key)=\(text($0.value))" }
    var plain = node
    plain.attributes = [:]
    return "\(plain) \(attributes)"
  }

  func children(_ path: TreePath) -> [TreePath] { names.keys.filter { $0.parent == path && $0 != path } }

  mutating func add(_ path: TreePath, _ node: Node) -> Bool {
    guard names[path] == nil, let parent = path.parent, let folder = names[parent],
      nodes[folder]?.type == .directory
    else { return false }
    names[path] = nextInode
    nodes[nextInode] = node
    nextInode += 1
    nodes[folder]?.modified = Self.touchedAt
    return true
  }

  mutating func remove(_ path: TreePath, isDirectory: Bool) -> Bool {
    guard let inode = names[path], let parent = path.parent, let folder = names[parent],
      (nodes[inode]?.type == .directory) == isDirectory, children(path).isEmpty
    else { return false }
    names[path] = nil
    if !names.values.contains(inode) { nodes[inode] = nil }
    nodes[folder]?.modified = Self.touchedAt
    return true
  }

  mutating func perform(_ action: TreeAction) -> Bool {
    switch action {
    case .remove(let path, let isDirectory): return remove(path, isDirectory: isDirectory)
    case .create(let path, let entry):
      return add(
        path,
        Node(
          mode: (entry.mode & 0o170000) | 0o700, owner: 0, group: 0, device: entry.device,
          modified: Self.touchedAt, target: entry.target))
    case .link(let existing, let new):
      guard names[new] == nil, let inode = names[existing], let parent = new.parent, let folder = names[parent],
        nodes[folder]?.type == .directory, nodes[inode]?.type != .directory
      else { return false }
      names[new] = inode
      nodes[folder]?.modified = Self.touchedAt
      return true
    case .setAttributes(let path, let change): return set(path, change)
    case .setExtendedAttribute(let path, let name, let value):
      guard let inode = names[path] else { return false }
      nodes[inode]?.attributes[name] = value
      return true
    case .removeExtendedAttribute(let path, let name):
      guard let inode = names[path] else { return false }
      return nodes[inode]?.attributes.removeValue(forKey: name) != nil
    }
  }

  private mutating func set(_ path: TreePath, _ change: AttributeChange) -> Bool {
    guard let inode = names[path], var node = nodes[inode] else { return false }
    if change.owner != nil || change.group != nil {
      if node.type != .symlink { node.mode &= ~0o6000 }
      node.owner = change.owner ?? node.owner
      node.group = change.group ?? node.group
    }
    if let mode = change.mode {
      if node.type == .symlink { return false }
      node.mode = (node.mode & 0o170000) | mode
    }
    if let size = change.size {
      node.size = size
      node.modified = Self.touchedAt
    }
    node.accessed = change.accessed ?? node.accessed
    node.modified = change.modified ?? node.modified
    nodes[inode] = node
    return true
  }

  // MARK: - as manifest and listing

  func manifest(idOffset: UInt64, identityOnly: Bool = false) throws -> Manifest {
    var collector = ManifestCollector()
    _ = try collector.take(.manifestBegin(identityOnly: identityOnly, key: HashKey(1, 2)))
    var entries: UInt32 = 0
    var attributes: UInt32 = 0
    var seen: Set<UInt64> = []
    for path in paths {
      guard let inode = names[path], let node = nodes[inode] else { continue }
      var place: ManifestPlace?
      if let parent = path.parent, let last = path.names.last {
        place = ManifestPlace(parent: FileID(rawValue: (names[parent] ?? 0) + idOffset), name: last)
      }
      let id = FileID(rawValue: inode + idOffset)
      let entry = ManifestEntry(
        id: id, place: place, mode: node.mode, owner: node.owner, group: node.group, size: node.size,
        device: node.device, accessed: node.accessed, modified: node.modified, target: node.target)
      _ = try collector.take(.manifestEntry(entry))
      entries += 1
      guard seen.insert(inode).inserted else { continue }
      for (name, value) in node.attributes {
        _ = try collector.take(.manifestAttribute(id, name: name, value: value))
        attributes += 1
      }
    }
    return try #require(try collector.take(.manifestEnd(entries: entries, attributes: attributes)))
  }

  var listing: [TreeEntry] {
    names.compactMap { path, inode in
      guard let node = nodes[inode] else { return nil }
      return TreeEntry(
        path: path, inode: inode, mode: node.mode, owner: node.owner, group: node.group, size: node.size,
        device: node.device, accessed: node.accessed, modified: node.modified, target: node.target,
        attributes: node.attributes)
    }
  }

  // MARK: - random

  mutating func mutate(_ random: inout SeededGenerator) {
    guard let at = paths.randomElement(using: &random), let inode = names[at] else { return }
    let new = at.appending(name("n\(Int.random(in: 0..<6, using: &random))"))
    switch Int.random(in: 0..<10, using: &random) {
    case 0...4: _ = add(new, Self.randomNode(&random))
    case 5:
      if nodes[inode]?.type != .directory, let folder = paths.randomElement(using: &random) {
        let second = folder.appending(name("n\(Int.random(in: 0..<6, using: &random))"))
        _ = perform(.link(existing: at, new: second))
      }
    case 6...7: _ = remove(at, isDirectory: nodes[inode]?.type == .directory)
    case 8: nodes[inode]?.attributes[attribute("user.\(Int.random(in: 0..<3, using: &random))")] = random.bytes(2)
    default:
      nodes[inode]?.owner = UInt32.random(in: 0..<3, using: &random)
      nodes[inode]?.modified = FileTime(seconds: Int64.random(in: 0..<5, using: &random), nanoseconds: 1) ?? .zero
      if nodes[inode]?.type == .regular { nodes[inode]?.size = UInt64.random(in: 0..<5, using: &random) }
    }
  }

  static func randomNode(_ random: inout SeededGenerator) -> Node {
    let types: [FileType] = [.regular, .regular, .directory, .directory, .symlink, .fifo, .blockDevice]
    let type = types[Int.random(in: 0..<types.count, using: &random)]
    let modes: [UInt32] = [0o755, 0o600, 0o4755]
    var node = Node(
      mode: type.rawValue | (type == .symlink ? 0o777 : modes[Int.random(in: 0..<3, using: &random)]),
      owner: UInt32.random(in: 0..<2, using: &random), group: 0)
    if type == .symlink {
      node.mode = type.rawValue | 0o777
      node.target = sampleLink(random.chance(50))
    }
    if type == .blockDevice { node.device = UInt64.random(in: 0..<2, using: &random) }
    return node
  }
}

private func sampleLink(_ isFirst: Bool) -> LinkTarget { target(isFirst ? "x" : "../y") }

@Suite struct ManifestDiffTests {
  private func applied(_ source: Tree, _ target: Tree) throws -> (tree: Tree, actions: [TreeAction]) {
    let actions = ManifestDiff(manifest: try source.manifest(idOffset: 1000), target: target.listing).actions()
    var tree = target
    for action in actions where !tree.perform(action) { Issue.record("cannot be done: \(action)") }
    return (tree, actions)
  }

  @Test(arguments: 0..<150) func anyTreeBecomesAnyOther(_ seed: UInt64) throws {
    var random = SeededGenerator(seed: seed)
    var source = Tree()
    var target = Tree()
    for _ in 0..<Int.random(in: 0...60, using: &random) { source.mutate(&random) }
    if seed % 2 == 0 {
      target = source
      for _ in 0..<Int.random(in: 0...20, using: &random) { target.mutate(&random) }
      for _ in 0..<Int.random(in: 0...20, using: &random) { source.mutate(&random) }
    } else {
      for _ in 0..<Int.random(in: 0...60, using: &random) { target.mutate(&random) }
    }
    // A symbolic link has no mode of its own, and new ones get all bits.
    let (tree, _) = try applied(source, target)
    #expect(withoutLinkModes(tree).shape == withoutLinkModes(source).shape)
    let (_, again) = try applied(source, tree)
    #expect(again.isEmpty, "\(again)")
  }

  private func withoutLinkModes(_ tree: Tree) -> Tree {
    var tree = tree
    for (inode, node) in tree.nodes where node.type == .symlink { tree.nodes[inode]?.mode = 0o120777 }
    return tree
  }

  @Test func equalTreesNeedNothing() throws {
    var random = SeededGenerator(seed: 8)
    var source = Tree()
    for _ in 0..<100 { source.mutate(&random) }
    #expect(try applied(source, source).actions.isEmpty)
  }

  /// A link at the target alone: whatever is written to one file there would be in both.
  @Test func filesThatAreOneAtTheTargetAreTakenApart() throws {
    let (first, second) = (TreePath([name("a")]), TreePath([name("b")]))
    let node = Tree.Node(mode: 0o100600, owner: 0, group: 0, size: 7)
    var source = Tree()
    var target = Tree()
    let steps = [
      source.add(first, node), source.add(second, node), target.add(first, node),
      target.perform(.link(existing: first, new: second)),
    ]
    #expect(!steps.contains(false))
    let (tree, _) = try applied(source, target)
    #expect(tree.shape == source.shape && tree.names[first] != tree.names[second])
  }

  @Test func whatStaysIsNotTouched() throws {
    var source = Tree()
    let disk = TreePath([name("disk")])
    #expect(source.add(disk, Tree.Node(mode: 0o100600, owner: 64, group: 64, size: 1 << 30)) == true)
    var target = source
    #expect(target.add(TreePath([name("old")]), Tree.Node(mode: 0o100600, owner: 0, group: 0)) == true)
    let (_, actions) = try applied(source, target)
    #expect(actions.count == 2)
    #expect(actions.first == .remove(TreePath([name("old")]), isDirectory: false))
    #expect(actions.filter(\.isStructural).count == 1)
  }
}

@Suite struct ManifestCollectorTests {
  private let root = ManifestEntry(id: FileID(rawValue: 2), place: nil, mode: 0o040755, owner: 0, group: 0)
  private func file(_ id: UInt64, in parent: UInt64 = 2, _ text: String, mode: UInt32 = 0o100644) -> ManifestEntry {
    ManifestEntry(
      id: FileID(rawValue: id), place: ManifestPlace(parent: FileID(rawValue: parent), name: name(text)), mode: mode,
      owner: 0, group: 0)
  }
  private func code(_ bodies: [FrameBody]) -> ManifestError.Code? {
    var collector = ManifestCollector()
    do {
      for body in bodies { _ = try collector.take(body) }
      return nil
    } catch {
      return error.code
    }
  }

  @Test func refusesWhatIsNoTree() {
    let begin = FrameBody.manifestBegin(identityOnly: false, key: HashKey(1, 2))
    let root = FrameBody.manifestEntry(root)
    #expect(code([root]) == .outOfOrder)
    #expect(code([begin, begin]) == .outOfOrder)
    #expect(code([begin, .keepalive]) == .outOfOrder)
    #expect(code([begin, .manifestEnd(entries: 0, attributes: 0)]) == .noRoot)
    #expect(code([begin, .manifestEntry(file(5, "a"))]) == .noRoot)
    #expect(code([begin, root, root]) == .noRoot)
    #expect(code([begin, root, .manifestEntry(file(5, in: 9, "a"))]) == .noParent)
    #expect(code([begin, root, .manifestEntry(file(5, "a")), .manifestEntry(file(6, in: 5, "b"))]) == .noParent)
    #expect(code([begin, root, .manifestEntry(file(5, "a")), .manifestEntry(file(6, "a"))]) == .repeatedName)
    #expect(
      code([begin, root, .manifestEntry(file(5, "a")), .manifestEntry(file(5, "b", mode: 0o100600))])
        == .contradiction)
    #expect(
      code([
        begin, root, .manifestEntry(file(5, "a", mode: 0o040755)), .manifestEntry(file(5, "b", mode: 0o040755)),
      ]) == .contradiction)
    #expect(code([begin, root, .manifestEnd(entries: 2, attributes: 0)]) == .wrongCount)
    let twice = FrameBody.manifestAttribute(FileID(rawValue: 2), name: sampleAttribute, value: [1])
    #expect(code([begin, root, twice, twice]) == .outOfOrder)
    #expect(code([begin, root, twice, .manifestEnd(entries: 1, attributes: 1)]) == nil)
    #expect(code([begin, root, .manifestEntry(file(5, "a")), twice]) == .outOfOrder)
  }
}
