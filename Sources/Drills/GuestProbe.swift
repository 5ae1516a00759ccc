import ControlAPI
import Glibc

/// CLOCK_BOOTTIME in nanoseconds: the clock of `JournalEvent.monotonicNanoseconds`.
public func bootClockNanoseconds() -> Int64 {
  var time = timespec()
  clock_gettime(CLOCK_BOOTTIME, &time)
  return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
}

/// Asks a guest whether it is there.
public protocol GuestProbe: Sendable {
  /// Within `HostProbe.timeoutMilliseconds`.
  func answers(_ check: CheckStatus) async -> Bool
}

/// From this host: a TCP connection that is accepted, or an ICMP echo that is answered.
public struct HostProbe: GuestProbe {
  public static let timeoutMilliseconds: Int32 = 500

  public init() {}

  public func answers(_ check: CheckStatus) async -> Bool {
    // Blocks for half a second at most, one at a time: not worth a thread of its own.
    switch check.kind {
    case .tcp: resolve(check.address, check.port ?? 0).map(connects) ?? false
    case .ping: resolve(check.address, 0).map(echoes) ?? false
    }
  }

  private struct Address {
    var family: Int32
    var bytes: [UInt8]
  }

  private func resolve(_ host: String, _ port: Int) -> Address? {
    var hints = addrinfo()
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    var list: UnsafeMutablePointer<addrinfo>?
    guard getaddrinfo(host, String(port), &hints, &list) == 0, let entry = list?.pointee, let address = entry.ai_addr
    else { return nil }
    defer { freeaddrinfo(list) }
    let bytes = UnsafeRawBufferPointer(start: address, count: Int(entry.ai_addrlen))
    return Address(family: entry.ai_family, bytes: Array(bytes))
  }

  private func connects(_ address: Address) -> Bool {
    let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_NONBLOCK.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
    let descriptor = socket(address.family, type, 0)
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    if connect(descriptor, address) == 0 { return true }
    guard errno == EINPROGRESS, wait(descriptor, Int16(POLLOUT)) else { return false }
    var failure: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    return getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &failure, &length) == 0 && failure == 0
  }

  private func echoes(_ address: Address) -> Bool {
    let isIPv6 = address.family == AF_INET6
    let number = isIPv6 ? Int32(IPPROTO_ICMPV6) : Int32(IPPROTO_ICMP)
    // A datagram ping socket where the host allows it (net.ipv4.ping_group_range), else a raw one, which root may open.
    var descriptor = socket(address.family, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), number)
    let isRaw = descriptor < 0
    if isRaw { descriptor = socket(address.family, Int32(SOCK_RAW.rawValue) | Int32(SOCK_CLOEXEC.rawValue), number) }
    guard descriptor >= 0 else { return false }
    defer { close(descriptor) }
    let identifier = UInt16(truncatingIfNeeded: getpid())
    let request = EchoPacket.request(identifier: identifier, isIPv6: isIPv6)
    guard connect(descriptor, address) == 0, send(descriptor, request, request.count, 0) == request.count else {
      return false
    }
    let deadline = bootClockNanoseconds() + Int64(Self.timeoutMilliseconds) * 1_000_000
    var packet = [UInt8](repeating: 0, count: 256)
    while case let left = (deadline - bootClockNanoseconds()) / 1_000_000, left > 0 {
      guard wait(descriptor, Int16(POLLIN), milliseconds: Int32(left)) else { return false }
      let count = recv(descriptor, &packet, packet.count, 0)
      guard count > 0 else { return false }
      let answer = packet[..<count]
      // A raw socket sees every ICMP packet of that address; only it has to look whose answer it is.
      if EchoPacket.isReply(answer, to: isRaw ? identifier : nil, isIPv6: isIPv6, hasIPHeader: isRaw && !isIPv6) {
        return true
      }
    }
    return false
  }

  private func connect(_ descriptor: Int32, _ address: Address) -> Int32 {
    address.bytes.withUnsafeBytes { bytes in
      bytes.withMemoryRebound(to: sockaddr.self) {
        Glibc.connect(descriptor, $0.baseAddress, socklen_t(address.bytes.count))
      }
    }
  }

  private func wait(_ descriptor: Int32, _ events: Int16, milliseconds: Int32 = timeoutMilliseconds) -> Bool {
    var entry = pollfd(fd: descriptor, events: events, revents: 0)
    return poll(&entry, 1, milliseconds) == 1
  }
}

/// ICMP echo (RFC 792, RFC 4443).
enum EchoPacket {
  /// With the checksum that a raw IPv4 socket needs; the kernel computes it for the other kinds.
  static func request(identifier: UInt16, isIPv6: Bool) -> [UInt8] {
    var packet: [UInt8] = [
      isIPv6 ? 128 : 8, 0, 0, 0, UInt8(identifier >> 8), UInt8(identifier & 0xFF), 0, 1,
    ]
    packet += "vmha".utf8
    let sum = checksum(packet)
    packet[2] = UInt8(sum >> 8)
    packet[3] = UInt8(sum & 0xFF)
    return packet
  }

  /// `identifier` nil: the kernel has already matched it.
  static func isReply(_ packet: ArraySlice<UInt8>, to identifier: UInt16?, isIPv6: Bool, hasIPHeader: Bool) -> Bool {
    var packet = packet
    if hasIPHeader {
      guard let first = packet.first else { return false }
      packet = packet.dropFirst(Int(first & 0x0F) * 4)
    }
    guard packet.count >= 8, packet.first == (isIPv6 ? 129 : 0) else { return false }
    guard let identifier else { return true }
    let bytes = Array(packet.prefix(8))
    return bytes[4] == UInt8(identifier >> 8) && bytes[5] == UInt8(identifier & 0xFF)
  }

  /// RFC 1071.
  static func checksum(_ bytes: [UInt8]) -> UInt16 {
    var sum: UInt32 = 0
    for index in stride(from: 0, to: bytes.count, by: 2) {
      sum += UInt32(bytes[index]) << 8 | (index + 1 < bytes.count ? UInt32(bytes[index + 1]) : 0)
    }
    while sum >> 16 != 0 { sum = (sum & 0xFFFF) + (sum >> 16) }
    return ~UInt16(sum)
  }
}
