import COpenSSL
import HostSystem

/// Owns OpenSSL objects until the end of one piece of work. (A Swift object that owned one of them could be released
/// right after its pointer was read, before the C call that uses the pointer.)
final class Arena {
  private var release: [() -> Void] = []
  fileprivate init() {}
  deinit { release.reversed().forEach { $0() } }

  /// Takes the object over; nil = OpenSSL failed to make it.
  func own(_ pointer: OpaquePointer?, _ what: String, free: @escaping (OpaquePointer) -> Void) throws -> OpaquePointer {
    guard let pointer else { throw SecureError(.badCertificate, "\(what): \(OpenSSL.takeErrors())") }
    release.append { free(pointer) }
    return pointer
  }

  func certificate(pem: [UInt8]) throws -> OpaquePointer {
    try own(
      OpenSSL.withBIO(pem) { PEM_read_bio_X509($0, nil, nil, nil) }, "not a PEM certificate", free: { X509_free($0) })
  }

  func key(pem: [UInt8]) throws -> OpaquePointer {
    // An encrypted key must fail, not ask on the terminal.
    let noPassword: @convention(c) (UnsafeMutablePointer<CChar>?, Int32, Int32, UnsafeMutableRawPointer?) -> Int32 =
      { _, _, _, _ in -1 }
    return try own(
      OpenSSL.withBIO(pem) { PEM_read_bio_PrivateKey($0, nil, noPassword, nil) },
      "not an unencrypted PEM private key", free: { EVP_PKEY_free($0) })
  }

  func request(pem: [UInt8]) throws -> OpaquePointer {
    try own(
      OpenSSL.withBIO(pem) { PEM_read_bio_X509_REQ($0, nil, nil, nil) }, "not a PEM certificate request",
      free: { X509_REQ_free($0) })
  }
}

enum OpenSSL {
  /// What the arena owns is valid until `work` ends.
  static func scope<Result>(_ work: (Arena) throws -> Result) rethrows -> Result {
    let arena = Arena()
    return try withExtendedLifetime(arena) { try work(arena) }
  }

  /// OpenSSL's words for everything in this thread's error queue, which is emptied.
  static func takeErrors() -> String {
    var texts: [String] = []
    while true {
      let error = ERR_get_error()
      if error == 0 { break }
      texts.append(reasonText(error))
    }
    return texts.isEmpty ? "no further explanation from OpenSSL" : texts.joined(separator: "; ")
  }

  static func reasonText(_ error: UInt) -> String {
    ERR_reason_error_string(error).map { String(cString: $0) } ?? "OpenSSL error \(error)"
  }

  static func check(_ result: Int32, _ what: String) throws {
    guard result == 1 else { throw SecureError(.badCertificate, "\(what): \(takeErrors())") }
  }

  fileprivate static func withBIO(_ bytes: [UInt8], _ body: (OpaquePointer) -> OpaquePointer?) -> OpaquePointer? {
    ERR_clear_error()
    return bytes.withUnsafeBytes { buffer in
      guard let bio = BIO_new_mem_buf(buffer.baseAddress, Int32(buffer.count)) else { return nil }
      defer { BIO_free(bio) }
      return body(bio)
    }
  }

  /// PEM bytes that `write` puts into a memory BIO.
  static func pem(_ what: String, _ write: (OpaquePointer) -> Int32) throws -> [UInt8] {
    try scope { arena in
      let bio = try arena.own(BIO_new(BIO_s_mem()), what, free: { BIO_free($0) })
      try check(write(bio), what)
      var text: UnsafeMutablePointer<CChar>?
      let length = vmha_bio_contents(bio, &text)
      guard let text, length > 0 else { throw SecureError(.badCertificate, "\(what): empty") }
      return Array(UnsafeRawBufferPointer(start: text, count: length))
    }
  }

  /// The first value of this kind in the name; nil if there is none.
  static func field(_ name: OpaquePointer?, _ nid: Int32) -> String? {
    let index = X509_NAME_get_index_by_NID(name, nid, -1)
    guard index >= 0, let data = X509_NAME_ENTRY_get_data(X509_NAME_get_entry(name, index)) else { return nil }
    var bytes: UnsafeMutablePointer<UInt8>?
    let length = ASN1_STRING_to_UTF8(&bytes, data)
    guard let bytes, length >= 0 else { return nil }
    defer { CRYPTO_free(bytes, nil, 0) }
    return String(decoding: UnsafeBufferPointer(start: bytes, count: Int(length)), as: UTF8.self)
  }

  static func sha256(of certificate: OpaquePointer) throws -> [UInt8] {
    var digest = [UInt8](repeating: 0, count: Int(EVP_MAX_MD_SIZE))
    var length: UInt32 = 0
    try check(X509_digest(certificate, EVP_sha256(), &digest, &length), "certificate digest")
    return Array(digest[..<Int(length)])
  }
}

/// Lower-case hexadecimal, two digits a byte.
public func hexadecimal(_ bytes: [UInt8]) -> String {
  bytes.map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
}

/// From digits as `hexadecimal` writes them; colons, spaces and capitals are allowed. nil for anything else.
public func bytes(hexadecimal text: String) -> [UInt8]? {
  let digits = text.filter { $0 != ":" && $0 != " " }.compactMap(\.hexDigitValue)
  guard digits.count == text.filter({ $0 != ":" && $0 != " " }).count, digits.count.isMultiple(of: 2) else {
    return nil
  }
  return stride(from: 0, to: digits.count, by: 2).map { UInt8(digits[$0] << 4 | digits[$0 + 1]) }
}

/// SHA-256 of the bytes, 32 bytes.
public func sha256(_ data: [UInt8]) -> [UInt8] {
  var digest = [UInt8](repeating: 0, count: 32)
  var length: UInt32 = 0
  let done = EVP_Digest(data, data.count, &digest, &length, EVP_sha256(), nil)
  precondition(done == 1 && length == 32, "SHA-256 is part of every libcrypto")
  return digest
}

/// Takes the same time whatever the contents.
public func isEqualConstantTime(_ a: [UInt8], _ b: [UInt8]) -> Bool {
  a.count == b.count && CRYPTO_memcmp(a, b, a.count) == 0
}
