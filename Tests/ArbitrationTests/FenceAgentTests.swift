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
    var fence: FenceAgent {
      FenceAgent(
        FenceConfiguration(agent: agent, optionsFile: options), target: "alpha", ownName: "Beta.example",
        ownAddresses: ["10.0.0.2", "fd00::2"])
    }
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
    for line in ["action=reboot", " Action =reboot", "\taction=reboot"] {
      try device.write(options: "password=s3cret\n\(line)\n")
      #expect(failure { try device.fence.off() }?.text.contains("must not set the action") ?? false, "\(line)")
    }
    try device.write(options: "password s3cret\n")
    #expect(failure { try device.fence.off() }?.code == .configuration)
    try device.write(options: "password=s3cret\n", mode: 0o640)
    #expect(failure { try device.fence.off() }?.code == .configuration)
    #expect(!device.text("actions").contains("off"))
    let absent = FenceAgent(
      FenceConfiguration(agent: "fence_that_is_not_there", optionsFile: device.options), target: "alpha",
      ownName: "beta",
      ownAddresses: [])
    try device.write(options: "password=s3cret\n")
    #expect(failure { try absent.monitor() }?.text.contains("not installed") ?? false)
  }

  /// The device is not even asked: not for the power, and not for its health.
  @Test(
    arguments: [
      "plug=beta", "port = BETA.lan", "\tplug=\tbeta\t", "plug=\"beta\"", "nodename=beta", "ip=10.0.0.2",
      "ipaddr=FD00::2",
    ])
  func optionsThatNameTheOwnNodeAreNeverUsed(_ line: String) throws {
    let device = try Device()
    try device.write(options: "\(line)\npassword=s3cret\n")
    let works = [device.fence.off, device.fence.monitor, { _ = try device.fence.isOn() }]
    for work in works + [{ _ = try device.fence.describeTarget() }, { _ = try device.fence.checkList() }] {
      let error = failure { try work() }
      #expect(error?.code == .configuration && error?.text.contains("the node that runs it") ?? false, "\(line)")
    }
    #expect(device.text("actions").isEmpty)
  }

  /// Names that differ in their domain only must not keep a node from powering its peer off.
  @Test(arguments: [("db.west", true), ("DB.east", false), ("db", true)])
  func hostsMayDifferInTheirDomainOnly(_ plug: String, _ isUsable: Bool) throws {
    let device = try Device()
    try device.write(options: "plug=\(plug)\npassword=s3cret\n")
    let agent = FenceAgent(
      FenceConfiguration(agent: device.agent, optionsFile: device.options), target: "db.west", ownName: "db.east",
      ownAddresses: [])
    #expect((failure { try agent.monitor() } == nil) == isUsable)
  }

  @Test func theTargetIsTheSameForTheSameMachineOnly() throws {
    let device = try Device()
    func target(_ options: String) throws -> String {
      try device.write(options: options)
      return try device.fence.describeTarget()
    }
    let plug = try target("# PDU\nip=10.9.0.1\nplug=3\nusername=a\npassword=x\npower_timeout=9\n")
    #expect(plug == "fence_test plug 3 at 10.9.0.1")
    #expect(try target("username=b\npasswd=y\nlanplus=1\n") == FenceOptions.unnamed)
    #expect(try target(" ipaddr=10.9.0.1 \nport=3\nlogin=b\npassword_script=/x\ndelay=3\n") == plug)
    #expect(try target("ip=10.9.0.1\nplug=4\n") != plug)
    let regions = try ["eu", "us"].map { try target("plug=i-1\nregion=\($0)\nsecret_key=hidden\n") }
    #expect(regions[0] != regions[1] && !regions[0].contains("hidden") && regions[0].contains("plug i-1"))
    #expect(try target("plug=i-1\nregion=eu\nsecret_key=other\n") == regions[0])
  }

  /// The plug is right in form, and the device knows that it is this node's.
  @Test func theDeviceMayKnowWhosePlugItIs() throws {
    let device = try Device(broken: "[ $action = list ] && { cat \(list); exit 0; }")
    try device.write(options: "plug=3\npassword=s3cret\n")
    defer { try? FileManager.default.removeItem(atPath: list) }
    for (rows, says) in [
      ("1,alpha\n3,alpha\n", "knows plug 3 as alpha"), ("1,\n3,\n", "knows plug 3"), ("N/A\n", "does not tell"),
    ] {
      try DurableFile.write(Array(rows.utf8), to: list)
      #expect(try device.fence.checkList().contains(says), "\(rows)")
    }
    try DurableFile.write(Array("3,beta.example\n1,alpha\n".utf8), to: list)
    let error = failure { _ = try device.fence.checkList() }
    #expect(error?.text.contains("plug 3 is this node") ?? false, "\(String(describing: error))")
    // An agent that cannot list.
    let plain = try Device()
    try plain.write(options: "plug=3\npassword=s3cret\n")
    #expect(try plain.fence.checkList() == "this agent lists no plugs")
  }

  private let list = FileManager.default.temporaryDirectory.path() + "vmha-fence-list-\(getpid())-\(randomUInt64())"
}
