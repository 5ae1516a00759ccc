import Foundation
import Testing

extension Labs {
  static let split = Lab("split")
}

extension Trait where Self == InLab {
  static var splitLab: InLab { InLab(lab: Labs.split) { try await $0.upProtected(fullSpeed: false) } }
}

extension AllLabs {
  /// Without a witness and with both cables pulled, both sides go on, as `policy=none` says beforehand. Nothing is thrown
  /// away; the split is shown. A lab of its own: choosing a side is not offered yet, so a split stays.
  @Suite(.serialized, .splitLab)
  struct Split {
    var lab: Lab { Labs.split }

    /// libvirt starts a protected VM for vmha only, on either node; whoever wants to know of changes of state is told.
    @Test func aHooks() async throws {
      try await lab.scenario("libvirt's hook and the event hook") {
        try await lab.healthy()
        try await lab.must(
          "exec", "node1", "sh", "-c",
          """
          mkdir -p /etc/vmha/hooks; printf '#!/bin/sh\necho "$VMHA_MODULE $VMHA_NODE_NAME $VMHA_OLD_STATE $VMHA_STATE $VMHA_READINESS" >> /run/changes\n' \
            > /etc/vmha/hooks/on-state-change; chmod 755 /etc/vmha/hooks/on-state-change
          for script in before-start after-start before-stop after-stop; do
            printf '#!/bin/sh\necho "$1 $2 $VMHA_NODE_NAME $VMHA_MOUNT" >> /run/changes\n' > /etc/vmha/modules/vm1/$script
            chmod 755 /etc/vmha/modules/vm1/$script; done
          """)
        let there = try await lab.run(["exec", "node2", "virsh", "start", "vm1"])
        #expect(!there.ok && there.all.contains("use 'vmha start vm1'"), "beside the running one: \(there)")
        try await lab.vmha("node1", "stop", "vm1")
        try await lab.must("wait-for", "stopped", "vm1", "--timeout", "60", within: 70)
        for node in ["node1", "node2"] {
          let refused = try await lab.run(["exec", node, "virsh", "start", "vm1"])
          #expect(!refused.ok && refused.all.contains("use 'vmha start vm1'"), "\(node): \(refused)")
        }
        try await lab.vmha("node1", "start", "vm1")
        try await lab.healthy()
        let told = try await lab.must("exec", "node1", "cat", "/run/changes").out
        let scripts = ["before-stop", "after-stop", "before-start", "after-start"].map {
          "vm1 \($0) node1 /var/lib/libvirt/images/vm1"
        }
        for change in scripts + ["vm1 node1 PRIM STOP ready", "vm1 node1 PRIM PRIM ready"] {
          #expect(told.contains(change), "\(change) is missing in \(told)")
        }
        try await lab.must("exec", "node1", "sh", "-c", "cd /etc/vmha; rm hooks/on-state-change modules/vm1/*-st*")
      }
    }

    @Test func bothCablesPulled() async throws {
      try await lab.scenario("both cables of node1 pulled") {
        try await lab.healthy()
        try await lab.must("cut", "node1", "both")
        for node in ["node1", "node2"] {
          try await lab.until("\(node) serves both guests", on: node, within: 60) { view in
            try Lab.guests.allSatisfy {
              let own = try view.module($0).nodes.first { $0.node == node }
              return own?.state == "ALONE" && own?.guest == "running"
            }
          }
        }
        for guest in Lab.guests { try await lab.must("wait-for", "answer", guest, "--timeout", "60", within: 70) }
        try await Task.sleep(for: .seconds(3))
        let before = try await branches()
        try await lab.must("heal", "node1", "both")
        for node in ["node1", "node2"] {
          try await lab.until("\(node) shows the split", on: node, within: 60) { view in
            try Lab.guests.allSatisfy { try view.module($0).split }
          }
        }
        // Nobody gives way by itself, now or later.
        try await Task.sleep(for: .seconds(10))
        for node in ["node1", "node2"] {
          #expect(try await lab.view(node).modules.allSatisfy(\.split))
          for guest in Lab.guests {
            let format = guest == "vm1" ? "raw" : "qcow2"
            let file = try await lab.run([
              "exec", node, "sh", "-c", "test -s /var/lib/libvirt/images/.vmha-\(guest)/\(guest).\(format)",
            ])
            #expect(file.ok, "\(node) has lost its copy of \(guest): \(file)")
          }
        }
        #expect(try await branches() == before)
        let table = try await lab.run(["exec", "node1", "vmha", "status"])
        #expect(table.out.contains("SPLIT"), "\(table)")
        let swap = try await lab.run(["exec", "node1", "vmha", "swap", "vm1"])
        #expect(swap.code == 4, "\(swap)")
      }
    }

    /// Each side's own branch of each module.
    private func branches() async throws -> [String: String] {
      var branches: [String: String] = [:]
      for node in ["node1", "node2"] {
        let view = try await lab.view(node)
        for guest in Lab.guests {
          branches["\(guest) on \(node)"] = try view.module(guest).nodes.first { $0.node == node }?.generation?.branch
        }
      }
      #expect(branches["vm1 on node1"] != branches["vm1 on node2"])
      return branches
    }
  }
}
