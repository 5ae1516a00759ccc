import Glibc
import HostSystem
import Model
import ModuleConfig
import Synchronization
import Testing
import VirtualMachines

@testable import NodeDaemon

private let uuid = "6c616200-0000-4000-8000-000000000001"

/// A VM with every kind of file that moves: a qcow2 with two backing files, one of them by an absolute name; a raw disk of the same
/// file name in another folder, or on another file system; UEFI variables. Without `hasChain` the first disk is a raw one, too.
private func makeVM(_ hosts: TwoHosts, data: String? = nil, hasChain: Bool = true) throws {
  let images = hosts.images
  let data = data ?? "\(images)/data"
  try DurableFile.makeFolder(data)
  try DurableFile.makeFolder("\(images)/nvram", mode: 0o700)
  if hasChain {
    try qemuImage("create", "-q", "-f", "raw", "\(images)/base.raw", "256K")
    try qemuImage("create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "\(images)/mid.qcow2")
    try qemuImage("create", "-q", "-f", "qcow2", "-b", "\(images)/mid.qcow2", "-F", "qcow2", "\(images)/disk.img")
  } else {
    try DurableFile.write([UInt8](repeating: 7, count: 100_000), to: "\(images)/disk.img")
  }
  try DurableFile.write((0..<9000).map { UInt8(truncatingIfNeeded: $0 &* 31) }, to: "\(data)/disk.img")
  try DurableFile.write(Array("variables".utf8), to: "\(images)/nvram/vm1_VARS.fd")
  for path in ["\(images)/disk.img", "\(data)/disk.img"] { chmod(path, 0o640) }
  try hosts.here.define(
    xml: """
      <domain type="qemu">
        <name>vm1</name><uuid>\(uuid)</uuid>
        <os firmware="efi"><type arch="x86_64" machine="q35">hvm</type><nvram>\(images)/nvram/vm1_VARS.fd</nvram></os>
        <devices>
          <disk type="file" device="disk"><driver name="qemu" type="\(hasChain ? "qcow2" : "raw")"/>
            <source file="\(images)/disk.img"/><target dev="vda" bus="virtio"/></disk>
          <disk type="file" device="disk"><driver name="qemu" type="raw"/>
            <source file="\(data)/disk.img"/><target dev="vdb" bus="virtio"/></disk>
          <interface type="network"><source network="default"/></interface>
        </devices>
      </domain>
      """)
  try hosts.here.setAutostart("vm1", true)
}

private let request = AdoptionRequest(name: "vm1")
private let uptodate = DurableRecord(
  generation: Generation(number: 2, branch: BranchID(rawValue: 5)), standing: .uptodate)
private let outdated = DurableRecord(
  generation: Generation(number: 2, branch: BranchID(rawValue: 5)), standing: .outdated)
/// Of the other node, beside `uptodate` here.
private let recordsThatForbidRemoval: [(DurableRecord, String)] = {
  var newer = DurableRecord(generation: Generation(number: 3, branch: BranchID(rawValue: 6)), standing: .uptodate)
  newer.history = [BranchID(rawValue: 5), BranchID(rawValue: 6)]
  let foreign = DurableRecord(generation: Generation(number: 3, branch: BranchID(rawValue: 7)), standing: .uptodate)
  var wroteLast = uptodate
  wroteLast.wroteLast = true
  return [
    (newer, "the other node's copy is the newer one"), (foreign, "have writes of their own each (SPLIT)"),
    (.lost, "not certain that this node's copy is the newest"), (wroteLast, "the other node's copy is the newer one"),
  ]
}()
private let removal = RemovalRequest(name: "vm1", purgeCopy: false, record: uptodate)
private let purge = RemovalRequest(name: "vm1", purgeCopy: true, record: uptodate)

private let chainNames = ["base.raw", "disk.img", "mid.qcow2", "vdb-disk.img", "vm1_VARS.fd"]

/// What both nodes must look like after an add.
private func checkAdded(_ hosts: TwoHosts, hasChain: Bool = true) throws {
  let name = try #require(ModuleName("vm1"))
  for (paths, hypervisor, images) in [
    (hosts.paths, hosts.here, hosts.images), (hosts.peerPaths, hosts.there, hosts.peerImages),
  ] {
    let module = try ModuleConfiguration(
      xml: try DurableFile.read(paths.moduleFile(name)), file: paths.moduleFile(name))
    #expect(module.uuid == uuid && module.number.rawValue == 1 && module.preferredNode == .first)
    #expect(module.disks.map(\.file) == ["disk.img", "vdb-disk.img"])
    #expect(module.otherFiles.map(\.file) == (hasChain ? ["mid.qcow2", "base.raw"] : []) + ["vm1_VARS.fd"])
    let domain = hypervisor.change { $0.domains["vm1"] }
    let xml = try #require(domain?.xml)
    #expect(domain?.isAutostarted == false)
    let definition = try DomainDefinition(xml: xml)
    #expect(definition.disks.map(\.source) == [.file("\(images)/vm1/disk.img"), .file("\(images)/vm1/vdb-disk.img")])
    #expect(definition.nvram == "\(images)/vm1/vm1_VARS.fd")
    #expect(xml.components("rerror_policy=\"stop\"") == 2)
    #expect(try AdoptionFiles.names(in: "\(images)/vm1").isEmpty)
    let record = try DurableFile.read("\(paths.module(name))/adoption.json")
    #expect(!record.isEmpty)
  }
  let backing = "\(hosts.images)/.vmha-vm1"
  let names = try AdoptionFiles.names(in: backing)
  #expect(names == (hasChain ? chainNames : ["disk.img", "vdb-disk.img", "vm1_VARS.fd"]))
  if hasChain {
    let chain = try DiskImageTool.chain(of: "\(backing)/disk.img", format: "qcow2")
    #expect(chain.map(\.path) == ["disk.img", "mid.qcow2", "base.raw"].map { "\(backing)/\($0)" })
    #expect(chain.map(\.backingReference) == ["mid.qcow2", "base.raw", nil])
  }
  #expect(try AdoptionFiles.names(in: "\(hosts.peerImages)/.vmha-vm1").isEmpty)
  #expect(try Adoption.unfinished(paths: hosts.paths).isEmpty)
  #expect(hosts.link.withLock { $0.records } == [name])
}

extension String {
  fileprivate func components(_ part: String) -> Int { ranges(of: part).count }
}

@Test func addThenRemoveGivesEverythingBack() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    try makeVM(hosts)
    let before = try hosts.snapshot()
    let plan = try hosts.adoption.planAdd(request)
    #expect(plan.isPossible, "\(plan.findings)")
    #expect(plan.work?.bytesToCopy == 0)
    #expect(try hosts.snapshot() == before)
    var sentences: [String] = []
    #expect(try hosts.adoption.add(request) { sentences.append($0.sentence) } == plan)
    #expect(sentences == plan.sentences)
    try checkAdded(hosts)
    let again = try hosts.adoption.planAdd(request)
    #expect(again.errors.first?.what == "vm1 is already protected")
    try hosts.adoption.remove(removal) { _ in }
    #expect(hosts.link.withLock { $0.withdrawn } == ["vm1"])
    #expect(try hosts.snapshot() == before)
  }
}

/// The copy on the other node stays, or goes with --purge-copy.
@Test func copyOfTheOtherNode() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    try makeVM(hosts)
    let before = try hosts.snapshot()
    try hosts.adoption.add(request) { _ in }
    let copy = "\(hosts.peerImages)/.vmha-vm1"
    try DurableFile.makeFolder("\(copy)/sub")
    try DurableFile.write(Array("data".utf8), to: "\(copy)/sub/disk.img")
    symlink("/etc", "\(copy)/link")
    try hosts.adoption.remove(removal) { _ in }
    #expect(try AdoptionFiles.names(in: copy) == ["link", "sub"])
    let refused = try hosts.adoption.planAdd(request)
    #expect(refused.errors.first?.what.contains("an earlier 'vmha remove' left") == true)
    try AdoptionFiles.removeTree(copy)
    try hosts.adoption.add(request) { _ in }
    try DurableFile.makeFolder("\(copy)/sub")
    try hosts.adoption.remove(purge) { _ in }
    #expect(try hosts.snapshot() == before)
    #expect(access("/etc/passwd", F_OK) == 0)
  }
}

private func run(_ kind: AdoptionWork.Kind, _ hosts: TwoHosts) throws {
  switch kind {
  case .add: try hosts.adoption.add(request) { _ in }
  case .remove: try hosts.adoption.remove(removal) { _ in }
  }
}

/// A crash at any point between two actions, on the way forward: repeating the command completes it.
@Test(arguments: [AdoptionWork.Kind.add, .remove]) func crashAnywhereThenRepeat(_ kind: AdoptionWork.Kind) throws {
  try sweep(kind, data: nil, hasChain: true) { hosts, _ in
    try run(kind, hosts)
    return true
  }
}

@Test(arguments: [AdoptionWork.Kind.add, .remove])
func crashAnywhereWithCopiesThenRepeat(_ kind: AdoptionWork.Kind) throws {
  // Another file system, so that files must be copied.
  try withAdoptionFolder(below: "/tmp") { other in
    try sweep(kind, data: other, hasChain: false) { hosts, _ in
      try run(kind, hosts)
      return true
    }
  }
}

/// A crash, and then the other node and libvirt are gone: what can be taken back is; what cannot is completed once they are there.
@Test(arguments: [AdoptionWork.Kind.add, .remove]) func crashAnywhereThenGoBack(_ kind: AdoptionWork.Kind) throws {
  try sweep(kind, data: nil, hasChain: false) { hosts, crash in
    hosts.here.change { $0.isDown = true }
    hosts.link.withLock { $0.isDown = true }
    let error = errorOf { try run(kind, hosts) }
    hosts.here.change { $0.isDown = false }
    hosts.link.withLock { $0.isDown = false }
    switch error?.code {
    // The last steps need neither.
    case nil: return true
    case .undone: return false
    default: break
    }
    #expect(error?.code == .unfinished, "\(String(describing: error)) after \(crash)")
    try run(kind, hosts)
    return true
  }
}

/// Runs the work with a crash at each of its points in turn. `repeated` answers whether the work must now be done (or undone).
private func sweep(
  _ kind: AdoptionWork.Kind, data: String?, hasChain: Bool, _ repeated: (TwoHosts, String) throws -> Bool
) throws {
  var point = 0
  while true {
    let isOver = try withAdoptionFolder { folder -> Bool in
      let hosts = try TwoHosts(folder: folder)
      try makeVM(hosts, data: data, hasChain: hasChain)
      let original = try hosts.snapshot()
      if kind == .remove { try hosts.adoption.add(request) { _ in } }
      let added = try hosts.snapshot()
      let plan = kind == .add ? try hosts.adoption.planAdd(request) : try hosts.adoption.planRemove(removal)
      let work = try #require(plan.work, "\(plan.findings)")
      guard let crash = try hosts.crash(work, at: point) else { return true }
      let name = try #require(ModuleName("vm1"))
      #expect(try Adoption.unfinished(paths: hosts.paths) == [name: kind])
      let isDone = try repeated(hosts, crash)
      if kind == .add, isDone {
        try checkAdded(hosts, hasChain: hasChain)
        try hosts.adoption.remove(removal) { _ in }
      } else if kind == .remove, !isDone {
        #expect(try hosts.snapshot() == added, "after \(crash)")
        try hosts.adoption.remove(removal) { _ in }
      }
      #expect(try hosts.snapshot() == original, "after \(crash)")
      return false
    }
    if isOver { break }
    point += 1
  }
  #expect(point > 15)
}

/// A crash at any point on the way back: repeating the command finishes going back, then does the work.
@Test func crashWhileGoingBack() throws {
  var point = 0
  while true {
    let isOver = try withAdoptionFolder { folder -> Bool in
      let hosts = try TwoHosts(folder: folder)
      try makeVM(hosts, hasChain: false)
      let work = try #require(try hosts.adoption.planAdd(request).work)
      guard try hosts.crashGoingBack(work, at: point) else { return true }
      let interrupted = try hosts.adoption.planAdd(request)
      #expect(interrupted.findings.first?.what.contains("is taken back") == true)
      try hosts.adoption.add(request) { _ in }
      try checkAdded(hosts, hasChain: false)
      return false
    }
    if isOver { break }
    point += 1
  }
  #expect(point > 10)
}

/// Each call to libvirt and to the other node fails once, before or after it took effect: everything is as it was, or the work can be
/// completed by repeating it.
@Test(arguments: ["here", "there", "link", "link, reply lost"], [AdoptionWork.Kind.add, .remove])
func failureOfEachCall(_ place: String, _ kind: AdoptionWork.Kind) throws {
  var call = 0
  while true {
    let isOver = try withAdoptionFolder { folder -> Bool in
      let hosts = try TwoHosts(folder: folder)
      try makeVM(hosts, hasChain: false)
      let original = try hosts.snapshot()
      if kind == .remove { try hosts.adoption.add(request) { _ in } }
      let before = try hosts.snapshot()
      func inject(_ number: Int?) {
        hosts.here.change {
          $0.calls = 0; $0.failingCall = place == "here" ? number : nil
        }
        hosts.there.change {
          $0.calls = 0; $0.failingCall = place == "there" ? number : nil
        }
        hosts.link.withLock {
          $0.calls = 0
          $0.failingCall = place.hasPrefix("link") ? number : nil
          $0.failsAfter = place == "link, reply lost"
        }
      }
      inject(call)
      var failure: (any Error)?
      do { try run(kind, hosts) } catch { failure = error }
      inject(nil)
      guard let failure else { return true }
      if let error = failure as? AdoptionError, error.code == .unfinished {
        #expect(try !Adoption.unfinished(paths: hosts.paths).isEmpty)
      } else {
        #expect(try hosts.snapshot() == before, "\(failure)")
      }
      try run(kind, hosts)
      if kind == .add {
        try checkAdded(hosts, hasChain: false)
        try hosts.adoption.remove(removal) { _ in }
      }
      #expect(try hosts.snapshot() == original, "\(failure)")
      return false
    }
    if isOver { break }
    call += 1
  }
  #expect(call >= 2)
}

@Test func oneAddAtATime() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    try makeVM(hosts)
    let adoption = hosts.adoption
    var error: AdoptionError?
    try adoption.add(request) { _ in
      error = errorOf { try adoption.remove(removal) { _ in } }
    }
    #expect(error?.code == .busy)
  }
}

@Test func removeOfNoModuleIsRefused() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    #expect(errorOf { try hosts.adoption.remove(removal) { _ in } }?.code == .refused)
  }
}

/// What forbids a remove, and what it warns of.
@Test func removeIsRefused() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    try makeVM(hosts)
    try hosts.adoption.add(request) { _ in }
    let before = try hosts.snapshot()
    func refusal(_ request: RemovalRequest = removal) throws -> String {
      let plan = try hosts.adoption.planRemove(request)
      #expect(plan.work == nil)
      return plan.errors.map(\.what).joined(separator: "; ")
    }
    #expect(try refusal(.init(name: "vm1", purgeCopy: false, record: outdated)).contains("copy is outdated"))
    #expect(try refusal(.init(name: "vm1", purgeCopy: false, record: nil)).contains("not known what this node's copy"))
    hosts.link.withLock { $0.record = .damaged("torn") }
    #expect(try refusal().contains("its record is damaged: torn"))
    for (record, why) in recordsThatForbidRemoval {
      hosts.link.withLock { $0.record = .valid(record) }
      #expect(try refusal().contains(why))
    }
    for record in [DurableRecord.empty, outdated, uptodate] {
      hosts.link.withLock { $0.record = .valid(record) }
      #expect(try hosts.adoption.planRemove(removal).isPossible)
    }
    hosts.link.withLock { $0.record = .absent }
    for hypervisor in [hosts.here, hosts.there] {
      hypervisor.change { $0.domains["vm1"]?.state = .running }
      #expect(try refusal().contains("is in use on"))
      hypervisor.change { $0.domains["vm1"]?.state = .shutOff }
    }
    hosts.here.change { $0.domains["vm1"]?.hasSavedState = true }
    #expect(try refusal().contains("saved memory image"))
    hosts.here.change { $0.domains["vm1"]?.hasSavedState = false }
    hosts.there.change { $0.isDown = true }
    #expect(try refusal().contains("libvirt on the other node does not answer"))
    hosts.there.change { $0.isDown = false }
    hosts.link.withLock { $0.isDown = true }
    #expect(try refusal().contains("cannot be asked"))
    hosts.link.withLock { $0.isDown = false }
    try DurableFile.write([], to: "\(hosts.images)/disk.img")
    #expect(try refusal().contains("another file at \(hosts.images)/disk.img"))
    try DurableFile.remove("\(hosts.images)/disk.img")
    let xml = try hosts.here.domainXML(of: "vm1", inactive: true)
    try hosts.here.define(xml: xml.replacing("vm1/disk.img", with: "vm1/snapshot.qcow2"))
    #expect(try refusal().contains("disk vda is not the file that was added"))
    try hosts.here.define(xml: xml)
    #expect(try hosts.snapshot() == before)
    // Allowed, with a warning and a copy of the changed definition.
    let changed = xml.replacing("machine=\"q35\"", with: "machine=\"pc\"")
    try hosts.here.define(xml: changed)
    let plan = try hosts.adoption.remove(removal) { _ in }
    #expect(plan.findings.contains { $0.severity == .warning && $0.what.contains("definition was changed") })
    let saved = try DurableFile.read("\(hosts.paths.state)/removed/vm1.xml")
    #expect(String(decoding: saved, as: UTF8.self) == changed)
  }
}

/// Scripts of the administrator are not deleted with the module.
@Test func scriptsAreKeptAside() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    try makeVM(hosts)
    for _ in 0..<2 {
      try hosts.adoption.add(request) { _ in }
      let script = "\(hosts.paths.modules)/vm1/before-start"
      try DurableFile.write(Array("#!/bin/sh\n".utf8), to: script, mode: 0o755)
      try hosts.adoption.remove(removal) { _ in }
      #expect(try AdoptionFiles.names(in: hosts.paths.modules).isEmpty)
      #expect(try AdoptionFiles.names(in: "\(hosts.paths.configuration)/removed/vm1") == ["before-start"])
    }
  }
}
