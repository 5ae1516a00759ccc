/// Wire values: never reuse one.
enum OperationCode: UInt8 {
  case write = 1
  case create = 2
  case makeDirectory = 3
  case makeNode = 4
  case makeSymlink = 5
  case link = 6
  case unlink = 7
  case removeDirectory = 8
  case rename = 9
  case setAttributes = 10
  case allocate = 11
  case setExtendedAttribute = 12
  case removeExtendedAttribute = 13
  case forget = 14
}

extension FieldWriter {
  mutating func put(_ object: NewObject) {
    put(object.id)
    put(object.mode)
    put(object.owner)
    put(object.group)
    put(object.accessed)
    put(object.modified)
  }

  private mutating func put(_ code: OperationCode) { put(code.rawValue) }

  private mutating func put(_ code: OperationCode, _ parent: FileID, _ name: FileName) {
    put(code)
    put(parent)
    putShort(name.bytes)
  }

  private mutating func put(_ change: AttributeChange) {
    var present: UInt8 = 0
    if change.mode != nil { present |= 1 }
    if change.owner != nil { present |= 2 }
    if change.group != nil { present |= 4 }
    if change.size != nil { present |= 8 }
    if change.accessed != nil { present |= 16 }
    if change.modified != nil { present |= 32 }
    put(present)
    if let mode = change.mode { put(mode) }
    if let owner = change.owner { put(owner) }
    if let group = change.group { put(group) }
    if let size = change.size { put(size) }
    if let accessed = change.accessed { put(accessed) }
    if let modified = change.modified { put(modified) }
  }

  /// The length of a write is the frame's data length and is not repeated here.
  mutating func put(_ operation: FileOperation) {
    switch operation {
    case .write(let file, let offset, _):
      put(OperationCode.write)
      put(file)
      put(offset)
    case .create(let parent, let name, let object):
      put(.create, parent, name)
      put(object)
    case .makeDirectory(let parent, let name, let object):
      put(.makeDirectory, parent, name)
      put(object)
    case .makeNode(let parent, let name, let object, let device):
      put(.makeNode, parent, name)
      put(object)
      put(device)
    case .makeSymlink(let parent, let name, let object, let target):
      put(.makeSymlink, parent, name)
      put(object)
      putMedium(target.bytes)
    case .link(let file, let parent, let name):
      put(.link, parent, name)
      put(file)
    case .unlink(let parent, let name, let file):
      put(.unlink, parent, name)
      put(file)
    case .removeDirectory(let parent, let name, let file):
      put(.removeDirectory, parent, name)
      put(file)
    case .rename(let parent, let name, let newParent, let newName, let flags):
      put(.rename, parent, name)
      put(newParent)
      putShort(newName.bytes)
      put(flags.rawValue)
    case .setAttributes(let file, let change):
      put(OperationCode.setAttributes)
      put(file)
      put(change)
    case .allocate(let file, let mode, let offset, let length):
      put(OperationCode.allocate)
      put(file)
      put(mode.rawValue)
      put(offset)
      put(length)
    case .setExtendedAttribute(let file, let name, let value):
      put(OperationCode.setExtendedAttribute)
      put(file)
      putShort(name.bytes)
      putLong(value)
    case .removeExtendedAttribute(let file, let name):
      put(OperationCode.removeExtendedAttribute)
      put(file)
      putShort(name.bytes)
    case .forget(let file):
      put(OperationCode.forget)
      put(file)
    }
  }
}

extension FieldReader {
  mutating func newObject() throws(FrameError) -> NewObject {
    NewObject(
      id: try file(), mode: try mode(), owner: try take(), group: try take(), accessed: try time(), modified: try time()
    )
  }

  private mutating func attributeChange() throws(FrameError) -> AttributeChange {
    let present = try take(UInt8.self)
    guard present < 64 else { throw bad("unknown attributes (bits \(present))") }
    var change = AttributeChange()
    if present & 1 != 0 {
      let mode = try take(UInt32.self)
      guard mode <= 0o7777 else { throw bad("permission bits \(String(mode, radix: 8)) (octal)") }
      change.mode = mode
    }
    if present & 2 != 0 { change.owner = try take() }
    if present & 4 != 0 { change.group = try take() }
    if present & 8 != 0 {
      let size = try take(UInt64.self)
      guard size <= FrameLimits.fileBytesMax else { throw bad("a file size of \(size) bytes") }
      change.size = size
    }
    if present & 16 != 0 { change.accessed = try time() }
    if present & 32 != 0 { change.modified = try time() }
    return change
  }

  mutating func operation(dataLength: Int) throws(FrameError) -> FileOperation {
    let raw = try take(UInt8.self)
    guard let code = OperationCode(rawValue: raw) else { throw bad("unknown operation \(raw)") }
    guard (code == .write) == (dataLength > 0) else {
      throw FrameError(.badLength, "operation \(code) from the peer came with \(dataLength) bytes of data")
    }
    switch code {
    case .write, .setAttributes, .allocate, .setExtendedAttribute, .removeExtendedAttribute, .forget:
      return try fileOperation(code, on: file(), dataLength: dataLength)
    case .create, .makeDirectory, .makeNode, .makeSymlink, .link, .unlink, .removeDirectory, .rename:
      let parent = try file()
      return try nameOperation(code, parent, try name())
    }
  }

  private mutating func fileOperation(
    _ code: OperationCode, on file: FileID, dataLength: Int
  ) throws(FrameError) -> FileOperation {
    switch code {
    case .write:
      let offset = try take(UInt64.self)
      guard offset <= FrameLimits.fileBytesMax - UInt64(dataLength) else {
        throw bad("a write of \(dataLength) bytes at offset \(offset)")
      }
      return .write(file, offset: offset, length: UInt32(dataLength))
    case .setAttributes:
      return .setAttributes(file, try attributeChange())
    case .allocate:
      let mode = AllocationMode(rawValue: try take())
      guard mode.isSubset(of: .known) else { throw bad("unknown fallocate mode \(mode.rawValue)") }
      let (offset, length) = try range()
      return .allocate(file, mode, offset: offset, length: length)
    case .setExtendedAttribute:
      return .setExtendedAttribute(file, name: try attributeName(), value: try attributeValue())
    case .removeExtendedAttribute:
      return .removeExtendedAttribute(file, name: try attributeName())
    default:
      return .forget(file)
    }
  }

  private mutating func nameOperation(
    _ code: OperationCode, _ parent: FileID, _ name: FileName
  ) throws(FrameError) -> FileOperation {
    switch code {
    case .create:
      return .create(parent: parent, name: name, try newObject())
    case .makeDirectory:
      return .makeDirectory(parent: parent, name: name, try newObject())
    case .makeNode:
      return .makeNode(parent: parent, name: name, try newObject(), device: try take())
    case .makeSymlink:
      return .makeSymlink(parent: parent, name: name, try newObject(), target: try linkTarget())
    case .link:
      return .link(try file(), parent: parent, name: name)
    case .unlink:
      return .unlink(parent: parent, name: name, try file())
    case .removeDirectory:
      return .removeDirectory(parent: parent, name: name, try file())
    default:
      let newParent = try file()
      let newName = try self.name()
      let flags = RenameFlags(rawValue: try take())
      guard flags.isSubset(of: .known) else { throw bad("unknown rename flags \(flags.rawValue)") }
      return .rename(parent: parent, name: name, newParent: newParent, newName: newName, flags)
    }
  }
}
