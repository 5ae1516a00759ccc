/// One copy, in facts an operator can choose by. Only while the module is SPLIT, or the copy waits, blocked, for the other node.
public struct BranchFacts: Sendable, Codable, Hashable {
  /// When this node began to write without the other one; nil = not known.
  public var since: WallTime?
  /// The latest change of the contents of any of its files.
  public var lastWrite: WallTime?
  /// Bytes that may have been written since both copies were last proven the same, in whole zones of 1 MiB: at most so many;
  /// nil = the whole copy.
  public var bytesWritten: UInt64?
  /// What the copy takes on disk, and so an archive of it on a file system without reflinks.
  public var bytesOnDisk: UInt64
  public var bytesFree: UInt64
  /// Until when both copies were in sync, as this node knows: at most a minute too early after a power cut; nil = not known.
  public var lastInSync: WallTime?

  public init(
    since: WallTime?, lastWrite: WallTime?, bytesWritten: UInt64?, bytesOnDisk: UInt64, bytesFree: UInt64
  ) {
    self.since = since
    self.lastWrite = lastWrite
    self.bytesWritten = bytesWritten
    self.bytesOnDisk = bytesOnDisk
    self.bytesFree = bytesFree
  }

  enum CodingKeys: String, CodingKey {
    case since
    case lastWrite = "last_write"
    case bytesWritten = "bytes_written"
    case bytesOnDisk = "bytes_on_disk"
    case bytesFree = "bytes_free"
    case lastInSync = "last_in_sync"
  }
}

/// `vmha resolve`: whose copy goes on.
public struct ResolveRequest: Sendable, Codable, Hashable {
  /// Name of the node whose copy goes on.
  public var keep: String
  /// The branch (16 hexadecimal digits) that the operator saw on each node, by its name: refused if it is another one by now.
  public var branches: [String: String]
  public init(keep: String, branches: [String: String]) {
    self.keep = keep
    self.branches = branches
  }
}

/// A branch that was given up in a split, kept as the whole copy it was (R12).
public struct ArchivedBranch: Sendable, Codable, Hashable {
  /// 16 hexadecimal digits.
  public var branch: String
  public var number: UInt32
  /// Name of the node that keeps it, where export and drop have to be run.
  public var node: String
  public var since: WallTime?
  public var lastWrite: WallTime?
  public var archived: WallTime
  /// Bytes on disk; fewer where the file system shares them with the present copy.
  public var bytes: UInt64
  public var files: Int
  /// Where its files lie on that node.
  public var directory: String

  public init(
    branch: String, number: UInt32, node: String, since: WallTime?, lastWrite: WallTime?, archived: WallTime,
    bytes: UInt64, files: Int, directory: String
  ) {
    self.branch = branch
    self.number = number
    self.node = node
    self.since = since
    self.lastWrite = lastWrite
    self.archived = archived
    self.bytes = bytes
    self.files = files
    self.directory = directory
  }

  enum CodingKeys: String, CodingKey {
    case branch, number, node, since, archived, bytes, files, directory
    case lastWrite = "last_write"
  }
}
