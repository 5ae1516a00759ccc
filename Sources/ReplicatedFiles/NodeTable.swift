import CFuse3
import Glibc
import Replication
import Synchronization

/// One object the kernel knows. Its number is the backing inode number (1 for the root): stable, the same after a restart
/// of the engine, and the file id of the replication stream. The O_PATH descriptor keeps the inode from being reused.
///
/// The kernel's handles say nothing (they are 0), so that they mean the same to any engine: what an open file needs is opened
/// here when it is needed, once for all its users.
final class Node: Sendable {
  private struct Data {
    /// As far as this process has seen; only tells when the descriptors are worth keeping.
    var opens = 0
    var file: OwnedDescriptor?
    var isWritable = false
    var stream: DirectoryStream?
  }

  let number: UInt64
  let descriptor: Int32
  let type: mode_t
  private let data = Mutex(Data())

  init(number: UInt64, descriptor: Int32, type: mode_t) {
    self.number = number
    self.descriptor = descriptor
    self.type = type
  }
  var isFolder: Bool { type == S_IFDIR }
  var isRegular: Bool { type == S_IFREG }

  var opens: Int { data.withLock { $0.opens } }

  /// `file`: a descriptor for reading and writing that exists already.
  func opened(_ file: OwnedDescriptor? = nil) {
    data.withLock { data in
      data.opens += 1
      if let file, !data.isWritable {
        data.file = file
        data.isWritable = true
      }
    }
  }

  func closed() {
    data.withLock { data in
      data.opens = max(0, data.opens - 1)
      // Whoever still uses one owns it until it is done.
      if data.opens == 0 { data = Data() }
    }
  }

  /// A descriptor of the data. The kernel has checked what its user may do; one that cannot be had for writing serves readers.
  func file(writing: Bool) throws(Errno) -> OwnedDescriptor {
    try data.withLock { (data) throws(Errno) in
      if let file = data.file, data.isWritable || !writing { return file }
      let opened: OwnedDescriptor
      do throws(Errno) {
        opened = OwnedDescriptor(try Backing.reopen(descriptor, flags: isFolder ? O_RDONLY | O_DIRECTORY : O_RDWR))
        data.isWritable = true
      } catch {
        guard !writing, [EROFS, EPERM, EACCES, ETXTBSY].contains(error.code) else { throw error }
        opened = OwnedDescriptor(try Backing.reopen(descriptor, flags: O_RDONLY))
      }
      data.file = opened
      return opened
    }
  }

  func stream() throws(Errno) -> DirectoryStream {
    try data.withLock { (data) throws(Errno) in
      if let stream = data.stream { return stream }
      let stream = try DirectoryStream(descriptor)
      data.stream = stream
      return stream
    }
  }
}

/// Nodes by number, with the kernel's lookup counts and our own pins (a resync that is reading a file).
final class NodeTable: Sendable {
  static let rootNumber: UInt64 = 1
  private struct Entry {
    let node: Node
    var lookups: UInt64
    var pins: Int
    /// Where the count is kept for the next process; nil = nowhere.
    var slot: Int?
  }
  private struct State {
    var entries: [UInt64: Entry]
    var kept: KeptNodes
  }
  private let state: Mutex<State>
  private let root: Node
  private let device: dev_t

  /// Owns `root`, an O_PATH descriptor of the backing directory, from now on.
  init(root descriptor: Int32, kept: Kept) throws(Errno) {
    device = try Backing.status(descriptor).st_dev
    root = Node(number: Self.rootNumber, descriptor: descriptor, type: S_IFDIR)
    state = Mutex(
      State(entries: [Self.rootNumber: Entry(node: root, lookups: 1, pins: 1)], kept: KeptNodes(kept)))
  }

  var count: Int { state.withLock { $0.entries.count } }
  var openCount: Int {
    let nodes = state.withLock { state in state.entries.values.map(\.node) }
    return nodes.reduce(0) { $0 + $1.opens }
  }

  func node(_ number: UInt64) throws(Errno) -> Node {
    guard let node = state.withLock({ $0.entries[number]?.node }) else { throw Errno(ESTALE) }
    return node
  }

  /// Takes over `descriptor` (closed if the object is known already) and counts one lookup.
  func remember(_ descriptor: Int32) throws(Errno) -> (Node, stat) {
    let attributes: stat
    do { attributes = try Backing.status(descriptor) } catch {
      close(descriptor)
      throw error
    }
    // Another file system below the backing directory would not be replicated, and its numbers would clash.
    guard attributes.st_dev == device, attributes.st_ino != Self.rootNumber else {
      close(descriptor)
      throw Errno(EXDEV)
    }
    let number = UInt64(attributes.st_ino)
    let (node, isNew) = state.withLock { state -> (Node, Bool) in
      if var entry = state.entries[number] {
        entry.lookups += 1
        if let slot = entry.slot { state.kept.set(slot, lookups: entry.lookups) }
        state.entries[number] = entry
        return (entry.node, false)
      }
      let node = Node(number: number, descriptor: descriptor, type: attributes.st_mode & S_IFMT)
      state.entries[number] = Entry(
        node: node, lookups: 1, pins: 0, slot: state.kept.add(number, lookups: 1))
      return (node, true)
    }
    if !isNew { close(descriptor) }
    return (node, attributes)
  }

  /// The kernel drops `count` lookups. Answers the node if nobody needs it any more: the caller disposes of it.
  func forget(_ number: UInt64, count: UInt64) -> Node? {
    release(number) { $0.lookups -= min(count, $0.lookups) }
  }

  func pin(_ number: UInt64) -> Node? {
    state.withLock { state in
      guard state.entries[number] != nil else { return nil }
      state.entries[number]?.pins += 1
      return state.entries[number]?.node
    }
  }

  func unpin(_ number: UInt64) -> Node? { release(number) { $0.pins -= 1 } }

  private func release(_ number: UInt64, _ change: (inout Entry) -> Void) -> Node? {
    state.withLock { state in
      guard var entry = state.entries[number] else { return nil }
      change(&entry)
      if entry.lookups == 0, entry.pins == 0, number != Self.rootNumber {
        state.entries[number] = nil
        if let slot = entry.slot { state.kept.remove(slot) }
        return entry.node
      }
      if let slot = entry.slot { state.kept.set(slot, lookups: entry.lookups) }
      state.entries[number] = entry
      return nil
    }
  }

  /// Nodes that have no name any more, but are still open or looked up.
  func orphans() -> [UInt64] {
    let nodes = state.withLock { state in state.entries.values.map(\.node) }
    return nodes.filter { (try? Backing.status($0.descriptor).st_nlink) == 0 }.map(\.number)
  }

  /// Closes every descriptor. Only when no request can come any more.
  func closeAll() {
    let nodes = state.withLock { state in
      let all = state.entries.values.map(\.node)
      state.entries = [:]
      return all
    }
    for node in nodes { close(node.descriptor) }
  }

  // MARK: adoption

  /// Finds everything the kernel knew under the process before this one: by its number in the tree, or among `orphans`, whose
  /// descriptors it takes over. Answers the numbers of those that turned out to have a name, or no user.
  ///
  /// Counts can only be too high: a lookup is counted before it is answered, and what the dead process had read of the kernel's
  /// `forget`s and not carried out is lost. Then the object keeps its descriptor until the mount goes, and nothing worse.
  func adopt(orphans: [UInt64: Int32]) throws(EngineError) -> [UInt64] {
    var wanted = state.withLock { $0.kept.inherited() }
    try TreeWalk.visit(root: root.descriptor) { (found) throws(EngineError) in
      let number = found.id.rawValue
      guard number != Self.rootNumber, let known = wanted.removeValue(forKey: number) else { return }
      let copy = fcntl(found.descriptor, F_DUPFD_CLOEXEC, 0)
      guard copy >= 0 else { throw EngineError(.backing, "cannot keep '\(found.path)' open: \(Errno.last)") }
      insert(Node(number: number, descriptor: copy, type: found.type), known)
    }
    var unneeded: [UInt64] = []
    for (number, descriptor) in orphans {
      guard let known = wanted.removeValue(forKey: number), let status = try? Backing.status(descriptor) else {
        close(descriptor)
        unneeded.append(number)
        continue
      }
      insert(Node(number: number, descriptor: descriptor, type: status.st_mode & S_IFMT), known)
    }
    for (_, known) in wanted {
      // Made, and taken back before the kernel heard of it.
      state.withLock { $0.kept.remove(known.slot) }
    }
    return unneeded
  }

  private func insert(_ node: Node, _ known: (slot: Int, lookups: UInt64)) {
    state.withLock { state in
      state.entries[node.number] = Entry(node: node, lookups: known.lookups, pins: 0, slot: known.slot)
    }
  }
}
