import COpenSSL
import FoundationEssentials

/// What one connection demands of its peer and what it found out. Used by one thread at a time (the handshake).
final class PeerVerification {
  let kind: SecureContext.Kind
  let expectedPeer: String?
  /// Server side: may this connection be a join (no client certificate)?
  let allowsJoin: Bool
  private(set) var peerName = ""
  private(set) var isJoin = false
  /// Why the peer was not accepted.
  private(set) var failure: SecureError?

  init(kind: SecureContext.Kind, expectedPeer: String?, allowsJoin: Bool) {
    self.kind = kind
    self.expectedPeer = expectedPeer
    self.allowsJoin = allowsJoin
  }

  func attach(to tls: OpaquePointer) {
    SSL_set_ex_data(tls, 0, Unmanaged.passUnretained(self).toOpaque())
  }

  private static func of(_ tls: OpaquePointer?) -> PeerVerification? {
    guard let tls, let data = SSL_get_ex_data(tls, 0) else { return nil }
    return Unmanaged<PeerVerification>.fromOpaque(data).takeUnretainedValue()
  }

  /// In place of OpenSSL's own check, so that the reason for a refusal can be told in full.
  static let verify: @convention(c) (OpaquePointer?, UnsafeMutableRawPointer?) -> Int32 = { store, _ in
    guard let store,
      let data = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()),
      let connection = of(OpaquePointer(data))
    else { return 0 }
    do throws(SecureError) {
      try connection.check(store)
      return 1
    } catch {
      connection.failure = error
      if X509_STORE_CTX_get_error(store) == X509_V_OK { X509_STORE_CTX_set_error(store, X509_V_ERR_HOSTNAME_MISMATCH) }
      return 0
    }
  }

  private func check(_ store: OpaquePointer) throws(SecureError) {
    do {
      let leaf = try CertificateFacts(X509_STORE_CTX_get0_cert(store))
      switch kind {
      case .node(let own, let authority): try checkNode(store, leaf, own: own, authority: authority)
      case .joining(let fingerprint): try checkFingerprint(store, leaf, fingerprint)
      }
      peerName = leaf.commonName
    } catch let error as SecureError {
      throw error
    } catch {
      throw SecureError(.tls, "\(error)")
    }
  }

  private func checkNode(
    _ store: OpaquePointer, _ leaf: CertificateFacts, own: CertificateFacts, authority: CertificateFacts
  ) throws {
    let isChained = X509_verify_cert(store) == 1
    guard leaf.cluster == authority.cluster else {
      throw SecureError(
        .otherCluster,
        "'\(leaf.commonName)' belongs to cluster \(leaf.cluster), this node to cluster \(authority.cluster)")
    }
    guard isChained else { throw Self.chainError(store, leaf) }
    if let expectedPeer, leaf.commonName != expectedPeer {
      throw SecureError(.unexpectedNode, "the node that answers is '\(leaf.commonName)', not '\(expectedPeer)'")
    }
    guard leaf.commonName != own.commonName else {
      throw SecureError(.unexpectedNode, "the node that answers is this node itself, '\(leaf.commonName)'")
    }
  }

  private static func chainError(_ store: OpaquePointer, _ leaf: CertificateFacts) -> SecureError {
    let number = X509_STORE_CTX_get_error(store)
    let blamed = X509_STORE_CTX_get_current_cert(store).flatMap { try? CertificateFacts($0) } ?? leaf
    let text = String(cString: X509_verify_cert_error_string(Int(number)))
    switch number {
    case X509_V_ERR_CERT_HAS_EXPIRED:
      return SecureError(
        .certificateExpired, "the certificate of '\(blamed.commonName)' expired on \(day(blamed.notAfter))")
    case X509_V_ERR_CERT_NOT_YET_VALID:
      return SecureError(
        .certificateNotYetValid,
        "the certificate of '\(blamed.commonName)' is valid from \(day(blamed.notBefore)): check this host's clock")
    case X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY, X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN,
      X509_V_ERR_CERT_SIGNATURE_FAILURE, X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE,
      X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT:
      return SecureError(
        .otherCluster,
        "'\(leaf.commonName)' says it is of cluster \(leaf.cluster), but its certificate is not from this "
          + "cluster's CA (\(text))"
      )
    default:
      return SecureError(.tls, "the certificate of '\(leaf.commonName)' is not good: \(text)")
    }
  }

  private func checkFingerprint(_ store: OpaquePointer, _ leaf: CertificateFacts, _ fingerprint: [UInt8]) throws {
    let sent = X509_STORE_CTX_get0_untrusted(store)
    for index in 0..<vmha_certificate_count(sent) {
      guard let authority = vmha_certificate_at(sent, index),
        isEqualConstantTime(try OpenSSL.sha256(of: authority), fingerprint)
      else { continue }
      guard let trusted = X509_STORE_new(), let check = X509_STORE_CTX_new() else {
        throw SecureError(.tls, "out of memory")
      }
      defer {
        X509_STORE_CTX_free(check)
        X509_STORE_free(trusted)
      }
      guard X509_STORE_add_cert(trusted, authority) == 1,
        X509_STORE_CTX_init(check, trusted, X509_STORE_CTX_get0_cert(store), nil) == 1
      else { throw SecureError(.tls, "certificate check: \(OpenSSL.takeErrors())") }
      guard X509_verify_cert(check) == 1 else { throw Self.chainError(check, leaf) }
      return
    }
    throw SecureError(
      .wrongFingerprint,
      "the CA of '\(leaf.commonName)' (cluster \(leaf.cluster)) does not have the fingerprint given, "
        + hexadecimal(fingerprint)
    )
  }

  /// Server side: ordinary node, join, or neither.
  static let selectProtocol:
    @convention(c) (
      OpaquePointer?, UnsafeMutablePointer<UnsafePointer<UInt8>?>?, UnsafeMutablePointer<UInt8>?, UnsafePointer<UInt8>?,
      UInt32, UnsafeMutableRawPointer?
    ) -> Int32 = { tls, chosen, chosenLength, offered, offeredLength, _ in
      guard let connection = of(tls), let offered, let chosen, let chosenLength else {
        return SSL_TLSEXT_ERR_ALERT_FATAL
      }
      let list = UnsafeBufferPointer(start: offered, count: Int(offeredLength))
      var index = 0
      while index < list.count {
        let length = Int(list[index])
        guard index + 1 + length <= list.count else { break }
        let name = Array(list[(index + 1)..<(index + 1 + length)])
        let isJoin = name == SecureContext.joinProtocol && connection.allowsJoin
        if isJoin || name == SecureContext.nodeProtocol {
          connection.isJoin = isJoin
          // A joining host has no certificate yet; its token, inside the connection, is what is checked.
          if isJoin { SSL_set_verify(tls, SSL_VERIFY_NONE, nil) }
          chosen.pointee = offered + index + 1
          chosenLength.pointee = UInt8(length)
          return SSL_TLSEXT_ERR_OK
        }
        index += 1 + length
      }
      return SSL_TLSEXT_ERR_ALERT_FATAL
    }

  /// The plain words for a failed TLS call, from OpenSSL's error queue.
  func handshakeError(peer: String, own: SecureContext) -> SecureError {
    let error = ERR_peek_error()
    defer { ERR_clear_error() }
    if let failure { return SecureError(failure.code, "\(peer): \(failure.message)") }
    let text = OpenSSL.reasonText(error)
    switch vmha_error_reason(error) {
    case SSL_R_WRONG_VERSION_NUMBER, SSL_R_HTTP_REQUEST, SSL_R_HTTPS_PROXY_REQUEST, SSL_R_UNSUPPORTED_PROTOCOL,
      SSL_R_UNEXPECTED_MESSAGE, SSL_R_BAD_RECORD_TYPE:
      return SecureError(.notTLS, "\(peer): what answers there does not speak vmha's TLS 1.3 (\(text))")
    case SSL_R_TLSV1_ALERT_UNKNOWN_CA:
      return SecureError(
        .otherCluster,
        "\(peer) does not know the CA of our certificate: it belongs to another cluster than \(own.cluster ?? "ours")")
    case SSL_R_SSLV3_ALERT_CERTIFICATE_EXPIRED:
      let until = own.validUntil.map { "ours is valid until \(day($0)); " } ?? ""
      return SecureError(
        .certificateExpired,
        "\(peer) refuses our certificate as expired: \(until)check that and the clocks of both hosts")
    case SSL_R_SSLV3_ALERT_BAD_CERTIFICATE, SSL_R_SSLV3_ALERT_CERTIFICATE_UNKNOWN,
      SSL_R_TLSV13_ALERT_CERTIFICATE_REQUIRED:
      let name = own.nodeName.map { "'\($0)'" } ?? "a host without certificate"
      return SecureError(.refusedByPeer, "\(peer) does not accept \(name) as its peer (\(text))")
    case SSL_R_TLSV1_ALERT_NO_APPLICATION_PROTOCOL:
      return SecureError(
        .refusedByPeer, "\(peer) accepts no join now: run 'vmha cluster ticket' there for a new ticket")
    default:
      return SecureError(.tls, "\(peer): TLS failed: \(text)")
    }
  }
}

/// ISO 8601 day and time, UTC.
func day(_ date: Date) -> String { date.formatted(.iso8601) }
