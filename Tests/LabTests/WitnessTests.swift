import Foundation
import Testing

extension Lab {
  static let witnessURL = "http://10.77.0.250:2379"

  /// A real etcd on the client machine, which both nodes reach over the LAN. Its data stay between two starts.
  func startWitness() throws -> Command {
    try start([
      "client", "etcd", "--data-dir", "\(memory)/etcd", "--listen-client-urls", Self.witnessURL,
      "--advertise-client-urls", Self.witnessURL, "--listen-peer-urls", "http://127.0.0.1:2380",
    ])
  }

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
      let own = try await view(node).module(guest).nodes.first { $0.node == node }
      if let own, own.state == "ALONE" || own.state == "PRIM" && own.readiness == "ready" { nodes.append(node) }
    }
    return nodes
  }

  func until(_ what: String, within limit: Double, _ condition: () async throws -> Bool) async throws {
    let deadline = Date(timeIntervalSinceNow: limit)
    while try await !condition() {
      guard Date() < deadline else { throw CommandFailure(description: "not after \(limit) s: \(what)") }
      try await Task.sleep(for: .milliseconds(200))
    }
  }
}

extension AllLabs.Split {
  /// The same lab, before it splits: with a witness it does not.
  static func theWitnessDecides(_ lab: Lab) async throws {
    var witness = try lab.startWitness()
    let failure: (any Error)?
    do {
      try await lab.healthy()
      try await lab.until("etcd answers", within: 20) {
        try await lab.run(["client", "etcdctl", "--endpoints", Lab.witnessURL, "get", "x"]).ok
      }
      try await lab.vmha(
        "node1", "cluster", "set", "arbiter=witness", "witness-endpoints=\(Lab.witnessURL)")
      try await lab.until("the rehearsal succeeds", within: 30) {
        try await lab.run(["exec", "node2", "vmha", "check"]).ok
      }
      try await bothSeparated(lab)
      try await powerCut(lab)
      witness = try await powerCutWithout(witness, lab)
      try await lab.vmha("node1", "cluster", "set", "arbiter=policy=none")
      failure = nil
    } catch { failure = error }
    witness.stop()
    _ = try await witness.finish(within: 3700)
    if let failure { throw failure }
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

  private static func powerCut(_ lab: Lab) async throws {
    try await lab.watching(["vm1"]) {
      try await lab.must("power-cut", "node1")
      try await lab.until("vm1 runs on node2", on: "node2", within: 30) {
        let own = try $0.module("vm1").nodes.first { $0.node == "node2" }
        return own?.state == "ALONE" && own?.guest == "running"
      }
      let log = try await lab.vmha("node2", "log", "vm1").out
      #expect(log.contains("goes on alone by witness"), "\(log)")
      try await lab.must("wait-for", "answer", "vm1", "--timeout", "60", within: 70)
    }
    try await lab.healthy()
  }

  /// The witness is gone when it is needed: said before, waited for, and used when it is back.
  private static func powerCutWithout(_ witness: Command, _ lab: Lab) async throws -> Command {
    witness.stop()
    _ = try await witness.finish(within: 3700)
    try await lab.until("DEGRADED is said on node2", within: 40) {
      try await lab.run(["exec", "node2", "vmha", "status"]).out.contains("DEGRADED")
    }
    #expect(try await lab.run(["exec", "node2", "vmha", "check"]).code == 1)
    try await lab.must("power-cut", "node1")
    for guest in Lab.guests {
      try await lab.until("\(guest) waits for the witness", on: "node2", within: 30) {
        let own = try $0.module(guest).nodes.first { $0.node == "node2" }
        return own?.readiness == "blocked" && own?.sentence.contains("the witness does not answer") ?? false
      }
      #expect(try await lab.serving(guest) == [])
    }
    let again = try lab.startWitness()
    try await lab.until("vm1 runs on node2", on: "node2", within: 30) {
      let own = try $0.module("vm1").nodes.first { $0.node == "node2" }
      return own?.state == "ALONE" && own?.guest == "running"
    }
    try await lab.healthy()
    return again
  }
}
