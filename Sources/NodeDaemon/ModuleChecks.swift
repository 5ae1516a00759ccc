import ControlAPI
import Glibc
import HostSystem
import Model
import ModuleConfig
import Synchronization

/// Tries the checks that module.xml names, for status and drills. Never used for a decision.
final class ModuleChecks: Sendable {
  private static let every: Duration = .seconds(5)
  private static let timeoutSeconds = 2
  private let results = Mutex<[ModuleName: CheckStatus]>([:])
  private let modules: @Sendable () -> [ModuleConfiguration]
  private let isOver = Monitor(false)

  init(modules: @escaping @Sendable () -> [ModuleConfiguration]) { self.modules = modules }

  func start() throws {
    try HostThread.start(name: "checks") {
      while true {
        for module in self.modules() where module.check != nil { self.run(module) }
        if self.isOver.wait(timeout: Self.every, until: { $0 ? true : nil }) != nil { return }
      }
    }
  }

  func stop() { isOver.withLock { $0 = true } }

  func status(of module: ModuleConfiguration) -> CheckStatus? {
    guard let check = module.check else { return nil }
    if let known = results.withLock({ $0[module.name] }) { return known }
    return Self.result(check, answers: false, time: nil, why: "not tried yet")
  }

  private func run(_ module: ModuleConfiguration) {
    guard let check = module.check else { return }
    let why = failure(of: check)
    results.withLock { $0[module.name] = Self.result(check, answers: why == nil, time: .now(), why: why) }
  }

  private static func result(_ check: ModuleCheck, answers: Bool, time: WallTime?, why: String?) -> CheckStatus {
    switch check {
    case .tcp(let address, let port):
      CheckStatus(kind: .tcp, address: address, port: port, answers: answers, time: time, why: why)
    case .ping(let address):
      CheckStatus(kind: .ping, address: address, port: nil, answers: answers, time: time, why: why)
    }
  }

  /// nil = it answers.
  private func failure(of check: ModuleCheck) -> String? {
    do {
      switch check {
      case .ping(let address):
        let result = try ChildProcess.run(
          ["ping", "-n", "-c", "1", "-W", "\(Self.timeoutSeconds)", address],
          timeout: .seconds(Self.timeoutSeconds + 1))
        return result.status == 0 ? nil : "no answer to ping"
      case .tcp(let address, let port): return try Self.connectFailure(address, port)
      }
    } catch { return "\(error)" }
  }

  private static func connectFailure(_ address: String, _ port: Int) throws -> String? {
    var hints = addrinfo()
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    hints.ai_flags = AI_NUMERICSERV
    var found: UnsafeMutablePointer<addrinfo>?
    let code = getaddrinfo(address, "\(port)", &hints, &found)
    guard code == 0, let entry = found?.pointee else {
      return "cannot resolve \(address): \(String(cString: gai_strerror(code)))"
    }
    defer { freeaddrinfo(found) }
    let descriptor = socket(
      entry.ai_family, entry.ai_socktype | Int32(SOCK_NONBLOCK.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard descriptor >= 0 else { return errnoText(errno) }
    defer { close(descriptor) }
    if connect(descriptor, entry.ai_addr, entry.ai_addrlen) == 0 { return nil }
    guard errno == EINPROGRESS else { return errnoText(errno) }
    var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
    guard poll(&wait, 1, Int32(timeoutSeconds * 1000)) == 1 else { return "no answer in \(timeoutSeconds) s" }
    var failure: Int32 = 0
    var length = socklen_t(MemoryLayout<Int32>.size)
    getsockopt(descriptor, SOL_SOCKET, SO_ERROR, &failure, &length)
    return failure == 0 ? nil : errnoText(failure)
  }
}
