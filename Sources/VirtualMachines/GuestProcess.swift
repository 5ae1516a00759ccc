import Glibc
import HostSystem

/// The QEMU process of a guest, found without libvirt.
enum GuestProcess {
  private static let pidFileBytesMax = 32
  private static let commandLineBytesMax = 1 << 20

  /// From libvirt's pid file, believed only if the process really is a QEMU of this guest: the file may be older than the last boot
  /// of the process numbers.
  static func find(_ name: String, runtimeDirectory: String, processes: String = "/proc") throws(HypervisorError)
    -> Int32?
  {
    let path = "\(runtimeDirectory)/\(name).pid"
    do {
      guard let bytes = try DurableFile.readIfPresent(path, bytesMax: pidFileBytesMax) else { return nil }
      let digits = String(decoding: bytes, as: UTF8.self).prefix { $0.isASCII && $0.isNumber }
      guard let number = Int32(digits), number > 1 else { return nil }
      let file = "\(processes)/\(number)/cmdline"
      guard let line = try DurableFile.readIfPresent(file, bytesMax: commandLineBytesMax) else { return nil }
      let words = line.split(separator: 0).map { String(decoding: $0, as: UTF8.self) }
      return isGuest(words, name: name) ? number : nil
    } catch let error as HostError where error.errno == ESRCH {
      return nil  // It ended while it was read.
    } catch {
      throw HypervisorError(.failed, "process id", domain: name, "\(error)")
    }
  }

  /// libvirt names the guest on QEMU's command line: `-name guest=vm1,debug-threads=on`, commas in the name doubled.
  static func isGuest(_ words: [String], name: String) -> Bool {
    let escaped = name.replacing(",", with: ",,")
    guard let flag = words.firstIndex(of: "-name"), flag + 1 < words.count else { return false }
    let value = words[flag + 1]
    return value == "guest=\(escaped)" || value.hasPrefix("guest=\(escaped),") && !value.hasPrefix("guest=\(escaped),,")
  }
}
