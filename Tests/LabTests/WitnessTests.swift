import Foundation
import Testing

extension Lab {
  /// The nodes lose sight of each other; both still reach everybody else.
  func separate() async throws {
    try await must(
      "exec", "node1", "nft",
      "add table inet apart; add chain inet apart in { type filter hook input priority 0; }; "
        + "add chain inet apart out { type filter hook output priority 0; }; "
        + "add rule inet apart in ip saddr { 10.77.1.2, 10.77.0.2 } drop; "
        + "add rule inet apart out ip daddr { 10.77.1.2, 10.77.0.2 } drop")
  }
  func join() async throws { try await must("exec", "node1", "nft", "delete table inet apart") }

  /// Where `guest` is served, each node asked for itself.
  func serving(_ guest: String) async throws -> [String] {
    var nodes: [String] = []
    for node in ["node1", "node2"] where try await run(["exec", node, "true"]).ok {
      let own = try await view(node).module(guest).on(node)
      if let own, own.state == "ALONE" || own.state == "PRIM" && own.readiness == "ready" { nodes.append(node) }
    }
    return nodes
  }

  /// `node` takes the guest over by the right that `arbiter` gave.
  func goesOn(_ arbiter: String, _ guest: String = "vm1", on node: String = "node2") async throws {
    try await until("\(guest) runs on \(node)", on: node, within: 60) {
      let own = try $0.module(guest).on(node)
      return own?.state == "ALONE" && own?.guest == "running"
    }
    let log = try await vmha(node, "log", guest).out
    #expect(log.contains("goes on alone by \(arbiter)"), "\(log)")
    try await must("wait-for", "answer", guest, "--timeout", "60", within: 70)
  }
}

extension AllLabs.Split {
  /// The same lab, before it splits: with a witness, or a fence, it does not.
  static func theArbitersDecide(_ lab: Lab) async throws {
    try await lab.healthy()
    try await lab.must("arbiter", "witness", within: 200)
    try await bothSeparated(lab)
    try await powerCutWithoutWitness(lab)
    try await failedDisk(lab)
    try await stoodStill(lab)
    try await lab.must("arbiter", "fence", within: 200)
    try await wrongFenceFile(lab)
    try await fullDisk(lab)
    try await hungHost(lab)
    try await lab.must("arbiter", "none", within: 200)
  }

  private static func bothSeparated(_ lab: Lab) async throws {
    try await lab.watching(Lab.guests) {
      try await lab.separate()
      try await lab.until("each guest is served by one node", within: 40) {
        for guest in Lab.guests where try await lab.serving(guest).count != 1 { return false }
        return true
      }
      try await Task.sleep(for: .seconds(5))
      for guest in Lab.guests { #expect(try await lab.serving(guest).count == 1, "\(guest)") }
      for guest in Lab.guests { try await lab.must("wait-for", "answer", guest, "--timeout", "60", within: 70) }
      try await lab.join()
      for guest in Lab.guests { try await lab.must("wait-for", "protected", guest, "--timeout", "60", within: 70) }
      #expect(try await lab.view("node1").modules.allSatisfy { !$0.split })
    }
    try await lab.healthy()
  }

  /// The witness is gone when it is needed: said before, waited for, and used when it is back.
  private static func powerCutWithoutWitness(_ lab: Lab) async throws {
    try await lab.must("arbiter", "stop")
    try await lab.until("DEGRADED is said on node2", within: 40) {
      try await lab.run(["exec", "node2", "vmha", "status"]).out.contains("DEGRADED")
    }
    #expect(try await lab.run(["exec", "node2", "vmha", "check"]).code == 1)
    // One of the two does not depend on it: what is broken does not forbid to leave it.
    let unprepared = try await lab.run(["exec", "node2", "vmha", "set", "vm2", "--arbiter", "fence"])
    #expect(unprepared.code != 0 && unprepared.all.contains("fence-1=AGENT:FILE"), "\(unprepared)")
    try await lab.vmha("node1", "set", "vm2", "--arbiter", "policy=none")
    // The modules that ask it look again first.
    try await lab.until("DEGRADED is still said on node2", within: 40) {
      try await lab.run(["exec", "node2", "vmha", "status"]).out.contains("DEGRADED")
    }
    let warned = try await lab.vmha("node2", "status").out
    #expect(warned.contains("vm2 has its own: policy=none") && warned.contains("DEGRADED"), "\(warned)")
    #expect(warned.contains("can split by an arbiter of its own, without a witness: vm2"), "\(warned)")
    try await lab.watching(["vm1"]) {
      try await lab.must("power-cut", "node1")
      try await lab.until("vm1 waits for the witness, vm2 does not", on: "node2", within: 30) {
        let (own, other) = (try $0.module("vm1").on("node2"), try $0.module("vm2").on("node2"))
        return own?.readiness == "blocked" && own?.sentence.contains("the witness does not answer") ?? false
          && other?.state == "ALONE" && other?.guest == "running"
      }
      #expect(try await lab.serving("vm1") == [])
      try await lab.must("arbiter", "start")
      try await lab.goesOn("witness")
    }
    try await lab.healthy()
    try await lab.vmha("node2", "set", "vm2", "--arbiter", "cluster")
    #expect(try await !lab.vmha("node1", "status").out.contains("has its own"))
  }

  /// node2's disk gives errors for everything from one moment on. Nothing that its guest or QEMU makes of that spoils node1's copy: the
  /// client demands every record that was acknowledged.
  private static func failedDisk(_ lab: Lab) async throws {
    try await lab.watching(["vm2"]) {
      try await lab.must("disk", "node2", "fail")
      try await lab.goesOn("witness", "vm2", on: "node1")
      try await lab.must("power-cut", "node2")
    }
    try await lab.healthy()
  }

  /// A host that stood still may send a last frame of its guest when it goes on; then switches look for that guest there. The node that
  /// runs it tells them where it is as soon as the other one is its target.
  private static func stoodStill(_ lab: Lab) async throws {
    let cards = try await lab.must("exec", "node2", "virsh", "domiflist", "vm2").out
    let address = try #require(
      cards.split(whereSeparator: \.isWhitespace).first { $0.split(separator: ":").count == 6 })
    let listen = """
      import socket, sys
      heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x8035))
      heard.settimeout(60)
      while heard.recv(2048)[6:12] != bytes.fromhex(sys.argv[1].replace(":", "")):
          pass
      """
    try await lab.watching(["vm2"]) {
      try await lab.must("freeze", "node2")
      try await lab.goesOn("witness", "vm2", on: "node1")
      async let announced = lab.run(["client", "python3", "-c", listen, String(address)], within: 80)
      try await Task.sleep(for: .seconds(3))
      try await lab.must("thaw", "node2")
      #expect(try await announced.code == 0, "vm2 is not announced in its LAN")
    }
    try await lab.healthy()
  }

  /// node1's file for node2 names node1.
  private static func wrongFenceFile(_ lab: Lab) async throws {
    let file = "/etc/vmha/fence-2.options"
    try await lab.must("exec", "node1", "sed", "-i.right", "s/node2/node1/", file)
    let check = try await lab.run(["exec", "node2", "vmha", "check"])
    #expect(check.code == 1 && check.all.contains("would power off the node that runs it"), "\(check)")
    try await lab.must("exec", "node1", "mv", "\(file).right", file)
    try await lab.vmha("node2", "check")
  }

  /// node2's disk is full to the last block: it consents all the same. A node that answers is not powered off, so under a fence
  /// vm1 would stand still on its healthy node.
  private static func fullDisk(_ lab: Lab) async throws {
    try await lab.watching(["vm1"]) {
      try await lab.must("disk", "node2", "fill")
      try await lab.until("vm1 goes on with node2's consent", on: "node1", within: 20) {
        let own = try $0.module("vm1").on("node1")
        return own?.state == "ALONE" && own?.guest == "running" && own?.sentence.contains("node2's consent") ?? false
      }
      try await lab.until("the guest that is on node2 waits for room", within: 40) {
        try await lab.run(["exec", "node2", "virsh", "domstate", "vm2", "--reason"]).out.hasPrefix("paused (I/O error)")
      }
      try await lab.must("disk", "node2", "free")
      try await lab.must("exec", "node2", "virsh", "resume", "vm2")
      try await lab.vmha("node2", "start", "vm1")
    }
    try await lab.healthy()
  }

  /// A host that hangs, and would come back: the agent takes its power before the guest starts elsewhere.
  private static func hungHost(_ lab: Lab) async throws {
    try await lab.watching(["vm1"]) {
      try await lab.must("freeze", "node1")
      try await lab.goesOn("fence")
      #expect(try await lab.must("status").out.split(separator: "\n").contains { $0.hasPrefix("node1  off") })
    }
    try await lab.healthy()
  }
}
