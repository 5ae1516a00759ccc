import Foundation
import Testing

/// Two protected guests that write at full speed, one at home on each node.
extension Lab {
  static let guests = ["vm1", "vm2"]
  static let home = ["vm1": "node1", "vm2": "node2"]
  /// vm1's disk, and how much of it the guest can touch at all.
  static let imageBytes = 512 << 20
  static let usedBytes = 64 << 20
  /// Zones that are marked ahead of a sequential stream (`IntentMap.readAheadZones`) may lie behind that.
  static let markedBytesMax = usedBytes + (32 << 20)
  static func other(_ node: String) -> String { node == "node1" ? "node2" : "node1" }

  /// A lab with a cluster and its two guests running, both in sync.
  func upProtected(fullSpeed: Bool) async throws {
    try await up()
    try await must("cluster", within: 120)
    for (guest, format) in [("vm1", "raw"), ("vm2", "qcow2")] {
      let node = Lab.home[guest] ?? "node1"
      try await must(["guest", guest, "--node", node, "--format", format] + (fullSpeed ? ["--full-speed"] : []))
      // The file system stays in the first 64 MiB: what lies behind it never changes, and need never be compared.
      if format == "raw" {
        try await must(
          "exec", node, "truncate", "-s", "\(Lab.imageBytes)", "/var/lib/libvirt/images/\(guest).raw")
      }
      try await vmha(node, "add", guest, "--yes", "--prefer", node)
    }
    try await vmha("node1", "start", "--all")
    try await healthy()
  }

  /// Both guests at home, answering, both copies in sync. A scenario that finds less (because one before it failed) mends
  /// it first, so that each result stands for itself.
  func healthy(within limit: Double = 120) async throws {
    for node in ["node1", "node2"] {
      let status = try await run(["status", "--json"])
      if status.out.contains("frozen") { _ = try await run(["thaw", node]) }
      for words in [["heal", node, "both"], ["unblock", node, "both"]] { _ = try await run(words) }
      if try await run(["exec", node, "true"]).code == 1 { _ = try await run(["boot", node]) }
      try await must("wait-for", "vmhad", node, "--timeout", "30")
    }
    for guest in Lab.guests {
      let home = Lab.home[guest] ?? "node1"
      if try await view(home).module(guest).wish == "stopped" { try await vmha(home, "start", guest) }
      try await until("\(guest) protected", on: home, within: limit) { try $0.module(guest).isProtected }
      if try await view(home).module(guest).primary?.node != home { try await vmha(home, "swap", guest) }
      try await until("\(guest) protected at home", on: home, within: limit) { view in
        let module = try view.module(guest)
        return module.isProtected && module.primary?.node == home
      }
      try await must("wait-for", "answer", guest, "--timeout", "60", within: 70)
    }
  }

  /// What the newest resync of a module compared and sent, and when it ended, as the source's journal tells.
  func lastResync(_ guest: String, on node: String) async throws -> ResyncFigures? {
    struct Event: Decodable {
      var kind: String
      var node: String
      var time: String
      var details: [String: String]
    }
    let log = try await vmha(node, "log", guest, "--json", "-n", "1000").out
    let events = try log.split(separator: "\n").map { try JSONDecoder().decode(Event.self, from: Data($0.utf8)) }
    guard let event = events.last(where: { $0.kind == "resync_done" && $0.node == node }),
      let compared = event.details["bytes_compared"].flatMap({ Int($0) }),
      let sent = event.details["bytes_sent"].flatMap({ Int($0) })
    else { return nil }
    return ResyncFigures(compared: compared, sent: sent, time: event.time)
  }

  /// Stops both guests, proves that both copies are the same and their file systems clean, and starts them again.
  func verifyCopies() async throws {
    try await vmha("node1", "stop", "--all")
    for guest in Lab.guests {
      try await must("wait-for", "stopped", guest, "--timeout", "60", within: 70)
      let same = try await run(["compare", guest], within: 120)
      #expect(same.ok, "\(same)")
      let clean = try await run(["fsck", Lab.home[guest] ?? "node1", guest], within: 60)
      #expect(clean.ok && !clean.all.contains("journal recovery"), "\(clean)")
    }
    try await vmha("node1", "start", "--all")
    try await healthy()
  }

  /// Both copies compared on disk while the guests write: without the file systems' own check, and two boots shorter.
  func verifyRunning() async throws {
    let same = try await run(["exec", "node1", "vmha", "verify", "--all"], within: 120)
    #expect(same.ok, "\(same)")
  }

  /// Which process it is, as the node sees it.
  func process(_ node: String, _ pattern: String) async throws -> String {
    try await must("exec", node, "pgrep", "-f", pattern).out
  }
}

struct ResyncFigures: Equatable, CustomStringConvertible {
  /// Bytes of the zones that could differ, and bytes that did and travelled.
  var compared: Int
  var sent: Int
  var time: String
  var description: String { "\(compared >> 10) KiB could differ, \(sent >> 10) KiB were sent" }
}
