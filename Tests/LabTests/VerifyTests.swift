import Foundation
import Testing

extension AllLabs.Failover {
  /// Both copies are compared while the guests write at full speed: equal ones are found equal, one byte on the secondary's disk is found
  /// where it is, told on both nodes, repaired on command, and then they are equal again.
  @Test func verifyFindsAndRepairs() async throws {
    try await lab.scenario("verify, a changed byte on the secondary's disk, repair") {
      try await lab.healthy()
      let same = try await lab.run(["exec", "node1", "vmha", "verify", "--all"], within: 120)
      #expect(same.ok && same.out.contains("vm1: both copies are identical"), "\(same)")
      // Behind what the guest uses: a hole on both nodes.
      let offset = 400 << 20
      let copy = "/var/lib/libvirt/images/.vmha-vm1/vm1.raw"
      try await lab.must(
        "exec", "node2", "sh", "-c",
        "printf x | dd of=\(copy) bs=1 seek=\(offset + 5) conv=notrunc status=none; sync \(copy)")
      // Given on the other node than the one that compares.
      let differs = try await lab.run(["exec", "node2", "vmha", "verify", "vm1"], within: 60)
      #expect(differs.code == 6 && differs.out.contains("vm1.raw: 64.0 KiB at offset \(offset) differ"), "\(differs)")
      for node in ["node1", "node2"] {
        let status = try await lab.must("exec", node, "vmha", "status", "vm1")
        #expect(status.out.contains("DIFFER in 1 place"), "\(status)")
        #expect(try await lab.run(["exec", node, "vmha", "status", "-q"]).code == 1)
      }
      let asked = try await lab.run(["exec", "node1", "vmha", "verify", "vm1", "--repair"], within: 60)
      #expect(asked.code == 4, "\(asked)")
      let repaired = try await lab.run(["exec", "node1", "vmha", "verify", "vm1", "--repair", "--yes"], within: 60)
      #expect(repaired.ok && repaired.out.contains("1 place repaired from node1"), "\(repaired)")
      let again = try await lab.run(["exec", "node1", "vmha", "verify", "vm1", "--json"], within: 60)
      #expect(again.ok && again.out.contains("\"findings_count\" : 0"), "\(again)")
      for node in ["node1", "node2"] {
        let status = try await lab.must("exec", node, "vmha", "status", "vm1")
        #expect(status.out.contains("identical up to"), "\(status)")
      }
    }
  }
}
