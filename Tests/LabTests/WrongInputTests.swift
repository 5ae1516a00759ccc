import Foundation
import Testing

extension Labs {
  static let wrong = Lab("wrong")
}

extension Trait where Self == InLab {
  static var wrongLab: InLab { InLab(lab: Labs.wrong) { try await $0.up() } }
}

/// One command that must fail: how, and with which words.
struct Refusal: Sendable, CustomTestStringConvertible {
  var node = "node1"
  var words: [String]
  var code: Int32
  var says: [String]
  init(_ node: String, _ line: String, _ code: Int32, _ says: String...) {
    self.node = node
    words = line.split(separator: " ").map(String.init)
    self.code = code
    self.says = says
  }
  init(_ line: String, _ code: Int32, _ says: String...) {
    words = line.split(separator: " ").map(String.init)
    self.code = code
    self.says = says
  }
  var testDescription: String { "\(node)# vmha \(words.joined(separator: " "))" }
}

extension AllLabs {
  /// Every command against wrong input: the exit code, what the message says, and that nothing was changed. The order is
  /// that of a life: no cluster, a cluster being made, a cluster with guests, a partner that is gone, no daemon.
  @Suite(.serialized, .wrongLab)
  struct WrongInput {
    var lab: Lab { Labs.wrong }

    static let token = String(repeating: "0", count: 32)
    static let fingerprint = String(repeating: "0", count: 64)
    static let joining = "--link repl=10.77.1.2 --link lan=10.77.0.2"

    /// Everything on both nodes that a command could change for good, as one text. A node's own key does not count: it is made
    /// before a host asks to join and kept for the next attempt.
    private func world() async throws -> String {
      var text = ""
      for node in ["node1", "node2"] {
        let output = try await lab.run([
          "exec", node, "sh", "-c",
          """
          find /etc/vmha /etc/libvirt/qemu /var/lib/libvirt/images /var/lib/vmha/pki /var/lib/vmha/modules \
            -printf '%p %M %u %s\\n' 2>/dev/null | grep -vE "pki( |/node.key )" | sort
          find /etc/vmha /etc/libvirt/qemu /var/lib/libvirt/images -type f -size -1000k -exec sha256sum {} + | sort
          virsh list --all
          """,
        ])
        // A node that is off changes nothing.
        text += "\(node):\n\(output.out)"
      }
      return text
    }

    private func refused(_ refusals: [Refusal]) async throws {
      let before = try await world()
      for refusal in refusals {
        let output = try await lab.run(["exec", refusal.node, "vmha"] + refusal.words, within: 60)
        #expect(output.code == refusal.code, "\(refusal.testDescription): \(output)")
        for word in refusal.says {
          #expect(output.all.contains(word), "\(refusal.testDescription) does not say '\(word)': \(output)")
        }
      }
      let after = try await world()
      #expect(before == after, "something was changed")
    }

    @Test func a_withoutACluster() async throws {
      try await lab.scenario("no cluster yet") {
        try await lab.must("guest", "plain")
        try await refused([
          Refusal("start plain", 4, "belongs to no cluster"), Refusal("stop plain", 4, "belongs to no cluster"),
          Refusal("swap plain", 4, "belongs to no cluster"),
          Refusal("remove plain --yes", 4, "belongs to no cluster"),
          Refusal("add plain --yes", 4, "belongs to no cluster", "cluster init"),
          Refusal("add nothing --yes", 4, "belongs to no cluster"), Refusal("drill plain --swap --yes", 4),
          Refusal("cluster show", 4, "belongs to no cluster"), Refusal("cluster ticket", 4, "not in a cluster"),
          Refusal("cluster set detection=5s", 4, "belongs to no cluster"),
        ])
      }
    }

    @Test func b_wrongCommandLines() async throws {
      try await lab.scenario("wrong command lines") {
        try await refused([
          Refusal("", 2), Refusal("nonsense", 2, "nonsense"), Refusal("start", 2, "--all"),
          Refusal("start --all vm1", 2, "not both"), Refusal("add", 2), Refusal("add vm1 --dir images", 2, "absolute"),
          Refusal("cluster", 2), Refusal("cluster init", 2, "--name"),
          Refusal("cluster init --name x --link lan=10.77.0.1", 2, "replication"),
          Refusal("cluster join 10.77.1.1 --fingerprint 12 --token 34 --link repl=10.77.1.2", 2, "64 hexadecimal"),
          Refusal("drill vm1", 2, "--swap"), Refusal("log -n 0", 2),
        ])
      }
    }

    @Test func c_joining() async throws {
      try await lab.scenario("joining") {
        // Nobody there to join.
        try await refused([
          Refusal(
            "node2", "cluster join 10.77.1.1 --fingerprint \(Self.fingerprint) --token \(Self.token) \(Self.joining)",
            4, "vmhad runs there"),
          Refusal(
            "node2", "cluster join 10.77.1.77 --fingerprint \(Self.fingerprint) --token \(Self.token) \(Self.joining)",
            4, "vmhad runs there"),
        ])
        let made = try await lab.vmha(
          "node1", "cluster", "init", "--name", "right", "--link", "repl=10.77.1.1,replication", "--link",
          "lan=10.77.0.1")
        let line = made.out.split(separator: "\n").first { $0.contains("vmha cluster join") }.map(String.init) ?? ""
        let words = line.split(separator: " ").map(String.init)
        func value(_ option: String) -> String {
          words.firstIndex(of: option).flatMap { words.indices.contains($0 + 1) ? words[$0 + 1] : nil } ?? ""
        }
        let fingerprint = value("--fingerprint")
        let token = value("--token")
        #expect(fingerprint.count == 64 && token.count == 32, "\(made)")
        let join = "cluster join 10.77.1.1"
        try await refused([
          Refusal(
            "node2", "\(join) --fingerprint \(Self.fingerprint) --token \(token) \(Self.joining)", 4, "fingerprint"),
          Refusal("node2", "\(join) --fingerprint \(fingerprint) --token \(Self.token) \(Self.joining)", 4, "token"),
          Refusal("node2", "\(join) --fingerprint \(fingerprint) --token \(token) --link other=10.77.1.2", 4),
          Refusal("cluster init --name second --link repl=10.77.1.1,replication", 4, "already"),
          Refusal(
            "\(join) --fingerprint \(fingerprint) --token \(token) --link repl=10.77.1.1 --link lan=10.77.0.1", 4),
        ])
        // A host that has a cluster of its own is not taken into another one.
        try await lab.vmha(
          "node2", "cluster", "init", "--name", "wrong", "--link", "repl=10.77.1.2,replication", "--link",
          "lan=10.77.0.2")
        try await refused([
          Refusal("node2", "\(join) --fingerprint \(fingerprint) --token \(token) \(Self.joining)", 4, "already")
        ])
        // Leave that cluster the hard way: the node begins anew.
        try await lab.must("exec", "node2", "sh", "-c", "rm -rf /etc/vmha/* /var/lib/vmha/*; sync")
        try await lab.must("power-cut", "node2")
        try await lab.must("boot", "node2")
        try await lab.must("wait-for", "vmhad", "node2", "--timeout", "30")
        let ticket = try await lab.vmha("node1", "cluster", "ticket")
        let again = ticket.out.split(separator: "\n").first { $0.contains("vmha cluster join") }.map(String.init) ?? ""
        let complete = again.replacingOccurrences(of: "repl=ADDRESS", with: "repl=10.77.1.2")
          .replacingOccurrences(of: "lan=ADDRESS", with: "lan=10.77.0.2")
        let join2 = complete.split(separator: " ").map(String.init)
        try await lab.must(["exec", "node2"] + join2.filter { !$0.isEmpty }, within: 60)
        // The token works once.
        try await refused([Refusal("node2", join2.drop { $0 != "cluster" }.joined(separator: " "), 4)])
      }
    }

    @Test func d_modules() async throws {
      try await lab.scenario("modules") {
        try await lab.must("wait-for", "vmhad", "node2", "--timeout", "30")
        try await lab.must("guest", "busy", "--start")
        try await lab.must("wait-for", "answer", "busy")
        try await refused([
          Refusal("add nothing --yes", 4, "nothing"), Refusal("add busy --yes", 4, "running", "virsh shutdown"),
          Refusal("add plain --yes --prefer node7", 4, "node7"),
          Refusal("add plain --yes --dir /nowhere", 4, "/nowhere"),
          Refusal("add plain", 4, "--yes"), Refusal("start nothing", 4, "nothing"),
          Refusal("stop nothing", 4, "nothing"),
          Refusal("swap nothing", 4, "nothing"), Refusal("remove nothing --yes", 4, "nothing"),
          Refusal("status nothing", 4, "nothing"), Refusal("log nothing", 4, "nothing"),
          Refusal("drill nothing --crash --yes", 4, "nothing"), Refusal("cluster set detection=1h", 4),
          Refusal("cluster set --remove-link nothing", 4, "nothing"), Refusal("cluster set arbiter=dice", 2, "dice"),
        ])
        try await lab.must("exec", "node1", "virsh", "destroy", "busy")
        // A VM of the same name on the other node.
        try await lab.must(
          "exec", "node2", "sh", "-c",
          """
          virsh -q define /dev/stdin <<X
          <domain type='qemu'><name>plain</name><memory unit='MiB'>64</memory>
          <os><type arch='x86_64' machine='pc'>hvm</type></os></domain>
          X
          """)
        try await refused([Refusal("add plain --yes", 4, "other node", "plain")])
        try await lab.must("exec", "node2", "virsh", "undefine", "plain")
        // A disk that something else holds open.
        try await lab.must(
          "exec", "node1", "sh", "-c", "setsid sleep 600 < /var/lib/libvirt/images/plain.raw > /dev/null 2>&1 &")
        try await refused([Refusal("add plain --yes", 4, "open")])
        try await lab.must("exec", "node1", "pkill", "-f", "^sleep 600")
        // No room on the other node.
        try await lab.must(
          "exec", "node2", "sh", "-c",
          "f=/var/lib/vmha/filler; a=$(df -B1 --output=avail /var/lib/vmha | tail -1); fallocate -l $((a - 20000000)) $f; sync"
        )
        try await refused([Refusal("add plain --yes", 4, "other node")])
        try await lab.must("exec", "node2", "rm", "/var/lib/vmha/filler")
        // libvirtd does not answer: first here, then there.
        for (node, code, word) in [("node1", Int32(4), "libvirtd"), ("node2", Int32(4), "libvirt on the other node")] {
          try await lab.must("exec", node, "mount", "--bind", "/dev/null", "/run/libvirt/libvirt-sock")
          try await lab.must("kill", node, "libvirtd")
          let output = try await lab.run(["exec", "node1", "vmha", "add", "plain", "--yes"], within: 60)
          #expect(output.code == code && output.all.contains(word), "\(output)")
          try await lab.must("exec", node, "umount", "/run/libvirt/libvirt-sock")
          try await lab.must(
            "exec", node, "sh", "-c",
            "n=0; until virsh version > /dev/null 2>&1; do n=$((n+1)); [ $n -lt 100 ]; sleep 0.2; done")
        }
      }
    }

    @Test func e_thePartnerIsGone() async throws {
      try await lab.scenario("no partner") {
        try await lab.must("power-cut", "node2")
        try await Task.sleep(for: .seconds(5))
        try await refused([
          Refusal("add plain --yes", 4, "other node"), Refusal("cluster set detection=5s", 4, "node2"),
        ])
        try await lab.must("boot", "node2")
        try await lab.must("wait-for", "vmhad", "node2", "--timeout", "30")
      }
    }

    @Test func f_expiredCertificate() async throws {
      try await lab.scenario("expired certificate") {
        try await lab.must(
          "exec", "node2", "bash", "-euc",
          """
          cd "$(mktemp -d)"
          pki=/var/lib/vmha/pki
          printf '%s\\n' '[ca]' 'default_ca=d' '[d]' 'database=db' 'serial=serial' 'new_certs_dir=.' 'default_md=sha256' \
            'policy=p' 'copy_extensions=copy' '[p]' > ca.cnf
          : > db
          echo 77 > serial
          openssl x509 -in $pki/node.crt -x509toreq -copy_extensions copy -signkey $pki/node.key -out request
          openssl ca -batch -preserveDN -config ca.cnf -cert $pki/ca.crt -keyfile $pki/ca.key -in request -notext \
            -startdate 20200101000000Z -enddate 20200102000000Z -out expired
          cp $pki/node.crt /run/lab/good.crt
          cat expired > $pki/node.crt
          """)
        try await lab.must("kill", "node2", "vmhad")
        try await lab.must("wait-for", "vmhad", "node2", "--timeout", "30")
        try await Task.sleep(for: .seconds(2))
        try await refused([
          Refusal("cluster set detection=5s", 4, "certificate of 'node2' expired on 2020-01-02"),
          Refusal("node2", "cluster set detection=5s", 4, "expired", "clocks of both hosts"),
          Refusal("add plain --yes", 4, "other node", "expired"),
        ])
        #expect(try await lab.vmha("node2", "status").out.contains("certificate ends at 2020-01-02"))
        try await lab.must("exec", "node2", "sh", "-c", "cat /run/lab/good.crt > /var/lib/vmha/pki/node.crt")
        try await lab.must("kill", "node2", "vmhad")
        try await lab.must("wait-for", "vmhad", "node2", "--timeout", "30")
      }
    }

    @Test func g_noDaemon() async throws {
      try await lab.scenario("no vmhad") {
        // SIGSTOP would leave it hung; a program that cannot start leaves it down.
        try await lab.must("exec", "node1", "sh", "-c", "mount --bind /bin/false $(command -v vmhad)")
        try await lab.must("kill", "node1", "vmhad")
        try await refused(
          [
            "status", "start plain", "stop plain", "swap plain", "log", "add plain --yes", "remove plain --yes",
            "cluster show",
            "cluster ticket", "drill plain --swap --yes",
          ].map { Refusal($0, 3, "vmhad", "systemctl start vmhad") })
        try await lab.must("exec", "node1", "sh", "-c", "umount $(command -v vmhad)")
        try await lab.must("wait-for", "vmhad", "node1", "--timeout", "30")
      }
    }
  }
}
