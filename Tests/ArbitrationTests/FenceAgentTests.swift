import Arbitration
import Foundation
import HostSystem
import Model
import ModuleConfig
import Testing

#if canImport(Glibc)
  import Glibc
#endif

/// A program that speaks as Debian's agents do, over a file that is the machine's power.
@Suite(.serialized) struct FenceAgentTests {
  private final class Device {
    let folder: String
    var options: String { "\(folder)/options" }
    var agent: String { "\(folder)/fence_test" }

    init(broken: String = "") throws {
      folder = FileManager.default.temporaryDirectory.path() + "vmha-fence-\(getpid())-\(randomUInt64())"
      try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
      let script = """
        #!/bin/sh
        cat > \(folder)/stdin
        echo "$*" >> \(folder)/argv
        action=$(sed -n 's/^action=//p' \(folder)/stdin)
        password=$(sed -n 's/^password=//p' \(folder)/stdin)
        echo $action >> \(folder)/actions
        [ "$password" = s3cret ] || { echo "Unable to connect/login to fencing device" >&2; exit 1; }
        \(broken)
        case $action in
          off) echo off > \(folder)/power; echo "Success: Powered OFF" ;;
          monitor) ;;
          status) if [ "$(cat \(folder)/power)" = on ]; then echo "Status: ON"; else echo "Status: OFF"; exit 2; fi ;;
          *) echo "unknown action" >&2; exit 1 ;;
        esac
        """
      try DurableFile.write(Array(script.utf8), to: agent, mode: 0o700)
      try set("power", "on\n")
      try write(options: "# how to reach it\nip=10.0.0.9\npassword=s3cret\n")
    }
    deinit { try? FileManager.default.removeItem(atPath: folder) }

    func set(_ name: String, _ text: String) throws { try DurableFile.write(Array(text.utf8), to: "\(folder)/\(name)") }
    func write(options text: String, mode: mode_t = 0o600) throws {
      try DurableFile.write(Array(text.utf8), to: options, mode: mode)
    }
    func text(_ name: String) -> String {
      (try? DurableFile.read("\(folder)/\(name)")).map { String(decoding: $0, as: UTF8.self) } ?? ""
    }
    var fence: FenceAgent { FenceAgent(FenceConfiguration(agent: agent, optionsFile: options), target: "alpha") }
  }

  @Test func offIsConfirmedByStatusAndSecretsGoThroughThePipeOnly() throws {
    let device = try Device()
    try device.fence.monitor()
    #expect(try device.fence.isOn())
    try device.fence.off()
    #expect(device.text("actions") == "monitor\nstatus\noff\nstatus\n")
    #expect(device.text("power") == "off\n")
    #expect(device.text("stdin") == "ip=10.0.0.9\npassword=s3cret\naction=status\n")
    #expect(device.text("argv") == "\n\n\n\n")
    #expect(try !device.fence.isOn())
    // Off already: the status proves it.
    try device.fence.off()
  }

  @Test(
    arguments: [
      // It says yes and does nothing; it fails; it hangs up with the code that also means "off"; it knows no status.
      "[ $action = off ] && { echo Success; exit 0; }", "[ $action = off ] && { echo 'no route' >&2; exit 1; }",
      "exit 2", "[ $action = status ] && exit 0", "[ $action = status ] && { echo 'Status: unknown'; exit 2; }",
    ])
  func whatIsNotConfirmedIsNotOff(_ broken: String) throws {
    let device = try Device(broken: broken)
    let error = failure { try device.fence.off() }
    #expect(error?.text.contains("alpha") ?? false, "\(String(describing: error))")
  }

  @Test func aWrongPasswordAndWrongFilesAreSaid() throws {
    let device = try Device()
    try device.write(options: "password=wr0ngwr0ng\n")
    let wrong = failure { try device.fence.monitor() }
    #expect(wrong?.text.contains("Unable to connect/login") ?? false)
    #expect(!(wrong?.text.contains("wr0ngwr0ng") ?? true))
    try device.write(options: "password=s3cret\naction=reboot\n")
    #expect(failure { try device.fence.off() }?.code == .configuration)
    try device.write(options: "password s3cret\n")
    #expect(failure { try device.fence.off() }?.code == .configuration)
    try device.write(options: "password=s3cret\n", mode: 0o640)
    #expect(failure { try device.fence.off() }?.code == .configuration)
    #expect(!device.text("actions").contains("off"))
    let absent = FenceAgent(
      FenceConfiguration(agent: "fence_that_is_not_there", optionsFile: device.options), target: "alpha")
    try device.write(options: "password=s3cret\n")
    #expect(failure { try absent.monitor() }?.text.contains("not installed") ?? false)
  }
}
