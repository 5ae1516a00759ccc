import COpenSSL
import Glibc
import HostSystem
import Model
import Synchronization

/// One TLS 1.3 connection with a proven peer. One thread may read while another writes; several writers must take
/// turns (the caller's lock). `shutdown` from any thread ends both at once. No call allocates after the handshake.
///
/// The end of the stream is not authenticated: what is sent over it must tell its own length.
public final class SecureStream: @unchecked Sendable {
  /// The server's first byte: "your certificate is accepted". Only then does `connect` return.
  private static let welcome: UInt8 = 1
  /// Largest payload of one TLS record.
  private static let recordBytesMax = 16_384
  /// Room for a record's header and tag.
  private static let recordOverheadBytesMax = 512
  /// For each direction. Larger ones are slower: the peer begins later, and the bytes leave the processor's cache.
  private static let bufferBytes = 96 << 10
  /// Keys are changed after so many records (64 GiB of full ones), well below the limit of AES-GCM (RFC 8446, 5.5).
  static let recordsPerKeyDefault: UInt64 = 1 << 22

  // Made once, never changed: the only unsafe thing about it is its C type.
  private nonisolated(unsafe) static let method: OpaquePointer? = vmha_bytes_method()

  private let socket: Int32
  private let tls: OpaquePointer
  /// Keeps the TLS context alive.
  private let context: SecureContext
  /// Guards `tls` and both buffers' bookkeeping; never held during a system call.
  private let lock = Mutex(())
  /// Filled by the reader outside the lock only while empty, and then the TLS object is not reading.
  private let input: UnsafeMutablePointer<vmha_bytes>
  private let output: UnsafeMutablePointer<vmha_bytes>
  /// Where small pieces of one write come together, so that a header and its payload share a record. Writer only.
  private let staging: UnsafeMutableRawBufferPointer
  private var staged = 0
  private var recordsWithKey: UInt64 = 0
  var recordsPerKey = recordsPerKeyDefault

  private let isShut = Atomic<Bool>(false)
  private let readTimeoutNanoseconds = Atomic<Int64>(.max)
  private let writeTimeoutNanoseconds = Atomic<Int64>(.max)

  /// The peer's node name from its certificate; "" for a join.
  public private(set) var peerName = ""
  /// Server side: the peer is a host that wants to join and has no certificate.
  public private(set) var isJoin = false
  /// The peer's numeric address.
  public let peerAddress: String

  // MARK: Making one

  /// Connects, proves both ends, and returns when the peer has accepted this node's certificate too, all within
  /// `timeout`. `from` = numeric address of this host to leave by (nil = any). Throws `SecureError` in plain words.
  public static func connect(
    from localAddress: String? = nil, to address: String, port: Int, context: SecureContext, expectedPeer: String?,
    timeout: Duration
  ) throws -> SecureStream {
    let deadline = monotonicNow() + timeout
    let target = try SocketAddress(address, port: port)
    let socket = try connectSocket(from: localAddress, to: target, deadline: deadline, timeout: timeout)
    let stream = try SecureStream(socket: socket, context: context, peer: target.description)
    let verification = PeerVerification(kind: context.kind, expectedPeer: expectedPeer, allowsJoin: false)
    try stream.handshake(verification, isServer: false, deadline: deadline)
    try stream.awaitWelcome(verification, deadline: deadline)
    return stream
  }

  /// The server's side of `connect` on an accepted socket, which is taken over.
  static func accept(
    socket: Int32, context: SecureContext, allowsJoin: Bool, timeout: Duration
  ) throws -> SecureStream {
    let deadline = monotonicNow() + timeout
    let stream = try SecureStream(socket: socket, context: context, peer: SocketAddress.remoteText(socket))
    let verification = PeerVerification(kind: context.kind, expectedPeer: nil, allowsJoin: allowsJoin)
    try stream.handshake(verification, isServer: true, deadline: deadline)
    try withUnsafeBytes(of: welcome) { try stream.write($0) }
    return stream
  }

  private init(socket: Int32, context: SecureContext, peer: String) throws {
    self.socket = socket
    self.context = context
    peerAddress = peer
    input = Self.makeBuffer()
    output = Self.makeBuffer()
    staging = .allocate(byteCount: Self.recordBytesMax, alignment: 64)
    ERR_clear_error()
    guard let tls = withExtendedLifetime(context, { SSL_new(context.tls.pointer) }) else {
      // `deinit` does not run for an object that was never whole.
      Self.free(input, output, staging)
      close(socket)
      throw SecureError(.tls, "out of memory for TLS")
    }
    self.tls = tls
    SocketAddress.setOption(socket, Int32(IPPROTO_TCP), TCP_NODELAY, 1)
    SocketAddress.setOption(socket, SOL_SOCKET, SO_KEEPALIVE, 1)
    guard vmha_tls_attach(tls, Self.method, input, output) == 1 else {
      throw SecureError(.tls, "out of memory for TLS")
    }
  }

  deinit {
    SSL_free(tls)
    Self.free(input, output, staging)
    close(socket)
  }

  private static func makeBuffer() -> UnsafeMutablePointer<vmha_bytes> {
    let buffer = UnsafeMutablePointer<vmha_bytes>.allocate(capacity: 1)
    let base = UnsafeMutablePointer<UInt8>.allocate(capacity: bufferBytes)
    buffer.initialize(to: vmha_bytes(base: base, capacity: bufferBytes, start: 0, end: 0))
    return buffer
  }

  private static func free(
    _ input: UnsafeMutablePointer<vmha_bytes>, _ output: UnsafeMutablePointer<vmha_bytes>,
    _ staging: UnsafeMutableRawBufferPointer
  ) {
    for buffer in [input, output] {
      buffer.pointee.base.deallocate()
      buffer.deallocate()
    }
    staging.deallocate()
  }

  private static func connectSocket(
    from localAddress: String?, to target: SocketAddress, deadline: Instant, timeout: Duration
  ) throws -> Int32 {
    let local = try SocketAddress(localAddress ?? (target.isIPv6 ? "::" : "0.0.0.0"), port: 0)
    guard local.isIPv6 == target.isIPv6 else {
      throw SecureError(.noRoute, "\(local.text) and \(target.text) are not of the same family (IPv4, IPv6)")
    }
    let socket = try local.boundSocket(type: SOCK_STREAM, reuse: false)
    do {
      let result = target.withSocketAddress { Glibc.connect(socket, $0, $1) }
      if result != 0, errno != EINPROGRESS { throw SecureError.system("connect to \(target)", errno) }
      guard try poll(socket, POLLOUT, until: deadline) else {
        throw SecureError(.timedOut, "\(target) does not answer within \(timeout)")
      }
      var number: Int32 = 0
      var length = socklen_t(MemoryLayout<Int32>.size)
      guard getsockopt(socket, SOL_SOCKET, SO_ERROR, &number, &length) == 0 else {
        throw SecureError.system("connect to \(target)", errno)
      }
      guard number == 0 else {
        let hint = number == ECONNREFUSED ? ": nothing listens there" : ""
        throw SecureError.system("connect to \(target)\(hint)", number)
      }
      return socket
    } catch {
      close(socket)
      throw error
    }
  }

  private func handshake(_ verification: PeerVerification, isServer: Bool, deadline: Instant) throws {
    if !isServer {
      let name = context.applicationProtocol
      let list = [UInt8(name.count)] + name
      // 0 means success in this one call.
      guard SSL_set_alpn_protos(tls, list, UInt32(list.count)) == 0 else { throw SecureError(.tls, "ALPN") }
    }
    verification.attach(to: tls)
    defer { SSL_set_ex_data(tls, 0, nil) }
    while true {
      ERR_clear_error()
      let result = isServer ? SSL_accept(tls) : SSL_connect(tls)
      let reason = SSL_get_error(tls, result)
      let failed = result != 1 && reason != SSL_ERROR_WANT_READ
      let error = failed ? verification.handshakeError(peer: peerAddress, own: context) : nil
      do {
        try flush(until: deadline)
      } catch {
        if !failed { throw error }
      }
      if let error { throw error }
      if result == 1 { break }
      try fillForHandshake(deadline)
    }
    peerName = verification.peerName
    isJoin = verification.isJoin
  }

  private func fillForHandshake(_ deadline: Instant) throws {
    guard try Self.poll(socket, POLLIN, until: deadline) else {
      throw SecureError(.timedOut, "\(peerAddress) does not finish the TLS handshake in time")
    }
    guard try receive() != 0 else {
      throw SecureError(.closed, "\(peerAddress) ended the connection during the TLS handshake: is vmha running there?")
    }
  }

  /// In TLS 1.3 the server judges the client's certificate after the client's handshake is over.
  private func awaitWelcome(_ verification: PeerVerification, deadline: Instant) throws {
    var byte: UInt8 = 0
    verification.attach(to: tls)
    defer { SSL_set_ex_data(tls, 0, nil) }
    while true {
      var count = 0
      ERR_clear_error()
      let result = SSL_read_ex(tls, &byte, 1, &count)
      if result == 1 { break }
      guard SSL_get_error(tls, result) == SSL_ERROR_WANT_READ else {
        throw verification.handshakeError(peer: peerAddress, own: context)
      }
      try fillForHandshake(deadline)
    }
    guard byte == Self.welcome else {
      throw SecureError(.tls, "\(peerAddress) speaks another version of vmha's protocol (welcome \(byte))")
    }
  }

  // MARK: Settings, from any thread

  /// nil (the default) = wait for ever. After `.timedOut` the stream can be read on.
  public var readTimeout: Duration? {
    get { Self.timeout(readTimeoutNanoseconds) }
    set { readTimeoutNanoseconds.store(newValue?.nanoseconds ?? .max, ordering: .relaxed) }
  }

  /// How long one write may wait for the peer to take anything. nil (the default) = for ever. After `.timedOut` the
  /// stream is shut.
  public var writeTimeout: Duration? {
    get { Self.timeout(writeTimeoutNanoseconds) }
    set { writeTimeoutNanoseconds.store(newValue?.nanoseconds ?? .max, ordering: .relaxed) }
  }

  private static func timeout(_ value: borrowing Atomic<Int64>) -> Duration? {
    let nanoseconds = value.load(ordering: .relaxed)
    return nanoseconds == .max ? nil : .nanoseconds(nanoseconds)
  }

  /// TCP_USER_TIMEOUT: the kernel gives the connection up when sent bytes stay unacknowledged for this long.
  public func setUnacknowledgedMax(_ limit: Duration) {
    SocketAddress.setOption(socket, Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, limit.pollMilliseconds)
  }

  /// Ends the connection now; a blocked `read` returns 0, a blocked `write` throws `.closed`.
  public func shutdown() {
    isShut.store(true, ordering: .releasing)
    Glibc.shutdown(socket, Int32(SHUT_RDWR))
  }

  /// For an idle connection kept for later: false if it has ended, or has bytes nobody asked for.
  public var isAlive: Bool {
    guard !isShut.load(ordering: .acquiring) else { return false }
    var byte: UInt8 = 0
    return recv(socket, &byte, 1, Int32(MSG_PEEK) | Int32(MSG_DONTWAIT)) < 0 && errno == EAGAIN
  }

  // MARK: Reading

  /// At least one byte, as many as have arrived and fit; 0 = the connection ended. Throws `SecureError` (`.timedOut`,
  /// `.tls`, `.system`).
  public func read(into buffer: UnsafeMutableRawBufferPointer) throws -> Int {
    guard let base = buffer.baseAddress, buffer.count > 0 else { return 0 }
    var total = 0
    while true {
      guard !isShut.load(ordering: .acquiring) else { return 0 }
      var (count, reason): (Int, Int32) = (0, SSL_ERROR_NONE)
      lock.withLock { _ in
        ERR_clear_error()
        let result = SSL_read_ex(tls, base + total, buffer.count - total, &count)
        if result != 1 { reason = SSL_get_error(tls, result) }
      }
      total += count
      if total == buffer.count { return total }
      switch reason {
      case SSL_ERROR_NONE: continue
      case SSL_ERROR_WANT_READ:
        if total > 0 { return total }
        if try receiveWaiting() == 0 { return 0 }
      case SSL_ERROR_ZERO_RETURN: return total
      default: throw SecureError(.tls, "\(peerAddress): TLS failed: \(OpenSSL.takeErrors())")
      }
    }
  }

  /// Fills the buffer. false = the connection ended before its first byte; `.closed` is thrown if it ended within.
  public func readFully(into buffer: UnsafeMutableRawBufferPointer) throws -> Bool {
    var rest = buffer[...]
    while !rest.isEmpty {
      let count = try read(into: UnsafeMutableRawBufferPointer(rebasing: rest))
      if count == 0 {
        guard rest.count == buffer.count else {
          throw SecureError(.closed, "\(peerAddress): the connection ended in the middle of a message")
        }
        return false
      }
      rest = rest.dropFirst(count)
    }
    return true
  }

  private func receiveWaiting() throws -> Int {
    while true {
      if let count = try receive() { return count }
      let timeout = readTimeoutNanoseconds.load(ordering: .relaxed)
      let deadline = timeout == .max ? nil : monotonicNow() + .nanoseconds(timeout)
      guard try Self.poll(socket, POLLIN, until: deadline) else {
        throw SecureError(.timedOut, "nothing received from \(peerAddress) in time")
      }
    }
  }

  /// Takes what the socket has into the empty input buffer: its length, 0 at the end of the stream, nil if there is
  /// nothing yet.
  private func receive() throws -> Int? {
    let count = recv(socket, input.pointee.base, input.pointee.capacity, 0)
    if count > 0 {
      lock.withLock { _ in (input.pointee.start, input.pointee.end) = (0, count) }
      return count
    }
    let number = errno
    if count == 0 || isShut.load(ordering: .acquiring) { return 0 }
    if number == EAGAIN || number == EINTR { return nil }
    throw SecureError.system("receive from \(peerAddress)", number)
  }

  // MARK: Writing

  public func write(_ bytes: UnsafeRawBufferPointer) throws {
    try write { try $0.add(bytes) }
  }

  /// Two pieces, as header and payload, in one go.
  public func write(_ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer) throws {
    try write {
      try $0.add(first)
      try $0.add(second)
    }
  }

  /// All pieces in order. When it returns, everything is in the kernel's hands. After an error the stream is shut.
  public func writeAll(_ pieces: [UnsafeRawBufferPointer]) throws {
    try write { stream in
      for piece in pieces { try stream.add(piece) }
    }
  }

  private func write(_ add: (SecureStream) throws -> Void) throws {
    do {
      try add(self)
      try writeStaged()
      try flush(until: nil)
    } catch {
      staged = 0
      shutdown()
      throw error
    }
  }

  private func add(_ piece: UnsafeRawBufferPointer) throws {
    var rest = piece[...]
    while !rest.isEmpty {
      if staged == 0, rest.count >= Self.recordBytesMax {
        try writeRecord(UnsafeRawBufferPointer(rebasing: rest.prefix(Self.recordBytesMax)))
        rest = rest.dropFirst(Self.recordBytesMax)
        continue
      }
      let part = UnsafeRawBufferPointer(rebasing: rest.prefix(Self.recordBytesMax - staged))
      UnsafeMutableRawBufferPointer(rebasing: staging[staged...]).copyMemory(from: part)
      staged += part.count
      rest = rest.dropFirst(part.count)
      if staged == Self.recordBytesMax { try writeStaged() }
    }
  }

  private func writeStaged() throws {
    guard staged > 0 else { return }
    try writeRecord(UnsafeRawBufferPointer(rebasing: staging[..<staged]))
    staged = 0
  }

  private func writeRecord(_ bytes: UnsafeRawBufferPointer) throws {
    if output.pointee.capacity - output.pointee.end < Self.recordBytesMax + 2 * Self.recordOverheadBytesMax {
      try flush(until: nil)
    }
    guard !isShut.load(ordering: .acquiring) else { throw closedError }
    recordsWithKey += 1
    let isKeyOld = recordsWithKey > recordsPerKey
    if isKeyOld { recordsWithKey = 0 }
    let isDone = lock.withLock { _ in
      ERR_clear_error()
      // Without asking the peer for the same: then reading never has to write.
      if isKeyOld, SSL_key_update(tls, SSL_KEY_UPDATE_NOT_REQUESTED) != 1 { return false }
      var count = 0
      return SSL_write_ex(tls, bytes.baseAddress, bytes.count, &count) == 1 && count == bytes.count
    }
    guard isDone else { throw SecureError(.tls, "\(peerAddress): TLS failed: \(OpenSSL.takeErrors())") }
  }

  private var closedError: SecureError { SecureError(.closed, "the connection with \(peerAddress) has ended") }

  /// Sends the output buffer, outside the lock.
  private func flush(until fixed: Instant?) throws {
    let (start, end) = lock.withLock { _ in (output.pointee.start, output.pointee.end) }
    var offset = start
    while offset < end {
      let count = send(socket, output.pointee.base + offset, end - offset, Int32(MSG_NOSIGNAL))
      if count >= 0 {
        offset += count
        continue
      }
      let number = errno
      guard !isShut.load(ordering: .acquiring) else { throw closedError }
      if number == EINTR { continue }
      guard number == EAGAIN else { throw SecureError.system("send to \(peerAddress)", number) }
      let timeout = writeTimeoutNanoseconds.load(ordering: .relaxed)
      let deadline = fixed ?? (timeout == .max ? nil : monotonicNow() + .nanoseconds(timeout))
      guard try Self.poll(socket, POLLOUT, until: deadline) else {
        throw SecureError(.timedOut, "\(peerAddress) takes nothing")
      }
    }
    lock.withLock { _ in (output.pointee.start, output.pointee.end) = (0, 0) }
  }

  /// false when the deadline has passed.
  private static func poll(_ socket: Int32, _ events: Int32, until deadline: Instant?) throws -> Bool {
    var entry = pollfd(fd: socket, events: Int16(events), revents: 0)
    while true {
      let result = Glibc.poll(&entry, 1, deadline.map { ($0 - monotonicNow()).pollMilliseconds } ?? -1)
      if result >= 0 { return result > 0 }
      if errno != EINTR { throw SecureError.system("poll", errno) }
    }
  }
}
