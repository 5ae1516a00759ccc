import Testing
import VirtualMachines

@Test func debianGuestIsRead() throws {
  let domain = try DomainDefinition(xml: sampleDebian)
  #expect(domain.identity == DomainIdentity(name: "web", uuid: "0f3d6e6a-5b0e-4c57-8a4c-0e6d7d1f8a01"))
  #expect(
    domain.machine
      == DomainMachine(
        type: "kvm", architecture: "x86_64", machine: "pc-q35-7.2", emulator: "/usr/bin/qemu-system-x86_64"))
  #expect(
    domain.disks == [
      DomainDisk(device: "disk", source: .file("/var/lib/libvirt/images/web.qcow2"), format: "qcow2", target: "vda"),
      DomainDisk(device: "cdrom", source: .empty, format: "raw", target: "sda", isReadOnly: true),
    ])
  #expect(domain.disks.map(\.isWritable) == [true, false])
  #expect(domain.interfaces == [.network("default")])
  #expect(!domain.hasUEFIVariables && domain.nvram == nil && domain.tpm == nil)
  #expect(domain.hostFiles.isEmpty && domain.hostDevices.isEmpty && domain.sharedDirectories.isEmpty)
  #expect(!domain.hasRawArguments)
}

@Test func windowsGuestIsRead() throws {
  let domain = try DomainDefinition(xml: sampleWindows)
  #expect(domain.identity.name == "win 11")
  #expect(domain.nvram == "/var/lib/libvirt/qemu/nvram/win11_VARS.fd")
  #expect(domain.hasUEFIVariables)
  #expect(domain.tpm == DomainTPM(backend: "emulator"))
  #expect(domain.disks[0].source == .file("/srv/vm/it's \"mine\".img"))
  #expect(domain.disks[1].source == .file("/srv/iso/win11.iso"))
  #expect(domain.interfaces == [.bridge("br0")])
  #expect(
    domain.hostFiles == [
      HostFile(path: "/usr/share/OVMF/OVMF_CODE_4M.ms.fd", use: "firmware"),
      HostFile(path: "/usr/share/OVMF/OVMF_VARS_4M.ms.fd", use: "firmware variables template"),
    ])
}

@Test func volumesAndChosenFirmwareAreRead() throws {
  let domain = try DomainDefinition(xml: sampleVolumes)
  #expect(domain.disks[0].source == .volume(pool: "default", volume: "db-root.qcow2"))
  #expect(domain.disks[1].format == nil)
  #expect(domain.hasUEFIVariables && domain.nvram == nil)
  #expect(domain.interfaces == [.direct("enp3s0"), .user])
}

@Test func hostTiesAreRead() throws {
  let domain = try DomainDefinition(xml: sampleTied)
  #expect(
    domain.disks.map(\.source) == [
      .block("/dev/vg0/tied"), .network("rbd"), .file("/srv/quorum.raw"), .file("/srv/scratch.raw"),
      .file("/srv/luks.raw"), .other("nvme"), .file("/srv/a.img"),
    ])
  #expect(domain.disks.map(\.isShareable) == [false, false, true, false, false, false, false])
  #expect(domain.disks[3].isTransient && domain.disks[4].isEncrypted && !domain.disks[6].isWritable)
  #expect(domain.sharedDirectories == ["/srv/share"])
  #expect(domain.hostDevices.count == 2)
  #expect(domain.hostDevices[0].contains("bus=0x06"))
  #expect(domain.hostMemory == ["nvdimm /srv/nvdimm"])
  #expect(domain.hostFiles == [HostFile(path: "/srv/rom.bin", use: "option ROM")])
  #expect(domain.hasRawArguments)
}

@Test func kernelGuestIsRead() throws {
  let domain = try DomainDefinition(xml: sampleKernel)
  #expect(domain.hostFiles.map(\.use) == ["kernel", "initrd"])
  #expect(domain.machine.machine == "pc")
}

@Test(arguments: ["", "<domain/>", "<network><name>n</name><uuid>u</uuid></network>", "<domain><name>a</name>"])
func otherTextIsNoDomain(_ text: String) {
  #expect(throws: HypervisorError.self) { try DomainDefinition(xml: text) }
}

@Test func rewritingChangesOnlyTheDisks() throws {
  let new = "/var/lib/libvirt/images/web/web.qcow2"
  let changed = try DomainRewriting(disks: ["vda": .init(path: new, format: "qcow2")]).apply(to: sampleDebian)
  let lines = sampleDebian.split(separator: "\n").map { $0.replacing("'", with: "\"") }
  // Quotes apart (libvirt writes its own anyway), two lines differ.
  let changedLines = changed.split(separator: "\n").map(String.init)
  #expect(changedLines.count == lines.count)
  let different = zip(lines, changedLines).filter { $0 != $1 }.map(\.1).filter { !$0.contains("passwd") }
    .filter { !$0.contains("<uuid>") }
  #expect(
    different == [
      "      <driver name=\"qemu\" type=\"qcow2\" discard=\"unmap\" error_policy=\"stop\" rerror_policy=\"stop\"/>",
      "      <source file=\"\(new)\"/>",
    ])
  #expect(changed.contains("s&quot;cret &amp; more") || changed.contains("'s\"cret &amp; more'"))
  let domain = try DomainDefinition(xml: changed)
  #expect(domain.disks[0].source == .file(new))
  #expect(domain.disks[1] == (try DomainDefinition(xml: sampleDebian)).disks[1])
}

@Test func volumeBecomesAFile() throws {
  let rewriting = DomainRewriting(
    disks: [
      "vda": .init(path: "/i/db/db-root.qcow2", format: "qcow2"),
      "vdb": .init(path: "/i/db/db-data.raw", format: "raw"),
    ],
    backingPaths: [
      "/var/lib/libvirt/images/base.qcow2": "/i/db/base.qcow2", "/var/lib/libvirt/images/base0.raw": "/i/db/base0.raw",
    ], nvram: "/i/db/db_VARS.fd")
  let changed = try rewriting.apply(to: sampleVolumes)
  let domain = try DomainDefinition(xml: changed)
  #expect(domain.disks.map(\.source) == [.file("/i/db/db-root.qcow2"), .file("/i/db/db-data.raw")])
  #expect(domain.disks.map(\.format) == ["qcow2", "raw"])
  #expect(domain.nvram == "/i/db/db_VARS.fd")
  for gone in ["pool=", "volume=", "mode=\"host\"", "images/base"] { #expect(!changed.contains(gone)) }
  for there in ["/i/db/base.qcow2", "/i/db/base0.raw", "<backingStore/>"] { #expect(changed.contains(there)) }
  // Applied to its own result it changes nothing more.
  #expect(try rewriting.apply(to: changed) == changed)
}

@Test func oldPoliciesAreReplaced() throws {
  let path = "/i/a&b 'c' \"d\"/g1.raw"
  let changed = try DomainRewriting(disks: ["vda": .init(path: path, format: "raw")]).apply(to: sampleKernel)
  #expect(!changed.contains("report"))
  #expect(changed.contains("cache=\"none\" error_policy=\"stop\" rerror_policy=\"stop\""))
  #expect(try DomainDefinition(xml: changed).disks[0].source == .file(path))
}

@Test func nvramTextIsEscaped() throws {
  let changed = try DomainRewriting(
    disks: ["sda": .init(path: "/i/x", format: "raw")], nvram: "/i/a<b>&c/VARS.fd"
  ).apply(to: sampleWindows)
  let domain = try DomainDefinition(xml: changed)
  #expect(domain.nvram == "/i/a<b>&c/VARS.fd")
  #expect(domain.hostFiles.count == 2)
}

@Test func missingDiskIsAnError() {
  #expect(throws: HypervisorError.self) {
    try DomainRewriting(disks: ["vdz": .init(path: "/x", format: "raw")]).apply(to: sampleDebian)
  }
}
