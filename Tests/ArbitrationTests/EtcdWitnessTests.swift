import Arbitration
import Foundation
import HostSystem
import Model
import ModuleConfig
import Testing

#if canImport(Glibc)
  import Glibc
#endif

/// Against a real etcd.
@Suite(.serialized) struct EtcdWitnessTests {
  private let key = "/vmha/test/vm"

  private func register(_ branch: UInt64, _ holder: NodeID = .first) -> WitnessRegister {
    WitnessRegister(branch: BranchID(rawValue: branch), number: 4, holder: holder, parent: BranchID(rawValue: 3))
  }

  private func witness(_ server: EtcdServer, _ change: (inout WitnessConfiguration) -> Void = { _ in }) -> EtcdWitness {
    var configuration = WitnessConfiguration(endpoints: [server.url])
    if server.isSecure {
      configuration.authorityFile = server.file("ca.crt")
      configuration.certificateFile = server.file("client.crt")
      configuration.keyFile = server.file("client.key")
    }
    change(&configuration)
    return EtcdWitness(configuration, cluster: "test")
  }

  @Test func aRegisterIsMadeReadAndSwappedOnce() throws {
    let server = try EtcdServer()
    defer { server.stop() }
    let witness = witness(server)
    let name = try #require(ModuleName("vm"))
    #expect(witness.key(of: name) == key)
    let absent = try witness.read(key)
    #expect(absent.modRevision == 0 && absent.register == nil && absent.cluster != 0)
    #expect(try witness.swap(key, expect: 0, register(.max)))
    let first = try witness.read(key)
    #expect(first.register == register(.max) && first.modRevision > 0 && first.revision >= first.modRevision)
    #expect(first.cluster == absent.cluster)
    // Made twice, and compared with what is no longer there.
    #expect(try !witness.swap(key, expect: 0, register(8, .second)))
    #expect(try witness.swap(key, expect: first.modRevision, register(9, .second)))
    #expect(try witness.read(key).createRevision == first.modRevision && absent.createRevision == nil)
    #expect(try !witness.swap(key, expect: first.modRevision, register(10)))
    #expect(try witness.read(key).register == register(9, .second))
    // Many threads, one winner.
    let from = try witness.read(key).modRevision
    let winners = Monitor(0)
    DispatchQueue.concurrentPerform(iterations: 8) { index in
      if (try? witness.swap(key, expect: from, register(UInt64(100 + index)))) == true { winners.withLock { $0 += 1 } }
    }
    #expect(winners.withLock { $0 } == 1)
    // Deleted, and something else in its place.
    try server.control("del", key)
    #expect(try witness.read(key).modRevision == 0)
    try server.control("put", key, "not a register")
    let strange = try witness.read(key)
    #expect(strange.register == nil && strange.modRevision > from && strange.createRevision == strange.modRevision)
  }

  @Test func aHangingOrAbsentServerIsSaidInTimeAndTheNextEndpointIsAsked() throws {
    let server = try EtcdServer()
    defer { server.stop() }
    let dead = "http://127.0.0.1:9"
    let two = witness(server) { $0.endpoints = [dead, server.url] }
    #expect(try two.swap(key, expect: 0, register(1)))
    let plain = failure {
      _ = try witness(server) { $0.endpoints = [server.url.replacing("http://", with: "https://")] }.read(key)
    }
    #expect(plain?.text.contains("may not speak TLS") ?? false, "\(String(describing: plain))")
    server.hang()
    defer { server.goOn() }
    let begin = monotonicNow()
    let hanging = failure { _ = try witness(server).read(key) }
    #expect(hanging?.code == .timedOut, "\(String(describing: hanging))")
    #expect(monotonicNow() - begin < .seconds(15))
    let both = failure { _ = try two.read(key) }
    #expect(both?.text.contains(dead) ?? false, "\(String(describing: both))")
    server.goOn()
    #expect(try two.read(key).register == register(1))
    server.crash()
    let gone = failure { _ = try two.read(key) }
    #expect(gone?.code == .unreachable, "\(String(describing: gone))")
    // The same data under the same server: nothing was forgotten.
    try server.start()
    #expect(try two.read(key).register == register(1))
  }

  @Test func certificatesUsersAndPasswordsAreSaidClearly() throws {
    let server = try EtcdServer(secure: true)
    defer { server.stop() }
    #expect(try witness(server).swap(key, expect: 0, register(1)))
    let wrongAuthority = failure { _ = try witness(server) { $0.authorityFile = server.file("other.crt") }.read(key) }
    #expect(wrongAuthority?.code == .untrusted && wrongAuthority?.text.contains("other.crt") ?? false)
    let noAuthority = failure { _ = try witness(server) { $0.authorityFile = nil }.read(key) }
    #expect(noAuthority?.code == .untrusted && noAuthority?.text.contains("witness-ca") ?? false)
    let noCertificate = failure {
      _ = try witness(server) {
        $0.certificateFile = nil
        $0.keyFile = nil
      }.read(key)
    }
    #expect(noCertificate?.code == .untrusted, "\(String(describing: noCertificate))")

    for line in [
      "user add root --new-user-password=rootpass1", "user grant-role root root",
      "user add vmha --new-user-password=s3cret",
      "role add vmha", "role grant-permission vmha --prefix=true readwrite /vmha/test/", "user grant-role vmha vmha",
    ] { try server.control(line.split(separator: " ").map(String.init)) }
    try server.control("auth", "enable")
    let secret = server.file("password")
    func asUser(_ password: String, mode: mode_t = 0o600) throws -> EtcdWitness {
      try DurableFile.write(Array("\(password)\n".utf8), to: secret, mode: mode)
      return witness(server) {
        $0.user = "vmha"
        $0.passwordFile = secret
      }
    }
    let good = try asUser("s3cret")
    #expect(try good.read(key).register == register(1))
    let anonymous = failure { _ = try witness(server).read(key) }
    #expect(anonymous?.code == .refused, "\(String(describing: anonymous))")
    #expect(anonymous?.text.contains("witness-user") ?? false)
    let wrong = failure { _ = try asUser("wr0ngwr0ng").read(key) }
    #expect(wrong?.code == .refused && wrong?.text.contains(secret) ?? false, "\(String(describing: wrong))")
    #expect(!(wrong?.text.contains("wr0ngwr0ng") ?? true))
    let open = failure { _ = try asUser("s3cret", mode: 0o644).read(key) }
    #expect(open?.code == .configuration, "\(String(describing: open))")
    let absent = failure {
      _ = try witness(server) {
        $0.user = "vmha"
        $0.passwordFile = server.file("nowhere")
      }.read(key)
    }
    #expect(absent?.text.hasSuffix("nowhere cannot be used: there is no such file on this node") ?? false)
    try DurableFile.write(Array("s3cret".utf8), to: secret)
    let named = failure {
      _ = try witness(server) {
        $0.certificateFile = server.file("named.crt")
        $0.keyFile = server.file("named.key")
        $0.user = "vmha"
        $0.passwordFile = secret
      }.read(key)
    }
    #expect(named?.text.contains("without CN") ?? false, "\(String(describing: named))")
    let elsewhere = failure { _ = try asUser("s3cret").read("/others/key") }
    #expect(elsewhere?.code == .refused, "\(String(describing: elsewhere))")
    // A token does not outlive the server; the client gets a new one by itself.
    server.crash()
    try server.start()
    #expect(try good.read(key).register == register(1))
  }
}
