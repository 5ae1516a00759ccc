import Glibc
import HostSystem
import Model

/// A numeric IPv4 or IPv6 address (with %interface for link-local ones) and a port.
public struct SocketAddress: Sendable, Hashable, CustomStringConvertible {
  public let text: String
  public let port: Int
  public let isIPv6: Bool
  private let bytes: [UInt8]

  /// Throws `SecureError.noRoute` for anything that is not a numeric address.
  public init(_ text: String, port: Int) throws {
    var hints = addrinfo()
    hints.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    var found: UnsafeMutablePointer<addrinfo>?
    let result = getaddrinfo(text, String(port), &hints, &found)
    defer { if found != nil { freeaddrinfo(found) } }
    guard result == 0, let entry = found?.pointee, let address = entry.ai_addr, (0...65_535).contains(port) else {
      throw SecureError(.noRoute, "'\(text)' port \(port) is not a numeric IPv4 or IPv6 address with a port")
    }
    self.text = text
    self.port = port
    isIPv6 = entry.ai_family == AF_INET6
    bytes = Array(UnsafeRawBufferPointer(start: address, count: Int(entry.ai_addrlen)))
  }

  public var family: Int32 { isIPv6 ? AF_INET6 : AF_INET }
  public var description: String { isIPv6 ? "[\(text)]:\(port)" : "\(text):\(port)" }

  public func withSocketAddress<Result>(_ body: (UnsafePointer<sockaddr>, socklen_t) throws -> Result) rethrows
    -> Result
  {
    var storage = sockaddr_storage()
    withUnsafeMutableBytes(of: &storage) { $0.copyBytes(from: bytes) }
    return try withUnsafePointer(to: &storage) { pointer in
      try pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { try body($0, socklen_t(bytes.count)) }
    }
  }

  /// A non-blocking socket bound to this address; `.localAddressMissing` if no interface has it now.
  public func boundSocket(type: __socket_type, reuse: Bool = true) throws -> Int32 {
    let handle = socket(family, Int32(type.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue), 0)
    guard handle >= 0 else { throw SecureError.system("socket for \(self)", errno) }
    if reuse { Self.setOption(handle, SOL_SOCKET, SO_REUSEADDR, 1) }
    if isIPv6 { Self.setOption(handle, Int32(IPPROTO_IPV6), IPV6_V6ONLY, 1) }
    let result = withSocketAddress { bind(handle, $0, $1) }
    guard result == 0 else {
      let number = errno
      close(handle)
      let hint = number == EADDRNOTAVAIL ? ": no interface of this host has that address now" : ""
      throw SecureError.system("bind \(self)\(hint)", number)
    }
    return handle
  }

  /// The port a socket is really bound to.
  public static func localPort(_ socket: Int32) throws -> Int {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let result = withUnsafeMutablePointer(to: &storage) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(socket, $0, &length) }
    }
    guard result == 0 else { throw SecureError.system("getsockname", errno) }
    // The port is at the same place, in network order, in both families.
    return withUnsafeBytes(of: &storage) { Int($0[2]) << 8 | Int($0[3]) }
  }

  /// "address" of the other end, without port; "" if it is gone.
  public static func remoteText(_ socket: Int32) -> String {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    var text = [CChar](repeating: 0, count: Int(NI_MAXHOST))
    let result = withUnsafeMutablePointer(to: &storage) { pointer in
      pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { address in
        getpeername(socket, address, &length) == 0
          ? getnameinfo(address, length, &text, socklen_t(text.count), nil, 0, NI_NUMERICHOST) : -1
      }
    }
    return result == 0 ? String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self) : ""
  }

  static func setOption(_ socket: Int32, _ level: Int32, _ option: Int32, _ value: Int32) {
    var value = value
    // Options only tune; a kernel that lacks one serves all the same.
    _ = setsockopt(socket, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
  }
}

/// Numeric addresses of this host's interfaces that are up, link-local ones with their %interface.
public func localAddresses() throws -> [String] {
  var list: UnsafeMutablePointer<ifaddrs>?
  guard getifaddrs(&list) == 0 else { throw SecureError.system("getifaddrs", errno) }
  defer { freeifaddrs(list) }
  var addresses: [String] = []
  var next = list
  while let entry = next?.pointee {
    next = entry.ifa_next
    guard let address = entry.ifa_addr, [AF_INET, AF_INET6].contains(Int32(address.pointee.sa_family)) else { continue }
    let length =
      Int32(address.pointee.sa_family) == AF_INET ? MemoryLayout<sockaddr_in>.size : MemoryLayout<sockaddr_in6>.size
    var text = [CChar](repeating: 0, count: Int(NI_MAXHOST))
    if getnameinfo(address, socklen_t(length), &text, socklen_t(text.count), nil, 0, NI_NUMERICHOST) == 0 {
      addresses.append(String(decoding: text.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self))
    }
  }
  return addresses
}
