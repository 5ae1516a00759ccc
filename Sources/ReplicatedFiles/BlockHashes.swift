import Glibc
import HostSystem
import Replication
import SecureLinks

extension BlockHasher {
  convenience init(_ key: HashKey) throws { try self.init(key: (key.first, key.second)) }
}

/// One hash a block of `ResyncPlan.blockBytes`, the last one shorter.
func blockHashes(_ bytes: UnsafeRawBufferPointer, _ hasher: BlockHasher) throws(Errno) -> [BlockHash] {
  var hashes: [BlockHash] = []
  var start = 0
  while start < bytes.count {
    let end = min(start + Int(ResyncPlan.blockBytes), bytes.count)
    do {
      let (first, second) = try hasher.hash(UnsafeRawBufferPointer(rebasing: bytes[start..<end]))
      hashes.append(BlockHash(first, second))
    } catch {
      Log.note("hash: \(error)")
      throw Errno(ENOMEM)
    }
    start = end
  }
  return hashes
}

/// Compares with itself shifted by one, which the C library does at memory speed.
func isAllZero(_ bytes: UnsafeRawBufferPointer) -> Bool {
  guard let base = bytes.baseAddress, bytes.count > 0, bytes[0] == 0 else { return false }
  return memcmp(base, base + 1, bytes.count - 1) == 0
}
