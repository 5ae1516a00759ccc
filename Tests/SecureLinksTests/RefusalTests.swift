import Glibc
import HostSystem
import Model
import Testing

@testable import SecureLinks

/// Every way a connection must not come about, with the words for it on both ends.
@Suite struct RefusalTests {
  let cluster: Cluster
  let server: Server

  init() throws {
    cluster = try Cluster()
    server = try Server(cluster.context("n1"))
  }

  @Test func otherCluster() throws {
    let other = try Cluster(uuid: "99999999-aaaa-bbbb-cccc-dddddddddddd")
    let context = try other.context("n2")
    let error = secureError { _ = try server.connect(context) }
    #expect(error?.code == .otherCluster)
    #expect(error?.message.contains(other.uuid) == true && error?.message.contains(cluster.uuid) == true)
    #expect(server.firstRefusal()?.code == .otherCluster)
  }

  @Test func aForgedClusterName() throws {
    let forged = try Cluster(uuid: cluster.uuid)
    let context = try forged.context("n2")
    #expect(secureError { _ = try server.connect(context) }?.code == .otherCluster)
    // The server alone is deceived no more than the client.
    let trusting = try SecureContext(joiningWithFingerprint: cluster.authority.facts.fingerprint)
    #expect(secureError { _ = try server.connect(trusting) }?.code == .refusedByPeer)
  }

  @Test func unexpectedNode() throws {
    let error = secureError { _ = try server.connect(cluster.context("n2"), expecting: "n3") }
    #expect(error?.code == .unexpectedNode && error?.message.contains("'n1', not 'n3'") == true)
    #expect(secureError { _ = try server.connect(cluster.context("n1")) }?.code == .unexpectedNode)
  }

  @Test func expired() throws {
    let context = try cluster.context("n2", validity: .seconds(-60))
    let error = secureError { _ = try server.connect(context) }
    #expect(error?.code == .certificateExpired && error?.message.contains("valid until") == true)
    let refusal = server.firstRefusal()
    #expect(refusal?.code == .certificateExpired && refusal?.message.contains("'n2' expired on 20") == true)
    let expiredServer = try Server(cluster.context("n3", validity: .seconds(-60)))
    let seen = secureError { _ = try expiredServer.connect(cluster.context("n4")) }
    #expect(seen?.code == .certificateExpired && seen?.message.contains("'n3' expired on 20") == true)
    let oldCluster = try Cluster(authorityValidity: .seconds(-60))
    let oldServer = try Server(oldCluster.context("n1"))
    #expect(secureError { _ = try oldServer.connect(oldCluster.context("n2")) }?.code == .certificateExpired)
  }

  @Test func join() throws {
    let fingerprint = try cluster.authority.facts.fingerprint
    let context = try SecureContext(joiningWithFingerprint: fingerprint)
    let closed = secureError { _ = try server.connect(context) }
    #expect(closed?.code == .refusedByPeer && closed?.message.contains("vmha cluster ticket") == true)
    let open = try Server(cluster.context("n1"), allowsJoin: true)
    let near = try open.connect(context)
    let far = try #require(try open.accept(timeout: .seconds(5)))
    #expect(far.isJoin && far.peerName.isEmpty && near.peerName == "n1")
    try say("hello", near)
    #expect(try text(far, 5) == "hello")
    // Members still have to show their certificate.
    #expect(try open.connect(cluster.context("n2")).peerName == "n1")
    #expect(try open.accept(timeout: .seconds(5))?.isJoin == false)
    let wrong = try SecureContext(joiningWithFingerprint: [UInt8](repeating: 1, count: 32))
    #expect(secureError { _ = try open.connect(wrong) }?.code == .wrongFingerprint)
  }

  @Test func nobodyAndNobodyInTime() throws {
    let context = try cluster.context("n2")
    let port = server.listener.port
    server.listener.close()
    let error = secureError { _ = try server.connect(context) }
    #expect(error?.code == .refused && error?.message.contains("127.0.0.1:\(port)") == true)
    #expect(secureError { _ = try server.accept() }?.code == .closed)
    // A port that accepts and says nothing.
    let silent = try SocketAddress("127.0.0.1", port: 0).boundSocket(type: SOCK_STREAM)
    defer { close(silent) }
    #expect(listen(silent, 4) == 0)
    let mute = try SocketAddress.localPort(silent)
    let start = monotonicNow()
    let timeout = secureError {
      _ = try SecureStream.connect(
        to: "127.0.0.1", port: mute, context: context, expectedPeer: nil, timeout: .milliseconds(200))
    }
    #expect(timeout?.code == .timedOut && monotonicNow() - start < .seconds(10))
    let missing = secureError {
      _ = try SecureStream.connect(
        from: "192.0.2.77", to: "127.0.0.1", port: 1, context: context, expectedPeer: nil, timeout: .seconds(1))
    }
    #expect(missing?.code == .localAddressMissing)
    #expect(
      secureError { _ = try SecureListener(address: "192.0.2.77", port: 0, context: context) }?.code
        == .localAddressMissing)
    #expect(throws: SecureError.self) { try SocketAddress("localhost", port: 1) }
    #expect(throws: SecureError.self) { try SocketAddress("10.0.0.1", port: 70_000) }
  }

  @Test func notTLS() throws {
    let plain = try SocketAddress("127.0.0.1", port: 0).boundSocket(type: SOCK_STREAM)
    defer { close(plain) }
    #expect(listen(plain, 4) == 0)
    let port = try SocketAddress.localPort(plain)
    try HostThread.start(name: "plain") {
      while let socket = try? UnixSocket.accept(plain, timeout: .seconds(2)) {
        let greeting = Array("SSH-2.0-OpenSSH_9.2p1 Debian\r\n".utf8)
        _ = send(socket, greeting, greeting.count, Int32(MSG_NOSIGNAL))
        usleep(100_000)
        close(socket)
      }
    }
    let context = try cluster.context("n2")
    let error = secureError {
      _ = try SecureStream.connect(
        to: "127.0.0.1", port: port, context: context, expectedPeer: nil, timeout: .seconds(2))
    }
    #expect(error?.code == .notTLS)
    // And a client that speaks plain text to our listener.
    let socket = try SocketAddress("127.0.0.1", port: 0).boundSocket(type: SOCK_STREAM)
    defer { close(socket) }
    let result = try SocketAddress("127.0.0.1", port: server.listener.port).withSocketAddress {
      connect(socket, $0, $1)
    }
    #expect(result == 0 || errno == EINPROGRESS)
    usleep(50_000)
    let request = Array("GET / HTTP/1.1\r\nHost: x\r\n\r\n".utf8)
    #expect(send(socket, request, request.count, Int32(MSG_NOSIGNAL)) > 0)
    #expect(server.firstRefusal()?.code == .notTLS)
  }

  /// Silent connections take the handshake places for their time only, and accept goes on meanwhile for the others.
  @Test func silentClientsDoNotBlock() throws {
    let address = try SocketAddress("127.0.0.1", port: server.listener.port)
    let silent = try (0..<(SecureListener.handshakesMax - 1)).map { _ in
      let socket = try SocketAddress("127.0.0.1", port: 0).boundSocket(type: SOCK_STREAM)
      _ = address.withSocketAddress { connect(socket, $0, $1) }
      return socket
    }
    defer { silent.forEach { close($0) } }
    usleep(100_000)
    #expect(try server.connect(cluster.context("n2")).peerName == "n1")
    #expect(try server.accept(timeout: .seconds(2))?.peerName == "n2")
    let extra = try SocketAddress("127.0.0.1", port: 0).boundSocket(type: SOCK_STREAM)
    defer { close(extra) }
    _ = address.withSocketAddress { connect(extra, $0, $1) }
    usleep(100_000)
    #expect(secureError { _ = try server.connect(cluster.context("n3")) } != nil)
    #expect(server.firstRefusal()?.code == .limit)
  }
}
