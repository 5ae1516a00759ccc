import Glibc
import HostSystem
import Model
import ModuleConfig
import Testing
import VirtualMachines

@testable import NodeDaemon

private let uuid = "6c616200-0000-4000-8000-000000000001"
private let images = "/var/lib/libvirt/images"
private let vda = "\(images)/vm1.qcow2"

/// A VM that nothing speaks against: changed by each test in one place.
private struct Case {
  var request = AdoptionRequest(name: "vm1")
  var definition: DomainDefinition
  var facts: AdoptionFacts
  var peer: AdoptionPeerFacts? = AdoptionPeerFacts(
    host: AdoptionHostFacts(directory: FolderFacts(path: images, exists: true, freeBytes: 1 << 40)),
    networks: ["default": .active])

  init() throws {
    let xml = """
      <domain type="kvm"><name>vm1</name><uuid>\(uuid)</uuid><os><type arch="x86_64" machine="q35">hvm</type></os>
      <devices><disk type="file" device="disk"><driver name="qemu" type="qcow2"/><source file="\(vda)"/>
      <target dev="vda"/></disk><interface type="network"><source network="default"/></interface></devices></domain>
      """
    definition = try DomainDefinition(xml: xml)
    facts = AdoptionFacts(
      node: .second, domain: DomainFacts(identity: definition.identity, state: .shutOff), xml: xml,
      disks: ["vda": DiskFacts(path: vda, chain: [DiskImage(path: vda, format: "qcow2", virtualBytes: 8 << 30)])],
      files: [vda: FileFacts(kind: .regular, bytes: 1 << 30, allocatedBytes: 1 << 30)],
      host: AdoptionHostFacts(directory: FolderFacts(path: images, exists: true, freeBytes: 1 << 40)))
  }

  func plan() -> AdoptionPlan {
    var facts = self.facts
    if facts.domain != nil { facts.definition = definition }
    return AdoptionPlanner(request: request, facts: facts, peer: peer, peerProblem: "no link").plan()
  }
}

@Test func planOfAPlainVM() throws {
  let plan = try Case().plan()
  #expect(plan.findings.isEmpty, "\(plan.findings)")
  #expect(plan.number?.rawValue == 1)
  let steps = try #require(plan.work?.steps)
  #expect(plan.work?.bytesToCopy == 0)
  #expect(steps.count == 8)
  #expect(plan.sentences[3] == "move \(vda) to \(images)/.vmha-vm1/vm1.qcow2")
  #expect(steps.filter(\.isFinal).isEmpty)
  for step in steps {
    guard case .installOnPeer(let files) = step else { continue }
    #expect(files.module.preferredNode == .second)
    #expect(files.module.mountPoint == "\(images)/vm1")
    #expect(files.domainXML.contains("<source file=\"\(images)/vm1/vm1.qcow2\"/>"))
    #expect(files.record.originalXML.contains(vda) && files.record.rebases.isEmpty)
  }
}

@Test func copiesAreFinalOnlyAtTheEnd() throws {
  var item = try Case()
  item.facts.files[vda]?.mount = 7
  item.request.preferredNode = .first
  let plan = item.plan()
  #expect(plan.work?.bytesToCopy == 1 << 30)
  let isFinal = try #require(plan.work?.steps.map(\.isFinal))
  #expect(isFinal.last == true && !isFinal.dropLast().contains(true))
  #expect(plan.sentences.contains { $0.contains("(1.0 GiB)") })
  item.facts.host.directory.freeBytes = 1 << 30
  #expect(item.plan().errors.first?.what.contains("must be copied to") == true)
}

@Test func numbersOfBothNodesAreTaken() throws {
  var item = try Case()
  func modules(_ numbers: some Sequence<Int>) -> [ModuleName: ModuleNumber] {
    var found: [ModuleName: ModuleNumber] = [:]
    for number in numbers {
      if let name = ModuleName("m\(number)"), let number = ModuleNumber(rawValue: number) { found[name] = number }
    }
    return found
  }
  item.facts.host.modules = modules([1, 2, 5])
  item.peer?.host.modules = modules([1, 3])
  #expect(item.plan().number?.rawValue == 4)
  item.facts.host.modules = modules(1...24)
  #expect(item.plan().number?.rawValue == 25)
  item.peer?.host.modules = modules([25])
  let plan = item.plan()
  #expect(plan.number == nil && plan.work == nil)
  #expect(plan.errors.map(\.what) == ["there are 25 modules, the most that one cluster carries"])
}

/// One thing wrong, and what the finding must say.
private struct Refusal: Sendable, CustomTestStringConvertible {
  var says: String
  var change: @Sendable (inout Case) -> Void
  var testDescription: String { says }
  init(_ says: String, _ change: @escaping @Sendable (inout Case) -> Void) {
    self.says = says
    self.change = change
  }
}

private func disk(_ change: @escaping @Sendable (inout DomainDisk) -> Void) -> @Sendable (inout Case) -> Void {
  { change(&$0.definition.disks[0]) }
}
private func file(_ change: @escaping @Sendable (inout FileFacts) -> Void) -> @Sendable (inout Case) -> Void {
  { item in
    var facts = item.facts.files[vda] ?? .missing
    change(&facts)
    item.facts.files[vda] = facts
  }
}
private func image(_ change: @escaping @Sendable (inout DiskImage) -> Void) -> @Sendable (inout Case) -> Void {
  { item in
    guard var facts = item.facts.disks["vda"] else { return }
    change(&facts.chain[0])
    item.facts.disks["vda"] = facts
  }
}

private let refusals: [Refusal] = [
  .init("no VM named 'vm1'") { $0.facts.domain = nil },
  .init("cannot be a module's name") { $0.request.name = "my vm" },
  .init("is already protected") {
    if let name = ModuleName("vm1"), let number = ModuleNumber(rawValue: 3) { $0.facts.host.modules[name] = number }
  },
  .init("has a module vm1 that this node does not know") {
    if let name = ModuleName("vm1"), let number = ModuleNumber(rawValue: 3) { $0.peer?.host.modules[name] = number }
  },
  .init("module.xml:3: wrong") { $0.facts.host.moduleProblems = ["module.xml:3: wrong"] },
  .init("on the other node: module.xml:3: wrong") { $0.peer?.host.moduleProblems = ["module.xml:3: wrong"] },
  .init("vm1 is running: its open disks cannot be moved") { $0.facts.domain?.state = .running },
  .init("vm1 is running: its open disks cannot be moved") { $0.facts.domain?.state = .paused },
  .init("is transient") { $0.facts.domain?.isPersistent = false },
  .init("saved memory image") { $0.facts.domain?.hasSavedState = true },
  .init("has 2 snapshots") { $0.facts.domain?.snapshotCount = 2 },
  .init("has no disk of its own") { $0.definition.disks = [] },
  .init("has no disk of its own", disk { $0.isReadOnly = true }),
  .init("is a block device", disk { $0.source = .block("/dev/vg/vm1") }),
  .init("over the network (rbd)", disk { $0.source = .network("rbd") }),
  .init("disks of type nvme", disk { $0.source = .other("nvme") }),
  .init("it has no source", disk { $0.source = .empty }),
  .init("SCSI commands", disk { $0.device = "lun" }),
  .init("it is shareable", disk { $0.isShareable = true }),
  .init("it is transient: its changes", disk { $0.isTransient = true }),
  .init("decrypts it with a secret", disk { $0.isEncrypted = true }),
  .init("format vmdk is not supported", disk { $0.format = "vmdk" }),
  .init("disk vda: gone") { $0.facts.disks["vda"]?.problem = "gone" },
  .init("another disk of this VM is the same file") {
    $0.definition.disks.append(DomainDisk(device: "disk", source: .file(vda), format: "qcow2", target: "vdb"))
    $0.facts.disks["vdb"] = $0.facts.disks["vda"]
  },
  .init("does not exist", file { $0.kind = .missing }),
  .init("is a symbolic link", file { $0.kind = .symbolicLink }),
  .init("is a block device; files", file { $0.kind = .blockDevice }),
  .init("is not a regular file", file { $0.kind = .folder }),
  .init("has 2 names (hard links)", file { $0.linkCount = 2 }),
  .init("is open in process 7 (qemu-nbd)", file { $0.users = ["process 7 (qemu-nbd)"] }),
  .init("is also used by the VM vm2, vm3") { $0.facts.otherUsers[vda] = ["vm2", "vm3"] },
  .init("is encrypted with a secret", image { $0.isEncrypted = true }),
  .init("keeps its data in another file", image { $0.dataFile = "/srv/data" }),
  .init("backing file: nbd://x is no file of this host") {
    $0.facts.disks["vda"]?.chain.append(DiskImage(path: "nbd://x", format: "raw"))
  },
  .init("backing file: /srv/base is also used by the VM vm2") {
    $0.facts.disks["vda"]?.chain.append(DiskImage(path: "/srv/base", format: "raw"))
    $0.facts.files["/srv/base"] = FileFacts(kind: .regular)
    $0.facts.otherUsers["/srv/base"] = ["vm2"]
  },
  .init("the UEFI variables: /srv/VARS.fd is open") {
    $0.definition.hasUEFIVariables = true
    $0.definition.nvram = "/srv/VARS.fd"
    $0.facts.files["/srv/VARS.fd"] = FileFacts(kind: .regular, users: ["process 1"])
  },
  .init("shares the host folder /srv/share") { $0.definition.sharedDirectories = ["/srv/share"] },
  .init("device of this host (pci device)") { $0.definition.hostDevices = ["pci device"] },
  .init("memory in the host (nvdimm /x)") { $0.definition.hostMemory = ["nvdimm /x"] },
  .init("it has a TPM (emulator)") { $0.definition.tpm = DomainTPM(backend: "emulator") },
  .init("interface is a device of this host (hostdev)") { $0.definition.interfaces.append(.other("hostdev")) },
  .init("'images' cannot be the folder") {
    $0.request.directory = "images"
    $0.facts.host.directory.path = "images"
  },
  .init("cannot be the folder") { $0.facts.host.directory.path = "/srv/../x" },
  .init("does not exist on this node") { $0.facts.host.directory.exists = false },
  .init("on this node there is something at \(images)/vm1,") { $0.facts.host.mountPoint = .occupied },
  .init("on this node there is something at \(images)/vm1,") { $0.facts.host.mountPoint = .mounted },
  .init("on the other node there is something in \(images)/.vmha-vm1") { $0.peer?.host.backingDirectory = .occupied },
  .init("the other node cannot be asked: no link") { $0.peer = nil },
  .init("libvirt on the other node does not answer: down") { $0.peer?.hypervisorProblem = "down" },
  .init("on the other node there is a VM named vm1") {
    $0.peer?.domainWithName = DomainIdentity(name: "vm1", uuid: "x")
  },
  .init("on the other node the VM old has the same UUID") {
    $0.peer?.domainWithUUID = DomainIdentity(name: "old", uuid: uuid)
  },
  .init("the network 'default' is not active") { $0.peer?.networks["default"] = .inactive },
  .init("there is no libvirt network 'default'") { $0.peer?.networks["default"] = .missing },
  .init("no bridge or network device 'br0'") { $0.peer?.missingDevices = ["br0"] },
  .init("this kind of machine (q35) cannot run: no kvm") { $0.peer?.machineProblem = "no kvm" },
  .init("/boot/vmlinuz is missing; it is not replicated") { $0.peer?.missingFiles = ["/boot/vmlinuz"] },
  .init("the other node has 1.0 GiB free for \(images); the disks take 1.0 GiB") {
    $0.peer?.host.directory.freeBytes = 1 << 30
  },
]

@Test(arguments: refusals.indices) func whatCannotBeAddedIsRefused(_ index: Int) throws {
  let refusal = refusals[index]
  var item = try Case()
  refusal.change(&item)
  let plan = item.plan()
  #expect(plan.work == nil)
  #expect(plan.errors.contains { $0.what.contains(refusal.says) }, "\(refusal.says) not in \(plan.findings)")
  // One cause, one error: nobody should have to find the one that counts.
  #expect(plan.errors.count == 1, "\(plan.findings)")
  // Whoever is refused is told what would help, but where there is nothing to do.
  let isHelped = plan.errors.allSatisfy { $0.whatToDo != nil }
  #expect(
    isHelped || refusal.says.contains("no disk") || refusal.says.contains("gone") || refusal.says.contains("same"))
}

@Test func warningsDoNotForbid() throws {
  var item = try Case()
  item.facts.domain?.isAutostarted = true
  item.facts.host.hasHook = false
  item.peer?.host.hasHook = false
  item.peer?.host.directory.freeBytes = 2 << 30
  item.definition.hasRawArguments = true
  item.definition.interfaces.append(.other("ethernet"))
  item.definition.hostFiles = [HostFile(path: "/boot/vmlinuz", use: "kernel")]
  let plan = item.plan()
  #expect(plan.isPossible)
  let said = plan.findings.map(\.description).joined(separator: "\n")
  for part in [
    "info: autostart is switched off", "warning: on this node vmha's libvirt hook", "warning: on the other node vmha's",
    "can grow to 8.0 GiB", "qemu:commandline", "type 'ethernet'", "info: /boot/vmlinuz is not moved",
  ] { #expect(said.contains(part), "\(part)") }
}

@Test func questionNamesWhatTheOtherNodeMustHave() throws {
  var item = try Case()
  item.definition.interfaces += [.bridge("br0"), .direct("eth1"), .user, .network("default")]
  item.definition.hostFiles = [HostFile(path: "/boot/vmlinuz", use: "kernel")]
  item.definition.disks.append(
    DomainDisk(device: "cdrom", source: .file("/srv/a.iso"), format: "raw", target: "sda", isReadOnly: true))
  item.facts.definition = item.definition
  let question = try #require(AdoptionPlanner.question(item.request, item.facts))
  #expect(question.networks == ["default"] && question.devices == ["br0", "eth1"])
  #expect(question.files == ["/boot/vmlinuz", "/srv/a.iso"])
  #expect(question.directory == images && question.uuid == uuid)
}

@Test func fileNamesDoNotClash() throws {
  var item = try Case()
  for (target, path) in [("vdb", "/a/vm1.qcow2"), ("vdc", "/b/vm1.qcow2"), ("vdd", "/c/vdb-vm1.qcow2")] {
    item.definition.disks.append(DomainDisk(device: "disk", source: .file(path), format: "qcow2", target: target))
    item.facts.disks[target] = DiskFacts(path: path, chain: [DiskImage(path: path, format: "qcow2")])
  }
  item.facts.definition = item.definition
  let planner = AdoptionPlanner(request: item.request, facts: item.facts, peer: item.peer, peerProblem: "")
  #expect(
    planner.items(item.definition).map(\.name) == ["vm1.qcow2", "vdb-vm1.qcow2", "vdc-vm1.qcow2", "vdd-vdb-vm1.qcow2"])
}

@Test func bytesAreReadable() {
  #expect(byteText(0) == "0 bytes")
  #expect(byteText(1023) == "1023 bytes")
  #expect(byteText(1536) == "1.5 KiB")
  #expect(byteText(20 << 30) == "20.0 GiB")
  #expect(byteText(1023 << 30) == "1023.0 GiB")
  #expect(byteText(5000 << 40) == "5000.0 TiB")
}
