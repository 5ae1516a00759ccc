import Glibc
import HostSystem
import Model
import Testing

@testable import VirtualMachines

private func eventually(_ limit: Duration = .seconds(20), _ holds: () throws -> Bool) rethrows -> Bool {
  let end = monotonicNow() + limit
  while monotonicNow() < end {
    if try holds() { return true }
    usleep(20_000)
  }
  return false
}

private let guest = """
  <domain type='qemu'>
    <name>vm1</name><uuid>6c616200-0000-4000-8000-000000000001</uuid>
    <memory unit='MiB'>32</memory><vcpu>1</vcpu>
    <os><type arch='x86_64' machine='pc'>hvm</type></os>
    <on_poweroff>destroy</on_poweroff>
    <devices>
      <emulator>/usr/bin/qemu-system-x86_64</emulator>
      <disk type='file' device='disk'>
        <driver name='qemu' type='raw'/><source file='DISK'/><target dev='vda' bus='virtio'/>
      </disk>
      <memballoon model='none'/>
    </devices>
  </domain>
  """

/// One real libvirtd and QEMU, taken through everything that vmha asks of them.
@Test(.timeLimit(.minutes(3))) func realLibvirtd() throws {
  try withFolder { folder in
    let daemon = try PrivateLibvirtd(folder: folder)
    defer { daemon.end() }
    var limits = LibvirtHypervisor.Limits()
    limits.query = .seconds(2)
    let hypervisor = try LibvirtHypervisor(
      uri: daemon.uri, limits: limits, runtimeDirectory: "\(folder)/run/libvirt/qemu")
    defer { hypervisor.close() }
    let events = Monitor<[HypervisorEvent]>([])
    hypervisor.setEventHandler { event in events.withLock { $0.append(event) } }
    func saw(_ event: HypervisorEvent) -> Bool { eventually { events.withLock { $0.contains(event) } } }
    try #require(eventually { hypervisor.connection.isUp }, "\(hypervisor.connection)")

    try DurableFile.write([UInt8](repeating: 0, count: 1 << 20), to: "\(folder)/disk.raw")
    let vm1 = DomainIdentity(name: "vm1", uuid: "6c616200-0000-4000-8000-000000000001")
    #expect(try hypervisor.list().isEmpty)
    #expect(try hypervisor.define(xml: guest.replacing("DISK", with: "\(folder)/disk.raw")) == vm1)
    try checkDefinitions(hypervisor, vm1, folder: folder)
    try hypervisor.start("vm1", limit: .seconds(60))
    #expect(saw(.started(vm1, .booted)))
    #expect(try hypervisor.state(of: "vm1").state == .running)
    #expect(throws: HypervisorError.self) { try hypervisor.start("vm1", limit: .seconds(60)) }
    try hypervisor.suspend("vm1")
    #expect(try hypervisor.state(of: "vm1") == GuestStatus(state: .paused, reason: "command"))
    try hypervisor.resume("vm1")
    try hypervisor.requestShutdown("vm1")
    let line = try daemon.shell("cat /proc/$(cat /run/libvirt/qemu/vm1.pid)/cmdline").split(separator: "\0")
    #expect(GuestProcess.isGuest(line.map(String.init), name: "vm1"))

    // QEMU is killed.
    try daemon.shell("kill -9 $(cat /run/libvirt/qemu/vm1.pid)")
    #expect(saw(.stopped(vm1, .failed)))
    #expect(try hypervisor.state(of: "vm1").state == .shutOff)

    // libvirtd hangs: calls come back, the loss is noticed by keepalive only later.
    let began = monotonicNow()
    try daemon.shell("kill -STOP $(cat /run/libvirtd.pid)")
    let hung = #expect(throws: HypervisorError.self) { try hypervisor.state(of: "vm1") }
    #expect(hung?.code == .timedOut)
    #expect(monotonicNow() - began < .seconds(20))
    try daemon.shell("kill -CONT $(cat /run/libvirtd.pid)")
    #expect(eventually { (try? hypervisor.state(of: "vm1").state) == .shutOff })

    try checkRestart(hypervisor, vm1, daemon, events)
    try hypervisor.undefine("vm1", discardingNotes: false)
    #expect(try hypervisor.find(name: "vm1") == nil)
  }
}

private func checkDefinitions(_ hypervisor: LibvirtHypervisor, _ vm1: DomainIdentity, folder: String) throws {
  let facts = try #require(try hypervisor.facts(of: "vm1"))
  #expect(facts == DomainFacts(identity: vm1, state: .shutOff))
  let xml = try hypervisor.domainXML(of: "vm1", inactive: true)
  let domain = try DomainDefinition(xml: xml)
  #expect(domain.identity == vm1)
  try hypervisor.checkMachine(domain.machine)
  var other = domain.machine
  other.machine = "pc-q35-99.0"
  #expect(throws: HypervisorError.self) { try hypervisor.checkMachine(other) }
  other = domain.machine
  other.emulator = "/usr/bin/none"
  #expect(throws: HypervisorError.self) { try hypervisor.checkMachine(other) }
  let rewriting = DomainRewriting(disks: ["vda": .init(path: "\(folder)/disk.raw", format: "raw")])
  try hypervisor.define(xml: try rewriting.apply(to: xml))
  let after = try hypervisor.domainXML(of: "vm1", inactive: true)
  #expect(after.contains("error_policy='stop' rerror_policy='stop'"))
  let clash = xml.replacing(vm1.uuid, with: "6c616200-0000-4000-8000-000000000002")
  let taken = #expect(throws: HypervisorError.self) { try hypervisor.define(xml: clash) }
  #expect(taken?.code == .taken)
  let wrong = #expect(throws: HypervisorError.self) { try hypervisor.define(xml: "<domain type='qemu'><name>x</name>") }
  #expect(wrong?.code == .invalidDefinition)
  try hypervisor.setAutostart("vm1", true)
  #expect(try hypervisor.facts(of: "vm1")?.isAutostarted == true)
  try hypervisor.setAutostart("vm1", false)
}

/// libvirtd is restarted under a guest, with a hook, which it only looks for at its start.
private func checkRestart(
  _ hypervisor: LibvirtHypervisor, _ vm1: DomainIdentity, _ daemon: PrivateLibvirtd,
  _ events: Monitor<[HypervisorEvent]>
) throws {
  func saw(_ holds: (HypervisorEvent) -> Bool) -> Bool {
    eventually { events.withLock { $0.contains(where: holds) } }
  }
  try hypervisor.start("vm1", limit: .seconds(60))
  let hook = "#!/bin/sh\\n[ \"$2\" != prepare ] || { echo not here >&2; exit 1; }\\n"
  try daemon.shell("printf '\(hook)' > /etc/libvirt/hooks/qemu; chmod 755 /etc/libvirt/hooks/qemu")
  try daemon.shell("kill $(cat /run/libvirtd.pid)")
  #expect(saw { if case .connectionLost = $0 { true } else { false } })
  #expect(!hypervisor.connection.isUp)
  events.withLock { $0 = [] }
  try daemon.shell("while [ -d /proc/$(cat /run/libvirtd.pid 2>/dev/null || echo x) ]; do sleep 0.05; done")
  try daemon.shell("libvirtd -d -p /run/libvirtd.pid")
  #expect(saw { $0 == .connectionRestored })
  #expect(try hypervisor.state(of: "vm1").state == .running)
  try hypervisor.destroy("vm1")
  #expect(saw { $0 == .stopped(vm1, .destroyed) })
  let refused = #expect(throws: HypervisorError.self) { try hypervisor.start("vm1", limit: .seconds(60)) }
  #expect(refused?.code == .refusedByHook && refused?.message == "not here", "\(String(describing: refused))")
}
