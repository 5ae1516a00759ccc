import COpenSSL
import FoundationEssentials
import HostSystem

/// Owner of one SSL_CTX.
final class TLSContext: @unchecked Sendable {
  let pointer: OpaquePointer
  init() throws {
    ERR_clear_error()
    guard let pointer = SSL_CTX_new(TLS_method()) else {
      throw SecureError(.tls, "TLS cannot be set up: \(OpenSSL.takeErrors())")
    }
    self.pointer = pointer
  }
  deinit { SSL_CTX_free(pointer) }
}

/// The identity of this node and the CA it trusts, or the identity-less side of a join. Shared by any number of
/// connections.
public final class SecureContext: Sendable {
  /// ALPN names: what a connection is for is settled before any certificate is asked for.
  static let nodeProtocol = Array("vmha/1".utf8)
  static let joinProtocol = Array("vmha-join/1".utf8)

  enum Kind: Sendable {
    case node(CertificateFacts, authority: CertificateFacts)
    /// Trusts exactly the cluster whose CA has this SHA-256.
    case joining(fingerprint: [UInt8])
  }

  let tls: TLSContext
  let kind: Kind

  /// PEM files: the cluster's CA certificate, this node's certificate and its key. Throws `SecureError.badCertificate`
  /// naming the file.
  public init(authorityFile: String, certificateFile: String, keyFile: String) throws {
    let authority = try CertificateFacts(file: authorityFile)
    let own = try CertificateFacts(file: certificateFile)
    guard own.cluster == authority.cluster else {
      throw SecureError(
        .badCertificate, "\(certificateFile) is of cluster \(own.cluster), \(authorityFile) of \(authority.cluster)")
    }
    kind = .node(own, authority: authority)
    tls = try Self.make()
    let context = tls.pointer  // `self` keeps it alive
    defer { withExtendedLifetime(self) {} }
    try Self.use(authorityFile, SSL_CTX_load_verify_locations(context, authorityFile, nil))
    try Self.use(certificateFile, SSL_CTX_use_certificate_file(context, certificateFile, SSL_FILETYPE_PEM))
    try Self.use(keyFile, SSL_CTX_use_PrivateKey_file(context, keyFile, SSL_FILETYPE_PEM))
    try Self.use(keyFile, SSL_CTX_check_private_key(context))
    // The CA goes along, so that a joining host can find the one whose fingerprint it was given.
    try OpenSSL.scope { arena in
      let certificate = try arena.certificate(pem: DurableFile.read(authorityFile))
      try Self.use(authorityFile, Int32(clamping: vmha_tls_add_chain(context, certificate)))
    }
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nil)
    SSL_CTX_set_alpn_select_cb(context, PeerVerification.selectProtocol, nil)
  }

  /// For a host that has no certificate yet: accepts only the cluster whose CA certificate has this SHA-256 (32 bytes).
  public init(joiningWithFingerprint fingerprint: [UInt8]) throws {
    kind = .joining(fingerprint: fingerprint)
    tls = try Self.make()
    withExtendedLifetime(self) { SSL_CTX_set_verify(tls.pointer, SSL_VERIFY_PEER, nil) }
  }

  /// UUID of the own cluster; nil while joining.
  public var cluster: String? {
    if case .node(_, let authority) = kind { authority.cluster } else { nil }
  }
  /// Name of this node as its certificate says; nil while joining.
  public var nodeName: String? {
    if case .node(let own, _) = kind { own.commonName } else { nil }
  }
  /// When the earlier of this node's certificate and the CA's ends; nil while joining.
  public var validUntil: Date? {
    if case .node(let own, let authority) = kind { min(own.notAfter, authority.notAfter) } else { nil }
  }

  var applicationProtocol: [UInt8] {
    switch kind {
    case .node: Self.nodeProtocol
    case .joining: Self.joinProtocol
    }
  }

  private static func make() throws -> TLSContext {
    ignoreBrokenPipes()
    let context = try TLSContext()
    try withExtendedLifetime(context) {
      try use("TLS 1.3", vmha_tls_only_13(context.pointer))
      // 128 bits first: the fastest by far where the CPU has AES instructions.
      let suites = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256"
      try use("cipher suites", SSL_CTX_set_ciphersuites(context.pointer, suites))
      // Sessions are never resumed: every connection checks certificates anew.
      _ = vmha_tls_no_session_cache(context.pointer)
      try use("session tickets", SSL_CTX_set_num_tickets(context.pointer, 0))
      SSL_CTX_set_cert_verify_callback(context.pointer, PeerVerification.verify, nil)
    }
    return context
  }

  private static func use(_ what: String, _ result: Int32) throws {
    guard result == 1 else { throw SecureError(.badCertificate, "\(what) cannot be used: \(OpenSSL.takeErrors())") }
  }
}
