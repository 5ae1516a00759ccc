/// A file, directory or other object of a replicated tree: the inode number it has on the primary of the session.
/// Zero names nothing.
public struct FileID: RawRepresentable, Hashable, Sendable, Comparable, CustomStringConvertible {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public static func < (a: FileID, b: FileID) -> Bool { a.rawValue < b.rawValue }
  public var description: String { "file \(rawValue)" }
}

/// One component of a path, in the bytes the file system has; never text, because Linux does not promise an encoding.
/// 1 to 255 bytes, no NUL, no slash, neither `.` nor `..`.
public struct FileName: Hashable, Sendable, Comparable, CustomStringConvertible {
  public static let bytesMax = 255
  public let bytes: [UInt8]

  /// nil if the bytes cannot be a component of a path: what a peer names can then never lead out of its folder.
  public init?(_ bytes: [UInt8]) {
    guard (1...FileName.bytesMax).contains(bytes.count), bytes != [0x2E], bytes != [0x2E, 0x2E],
      !bytes.contains(0), !bytes.contains(0x2F)
    else { return nil }
    self.bytes = bytes
  }
  public init?(_ text: String) { self.init(Array(text.utf8)) }
  public static func < (a: FileName, b: FileName) -> Bool { a.bytes.lexicographicallyPrecedes(b.bytes) }
  /// For messages only: what is not UTF-8 shows as a replacement character.
  public var description: String { String(decoding: bytes, as: UTF8.self) }
}

/// Name of an extended attribute with its namespace, e.g. `user.x`: 1 to 255 bytes, no NUL.
public struct AttributeName: Hashable, Sendable, Comparable, CustomStringConvertible {
  public static let bytesMax = 255
  public let bytes: [UInt8]
  public init?(_ bytes: [UInt8]) {
    guard (1...AttributeName.bytesMax).contains(bytes.count), !bytes.contains(0) else { return nil }
    self.bytes = bytes
  }
  public init?(_ text: String) { self.init(Array(text.utf8)) }
  public static func < (a: AttributeName, b: AttributeName) -> Bool { a.bytes.lexicographicallyPrecedes(b.bytes) }
  public var description: String { String(decoding: bytes, as: UTF8.self) }
}

/// Target of a symbolic link, taken as it is and never followed: 1 to 4095 bytes, no NUL.
public struct LinkTarget: Hashable, Sendable {
  public static let bytesMax = 4095
  public let bytes: [UInt8]
  public init?(_ bytes: [UInt8]) {
    guard (1...LinkTarget.bytesMax).contains(bytes.count), !bytes.contains(0) else { return nil }
    self.bytes = bytes
  }
}

/// A time of the real-time clock as `utimensat` takes it: seconds since 1970, and nanoseconds below 1,000,000,000.
public struct FileTime: Hashable, Sendable {
  public let seconds: Int64
  public let nanoseconds: UInt32
  public init?(seconds: Int64, nanoseconds: UInt32) {
    guard nanoseconds < 1_000_000_000 else { return nil }
    self.seconds = seconds
    self.nanoseconds = nanoseconds
  }
  public static let zero = FileTime(unchecked: 0)
  private init(unchecked seconds: Int64) {
    self.seconds = seconds
    nanoseconds = 0
  }
}

/// What an object that was just made looks like on the primary, so that the replica's is the same whatever its umask.
public struct NewObject: Hashable, Sendable {
  public var id: FileID
  /// `st_mode`: type and permission bits.
  public var mode: UInt32
  public var owner: UInt32
  public var group: UInt32
  public var accessed: FileTime
  public var modified: FileTime
  public init(id: FileID, mode: UInt32, owner: UInt32, group: UInt32, accessed: FileTime, modified: FileTime) {
    self.id = id
    self.mode = mode
    self.owner = owner
    self.group = group
    self.accessed = accessed
    self.modified = modified
  }
}

/// The attributes one `setattr` changed, with the values the primary has after it; nil = not changed.
public struct AttributeChange: Hashable, Sendable {
  /// Permission bits, at most 0o7777.
  public var mode: UInt32?
  public var owner: UInt32?
  public var group: UInt32?
  /// New length in bytes, at most `Int64.max`.
  public var size: UInt64?
  public var accessed: FileTime?
  public var modified: FileTime?
  public init(
    mode: UInt32? = nil, owner: UInt32? = nil, group: UInt32? = nil, size: UInt64? = nil,
    accessed: FileTime? = nil, modified: FileTime? = nil
  ) {
    self.mode = mode
    self.owner = owner
    self.group = group
    self.size = size
    self.accessed = accessed
    self.modified = modified
  }
}

/// `renameat2` flags, in Linux's own bits.
public struct RenameFlags: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static let noReplace = RenameFlags(rawValue: 1)
  public static let exchange = RenameFlags(rawValue: 2)
  public static let known: RenameFlags = [.noReplace, .exchange]
}

/// `fallocate` modes, in Linux's own bits. No bit = reserve the range and extend the file.
public struct AllocationMode: OptionSet, Hashable, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public static let keepSize = AllocationMode(rawValue: 0x01)
  public static let punchHole = AllocationMode(rawValue: 0x02)
  public static let collapseRange = AllocationMode(rawValue: 0x08)
  public static let zeroRange = AllocationMode(rawValue: 0x10)
  public static let insertRange = AllocationMode(rawValue: 0x20)
  public static let unshareRange = AllocationMode(rawValue: 0x40)
  public static let known: AllocationMode = [
    .keepSize, .punchHole, .collapseRange, .zeroRange, .insertRange, .unshareRange,
  ]
  /// Moves data behind the range, so it must be ordered against the whole file.
  public var movesData: Bool { !isDisjoint(with: [.collapseRange, .insertRange]) }
}

/// One change of the primary's tree, as the replica has to repeat it. Only what succeeded on the primary is sent,
/// except `write`, which is sent while it is applied (a write that fails on the primary ends the session).
public enum FileOperation: Hashable, Sendable {
  /// The bytes follow as the frame's data. `length` 1 to `FrameLimits.dataBytesMax`.
  case write(FileID, offset: UInt64, length: UInt32)
  case create(parent: FileID, name: FileName, NewObject)
  case makeDirectory(parent: FileID, name: FileName, NewObject)
  /// Fifos, sockets and, where the primary allowed them, device nodes.
  case makeNode(parent: FileID, name: FileName, NewObject, device: UInt64)
  case makeSymlink(parent: FileID, name: FileName, NewObject, target: LinkTarget)
  case link(FileID, parent: FileID, name: FileName)
  /// Carries the id of what it removed: a replica that finds another object there has diverged and must say so.
  case unlink(parent: FileID, name: FileName, FileID)
  case removeDirectory(parent: FileID, name: FileName, FileID)
  case rename(parent: FileID, name: FileName, newParent: FileID, newName: FileName, RenameFlags)
  case setAttributes(FileID, AttributeChange)
  case allocate(FileID, AllocationMode, offset: UInt64, length: UInt64)
  case setExtendedAttribute(FileID, name: AttributeName, value: [UInt8])
  case removeExtendedAttribute(FileID, name: AttributeName)
  /// The id will not be used again (last name gone and last handle closed): the replica may close what it holds open
  /// for it.
  case forget(FileID)

  /// Longest value of an extended attribute (the kernel's own limit).
  public static let attributeValueBytesMax = 65536
}
