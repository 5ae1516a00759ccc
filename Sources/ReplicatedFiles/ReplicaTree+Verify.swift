import CFuse3
import Glibc
import Replication
import SecureLinks

/// The replica's side of a verification: looks at what this disk holds, at this place of the stream, and changes nothing.
extension ReplicaTree {
  mutating func verify(
    _ id: FileID, _ question: VerifyQuestion, _ hasher: BlockHasher
  ) throws(ReplicaFailure) -> VerifyAnswer {
    // Unlike in a change of the primary's, an unknown object is an answer: it may have been removed since the question was made.
    guard let known = objects[id] else { return .missing }
    switch question {
    case .folder(let hash):
      guard known.type == S_IFDIR else { return .missing }
      return .folder(isSame: try listingHash(known, hasher) == hash)
    case .size:
      guard known.type == S_IFREG else { return .missing }
      do throws(Errno) { return .size(UInt64(try Backing.status(known.descriptor).st_size)) } catch {
        throw failure("stat", known, error)
      }
    case .data(let offset, let length, let hashes):
      guard known.type == S_IFREG else { return .missing }
      let (_, descriptor) = try data(id)
      return Self.compare(descriptor, offset: offset, length: Int(length), hashes, hasher)
    case .zeros(let offset, let length):
      guard known.type == S_IFREG else { return .missing }
      let (_, descriptor) = try data(id)
      return Self.compareZeros(descriptor, offset..<offset + length)
    }
  }

  private func listingHash(_ folder: ReplicaObject, _ hasher: BlockHasher) throws(ReplicaFailure) -> BlockHash {
    do throws(EngineError) { return try TreeWalk.listingHash(folder.descriptor, hasher) } catch {
      throw .disk(operation: "reading a folder", path: error.message, Errno(EIO))
    }
  }

  private static func compare(
    _ descriptor: Int32, offset: UInt64, length: Int, _ hashes: [BlockHash], _ hasher: BlockHasher
  ) -> VerifyAnswer {
    var (differing, unreadable): (UInt32, UInt32) = (0, 0)
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: length, alignment: 4096)
    defer { buffer.deallocate() }
    do throws(Errno) {
      let count = try Backing.readFromDisk(descriptor, into: buffer, at: offset)
      let own = try blockHashes(UnsafeRawBufferPointer(rebasing: buffer[..<count]), hasher)
      for (block, hash) in hashes.enumerated() where block >= own.count || own[block] != hash {
        differing |= 1 << UInt32(block)
      }
    } catch {
      // R11 is for what a guest has written. That an old block cannot be read any more is what a verification is to find.
      Log.note("verify: read of \(Backing.pathForMessage(descriptor)) at \(offset): \(error)")
      for block in hashes.indices { unreadable |= 1 << UInt32(block) }
    }
    return .compared(start: offset, end: offset + UInt64(length), differing: differing, unreadable: unreadable)
  }

  /// Reads the first data there is, at most one piece of it.
  private static func compareZeros(_ descriptor: Int32, _ range: Range<UInt64>) -> VerifyAnswer {
    var found = vmha_seek_data(descriptor, off_t(range.lowerBound))
    if found < 0 {
      // ENXIO: nothing up to the end of the file. Anything else: it cannot be told, so all is read.
      found = errno == ENXIO ? off_t(range.upperBound) : off_t(range.lowerBound)
    }
    guard UInt64(found) < range.upperBound else {
      return .compared(start: range.upperBound, end: range.upperBound, differing: 0, unreadable: 0)
    }
    let start = max(range.lowerBound, UInt64(found) / ResyncPlan.blockBytes * ResyncPlan.blockBytes)
    let end = min(range.upperBound, start + VerifyRun.pieceBytes)
    var (differing, unreadable): (UInt32, UInt32) = (0, 0)
    let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Int(end - start), alignment: 4096)
    defer { buffer.deallocate() }
    do throws(Errno) {
      let count = try Backing.readFromDisk(descriptor, into: buffer, at: start)
      let size = Int(ResyncPlan.blockBytes)
      for (block, from) in stride(from: 0, to: count, by: size).enumerated() {
        let bytes = UnsafeRawBufferPointer(rebasing: buffer[from..<min(from + size, count)])
        if !isAllZero(bytes) { differing |= 1 << UInt32(block) }
      }
    } catch {
      Log.note("verify: read of \(Backing.pathForMessage(descriptor)) at \(start): \(error)")
      let blocks = (end - start + ResyncPlan.blockBytes - 1) / ResyncPlan.blockBytes
      unreadable = UInt32((UInt64(1) << blocks) - 1)
    }
    return .compared(start: start, end: end, differing: differing, unreadable: unreadable)
  }
}

extension TreeWalk {
  /// Of `FolderListing`; the same on both nodes when the folder looks the same. Nothing may change it meanwhile.
  static func listingHash(_ folder: Int32, _ hasher: BlockHasher) throws(EngineError) -> BlockHash {
    let own = try entry(folder, TreePath())
    var children: [TreeEntry] = []
    let names: [FileName]
    do throws(Errno) { names = try list(folder) } catch { throw unreadable(TreePath(), error) }
    for name in names {
      let path = TreePath([name])
      let object: OwnedDescriptor
      do throws(Errno) { object = OwnedDescriptor(try Backing.lookUp(folder, name.bytes)) } catch {
        throw unreadable(path, error)
      }
      children.append(try entry(object.number, path))
    }
    let bytes = FolderListing.bytes(of: own, children: children)
    do {
      let (first, second) = try bytes.withUnsafeBytes { try hasher.hash($0) }
      return BlockHash(first, second)
    } catch { throw EngineError(.backing, "cannot hash a folder: \(error)") }
  }

  private static func entry(_ object: Int32, _ path: TreePath) throws(EngineError) -> TreeEntry {
    let found = try described(object, path)
    return TreeEntry(found, attributes: try extendedAttributes(found))
  }
}
