import Glibc

/// Path of the program of this process.
public func runningProgram() throws -> String {
  var path = [CChar](repeating: 0, count: Int(PATH_MAX))
  let count = readlink("/proc/self/exe", &path, path.count)
  guard count > 0 else { throw HostError.system("program.path", path: "/proc/self/exe", errno: errno) }
  return String(decoding: path.prefix(count).map { UInt8(bitPattern: $0) }, as: UTF8.self)
}
