import COpenSSL

/// Hashes blocks so that two nodes can tell whether theirs are the same: GMAC (NIST SP 800-38D) under a random key that
/// both know and nobody else. Two different blocks of up to 64 KiB have the same hash with a probability below 2^-115,
/// whatever they hold, because the key was chosen after them. Fast where the processor multiplies polynomials, several
/// times faster there than SHA-256. Not for authentication: the nonce is the same every time.
public final class BlockHasher {
  private let context: OpaquePointer

  /// Throws `SecureError`.
  public init(key: (UInt64, UInt64)) throws {
    guard let algorithm = EVP_MAC_fetch(nil, "GMAC", nil) else { throw Self.failure("GMAC is not there") }
    defer { EVP_MAC_free(algorithm) }
    guard let made = EVP_MAC_CTX_new(algorithm) else { throw Self.failure("no memory for a hash") }
    context = made
    var bytes = [key.0.littleEndian, key.1.littleEndian]
    let isReady = bytes.withUnsafeMutableBytes { vmha_gmac_key(made, $0.baseAddress) } == 1
    guard isReady else { throw Self.failure("GMAC takes no key") }
  }

  private static func failure(_ what: String) -> SecureError {
    SecureError(.tls, "cannot hash blocks: \(what): \(OpenSSL.takeErrors())")
  }

  deinit { EVP_MAC_CTX_free(context) }

  /// Throws `SecureError`.
  public func hash(_ block: UnsafeRawBufferPointer) throws -> (UInt64, UInt64) {
    var result: (UInt64, UInt64) = (0, 0)
    let isDone = withUnsafeMutableBytes(of: &result) {
      vmha_gmac(context, block.baseAddress, block.count, $0.baseAddress)
    }
    guard isDone == 1 else { throw Self.failure("GMAC failed") }
    return (UInt64(littleEndian: result.0), UInt64(littleEndian: result.1))
  }
}
