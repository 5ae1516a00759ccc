import Glibc
import HostSystem
import Testing
import VirtualMachines

/// A folder of its own that goes with the scope.
func withFolder<T>(_ body: (String) throws -> T) throws -> T {
  var template = Array("/tmp/vmha-test-XXXXXX".utf8CString)
  let made = template.withUnsafeMutableBufferPointer { $0.baseAddress.flatMap { mkdtemp($0) } }
  let folder = String(cString: try #require(made))
  defer { _ = try? ChildProcess.run(["rm", "-rf", folder], timeout: .seconds(30)) }
  return try body(folder)
}

private func qemuImage(_ arguments: String...) throws {
  let result = try ChildProcess.run(["qemu-img"] + arguments, timeout: .seconds(30))
  #expect(result.status == 0, "\(result.errorText)")
}

@Test func rawDiskHasNoChain() throws {
  try withFolder { folder in
    try qemuImage("create", "-q", "-f", "raw", "\(folder)/a.raw", "1M")
    let chain = try DiskImageTool.chain(of: "\(folder)/a.raw", format: nil)
    #expect(chain.count == 1)
    #expect(chain[0].format == "raw" && chain[0].virtualBytes == 1 << 20 && chain[0].backingPath == nil)
  }
}

@Test func chainIsReadAndMoved() throws {
  try withFolder { folder in
    try qemuImage("create", "-q", "-f", "raw", "\(folder)/base.raw", "1M")
    try qemuImage("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "\(folder)/mid.qcow2")
    try qemuImage("create", "-q", "-f", "qcow2", "-b", "\(folder)/mid.qcow2", "-F", "qcow2", "\(folder)/top.qcow2")
    let chain = try DiskImageTool.chain(of: "\(folder)/top.qcow2", format: "qcow2")
    #expect(chain.map(\.format) == ["qcow2", "qcow2", "raw"])
    #expect(chain.map(\.backingReference) == ["\(folder)/mid.qcow2", "base.raw", nil])
    #expect(chain.map(\.backingPath) == ["\(folder)/mid.qcow2", "\(folder)/base.raw", nil])
    #expect(chain.map(\.path) == ["\(folder)/top.qcow2", "\(folder)/mid.qcow2", "\(folder)/base.raw"])
    for _ in 0..<2 {
      try DiskImageTool.setBacking(
        of: "\(folder)/top.qcow2", format: "qcow2", to: "mid.qcow2", backingFormat: "qcow2")
    }
    let moved = try DiskImageTool.chain(of: "\(folder)/top.qcow2", format: "qcow2")
    #expect(moved[0].backingReference == "mid.qcow2" && moved[0].backingPath == "\(folder)/mid.qcow2")
  }
}

@Test func missingAndWrongImagesAreErrors() throws {
  try withFolder { folder in
    #expect(throws: HypervisorError.self) { try DiskImageTool.chain(of: "\(folder)/none", format: "raw") }
    try DurableFile.write(Array("no image".utf8), to: "\(folder)/x")
    let error = #expect(throws: HypervisorError.self) { try DiskImageTool.chain(of: "\(folder)/x", format: "qcow2") }
    #expect(error?.message.contains("Image is not in qcow2 format") == true)
    try qemuImage("create", "-q", "-f", "raw", "\(folder)/base.raw", "1M")
    try qemuImage("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "\(folder)/top.qcow2")
    try DurableFile.remove("\(folder)/base.raw")
    #expect(throws: HypervisorError.self) { try DiskImageTool.chain(of: "\(folder)/top.qcow2", format: "qcow2") }
  }
}
