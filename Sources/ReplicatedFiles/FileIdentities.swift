import Glibc
import HostSystem
import Replication

/// Where a file keeps its identity: an extended attribute, the same on both nodes, which the mount never shows. A file gets
/// it when a resync first tells the peer about it; until then it is compared as a whole.
enum FileIdentities {
  static let attribute = Array(FileIdentity.attribute.utf8)
  /// Names below it belong to vmha.
  static let attributePrefix = Array("trusted.vmha.".utf8)

  static func isOurs(_ name: [UInt8]) -> Bool { name.starts(with: attributePrefix) }

  /// nil = it has none, or the file system cannot keep one.
  static func read(_ object: Int32) throws(Errno) -> FileIdentity? {
    var value: (UInt64, UInt64, UInt8) = (0, 0, 0)
    var result: Result<Int, Errno> = .success(0)
    let bytes = withUnsafeMutableBytes(of: &value) { buffer -> [UInt8] in
      do throws(Errno) {
        result = .success(try Backing.getAttribute(object, attribute, into: buffer))
      } catch { result = .failure(error) }
      return Array(buffer.prefix(16))
    }
    do throws(Errno) { return try result.get() == 16 ? FileIdentity(bytes: bytes) : nil } catch {
      if [ENODATA, ENOTSUP, ERANGE].contains(error.code) { return nil }
      throw error
    }
  }

  /// A new one. nil = the file system cannot keep it.
  static func give(_ object: Int32) throws(Errno) -> FileIdentity? {
    let identity = FileIdentity.random()
    do throws(Errno) { try Backing.setAttribute(object, attribute, identity.bytes, flags: 0) } catch {
      if error.code == ENOTSUP { return nil }
      throw error
    }
    return identity
  }
}

extension FileIdentity {
  static func random() -> FileIdentity {
    while true {
      let (first, second) = (randomUInt64(), randomUInt64())
      let bytes = [first, second].flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> ($0 * 8)) } }
      if let identity = FileIdentity(bytes: bytes) { return identity }
    }
  }
}
