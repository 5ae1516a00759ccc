import COpenSSL
import FoundationEssentials
import HostSystem
import Model

/// What a certificate says.
public struct CertificateFacts: Sendable, Hashable {
  /// Node name, or "vmha cluster UUID" for the CA.
  public let commonName: String
  /// UUID of the cluster.
  public let cluster: String
  public let notBefore: Date
  public let notAfter: Date
  /// SHA-256 of the whole certificate, 32 bytes.
  public let fingerprint: [UInt8]

  public init(pem: [UInt8]) throws {
    self = try OpenSSL.scope { try CertificateFacts($0.certificate(pem: pem)) }
  }

  public init(file: String) throws {
    do {
      try self.init(pem: try DurableFile.read(file, bytesMax: ClusterAuthority.pemBytesMax))
    } catch let error as SecureError {
      throw SecureError(error.code, "\(file): \(error.message)")
    }
  }

  init(_ certificate: OpaquePointer) throws {
    let name = X509_get_subject_name(certificate)
    commonName = OpenSSL.field(name, NID_commonName) ?? ""
    cluster = OpenSSL.field(name, NID_organizationName) ?? ""
    notBefore = try Self.date(X509_get0_notBefore(certificate))
    notAfter = try Self.date(X509_get0_notAfter(certificate))
    fingerprint = try OpenSSL.sha256(of: certificate)
  }

  private static func date(_ time: OpaquePointer?) throws -> Date {
    try date(UnsafePointer<ASN1_TIME>(time))
  }

  private static func date(_ time: UnsafePointer<ASN1_TIME>?) throws -> Date {
    let epoch = ASN1_TIME_set(nil, 0)
    defer { ASN1_TIME_free(epoch) }
    var (days, seconds): (Int32, Int32) = (0, 0)
    try OpenSSL.check(ASN1_TIME_diff(&days, &seconds, epoch, time), "date in certificate")
    return Date(timeIntervalSince1970: Double(days) * 86_400 + Double(seconds))
  }
}

/// A private key (P-256) as PEM, and the request for its certificate.
public struct NodeKey: Sendable {
  public let pem: [UInt8]

  public static func create() throws -> NodeKey {
    try OpenSSL.scope { arena in
      let key = try arena.own(vmha_p256_key(), "new key", free: { EVP_PKEY_free($0) })
      return NodeKey(pem: try OpenSSL.pem("key as PEM") { PEM_write_bio_PrivateKey($0, key, nil, nil, 0, nil, nil) })
    }
  }

  public init(pem: [UInt8]) { self.pem = pem }

  /// SHA-256 of the public key in a request (PEM): the same for every request made with one key.
  public static func fingerprint(ofRequest request: [UInt8]) throws -> [UInt8] {
    try OpenSSL.scope { arena in
      let request = try arena.request(pem: request)
      var encoded: UnsafeMutablePointer<UInt8>?
      let length = i2d_PUBKEY(X509_REQ_get0_pubkey(request), &encoded)
      guard let encoded, length > 0 else {
        throw SecureError(.badCertificate, "request's key: \(OpenSSL.takeErrors())")
      }
      defer { CRYPTO_free(encoded, nil, 0) }
      return sha256(Array(UnsafeBufferPointer(start: encoded, count: Int(length))))
    }
  }

  /// A certificate request (PEM) that proves possession of the key. The signer sets the names.
  public func request() throws -> [UInt8] {
    try OpenSSL.scope { arena in
      let key = try arena.key(pem: pem)
      let request = try arena.own(X509_REQ_new(), "new request", free: { X509_REQ_free($0) })
      try OpenSSL.check(X509_REQ_set_pubkey(request, key), "request's key")
      guard X509_REQ_sign(request, key, EVP_sha256()) > 0 else {
        throw SecureError(.badCertificate, "request's signature: \(OpenSSL.takeErrors())")
      }
      return try OpenSSL.pem("request as PEM") { PEM_write_bio_X509_REQ($0, request) }
    }
  }
}

/// The cluster's own CA. Both nodes hold its key, so that either can issue certificates.
public struct ClusterAuthority: Sendable {
  public static let pemBytesMax = 64 << 10
  public static let authorityValidity: Duration = .seconds(20 * 365 * 86_400)
  public static let nodeValidity: Duration = .seconds(10 * 365 * 86_400)
  /// Certificates are valid from this long before their making, so that a peer whose clock is behind accepts them.
  public static let clockTolerance: Duration = .seconds(86_400)
  public static let nodeNameBytesMax = 63

  public let certificatePEM: [UInt8]
  public let keyPEM: [UInt8]

  public init(certificatePEM: [UInt8], keyPEM: [UInt8]) throws {
    try OpenSSL.scope { arena in
      let (certificate, key) = (try arena.certificate(pem: certificatePEM), try arena.key(pem: keyPEM))
      try OpenSSL.check(X509_check_private_key(certificate, key), "the CA's key is not its certificate's")
    }
    self.certificatePEM = certificatePEM
    self.keyPEM = keyPEM
  }

  public var facts: CertificateFacts {
    get throws { try CertificateFacts(pem: certificatePEM) }
  }

  /// `validity` counts from now and may be negative (tests).
  public static func create(cluster: String, validity: Duration = authorityValidity) throws -> ClusterAuthority {
    try OpenSSL.scope { arena in
      let keyPEM = try NodeKey.create().pem
      let key = try arena.key(pem: keyPEM)
      let certificate = try blank(
        arena, commonName: "vmha cluster \(cluster)", cluster: cluster, validity: validity, publicKey: key)
      try OpenSSL.check(X509_set_issuer_name(certificate, X509_get_subject_name(certificate)), "CA's issuer")
      try extend(
        certificate, issuer: certificate,
        [
          (NID_basic_constraints, "critical,CA:TRUE,pathlen:0"), (NID_key_usage, "critical,keyCertSign,cRLSign"),
          (NID_subject_key_identifier, "hash"),
        ])
      return try ClusterAuthority(certificatePEM: sign(certificate, key), keyPEM: keyPEM)
    }
  }

  /// A node certificate (PEM) for the key in `request` (PEM): O = cluster, CN and DNS name = `node`.
  public func sign(request: [UInt8], node: String, validity: Duration = nodeValidity) throws -> [UInt8] {
    guard Self.isNodeName(node) else {
      throw SecureError(.badCertificate, "'\(node)' cannot be a node's name: letters, digits, '-' and '.', at most 63")
    }
    return try OpenSSL.scope { arena in
      let request = try arena.request(pem: request)
      guard let publicKey = X509_REQ_get0_pubkey(request), X509_REQ_verify(request, publicKey) == 1 else {
        throw SecureError(.badCertificate, "the certificate request is not signed by its own key")
      }
      let authority = try arena.certificate(pem: certificatePEM)
      let certificate = try Self.blank(
        arena, commonName: node, cluster: CertificateFacts(authority).cluster, validity: validity, publicKey: publicKey)
      try OpenSSL.check(X509_set_issuer_name(certificate, X509_get_subject_name(authority)), "certificate's issuer")
      try Self.extend(
        certificate, issuer: authority,
        [
          (NID_basic_constraints, "critical,CA:FALSE"), (NID_key_usage, "critical,digitalSignature"),
          (NID_ext_key_usage, "serverAuth,clientAuth"), (NID_subject_alt_name, "DNS:\(node)"),
          (NID_subject_key_identifier, "hash"), (NID_authority_key_identifier, "keyid:always"),
        ])
      return try Self.sign(certificate, arena.key(pem: keyPEM))
    }
  }

  /// Letters, digits, '-' and '.', 1 to 63 bytes, beginning with a letter or digit.
  public static func isNodeName(_ name: String) -> Bool {
    let bytes = Array(name.utf8)
    func isAlphanumeric(_ byte: UInt8) -> Bool {
      (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
    }
    guard (1...nodeNameBytesMax).contains(bytes.count), isAlphanumeric(bytes[0]) else { return false }
    return bytes.allSatisfy { isAlphanumeric($0) || $0 == 0x2D || $0 == 0x2E }
  }

  private static func blank(
    _ arena: Arena, commonName: String, cluster: String, validity: Duration, publicKey: OpaquePointer
  ) throws -> OpaquePointer {
    let certificate = try arena.own(X509_new(), "new certificate", free: { X509_free($0) })
    try OpenSSL.check(X509_set_version(certificate, 2), "certificate's version")
    try setSerial(certificate)
    let name = X509_get_subject_name(certificate)
    for (field, value) in [("O", cluster), ("CN", commonName)] {
      try OpenSSL.check(
        X509_NAME_add_entry_by_txt(name, field, 0x1000 /* MBSTRING_UTF8 */, value, -1, -1, 0),
        "certificate's \(field) '\(value)'")
    }
    // notBefore stays before notAfter also for the certificates that tests make expired.
    let start = min(-clockTolerance.nanoseconds, (validity - clockTolerance).nanoseconds) / 1_000_000_000
    X509_gmtime_adj(X509_getm_notBefore(certificate), Int(start))
    X509_gmtime_adj(X509_getm_notAfter(certificate), Int(validity.nanoseconds / 1_000_000_000))
    try OpenSSL.check(X509_set_pubkey(certificate, publicKey), "certificate's key")
    return certificate
  }

  private static func setSerial(_ certificate: OpaquePointer) throws {
    var serial = randomBytes(16)
    serial[0] = serial[0] & 0x7F | 0x40  // positive, never short
    guard let number = BN_bin2bn(serial, 16, nil) else { throw SecureError(.badCertificate, "serial number") }
    defer { BN_free(number) }
    guard BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate)) != nil else {
      throw SecureError(.badCertificate, "serial number")
    }
  }

  private static func extend(_ certificate: OpaquePointer, issuer: OpaquePointer, _ extensions: [(Int32, String)])
    throws
  {
    for (nid, value) in extensions {
      try OpenSSL.check(
        vmha_add_extension(certificate, issuer, nid, value), "certificate extension '\(value)'")
    }
  }

  private static func sign(_ certificate: OpaquePointer, _ key: OpaquePointer) throws -> [UInt8] {
    guard X509_sign(certificate, key, EVP_sha256()) > 0 else {
      throw SecureError(.badCertificate, "certificate's signature: \(OpenSSL.takeErrors())")
    }
    return try OpenSSL.pem("certificate as PEM") { PEM_write_bio_X509($0, certificate) }
  }
}
