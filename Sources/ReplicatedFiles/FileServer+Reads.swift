import CFuse3
import Glibc
import Replication

/// Requests that change nothing: served from the backing directory at once, whatever the policy is; but for the contents of
/// files, which a node that is cut off holds back (`ReadGate`).
extension FileServer {
  func lookUp(_ request: KernelRequest, parent: UInt64, name: [UInt8]) {
    do throws(Errno) {
      if request.isRepeated, let known = changes.outcome(request.unique) {
        let node = try nodes.node(known.object)
        return answer(request, .entry(node, try Backing.status(node.descriptor)))
      }
      guard let component = FileName(name) else { throw Errno(name.count > FileName.bytesMax ? ENAMETOOLONG : EINVAL) }
      let folder = try nodes.node(parent)
      let (node, status) = try nodes.remember(try Backing.lookUp(folder.descriptor, component.bytes))
      changes.lookedUp(request.unique, node.number)
      answer(request, .entry(node, status))
    } catch { fail(request, error) }
  }

  func getAttributes(_ request: KernelRequest, _ number: UInt64) {
    do throws(Errno) {
      answer(request, .attributes(number, try Backing.status(try nodes.node(number).descriptor)))
    } catch { fail(request, error) }
  }

  func readLink(_ request: KernelRequest, _ number: UInt64) {
    do throws(Errno) {
      let target = try Backing.linkTarget(try nodes.node(number).descriptor)
      let text = target.map { CChar(bitPattern: $0) } + [0]
      fuse_reply_readlink(request.raw, text)
    } catch { fail(request, error) }
  }

  func open(_ request: KernelRequest, _ number: UInt64, flags: Int32) {
    do throws(Errno) {
      let node = try nodes.node(number)
      guard node.isRegular else { throw Errno(EPERM) }
      // O_DIRECT would need aligned buffers; appending is the kernel's work; truncating comes as a request of its own.
      _ = try node.file(writing: flags & O_ACCMODE != O_RDONLY)
      node.opened()
      if vmha_reply_open(request.raw) == -ENOENT { node.closed() }
    } catch { fail(request, error) }
  }

  /// What a disk of the usual sector size transfers at least, in bytes.
  private static let sectorBytes = 512

  /// QEMU learns the sector of a file that it opens with O_DIRECT by trying: it takes the smallest read that is not refused with
  /// EINVAL, and 4096 bytes if even one byte is read. A guest's write of a smaller sector would then be read, changed and written
  /// by QEMU, which since 4.1 does not look whether that read failed. So a part of a sector is refused, as a disk would. Only where
  /// the read begins with the sector: the kernel may cut a long read into pieces, and the last of them ends anywhere.
  private static func isProbe(_ size: Int, _ offset: off_t) -> Bool {
    size < sectorBytes && offset % off_t(sectorBytes) == 0
  }

  func read(
    _ request: KernelRequest, _ number: UInt64, size: Int, offset: off_t, isDirect: Bool,
    buffer: UnsafeMutableRawBufferPointer
  ) {
    guard !isDirect || !Self.isProbe(size, offset) else { return fail(request, Errno(EINVAL)) }
    guard let file = openFile(request, number, writing: false) else { return }
    let count = min(size, buffer.count)
    guard gate.isOpen else { return hold(request, file, size: count, offset: offset) }
    serve(request, file, offset, UnsafeMutableRawBufferPointer(rebasing: buffer[..<count]))
  }

  /// The file stays open until this is answered: its user waits for it.
  private func hold(_ request: KernelRequest, _ file: OwnedDescriptor, size: Int, offset: off_t) {
    gate.pass(
      ReadGate.Read(request: request) { [self] in
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 4096)
        defer { buffer.deallocate() }
        serve(request, file, offset, buffer)
      })
  }

  private func serve(
    _ request: KernelRequest, _ file: OwnedDescriptor, _ offset: off_t, _ part: UnsafeMutableRawBufferPointer
  ) {
    do throws(Errno) {
      guard offset >= 0 else { throw Errno(EINVAL) }
      let slot = sink.readBegan(request.unique)
      defer { sink.readEnded(slot) }
      let count = try Backing.readAll(file.number, into: part, at: UInt64(offset))
      fuse_reply_buf(request.raw, part.baseAddress?.assumingMemoryBound(to: CChar.self), count)
    } catch {
      // First: what its reader writes because of it must not reach the peer. Also for want of memory; EINVAL is the reader's own.
      if error.code != EINVAL { sink.readFailed(Backing.pathForMessage(file.number, at: UInt64(offset)), error) }
      fail(request, error)
    }
  }

  /// Of a file or a folder. After a repetition the count is too low, which costs another open.
  func release(_ request: KernelRequest, _ number: UInt64) {
    (try? nodes.node(number))?.closed()
    fuse_reply_err(request.raw, 0)
  }

  func openFolder(_ request: KernelRequest, _ number: UInt64, info: UnsafeMutablePointer<fuse_file_info>) {
    do throws(Errno) {
      let node = try nodes.node(number)
      guard node.isFolder else { throw Errno(ENOTDIR) }
      _ = try node.stream()
      node.opened()
      info.pointee.fh = 0
      if fuse_reply_open(request.raw, info) == -ENOENT { node.closed() }
    } catch { fail(request, error) }
  }

  /// Offsets are the file system's own, which mean the same to every open folder.
  func readFolder(
    _ request: KernelRequest, _ number: UInt64, size: Int, offset: off_t, buffer: UnsafeMutableRawBufferPointer
  ) {
    do throws(Errno) {
      let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<min(size, buffer.count)])
      let used = try nodes.node(number).stream().fill(part, from: offset, request: request.raw)
      fuse_reply_buf(request.raw, part.baseAddress?.assumingMemoryBound(to: CChar.self), used)
    } catch { fail(request, error) }
  }

  func statistics(_ request: KernelRequest, _ number: UInt64) {
    do throws(Errno) {
      let node = try nodes.node(number)
      var answer = statvfs()
      _ = try retrying { fstatvfs(node.descriptor, &answer) }
      fuse_reply_statfs(request.raw, &answer)
    } catch { fail(request, error) }
  }

  func getExtendedAttribute(_ request: KernelRequest, _ number: UInt64, name: [UInt8], size: Int) {
    readExtended(request, number, size: size) { (object, buffer) throws(Errno) in
      guard !FileIdentities.isOurs(name) else { throw Errno(ENODATA) }
      do throws(Errno) { return try Backing.getAttribute(object, name, into: buffer) } catch {
        // To the kernel, which asks when it checks permissions, a file system without access lists has none, not an error.
        throw error.code == ENOTSUP && AccessLists.isOne(name) ? Errno(ENODATA) : error
      }
    }
  }

  func listExtendedAttributes(_ request: KernelRequest, _ number: UInt64, size: Int) {
    readExtended(request, number, size: size) { (object, buffer) throws(Errno) in
      let names = buffer.bindMemory(to: CChar.self)
      let count = try Backing.listAttributes(object, into: names)
      return names.isEmpty ? count : Self.withoutOurs(names, count)
    }
  }

  /// Takes vmha's own names out of a list; answers the bytes that are left.
  private static func withoutOurs(_ names: UnsafeMutableBufferPointer<CChar>, _ count: Int) -> Int {
    var kept: [CChar] = []
    for name in names[..<count].split(separator: 0) where !FileIdentities.isOurs(name.map { UInt8(bitPattern: $0) }) {
      kept += name
      kept.append(0)
    }
    for (index, byte) in kept.enumerated() { names[index] = byte }
    return kept.count
  }

  private func readExtended(
    _ request: KernelRequest, _ number: UInt64, size: Int,
    _ read: (Int32, UnsafeMutableRawBufferPointer) throws(Errno) -> Int
  ) {
    do throws(Errno) {
      let node = try nodes.node(number)
      if size == 0 {
        fuse_reply_xattr(request.raw, try read(node.descriptor, UnsafeMutableRawBufferPointer(start: nil, count: 0)))
        return
      }
      let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: min(size, attributeBytesMax), alignment: 8)
      defer { buffer.deallocate() }
      let count = try read(node.descriptor, buffer)
      fuse_reply_buf(request.raw, buffer.baseAddress?.assumingMemoryBound(to: CChar.self), count)
    } catch { fail(request, error) }
  }

  /// Holes and data only: positions are the kernel's.
  func seek(_ request: KernelRequest, _ number: UInt64, offset: off_t, whence: Int32) {
    do throws(Errno) {
      let file = try nodes.node(number).file(writing: false)
      fuse_reply_lseek(request.raw, try retrying { lseek(file.number, offset, whence) })
    } catch { fail(request, error) }
  }
}
