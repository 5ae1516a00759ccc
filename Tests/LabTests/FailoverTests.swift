import Foundation
import Testing

extension Labs {
  static let failover = Lab("ha")
}

extension Trait where Self == InLab {
  static var failoverLab: InLab { InLab(lab: Labs.failover) { try await $0.upProtected(fullSpeed: true) } }
}

extension AllLabs {
  /// What must survive, with two guests that write without pause. Each scenario begins and ends in full health.
  @Suite(.serialized, .failoverLab)
  struct Failover {
    var lab: Lab { Labs.failover }

    /// Rounds of each scenario: VMHA_LAB_ROUNDS.
    static let rounds = Machine.number("VMHA_LAB_ROUNDS", default: 1)
    static let powerCuts = Machine.number("VMHA_LAB_ROUNDS", default: 2)
    static let blackouts = Machine.number("VMHA_LAB_ROUNDS", default: 2)
    static let seed = UInt64(Machine.number("VMHA_LAB_SEED", default: Int(UInt32.random(in: 1...UInt32.max))))

    /// Longest silence of a guest whose peer, or whose link to it, was lost: detection (3 s) and what follows it, on a
    /// machine of two cores that also runs everything else.
    static let freezeMillisecondsMax = 8000

    /// Longest silence of a guest whose daemon alone was lost: below the detection (3 s), so that a loss of the session shows; a machine
    /// that carries two emulated guests beside other work stands still for a second at times.
    static let unnoticedMillisecondsMax = 2800

    @Test(arguments: 1...powerCuts)
    func powerCut(round: Int) async throws {
      var dice = Dice(seed: Failover.seed &+ UInt64(round))
      let side = Bool.random(using: &dice) ? "node1" : "node2"
      let moment = Int.random(in: 200...4000, using: &dice)
      let alone = Int.random(in: 0...4000, using: &dice)
      let survivor = Lab.other(side)
      let title =
        "power cut of \(side), \(moment) ms in, alone for \(alone) ms (VMHA_LAB_SEED=\(Failover.seed), round \(round))"
      try await lab.scenario(title) {
        try await lab.healthy()
        let reports = try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .milliseconds(1000 + moment))
          try await lab.must("power-cut", side)
          let taken = try await lab.until("\(survivor) serves both guests", on: survivor, within: 60) { view in
            try Lab.guests.allSatisfy {
              let node = try view.module($0).primary
              return node?.node == survivor && node?.state == "ALONE" && node?.guest == "running"
            }
          }
          print("lab: \(survivor) served both guests after \(String(format: "%.1f", taken)) s")
          for guest in Lab.guests { try await lab.must("wait-for", "answer", guest, "--timeout", "60", within: 70) }
          // The survivor tells both sides of the story: of the dead node from its copy of that one's journal.
          let story = try await lab.vmha(survivor, "why", "vm1").out
          #expect(story.contains("\(side) is lost") && story.contains("goes on alone by policy"), "\(story)")
          let timeline = try await lab.vmha(survivor, "why", "vm1", "--json").out
          #expect(timeline.contains("\"node\" : \"\(side)\""), "\(timeline)")
          try await Task.sleep(for: .milliseconds(alone))
          try await lab.must("boot", side)
          let synced = try await lab.until("both in sync again", on: survivor, within: 120) { view in
            try Lab.guests.allSatisfy { try view.module($0).isProtected }
          }
          print("lab: in sync again \(String(format: "%.1f", synced)) s after the boot")
          for guest in Lab.guests {
            guard let resync = try await lab.lastResync(guest, on: survivor) else {
              throw CommandFailure(description: "\(survivor) tells of no resync of \(guest)")
            }
            print("lab: \(guest): \(resync)")
            // R3: only zones that were written since the last common flush. Of vm1's image the guest can touch an eighth, and a
            // stream marks some zones ahead.
            if guest == "vm1" {
              #expect(resync.compared <= Lab.markedBytesMax && resync.sent <= resync.compared, "\(resync)")
            }
          }
          try await lab.healthy()
        }
        for guest in Lab.guests where Lab.home[guest] == survivor {
          #expect(reports[guest]?.incarnations == 1, "\(guest) was restarted:\n\(reports[guest]?.account ?? "")")
          #expect(reports[guest]?.gapMax ?? .max < Failover.freezeMillisecondsMax, "\(reports[guest]?.account ?? "")")
        }
        try await lab.verifyCopies()
      }
    }

    /// Where the kernel hands requests out again (6.9), the guest notices a pause and nothing else; else it is started on the
    /// other node.
    @Test(arguments: 1...rounds)
    func replacedEngineOfThePrimary(round: Int) async throws {
      try await lab.scenario("SIGKILL of vmha-replicad on the primary, then another one in order") {
        try await lab.healthy()
        let machines = try await lab.process("node1", "qemu-system")
        let reports = try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("kill", "node1", "vmha-replicad", "vm1")
          try await Task.sleep(for: .seconds(3))
          try await lab.healthy()
          // The keeper's command line; the engine's goes on.
          try await lab.must("exec", "node1", "pkill", "-USR2", "-x", "-f", ".*vmha-replicad --module vm1")
          try await Task.sleep(for: .seconds(2))
          try await lab.healthy()
        }
        print("lab: longest silence of vm1 \(reports["vm1"]?.gapMax ?? -1) ms")
        if Machine.repeatsRequests {
          #expect(reports["vm1"]?.incarnations == 1, "\(reports["vm1"]?.account ?? "")")
          #expect(reports["vm1"]?.gapMax ?? .max < Failover.freezeMillisecondsMax, "\(reports["vm1"]?.account ?? "")")
          #expect(try await lab.process("node1", "qemu-system") == machines)
        }
        try await lab.verifyCopies()
      }
    }

    /// Without its keeper an engine is gone, with the mount: as on kernels before 6.9.
    @Test(arguments: 1...rounds)
    func killedEngineOfThePrimary(round: Int) async throws {
      try await lab.scenario("SIGKILL of the keeper of vmha-replicad on the primary") {
        try await lab.healthy()
        let reports = try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("kill", "node1", "vmha-keeper", "vm1")
          try await Task.sleep(for: .seconds(3))
          try await lab.healthy()
        }
        #expect(reports["vm1"]?.incarnations ?? 0 > 1, "its disk was not taken away")
        #expect(reports["vm2"]?.incarnations == 1)
        try await lab.verifyRunning()
      }
    }

    @Test(arguments: 1...rounds)
    func killedEngineOfTheSecondary(round: Int) async throws {
      try await lab.scenario("SIGKILL of vmha-replicad on the secondary") {
        try await lab.healthy()
        let reports = try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("kill", "node2", "vmha-replicad", "vm1")
          try await Task.sleep(for: .seconds(3))
          try await lab.healthy()
        }
        #expect(reports["vm1"]?.incarnations == 1)
        #expect(reports["vm1"]?.gapMax ?? .max < Failover.freezeMillisecondsMax, "\(reports["vm1"]?.account ?? "")")
        try await lab.verifyRunning()
      }
    }

    /// The guest must not even notice.
    @Test(arguments: ["node1", "node2"])
    func killedDaemon(node: String) async throws {
      try await lab.scenario("SIGKILL of vmhad on \(node)") {
        try await lab.healthy()
        let engines = try await lab.process(node, "vmha-replicad")
        let machines = try await lab.process(node, "qemu-system")
        let reports = try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("kill", node, "vmhad")
          try await lab.must("wait-for", "vmhad", node, "--timeout", "10")
          try await Task.sleep(for: .seconds(4))
        }
        for (guest, report) in reports {
          #expect(report.incarnations == 1, "\(guest) was restarted:\n\(report.account)")
          #expect(report.gapMax < Failover.unnoticedMillisecondsMax, "\(guest) noticed:\n\(report.account)")
        }
        #expect(try await lab.process(node, "vmha-replicad") == engines)
        #expect(try await lab.process(node, "qemu-system") == machines)
        try await lab.healthy()
      }
    }

    /// A module.xml that vmhad cannot read is said in the status, and counts again as soon as it is mended.
    @Test func mendedModuleFile() async throws {
      try await lab.scenario("module.xml spoilt and mended") {
        try await lab.healthy()
        let file = "/etc/vmha/modules/vm1/module.xml"
        try await lab.must("exec", "node2", "sh", "-c", "cp \(file) \(file).kept && echo '<module' > \(file)")
        try await lab.must("kill", "node2", "vmhad")
        try await lab.must("wait-for", "vmhad", "node2", "--timeout", "30")
        let status = try await lab.vmha("node2", "status")
        #expect(status.all.contains("module vm1 cannot be loaded on node2") && status.all.contains(file), "\(status)")
        #expect(try await lab.view("node1").module("vm1").primary?.node == "node1", "its guest goes on")
        try await lab.until("node1 says that node2 would not take vm1 over", within: 30) {
          try await lab.vmha("node1", "status").all.contains("node2 has not loaded vm1")
        }
        try await lab.must("exec", "node2", "mv", "\(file).kept", file)
        try await lab.healthy()
        let mended = try await lab.vmha("node2", "status")
        #expect(mended.out.contains("vm1") && !mended.all.contains("cannot be loaded"), "\(mended)")
      }
    }

    @Test(arguments: 1...rounds)
    func killedGuest(round: Int) async throws {
      try await lab.scenario("SIGKILL of QEMU") {
        try await lab.healthy()
        let reports = try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("kill", "node2", "qemu", "vm2")
          try await Task.sleep(for: .seconds(1))
          try await lab.healthy()
        }
        #expect(reports["vm2"]?.incarnations == 2)
        #expect(reports["vm1"]?.incarnations == 1)
        // The third within a day would start on the other node: a stop and a start forget them.
        if round.isMultiple(of: 2) { try await lab.verifyCopies() } else { try await lab.verifyRunning() }
      }
    }

    @Test(arguments: 1...rounds)
    func pulledReplicationCable(round: Int) async throws {
      try await lab.scenario("replication link cut for 20 s under load") {
        try await lab.healthy()
        let reports = try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("cut", "node1", "repl")
          try await Task.sleep(for: .seconds(20))
          for guest in Lab.guests {
            let home = Lab.home[guest] ?? "node1"
            let module = try await lab.view(home).module(guest)
            #expect(module.primary?.node == home && module.primary?.guest == "running", "\(module.account)")
          }
          try await lab.must("heal", "node1", "repl")
          try await lab.healthy()
        }
        for (guest, report) in reports {
          #expect(report.incarnations == 1, "\(guest) was restarted:\n\(report.account)")
          #expect(report.gapMax < Failover.freezeMillisecondsMax, "\(guest):\n\(report.account)")
        }
        try await lab.verifyCopies()
      }
    }

    /// Eight busy loops for each core on both nodes, not niced: nobody may be mistaken for dead, no link may be lost.
    @Test func starvedOfCPU() async throws {
      try await lab.scenario("both nodes starved of CPU for 30 s") {
        try await lab.healthy()
        let loops = 8 * ProcessInfo.processInfo.activeProcessorCount
        let hog = "for i in $(seq \(loops)); do timeout 30 sh -c 'while :; do :; done' & done; wait"
        var marks: [String: Int] = [:]
        for node in ["node1", "node2"] { marks[node] = try await newestEvent(node) }
        let reports = try await lab.watching(Lab.guests) {
          let hogs = try ["node1", "node2"].map { try lab.start(["exec", $0, "sh", "-c", hog]) }
          for hog in hogs { _ = try await hog.finish(within: 60) }
        }
        for (guest, report) in reports {
          #expect(report.incarnations == 1, "\(guest) was restarted:\n\(report.account)")
          #expect(report.answers > 30, "\(guest) hardly answered:\n\(report.account)")
        }
        for node in ["node1", "node2"] {
          let log = try await lab.vmha(node, "log", "--json", "-n", "200").out.split(separator: "\n").filter {
            (Self.identity(of: $0) ?? 0) > marks[node] ?? 0
          }
          // A late beat may be told; a link that went down, a peer that was lost or a change of role may not happen.
          let bad = log.filter { line in
            ["\"kind\":\"state\"", ": lost (", "ALONE"].contains { line.contains($0) }
          }
          #expect(bad.isEmpty, "\(node): \(bad.joined(separator: "\n"))")
        }
        try await lab.healthy()
      }
    }

    private static func identity(of event: Substring) -> Int? {
      struct Event: Decodable { var id: Int }
      return try? JSONDecoder().decode(Event.self, from: Data(event.utf8)).id
    }

    private func newestEvent(_ node: String) async throws -> Int {
      try await lab.vmha(node, "log", "--json", "-n", "1").out.split(separator: "\n").last.flatMap(Self.identity) ?? 0
    }

    /// The whole site loses its power. What was acknowledged was also flushed, so all of it is promised.
    @Test(arguments: 1...blackouts)
    func blackout(round: Int) async throws {
      var dice = Dice(seed: Failover.seed &+ 1000 &+ UInt64(round))
      let first = Bool.random(using: &dice) ? "node1" : "node2"
      let apart = Int.random(in: 0...2000, using: &dice)
      let title = "blackout: \(first), \(apart) ms later the other (VMHA_LAB_SEED=\(Failover.seed), round \(round))"
      try await lab.scenario(title) {
        try await lab.healthy()
        try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("power-cut", first)
          try await Task.sleep(for: .milliseconds(apart))
          try await lab.must("power-cut", Lab.other(first))
          for node in [first, Lab.other(first)] { try await lab.must("boot", node) }
          try await lab.until("both run again and are in sync", on: "node1", within: 150) { view in
            try Lab.guests.allSatisfy { try view.module($0).isProtected }
          }
          try await lab.healthy()
        }
        try await lab.verifyCopies()
      }
    }

    @Test func drills() async throws {
      try await lab.scenario("drills") {
        try await lab.healthy()
        for node in ["node1", "node2"] {
          let edit = "s|<disks>|<check><tcp address=\"10.77.0.11\" port=\"80\"/></check><disks>|"
          try await lab.must("exec", node, "sed", "-i", edit, "/etc/vmha/modules/vm1/module.xml")
          try await lab.must("kill", node, "vmhad")
          try await lab.must("wait-for", "vmhad", node, "--timeout", "30")
        }
        try await lab.healthy()
        try await lab.watching(Lab.guests) {
          for kind in ["--swap", "--crash"] {
            let drill = try await lab.vmha("node1", "drill", "vm1", kind, "--yes")
            #expect(drill.out.contains("answering") && drill.out.contains("protected and where it was"), "\(drill)")
          }
        }
        let reports = try await lab.must("exec", "node1", "sh", "-c", "cat /var/lib/vmha/drills/*.json | jq -s length")
        #expect(reports.out == "2\n", "\(reports)")
        try await lab.healthy()
      }
    }

    /// A hung host that comes back: its guest was taken over, and it must give way.
    @Test(arguments: 1...rounds)
    func frozenNode(round: Int) async throws {
      try await lab.scenario("freeze of node1 for 15 s") {
        try await lab.healthy()
        try await lab.watching(Lab.guests) {
          try await Task.sleep(for: .seconds(2))
          try await lab.must("freeze", "node1")
          try await lab.until("node2 serves both guests", on: "node2", within: 60) { view in
            try Lab.guests.allSatisfy {
              let node = try view.module($0).primary
              return node?.node == "node2" && node?.guest == "running"
            }
          }
          for guest in Lab.guests { try await lab.must("wait-for", "answer", guest, "--timeout", "60", within: 70) }
        }
        // Until its host has moved again, the old guest may still answer reads and packets (docs/protocol.md): nobody asks.
        try await Task.sleep(for: .seconds(5))
        try await lab.must("thaw", "node1")
        try await lab.until("both in sync again", on: "node2", within: 120) { view in
          try Lab.guests.allSatisfy { try view.module($0).isProtected }
        }
        try await lab.watching(Lab.guests) { try await lab.healthy() }
        try await lab.verifyCopies()
      }
    }
  }
}
