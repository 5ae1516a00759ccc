import Foundation
import Testing

extension AllLabs {
  /// `make install` and `make uninstall` into a folder: nothing of this machine is touched.
  @Suite(.serialized)
  struct Install {
    @Test(arguments: ["/usr", "/opt/vmha"])
    func intoAFolder(prefix: String) async throws {
      let root = FileManager.default.temporaryDirectory.appendingPathComponent("vmha-install-\(UUID().uuidString)").path
      defer { _ = try? FileManager.default.removeItem(atPath: root) }
      func make(_ target: String) async throws {
        let words = [
          "/usr/bin/make", "-s", "-C", Machine.repository, target, "DESTDIR=\(root)", "PREFIX=\(prefix)",
          "BIN=\(Machine.programs)", "SWIFT=true",
        ]
        let output = try await Command(words).finish(within: 120)
        #expect(output.ok, "\(output)")
      }
      func find(_ expression: String...) async throws -> Set<String> {
        let output = try await Command(["/usr/bin/find", root] + expression + ["-printf", "%m %P\n"]).finish(within: 10)
        return Set(output.out.split(separator: "\n").map(String.init))
      }
      try await make("install")
      let there = String(prefix.dropFirst())
      #expect(
        try await find("-type", "f") == [
          "755 \(there)/bin/vmha", "755 \(there)/sbin/vmhad", "755 \(there)/sbin/vmha-replicad",
          "644 \(there)/share/man/man8/vmha.8", "644 \(there)/share/bash-completion/completions/vmha",
          "644 \(there)/share/zsh/vendor-completions/_vmha", "644 \(there)/share/fish/vendor_completions.d/vmha.fish",
          "644 \(there)/share/vmha/vm-modules/kvm/README.md", "644 \(there)/share/vmha/vm-modules/kvm/module.xml",
          "644 \(there)/share/vmha/vm-modules/kvm/module.rng", "755 \(there)/share/vmha/on-state-change.example",
          "644 lib/systemd/system/vmhad.service", "644 lib/systemd/system/vmha-replicad@.service",
          "755 etc/libvirt/hooks/qemu.d/vmha",
        ])
      #expect(try await find("-type", "d").allSatisfy { $0.hasPrefix("755 ") })
      let units = root + "/lib/systemd/system"
      let unit = try String(contentsOfFile: units + "/vmhad.service", encoding: .utf8)
      #expect(unit.contains("ExecStart=\(prefix)/sbin/vmhad\n"), "\(unit)")
      if FileManager.default.isExecutableFile(atPath: "/usr/bin/systemd-analyze") {
        let script = """
          cp -n /lib/systemd/system/*.target \(units)
          systemd-analyze verify --man=no --root=\(root) vmhad.service vmha-replicad@vm1.service
          rm \(units)/*.target
          """
        let verified = try await Command(["/bin/sh", "-ec", script]).finish(within: 30)
        #expect(verified.ok, "\(verified)")
      }
      let completions = "\(root)\(prefix)/share/bash-completion/completions/vmha"
      let ask = "source \(completions); COMP_WORDS=(vmha st); COMP_CWORD=1; _vmha vmha st vmha; echo ${COMPREPLY[@]}"
      #expect(try await Command(["/bin/bash", "-c", ask]).finish(within: 10).out == "status start stop\n")
      try await make("uninstall")
      #expect(try await find("-not", "-type", "d") == [])
    }
  }
}
