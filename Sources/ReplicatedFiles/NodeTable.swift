import CFuse3
import Glibc
import Synchronization

/// One object the kernel knows. Its number is the backing inode number (1 for the root): stable, the same after a restart
/// of the engine, and the file id of the replication stream. The O_PATH descriptor keeps the inode from being reused.
final class Node: Sendable {
  let number: UInt64
  let descriptor: Int32
  let type: mode_t
  init(number: UInt64, descriptor: Int32, type: mode_t) {
    self.number = number
    self.descriptor = descriptor
    self.type = type
  }
  var isFolder: Bool { type == S_IFDIR }
  var isRegular: Bool { type == S_IFREG }
}

/// Nodes by number, with the kernel's lookup counts and our own pins (a resync that is reading a file).
final class NodeTable: Sendable {
  static let rootNumber: UInt64 = 1
  private struct Entry {
    let node: Node
    var lookups: UInt64
    var pins: Int
  }
  private let entries: Mutex<[UInt64: Entry]>
  private let root: Node
  private let device: dev_t

  /// Owns `root`, an O_PATH descriptor of the backing directory, from now on.
  init(root descriptor: Int32) throws(Errno) {
    device = try Backing.status(descriptor).st_dev
    root = Node(number: Self.rootNumber, descriptor: descriptor, type: S_IFDIR)
    entries = Mutex([Self.rootNumber: Entry(node: root, lookups: 1, pins: 1)])
  }

  var count: Int { entries.withLock { $0.count } }

  func node(_ number: UInt64) throws(Errno) -> Node {
    guard let node = entries.withLock({ $0[number]?.node }) else { throw Errno(ESTALE) }
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
    let (node, isNew) = entries.withLock { table -> (Node, Bool) in
      if var entry = table[number] {
        entry.lookups += 1
        table[number] = entry
        return (entry.node, false)
      }
      let node = Node(number: number, descriptor: descriptor, type: attributes.st_mode & S_IFMT)
      table[number] = Entry(node: node, lookups: 1, pins: 0)
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
    entries.withLock { table in
      guard table[number] != nil else { return nil }
      table[number]?.pins += 1
      return table[number]?.node
    }
  }

  func unpin(_ number: UInt64) -> Node? { release(number) { $0.pins -= 1 } }

  private func release(_ number: UInt64, _ change: (inout Entry) -> Void) -> Node? {
    entries.withLock { table in
      guard var entry = table[number] else { return nil }
      change(&entry)
      if entry.lookups == 0, entry.pins == 0, number != Self.rootNumber {
        table[number] = nil
        return entry.node
      }
      table[number] = entry
      return nil
    }
  }

  /// Nodes that have no name any more, but are still open or looked up.
  func orphans() -> [UInt64] {
    let nodes = entries.withLock { table in table.values.map(\.node) }
    return nodes.filter { (try? Backing.status($0.descriptor).st_nlink) == 0 }.map(\.number)
  }

  /// Closes every descriptor. Only when no request can come any more.
  func closeAll() {
    let nodes = entries.withLock { table in
      let all = table.values.map(\.node)
      table = [:]
      return all
    }
    for node in nodes { close(node.descriptor) }
  }
}
