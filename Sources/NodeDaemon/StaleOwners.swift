import CHostShims
import Glibc
import HostSystem

/// libvirt's notes of who used a file (qemu.conf: remember_owner), left behind by a guest that was destroyed with its disks gone.
enum StaleOwners {
  static let attributePrefix = "trusted.libvirt.security."
  private static let listBytesMax = 64 << 10

  /// The file that libvirt names in its refusal, nil if that is about something else. libvirt 9.0:
  /// "Setting different DAC user or group on PATH which is already in use" (and "… SELinux label on PATH which …").
  static func path(in message: String) -> String? {
    guard let start = message.firstRange(of: "Setting different "),
      let end = message.firstRange(of: " which is already in use"),
      start.upperBound < end.lowerBound
    else { return nil }
    let middle = message[start.upperBound..<end.lowerBound]
    guard let slash = middle.firstRange(of: " on /") else { return nil }
    return String(middle[middle.index(slash.lowerBound, offsetBy: 4)...])
  }

  /// Removes the notes from one regular file. Its contents and owner are not touched.
  static func forget(_ path: String) throws {
    let file = try HostCalls.perform("owners.open", path: path) {
      open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC)
    }
    defer { close(file) }
    var status = stat()
    try HostCalls.perform("owners.stat", path: path) { fstat(file, &status) }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw HostError(.invalid, "owners.stat", path: path, "not a regular file")
    }
    var names = [CChar](repeating: 0, count: listBytesMax)
    let length = try HostCalls.perform("owners.list", path: path) {
      Int32(truncatingIfNeeded: vmha_list_attributes(file, &names, names.count))
    }
    let list = names.prefix(Int(length)).split(separator: 0).map {
      String(decoding: $0.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
    for name in list where name.hasPrefix(attributePrefix) {
      try HostCalls.perform("owners.remove", path: path) { vmha_remove_attribute(file, name) }
    }
  }
}
