import Foundation
import HostSystem
import Model
import ModuleConfig
import SecureLinks

#if canImport(Glibc)
  import Glibc
#endif

/// A real etcd of its own on loopback, with its data in a temporary folder; gone with `stop`.
final class EtcdServer {
  struct Problem: Error, CustomStringConvertible { let description: String }

  let folder: String
  let port: Int
  let isSecure: Bool
  private(set) var process: Int32

  var url: String { "\(isSecure ? "https" : "http")://127.0.0.1:\(port)" }
  func file(_ name: String) -> String { "\(folder)/\(name)" }

  /// `secure`: TLS, client certificates of the server's CA required.
  init(secure: Bool = false) throws {
    isSecure = secure
    folder = FileManager.default.temporaryDirectory.path() + "vmha-etcd-\(getpid())-\(randomUInt64())"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    (port, process) = (try Self.freePort(), 0)
    do {
      if secure { try Self.makeCertificates(folder) }
      try start()
    } catch {
      stop()
      throw error
    }
  }

  func start() throws {
    var arguments = [
      "etcd", "--data-dir", file("data"), "--listen-client-urls", url, "--advertise-client-urls", url,
      "--listen-peer-urls", "http://127.0.0.1:0", "--logger", "zap",
    ]
    if isSecure {
      arguments += [
        "--cert-file", file("server.crt"), "--key-file", file("server.key"), "--trusted-ca-file", file("ca.crt"),
        "--client-cert-auth",
      ]
    }
    try DurableFile.remove(file("log"))
    process = try ChildProcess.spawnDetached(arguments, log: file("log"))
    let deadline = monotonicNow() + .seconds(20)
    while monotonicNow() < deadline {
      let log = try DurableFile.readIfPresent(file("log")) ?? []
      if String(decoding: log, as: UTF8.self).contains("serving client traffic") { return }
      usleep(50_000)
    }
    let log = try DurableFile.readIfPresent(file("log")) ?? []
    throw Problem(description: "etcd does not start: \(String(decoding: log.suffix(2000), as: UTF8.self))")
  }

  /// SIGSTOP: the socket accepts, nobody answers.
  func hang() { kill(process, SIGSTOP) }
  func goOn() { kill(process, SIGCONT) }

  func crash() {
    guard process > 1 else { return }
    kill(process, SIGKILL)
    // Reaped by its own thread; the port is free when it is gone.
    while kill(process, 0) == 0 { usleep(10_000) }
    process = 0
  }

  func stop() {
    crash()
    try? FileManager.default.removeItem(atPath: folder)
  }

  @discardableResult
  func control(_ arguments: String...) throws -> String { try control(arguments) }

  @discardableResult
  func control(_ arguments: [String]) throws -> String {
    var words = ["etcdctl", "--endpoints", url]
    if isSecure {
      words += ["--cacert", file("ca.crt"), "--cert", file("client.crt"), "--key", file("client.key")]
    }
    let result = try ChildProcess.run(
      words + arguments, environment: ["ETCDCTL_API": "3", "PATH": "/usr/bin:/bin"], timeout: .seconds(20))
    guard result.status == 0 else { throw Problem(description: "\(arguments): \(result.errorText)") }
    return result.outputText
  }

  private static func freePort() throws -> Int {
    let socket = try SocketAddress("127.0.0.1", port: 0).boundSocket(type: SOCK_STREAM)
    defer { close(socket) }
    return try SocketAddress.localPort(socket)
  }

  /// ca, server, client (its subject has no CN), another client that has one, and another CA that nobody trusts.
  private static func makeCertificates(_ folder: String) throws {
    func openssl(_ line: String) throws {
      let words = ["openssl"] + line.split(separator: " ").map { String($0).replacing("@", with: folder) }
      let result = try ChildProcess.run(words, timeout: .seconds(20))
      guard result.status == 0 else { throw Problem(description: result.errorText) }
    }
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    for ca in ["ca", "other"] {
      try openssl("req -x509 \(key) -keyout @/\(ca).key -out @/\(ca).crt -subj /CN=\(ca)")
    }
    for (name, subject) in [("server", "/CN=server"), ("client", "/O=vmha"), ("named", "/CN=named")] {
      try openssl("req \(key) -keyout @/\(name).key -out @/\(name).csr -subj \(subject)")
      try Data("subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n".utf8)
        .write(to: URL(filePath: "\(folder)/ext"))
      try openssl(
        "x509 -req -in @/\(name).csr -CA @/ca.crt -CAkey @/ca.key -CAcreateserial -days 2 -extfile @/ext -out @/\(name).crt"
      )
    }
  }
}
