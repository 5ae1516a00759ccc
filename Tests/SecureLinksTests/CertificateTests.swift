import FoundationEssentials
import HostSystem
import Model
import SecureLinks
import Testing

@Suite struct CertificateTests {
  @Test func namesDatesAndFingerprint() throws {
    let authority = try ClusterAuthority.create(cluster: "c-1")
    let facts = try authority.facts
    #expect(facts.commonName == "vmha cluster c-1" && facts.cluster == "c-1" && facts.fingerprint.count == 32)
    let years = facts.notAfter.timeIntervalSinceNow / (365 * 86_400)
    #expect((19.9...20.1).contains(years) && facts.notBefore.timeIntervalSinceNow < -80_000)
    let key = try NodeKey.create()
    let node = try CertificateFacts(pem: authority.sign(request: key.request(), node: "node-a.example"))
    #expect(node.commonName == "node-a.example" && node.cluster == "c-1")
    #expect((9.9...10.1).contains(node.notAfter.timeIntervalSinceNow / (365 * 86_400)))
    let again = try NodeKey.fingerprint(ofRequest: key.request())
    #expect(try NodeKey.fingerprint(ofRequest: key.request()) == again)
    #expect(try NodeKey.fingerprint(ofRequest: NodeKey.create().request()) != again)
  }

  /// The command-line tool of another implementation's maker agrees with what was made.
  @Test func opensslAcceptsTheChain() throws {
    let cluster = try Cluster()
    _ = try cluster.context("n1")
    let arguments = [
      "openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "n1", "-CAfile",
      cluster.authorityFile,
    ]
    let result = try ChildProcess.run(arguments + ["\(cluster.folder)/n1.crt"], timeout: .seconds(10))
    #expect(result.status == 0, "\(result.outputText) \(result.errorText)")
  }

  @Test func refusesBadInput() throws {
    let authority = try ClusterAuthority.create(cluster: "c-1")
    let request = try NodeKey.create().request()
    for name in ["", "a b", "x,DNS:evil", "-a", ".a", "ä", String(repeating: "n", count: 64)] {
      #expect(secureError { _ = try authority.sign(request: request, node: name) }?.code == .badCertificate)
    }
    for garbage in [[], Array("hello".utf8), Array(request.prefix(request.count / 2))] {
      #expect(secureError { _ = try authority.sign(request: garbage, node: "n1") }?.code == .badCertificate)
      #expect(secureError { _ = try CertificateFacts(pem: garbage) }?.code == .badCertificate)
    }
    let other = try ClusterAuthority.create(cluster: "c-2")
    #expect(throws: SecureError.self) {
      try ClusterAuthority(certificatePEM: authority.certificatePEM, keyPEM: other.keyPEM)
    }
  }

  @Test func contextNamesTheFileThatIsWrong() throws {
    let (cluster, other) = (try Cluster(), try Cluster(uuid: "other"))
    _ = try cluster.context("n1")
    _ = try other.context("n1")
    let mixed = secureError {
      _ = try SecureContext(
        authorityFile: cluster.authorityFile, certificateFile: "\(other.folder)/n1.crt",
        keyFile: "\(other.folder)/n1.key")
    }
    #expect(mixed?.message.contains("other") == true)
    let wrongKey = secureError {
      _ = try SecureContext(
        authorityFile: cluster.authorityFile, certificateFile: "\(cluster.folder)/n1.crt",
        keyFile: "\(other.folder)/n1.key")
    }
    #expect(wrongKey?.message.contains("n1.key") == true)
    #expect(throws: HostError.self) {
      try SecureContext(authorityFile: "/no/ca.crt", certificateFile: "/no/a", keyFile: "/no/b")
    }
  }

  @Test func hexadecimalBothWays() {
    #expect(hexadecimal([0, 1, 0xFF]) == "0001ff")
    #expect(bytes(hexadecimal: "00:01 FF") == [0, 1, 0xFF])
    #expect(bytes(hexadecimal: "0g") == nil && bytes(hexadecimal: "123") == nil && bytes(hexadecimal: "") == [])
    #expect(hexadecimal(sha256(Array("abc".utf8))).hasPrefix("ba7816bf8f01cfea414140de5dae2223"))
  }

  @Test func heartbeatSeal() throws {
    let key = (0..<32).map { UInt8($0) }
    let seal = try #require(HeartbeatSeal(key: key))
    #expect(HeartbeatSeal(key: Array(key.dropLast())) == nil)
    let datagram = seal.seal(Array("beat".utf8))
    #expect(seal.open(datagram) == Array("beat".utf8))
    #expect(hexadecimal(Array(datagram.prefix(12))) == "564d48420100000062656174")
    #expect(
      hexadecimal(Array(datagram.suffix(32))) == "2efa70c0c32ef81fec9804af06ba6247fb2143bfc8c0760aaf2d23f99d1af35d")
    for index in datagram.indices {
      var bad = datagram
      bad[index] ^= 1
      #expect(seal.open(bad) == nil)
    }
    for length in 0..<datagram.count { #expect(seal.open(datagram.prefix(length)) == nil) }
    #expect(seal.open(datagram + [0]) == nil)
    #expect(HeartbeatSeal(key: HeartbeatSeal.makeKey())?.open(datagram) == nil)
    let largest = seal.seal([UInt8](repeating: 1, count: HeartbeatSeal.bodyBytesMax))
    #expect(
      largest.count == HeartbeatSeal.datagramBytesMax && seal.open(largest) != nil && seal.open(largest + [1]) == nil)
    #expect(seal.open(seal.seal([])) == [])
  }

  @Test func joinTicket() throws {
    let cluster = try Cluster()
    let path = "\(cluster.folder)/ticket"
    let book = JoinTicketBook(path: path, boot: "boot-1")
    let now = Instant(nanoseconds: 1_000)
    let (mine, other) = ([UInt8](repeating: 1, count: 32), [UInt8](repeating: 2, count: 32))
    #expect(!book.isOpen(now: now))
    #expect(throws: JoinTicketBook.Refusal.none) { try book.redeem(token: "00", by: mine, now: now) }
    let old = try book.issue(now: now)
    let token = try book.issue(now: now)
    #expect(token.count == 32 && book.isOpen(now: now))
    #expect(try !String(decoding: DurableFile.read(path), as: UTF8.self).contains(token))
    for wrong in [old, "", "zz", token + "00"] {
      #expect(throws: JoinTicketBook.Refusal.wrongToken) { try book.redeem(token: wrong, by: mine, now: now) }
    }
    #expect(throws: JoinTicketBook.Refusal.expired) {
      try JoinTicketBook(path: path, boot: "boot-2").redeem(token: token, by: mine, now: now)
    }
    try book.redeem(token: token, by: mine, now: now)
    try book.redeem(token: token, by: mine, now: now)
    #expect(throws: JoinTicketBook.Refusal.used) { try book.redeem(token: token, by: other, now: now) }
    let late = now + JoinTicketBook.lifetime
    #expect(!book.isOpen(now: late))
    #expect(throws: JoinTicketBook.Refusal.expired) { try book.redeem(token: token, by: mine, now: late) }
  }
}
