import FoundationEssentials
import Glibc
import HostSystem
import Model
import SecureLinks

/// A cluster CA and two node identities as files in a folder of their own.
final class Cluster {
  let folder: String
  let uuid: String
  let authority: ClusterAuthority
  var authorityFile: String { "\(folder)/ca.crt" }

  init(uuid: String = "11111111-2222-3333-4444-555555555555", authorityValidity: Duration = .seconds(86_400)) throws {
    self.uuid = uuid
    folder = "/tmp/vmha-links-\(getpid())-\(randomUInt64())"
    authority = try ClusterAuthority.create(cluster: uuid, validity: authorityValidity)
    try DurableFile.makeFolder(folder, mode: 0o700)
    try DurableFile.write(authority.certificatePEM, to: authorityFile)
  }

  func context(_ node: String, validity: Duration = .seconds(86_400)) throws -> SecureContext {
    let key = try NodeKey.create()
    let (certificateFile, keyFile) = ("\(folder)/\(node).crt", "\(folder)/\(node).key")
    try DurableFile.write(key.pem, to: keyFile)
    try DurableFile.write(
      try authority.sign(request: key.request(), node: node, validity: validity), to: certificateFile)
    return try SecureContext(authorityFile: authorityFile, certificateFile: certificateFile, keyFile: keyFile)
  }

  deinit { _ = try? ChildProcess.run(["rm", "-rf", folder], timeout: .seconds(10)) }
}

/// A listener, and what it refused.
final class Server: Sendable {
  let listener: SecureListener
  let refusals: Monitor<[SecureError]>

  init(_ context: SecureContext, allowsJoin: Bool = false) throws {
    let refusals = Monitor<[SecureError]>([])
    self.refusals = refusals
    listener = try SecureListener(
      address: "127.0.0.1", port: 0, context: context, allowsJoin: { allowsJoin },
      refused: { _, why in refusals.withLock { $0.append(why) } })
  }

  func connect(_ context: SecureContext, expecting peer: String? = nil, timeout: Duration = .seconds(5)) throws
    -> SecureStream
  {
    try SecureStream.connect(
      from: "127.0.0.1", to: "127.0.0.1", port: listener.port, context: context, expectedPeer: peer, timeout: timeout)
  }

  func accept(timeout: Duration? = nil) throws -> SecureStream? { try listener.accept(timeout: timeout) }

  func firstRefusal() -> SecureError? { refusals.wait(timeout: .seconds(5)) { $0.first } }
  deinit { listener.close() }
}

/// The error of work that must fail.
func secureError(_ work: () throws -> Void) -> SecureError? {
  do {
    try work()
    return nil
  } catch {
    return error as? SecureError ?? SecureError(.system, "not a SecureError: \(error)")
  }
}
