import Testing

@testable import NodeDaemon

@Suite struct StaleOwnersTests {
  @Test func findsTheFileThatLibvirtNames() {
    let message =
      "Requested operation is not valid: Setting different DAC user or group on /var/log/libvirt/qemu/a b.log which is already in use"
    #expect(StaleOwners.path(in: message) == "/var/log/libvirt/qemu/a b.log")
    #expect(StaleOwners.path(in: "Setting different SELinux label on /x which is already in use") == "/x")
  }

  @Test(arguments: [
    "", "something else", "which is already in use Setting different ",
    "Setting different DAC user or group on  which is already in use",
  ]) func takesNothingElseForIt(message: String) {
    #expect(StaleOwners.path(in: message) == nil)
  }
}
