import Glibc
import HostSystem

/// A folder of its own for one test, removed at the end.
final class TemporaryFolder {
  let path: String
  init() throws {
    path = "/tmp/vmha-test-\(getpid())-\(randomUInt64())"
    try DurableFile.makeFolder(path, mode: 0o700)
  }
  func file(_ name: String) -> String { "\(path)/\(name)" }
  deinit { _ = try? ChildProcess.run(["rm", "-rf", path], timeout: .seconds(10)) }
}
