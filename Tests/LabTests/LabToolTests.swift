import Foundation
import Testing

extension Labs {
  static let tool = Lab("tool")
}

extension Trait where Self == InLab {
  static var toolLab: InLab { InLab(lab: Labs.tool) { try await $0.up(vmha: false) } }
}

extension AllLabs {
  /// The lab itself must do what it says, or every other result is worth nothing.
  @Suite(.serialized, .toolLab)
  struct Tool {
    var lab: Lab { Labs.tool }

    @Test func aPowerCutLosesWhatWasNotSynced() async throws {
      try await lab.scenario("a power cut loses what was not synced") {
        try await lab.must(
          "exec", "node1", "sh", "-c",
          "cd /var/lib/vmha; echo kept > synced; sync -f synced; echo lost > unsynced; touch /run/here")
        let boot = try await lab.must("exec", "node1", "cat", "/proc/sys/kernel/random/boot_id").out
        try await lab.must("power-cut", "node1")
        #expect(try await lab.run(["exec", "node1", "true"]).code == 1)
        try await lab.must("boot", "node1")
        let kept = try await lab.must(
          "exec", "node1", "sh", "-c", "cat /var/lib/vmha/synced; cat /var/lib/vmha/unsynced || true")
        #expect(kept.out == "kept\n")
        #expect(try await lab.must("exec", "node1", "ls", "/run").out.contains("here") == false)
        #expect(try await lab.must("exec", "node1", "cat", "/proc/sys/kernel/random/boot_id").out != boot)
      }
    }

    @Test(arguments: ["raw", "qcow2"])
    func aGuestKeepsWhatItAcknowledgedOverAPowerCut(format: String) async throws {
      try await lab.scenario("a \(format) guest over a power cut") {
        let guest = "cut-\(format)"
        try await lab.must("guest", guest, "--node", "node2", "--format", format, "--full-speed", "--start")
        try await lab.must("wait-for", "answer", guest)
        let reports = try await lab.watching([guest]) {
          try await Task.sleep(for: .seconds(3))
          try await lab.must("power-cut", "node2")
          try await lab.must("boot", "node2")
          try await lab.must("exec", "node2", "virsh", "start", guest)
          try await lab.must("wait-for", "answer", guest)
          try await Task.sleep(for: .seconds(1))
        }
        #expect(reports[guest]?.incarnations == 2)
        try await lab.must("exec", "node2", "virsh", "shutdown", guest)
        try await lab.must(
          "exec", "node2", "sh", "-c",
          "n=0; until virsh domstate \(guest) | grep -q off; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.1; done")
        #expect(try await lab.must("fsck", "node2", guest).all.contains("recovering journal") == false)
      }
    }

    /// If the lab could not see a loss, no test of it would mean anything.
    @Test func aGuestThatNeverSyncsIsSeenToLose() async throws {
      try await lab.scenario("a guest with cache=unsafe loses") {
        try await lab.must("guest", "unsafe")
        try await lab.must(
          "exec", "node1", "sh", "-c",
          "virsh dumpxml unsafe | sed \"s/cache='none'/cache='unsafe'/\" > /run/unsafe.xml && virsh define /run/unsafe.xml && sync && virsh start unsafe"
        )
        try await lab.must("wait-for", "answer", "unsafe")
        try await lab.must("probe", "--seconds", "3", "--state", lab.memory, "unsafe")
        try await lab.must("power-cut", "node1")
        try await lab.must("boot", "node1")
        try await lab.must("exec", "node1", "virsh", "start", "unsafe")
        try await lab.must("wait-for", "answer", "unsafe")
        let output = try await lab.run(["probe", "--seconds", "1", "--state", lab.memory, "unsafe"])
        #expect(output.code == 3)
        #expect(try ProbeReport(output.out, guest: "unsafe").lost == 1)
        try await lab.must("exec", "node1", "virsh", "destroy", "unsafe")
      }
    }

    @Test func linksFailAsTold() async throws {
      try await lab.scenario("links") {
        func reaches(_ address: String) async throws -> Bool {
          try await lab.run(["exec", "node1", "busybox", "ping", "-c", "1", "-W", "1", address]).ok
        }
        /// A starved machine may answer late: only silence for long is silence.
        func reachesSoon(_ address: String) async throws -> Bool {
          for _ in 0..<10 where try await reaches(address) { return true }
          return false
        }
        func carrier() async throws -> String {
          try await lab.must("exec", "node1", "cat", "/sys/class/net/repl/carrier").out
        }
        #expect(try await reachesSoon("10.77.1.2"))
        try await lab.must("cut", "node1", "repl")
        #expect(try await reaches("10.77.1.2") == false)
        #expect(try await reachesSoon("10.77.0.2"))
        #expect(try await carrier() == "0\n")
        try await lab.must("heal", "node1", "repl")
        #expect(try await reachesSoon("10.77.1.2"))
        for fault in ["block", "oneway"] {
          try await lab.must(fault, "node1", "repl")
          #expect(try await reaches("10.77.1.2") == false)
          #expect(try await carrier() == "1\n")
          try await lab.must("unblock", "node1", "repl")
          #expect(try await reachesSoon("10.77.1.2"))
        }
      }
    }

    @Test func aFrozenNodeStandsStill() async throws {
      try await lab.scenario("freeze") {
        try await lab.must("freeze", "node2")
        #expect(try await lab.run(["exec", "node2", "true"]).all.contains("thaw node2"))
        try await lab.must("thaw", "node2")
        try await lab.must("exec", "node2", "true")
      }
    }

    @Test(arguments: [
      (["foo"], "no command 'foo'", Int32(2)), (["cut", "node3", "repl"], "is no node", 2),
      (["cut", "node1", "x"], "is no link", 2),
      (["loss", "node1", "lan", "100"], "0 to 99", 2), (["guest", "../x"], "no guest name", 2),
      (["guest", "a", "--size", "1"], "--size", 2), (["kill", "node1", "init"], "none of", 2),
      (["kill", "node1", "vmhad"], "no vmhad runs", 1), (["probe", "nobody"], "no guest 'nobody'", 1),
      (["up"], "exists already", 1),
      (["boot", "node1"], "is on already", 1), (["thaw", "node1"], "not frozen", 1),
    ])
    func wrongWordsAreExplained(words: [String], message: String, code: Int32) async throws {
      let output = try await lab.run(words)
      #expect(output.code == code)
      #expect(output.err.contains(message), "\(output)")
    }

    @Test func twoLabsSideBySideAndNothingIsLeft() async throws {
      let other = Lab("other")
      try await lab.scenario("two labs") {
        try await other.up(vmha: false)
        try await other.must("cut", "node1", "both")
        try await lab.must("exec", "node1", "busybox", "ping", "-c", "5", "-W", "2", "10.77.1.2")
      }
      try await other.down()
      try await other.down()
      for (program, words) in [("/usr/sbin/ip", ["netns"]), ("/usr/sbin/losetup", ["-a"]), ("/usr/bin/mount", [])] {
        let output = try await Command([program] + words).finish(within: 10)
        #expect(output.out.contains(other.name) == false, "\(output)")
      }
      #expect(FileManager.default.fileExists(atPath: "/var/tmp/vmha-lab/\(other.name)") == false)
    }
  }
}
