import HostSystem
import Testing

private let package = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()

private func hook(_ root: String, _ arguments: String...) throws -> ChildProcess.Result {
  try ChildProcess.run(
    ["\(package)/hooks/qemu"] + arguments, input: Array("<domain/>".utf8),
    environment: ["VMHA_ROOT": root, "PATH": "/usr/bin:/bin"], timeout: .seconds(10))
}

@Test func protectedGuestIsStartedByVmhaOnly() throws {
  try withFolder { root in
    try DurableFile.makeFolder("\(root)/etc/vmha/modules/vm1")
    try DurableFile.makeFolder("\(root)/run/vmha/permits")
    for operation in ["prepare", "migrate"] {
      let refused = try hook(root, "vm1", operation, "begin", "-")
      #expect(refused.status == 1)
      #expect(refused.errorText == "vm1 is protected by vmha: use 'vmha start vm1'\n")
      #expect(refused.output.isEmpty)
    }
    try DurableFile.write([], to: "\(root)/run/vmha/permits/vm1")
    #expect(try hook(root, "vm1", "prepare", "begin", "-").status == 0)
    #expect(try hook(root, "vm1", "migrate", "begin", "-").status == 0)
  }
}

/// A hook that fails on reconnect kills the guest; on the way down it helps nobody.
@Test func nothingElseIsRefused() throws {
  try withFolder { root in
    try DurableFile.makeFolder("\(root)/etc/vmha/modules/vm1")
    for operation in ["reconnect", "start", "started", "stopped", "release", "restore", "attach"] {
      for phase in ["begin", "end"] {
        #expect(try hook(root, "vm1", operation, phase, "-").status == 0, "\(operation) \(phase)")
      }
    }
    for name in ["vm2", "", ".", "..", "vm 1", "-e", "vm1/../vm1"] {
      #expect(try hook(root, name, "prepare", "begin", "-").status == 0, "'\(name)'")
    }
    #expect(try hook(root).status == 0)
  }
}
