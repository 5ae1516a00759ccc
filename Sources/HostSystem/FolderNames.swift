import Glibc

/// Names in a folder, but "." and "..", in no order. Throws also if it is not there; `operation` names the call in the error.
public func folderNames(_ path: String, operation: String) throws -> [String] {
  guard let folder = opendir(path) else { throw HostError.system(operation, path: path, errno: errno) }
  defer { closedir(folder) }
  var names: [String] = []
  while true {
    errno = 0
    guard let entry = readdir(folder) else {
      if errno != 0 { throw HostError.system(operation, path: path, errno: errno) }
      return names
    }
    let name = withUnsafeBytes(of: &entry.pointee.d_name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
    if name != ".", name != ".." { names.append(name) }
  }
}
