import CLibvirt
import Glibc
import HostSystem
import Model
import Testing

@testable import VirtualMachines

// The driver test:///default is libvirt's own simulation: a real connection without a daemon.

private func eventually(_ limit: Duration = .seconds(10), _ holds: () throws -> Bool) rethrows -> Bool {
  let end = monotonicNow() + limit
  while monotonicNow() < end {
    if try holds() { return true }
    usleep(10_000)
  }
  return false
}

@Test func hungCallLosesItsLaneOnly() throws {
  try LibvirtLibrary.prepare()
  let lanes = CallLanes(uri: "test:///default")
  defer { lanes.close() }
  let gate = Monitor(false)
  let error = #expect(throws: HypervisorError.self) {
    try lanes.call("hang", domain: "d", limit: .milliseconds(50), isRepeatable: true) { _ throws(LibvirtFailure) in
      let _: Bool? = gate.wait(timeout: .seconds(30)) { $0 ? true : nil }
    }
  }
  #expect(error?.code == .timedOut)
  #expect(lanes.count == 1)
  let answer = try lanes.call("ask", domain: "d", limit: .seconds(10), isRepeatable: true) {
    (connection) throws(LibvirtFailure) in virConnectNumOfDomains(connection)
  }
  #expect(answer == 1)
  #expect(lanes.count == 2)
  gate.withLock { $0 = true }
  #expect(eventually { lanes.count == 1 })
}

@Test func hungCallsAreBounded() throws {
  try LibvirtLibrary.prepare()
  let lanes = CallLanes(uri: "test:///default")
  defer { lanes.close() }
  let gate = Monitor(false)
  for _ in 0..<CallLanes.lanesMax {
    #expect(throws: HypervisorError.self) {
      try lanes.call("hang", domain: "d", limit: .milliseconds(1), isRepeatable: true) { _ throws(LibvirtFailure) in
        let _: Bool? = gate.wait(timeout: .seconds(30)) { $0 ? true : nil }
      }
    }
  }
  let error = #expect(throws: HypervisorError.self) {
    try lanes.call("one more", domain: "d", limit: .seconds(10), isRepeatable: true) { _ throws(LibvirtFailure) in }
  }
  #expect(error?.message.contains("calls to libvirt hang") == true)
  gate.withLock { $0 = true }
  #expect(eventually { lanes.count == 0 })
  try lanes.call("again", domain: "d", limit: .seconds(10), isRepeatable: true) { _ throws(LibvirtFailure) in }
}

@Test func repeatableCallIsRepeatedOnceAfterALoss() throws {
  try LibvirtLibrary.prepare()
  let lanes = CallLanes(uri: "test:///default")
  defer { lanes.close() }
  let loss = LibvirtFailure.libvirt(
    LibvirtError(code: VIR_ERR_INTERNAL_ERROR, origin: VIR_FROM_RPC, message: "client socket is closed"))
  for (isRepeatable, expected) in [(true, 2), (false, 1)] {
    let runs = Monitor(0)
    #expect(throws: HypervisorError.self) {
      try lanes.call("ask", domain: "d", limit: .seconds(10), isRepeatable: isRepeatable) { _ throws(LibvirtFailure) in
        runs.withLock { $0 += 1 }
        throw loss
      }
    }
    #expect(runs.withLock { $0 } == expected)
  }
}

@Test func noDaemonIsSaidSo() throws {
  let hypervisor = try LibvirtHypervisor(uri: "qemu+unix:///system?socket=/nonexistent/libvirt-sock")
  defer { hypervisor.close() }
  let error = #expect(throws: HypervisorError.self) { try hypervisor.state(of: "vm1") }
  #expect(error?.code == .notConnected)
  #expect(error?.next.contains("libvirtd") == true)
  #expect(eventually { hypervisor.connection.why.contains("/nonexistent/libvirt-sock") })
  #expect(!hypervisor.connection.isUp)
}

@Test func testDriverAnswers() throws {
  let hypervisor = try LibvirtHypervisor(uri: "test:///default")
  defer { hypervisor.close() }
  let events = Monitor<[HypervisorEvent]>([])
  hypervisor.setEventHandler { event in events.withLock { $0.append(event) } }
  #expect(eventually { hypervisor.connection.isUp })
  #expect(try hypervisor.state(of: "test").state == .running)
  let identity = try #require(try hypervisor.find(name: "test"))
  #expect(try hypervisor.find(uuid: identity.uuid) == identity)
  #expect(try hypervisor.find(name: "none") == nil)
  #expect(try hypervisor.facts(of: "none") == nil)
  #expect(try hypervisor.list().map(\.identity) == [identity])
  #expect(try hypervisor.isNetworkActive("default") == true)
  #expect(try hypervisor.isNetworkActive("none") == nil)
  try hypervisor.suspend("test")
  #expect(try hypervisor.state(of: "test") == GuestStatus(state: .paused, reason: "command"))
  try hypervisor.resume("test")
  try hypervisor.destroy("test")
  #expect(try hypervisor.state(of: "test").state == .shutOff)
  let error = #expect(throws: HypervisorError.self) { try hypervisor.destroy("test") }
  #expect(error?.code == .notRunning)
  try hypervisor.setAutostart("test", true)
  let facts = try #require(try hypervisor.facts(of: "test"))
  #expect(facts.isAutostarted && facts.isPersistent && facts.state == .shutOff && !facts.hasSavedState)
  let xml = try hypervisor.domainXML(of: "test", inactive: true)
  try hypervisor.undefine("test", discardingNotes: true)
  #expect(try hypervisor.find(name: "test") == nil)
  #expect(try hypervisor.define(xml: xml) == identity)
  #expect(
    eventually {
      let seen = events.withLock { $0 }
      return [
        .suspended(identity, .command), .stopped(identity, .destroyed), .undefined(identity), .defined(identity),
      ].allSatisfy(seen.contains)
    })
}

@Test func errorsAreMapped() {
  func code(_ number: virErrorNumber, _ message: String, _ origin: virErrorDomain = VIR_FROM_QEMU)
    -> HypervisorError.Code
  {
    LibvirtError(code: number, origin: origin, message: message).mapped("x", domain: "d").code
  }
  #expect(code(VIR_ERR_NO_DOMAIN, "") == .noSuchDomain)
  #expect(code(VIR_ERR_OPERATION_INVALID, "domain is already running") == .alreadyRunning)
  #expect(code(VIR_ERR_OPERATION_INVALID, "Requested operation is not valid: domain is not running") == .notRunning)
  #expect(code(VIR_ERR_OPERATION_INVALID, "something else") == .failed)
  #expect(code(VIR_ERR_OPERATION_FAILED, "domain 'a' already exists with uuid u") == .taken)
  #expect(code(VIR_ERR_OPERATION_TIMEOUT, "cannot acquire state change lock") == .busy)
  #expect(code(VIR_ERR_SYSTEM_ERROR, "Failed to terminate process 12 with SIGKILL") == .busy)
  #expect(code(VIR_ERR_SYSTEM_ERROR, "Failed to connect socket to '/run/x'", VIR_FROM_RPC) == .notConnected)
  #expect(code(VIR_ERR_INTERNAL_ERROR, "client socket is closed", VIR_FROM_RPC) == .notConnected)
  #expect(code(VIR_ERR_INTERNAL_ERROR, "client socket is closed", VIR_FROM_QEMU) == .failed)
  let hook = LibvirtError(
    code: VIR_ERR_HOOK_SCRIPT_FAILED, origin: VIR_FROM_HOOK,
    message: "Hook script execution failed: internal error: Child process (LC_ALL=C /etc/libvirt/hooks/qemu vm1 "
      + "prepare begin -) unexpected exit status 1: vm1 is protected\nby vmha\n"
  ).mapped("start", domain: "vm1")
  #expect(hook.code == .refusedByHook)
  #expect(hook.message == "vm1 is protected by vmha")
}

@Test func guestProcessIsBelievedOnlyIfItIsTheGuest() throws {
  try withFolder { folder in
    func find() throws -> Int32? { try GuestProcess.find("vm1", runtimeDirectory: folder, processes: folder) }
    #expect(try find() == nil)
    try DurableFile.write(Array("42".utf8), to: "\(folder)/vm1.pid")
    #expect(try find() == nil)
    try DurableFile.makeFolder("\(folder)/42")
    for (line, expected) in [
      ("/usr/bin/qemu\0-name\0guest=vm1,debug-threads=on\0-S\0", 42), ("/usr/bin/qemu\0-name\0guest=vm1\0", 42),
      ("/usr/bin/qemu\0-name\0guest=vm12,debug-threads=on\0", nil), ("/usr/bin/qemu\0-name\0guest=vm1,,2,x=y\0", nil),
      ("bash\0", nil), ("", nil), ("qemu\0-name\0", nil),
    ] as [(String, Int32?)] {
      try DurableFile.write(Array(line.utf8), to: "\(folder)/42/cmdline")
      #expect(try find() == expected, "\(line)")
    }
    for wrong in ["", "x", "1", "-5"] {
      try DurableFile.write(Array(wrong.utf8), to: "\(folder)/vm1.pid")
      #expect(try find() == nil)
    }
  }
}
