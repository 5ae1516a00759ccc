import Glibc

/// What a plain connection to a unix socket meets.
enum SocketProbe: Sendable, Equatable {
  case answers
  /// No such file.
  case absent
  /// The file is there and nobody listens.
  case dead
  case forbidden
  case broken(String)
}

/// Connects and closes again. Never blocks: a full backlog counts as an answer.
func probeSocket(_ path: String) -> SocketProbe {
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  let bytes = Array(path.utf8)
  let capacity = MemoryLayout.size(ofValue: address.sun_path)
  guard bytes.count < capacity else { return .broken("the path is longer than \(capacity - 1) bytes: \(path)") }
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
  let descriptor = socket(
    AF_UNIX,
    Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
      | Int32(SOCK_NONBLOCK.rawValue), 0)
  guard descriptor >= 0 else { return .broken("socket: \(errnoText(errno))") }
  defer { close(descriptor) }
  let result = withUnsafePointer(to: &address) { pointer in
    pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
    }
  }
  if result == 0 { return .answers }
  switch errno {
  case EAGAIN, EINPROGRESS: return .answers
  case ENOENT, ENOTDIR: return .absent
  case ECONNREFUSED: return .dead
  case EACCES, EPERM: return .forbidden
  case let reason: return .broken("connect: \(errnoText(reason))")
  }
}

func errnoText(_ number: Int32) -> String {
  var buffer = [CChar](repeating: 0, count: 256)
  // The POSIX form: 0, and the text in the buffer.
  guard strerror_r(number, &buffer, buffer.count) == 0 else { return "errno \(number)" }
  return buffer.withUnsafeBufferPointer { $0.baseAddress.map { String(cString: $0) } ?? "errno \(number)" }
}
