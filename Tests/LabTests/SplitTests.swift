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
