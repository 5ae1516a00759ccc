import Foundation
import Glibc

struct SocketFailure: Error {
  var call: String
  var number: Int32
}

private func withAddress<Value>(_ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Value) -> Value {
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: Array(path.utf8)) }
  return withUnsafePointer(to: &address) { pointer in
    pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
    }
  }
}

/// Sends text to a unix socket, reads to the end, and gives HTTP status and body.
func rawRequest(_ path: String, _ text: String) throws -> (Int, Data) {
  let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
  defer { close(descriptor) }
  guard withAddress(path, { connect(descriptor, $0, $1) }) == 0 else {
    throw SocketFailure(call: "connect", number: errno)
  }
  let bytes = Array(text.utf8)
  var sent = 0
  while sent < bytes.count {
    let count = bytes.withUnsafeBytes {
      send(descriptor, $0.baseAddress.map { $0 + sent }, bytes.count - sent, Int32(MSG_NOSIGNAL))
    }
    // A server that answers before it has read everything may close: the answer counts.
    if count <= 0 { break }
    sent += count
  }
  var answer = Data()
  var buffer = [UInt8](repeating: 0, count: 65536)
  while true {
    let count = recv(descriptor, &buffer, buffer.count, 0)
    guard count > 0 else { break }
    answer += buffer[..<count]
  }
  let reply = String(decoding: answer, as: UTF8.self)
  guard let status = Int(reply.split(separator: " ").dropFirst().first ?? ""),
    let head = answer.firstRange(of: Data("\r\n\r\n".utf8))
  else { throw SocketFailure(call: "answer: \(reply.prefix(80))", number: 0) }
  return (status, answer[head.upperBound...])
}

/// A socket file as a killed daemon leaves it.
func leaveDeadSocket(_ path: String) throws {
  let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
  guard withAddress(path, { bind(descriptor, $0, $1) }) == 0 else { throw SocketFailure(call: "bind", number: errno) }
  close(descriptor)
}
