import Glibc
import HostSystem
import Model
import ModuleConfig
import Synchronization
import Testing
import VirtualMachines

@testable import NodeDaemon

// `vmha add --seed-from`.

private let contents: [UInt8] = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }

/// A VM of one raw disk on the first host, and an older copy of the disk in `carried` of the second one.
private func makeVM(_ hosts: TwoHosts, carried: String) throws {
  try DurableFile.write(contents, to: "\(hosts.images)/disk.img")
  try hosts.here.define(
    xml: """
      <domain type="qemu"><name>vm1</name><uuid>6c616200-0000-4000-8000-000000000001</uuid>
        <os><type arch="x86_64" machine="q35">hvm</type></os>
        <devices><disk type="file" device="disk"><driver name="qemu" type="raw"/>
          <source file="\(hosts.images)/disk.img"/><target dev="vda" bus="virtio"/></disk></devices></domain>
      """)
  try DurableFile.makeFolder(carried)
  try DurableFile.write(Array(contents.reversed()), to: "\(carried)/disk.img")
}

/// Runs `body` with a carried copy on the second host's own file system (it is moved), or on another one (it is copied).
private func withCarried(_ isCopied: Bool, _ body: (TwoHosts, AdoptionRequest, String) throws -> Void) throws {
  try withAdoptionFolder(below: isCopied ? "/tmp" : "/dev/shm") { other in
    try withAdoptionFolder { folder in
      let hosts = try TwoHosts(folder: folder)
      let there = isCopied ? other : "\(folder)/b/carried"
      try makeVM(hosts, carried: there)
      let asked = isCopied ? other : "\(folder)/a/carried"
      try body(hosts, AdoptionRequest(name: "vm1", seedDirectory: asked), there)
    }
  }
}

/// Both hosts, and the carried copy wherever it is.
private func everything(_ hosts: TwoHosts, _ carried: String) throws -> [String] {
  var lines = try hosts.snapshot()
  try TwoHosts.list(carried, into: &lines)
  return lines
}

private func checkSeeded(_ hosts: TwoHosts, _ carried: String, isCopied: Bool) throws {
  let copy = "\(hosts.peerImages)/.vmha-vm1/disk.img"
  #expect(try DurableFile.read(copy) == contents.reversed())
  #expect(try AdoptionFiles.names(in: carried) == (isCopied ? ["disk.img"] : []))
  #expect(try AdoptionFiles.names(in: "\(hosts.peerImages)/.vmha-vm1") == ["disk.img"])
  #expect(try DurableFile.read("\(hosts.images)/.vmha-vm1/disk.img") == contents)
  #expect(try Adoption.unfinished(paths: hosts.paths).isEmpty)
}

@Test(arguments: [false, true]) func aCarriedCopyIsTakenOver(_ isCopied: Bool) throws {
  try withCarried(isCopied) { hosts, request, carried in
    let before = try everything(hosts, carried)
    let plan = try hosts.adoption.planAdd(request)
    #expect(plan.isPossible, "\(plan.findings)")
    #expect(plan.work?.bytesToCopy == (isCopied ? UInt64(contents.count) : 0))
    #expect(plan.findings.contains { $0.severity == .info && $0.what.contains("is not trusted") })
    #expect(plan.sentences.contains { $0.contains(isCopied ? "copied, 292.9 KiB; it stays there" : "(moved)") })
    #expect(try everything(hosts, carried) == before)
    try hosts.adoption.add(request) { _ in }
    try checkSeeded(hosts, carried, isCopied: isCopied)
  }
}

/// A crash of this node at any point, and then of the other one too: repeating completes it; nothing of the carried copy is lost.
@Test(arguments: [false, true]) func crashAnywhereOfASeededAdd(_ isCopied: Bool) throws {
  var point = 0
  var isOver = false
  while !isOver {
    try withCarried(isCopied) { hosts, request, carried in
      let work = try #require(try hosts.adoption.planAdd(request).work)
      isOver = try hosts.crash(work, at: point) == nil
      hosts.forgetSeedJobs()
      if !isOver { try hosts.adoption.add(request) { _ in } }
      try checkSeeded(hosts, carried, isCopied: isCopied)
    }
    point += 1
  }
  #expect(point > 10)
}

/// The last step that can be taken back fails, with a crash at any point of taking back: then everything is where it was, the carried
/// copy too, and the next add takes it over.
@Test(arguments: [false, true]) func aSeededAddIsTakenBack(_ isCopied: Bool) throws {
  var point = 0
  var isOver = false
  while !isOver {
    try withCarried(isCopied) { hosts, request, carried in
      let before = try everything(hosts, carried)
      let work = try #require(try hosts.adoption.planAdd(request).work)
      isOver = try !hosts.crashGoingBack(work, at: point)
      hosts.forgetSeedJobs()
      if isOver { #expect(try everything(hosts, carried) == before) }
      try hosts.adoption.add(request) { _ in }
      try checkSeeded(hosts, carried, isCopied: isCopied)
    }
    point += 1
  }
  #expect(point > 8)
}

/// Each call to the other node fails once, before or after it took effect.
@Test(arguments: [false, true], [false, true]) func eachCallOfASeededAddFails(_ isCopied: Bool, _ failsAfter: Bool)
  throws
{
  var call = 0
  var isOver = false
  while !isOver {
    try withCarried(isCopied) { hosts, request, carried in
      let before = try everything(hosts, carried)
      hosts.link.withLock {
        $0.failingCall = call
        $0.failsAfter = failsAfter
      }
      var failure: (any Error)?
      do { try hosts.adoption.add(request) { _ in } } catch { failure = error }
      hosts.link.withLock { $0.failingCall = nil }
      if let error = failure as? AdoptionError, error.code == .undone || error.code == .refused {
        #expect(try everything(hosts, carried) == before, "\(error)")
      }
      if failure != nil { try hosts.adoption.add(request) { _ in } }
      try checkSeeded(hosts, carried, isCopied: isCopied)
      isOver = hosts.link.withLock { $0.calls } <= call || call > 30
    }
    call += 1
  }
  #expect(call > 3 && call <= 31)
}

/// Everything that speaks against a carried copy is said before anything is changed, and again if it comes up later.
@Test func carriedCopiesThatAreRefused() throws {
  try withCarried(false) { hosts, request, carried in
    let file = "\(carried)/disk.img"
    let work = try #require(try hosts.adoption.planAdd(request).work)
    func refusal(_ words: String, _ asked: AdoptionRequest? = nil) throws {
      let before = try everything(hosts, carried)
      let plan = try hosts.adoption.planAdd(asked ?? request)
      #expect(plan.work == nil && plan.errors.contains { $0.what.contains(words) }, "\(words): \(plan.findings)")
      #expect(plan.errors.allSatisfy { $0.whatToDo != nil })
      let error = errorOf { try hosts.adoption.add(asked ?? request) { _ in } }
      #expect(error?.code == .refused)
      if asked == nil {
        // The plan is from before.
        let late = errorOf { try hosts.executor { (_) throws(AdoptionCrash) in }.run(work) }
        #expect(late?.code == .undone, "\(words): \(String(describing: late))")
      }
      #expect(try everything(hosts, carried) == before, "\(words)")
    }
    rename(file, "\(file).away")
    try refusal("there is no")
    symlink("\(file).away", file)
    try refusal("is a symbolic link")
    unlink(file)
    link("\(file).away", file)
    try refusal("has 2 names")
    unlink("\(file).away")
    let open = Glibc.open(file, O_RDONLY)
    try refusal("is open in process \(getpid())")
    close(open)
    truncate(file, 5)
    try refusal("has 5 bytes, the disk here 300000")
    truncate(file, 300_000)
    let elsewhere = AdoptionRequest(name: "vm1", seedDirectory: "\(request.seedDirectory ?? "")/none")
    try refusal("is not a folder", elsewhere)
    try hosts.there.define(
      xml: """
        <domain type="qemu"><name>other</name><uuid>6c616200-0000-4000-8000-000000000002</uuid>
          <os><type arch="x86_64" machine="q35">hvm</type></os><devices><disk type="file" device="disk">
          <source file="\(file)"/><target dev="vda"/></disk></devices></domain>
        """)
    let plan = try hosts.adoption.planAdd(request)
    #expect(plan.errors.contains { $0.what.contains("is used by the VM other") }, "\(plan.findings)")
  }
}

/// A module's own files are no seed, whatever they are called.
@Test func aModulesFilesAreNoSeed() throws {
  try withCarried(false) { hosts, request, _ in
    try hosts.adoption.add(request) { _ in }
    try hosts.here.define(
      xml: """
        <domain type="qemu"><name>vm2</name><uuid>6c616200-0000-4000-8000-000000000003</uuid>
          <os><type arch="x86_64" machine="q35">hvm</type></os><devices><disk type="file" device="disk">
          <source file="\(hosts.images)/two/disk.img"/><target dev="vda"/></disk></devices></domain>
        """)
    try DurableFile.makeFolder("\(hosts.images)/two")
    try DurableFile.write(contents, to: "\(hosts.images)/two/disk.img")
    for folder in [".vmha-vm1", "vm1"] {
      let asked = AdoptionRequest(name: "vm2", seedDirectory: "\(hosts.images)/\(folder)")
      let plan = try hosts.adoption.planAdd(asked)
      #expect(plan.errors.contains { $0.what.contains("belongs to the module vm1") }, "\(plan.findings)")
    }
  }
}

/// A copy that goes on is ended by taking it back; the operator's file stays, and half a copy does not.
@Test func takingBackEndsACopy() throws {
  try withCarried(true) { hosts, _, carried in
    let name = try #require(ModuleName("vm1"))
    let file = "\(carried)/disk.img"
    try DurableFile.write([UInt8](repeating: 3, count: 64 << 20), to: file)
    let status = try #require(try AdoptionFiles.status(file))
    let backing = "\(hosts.peerImages)/.vmha-vm1"
    try DurableFile.makeFolder(backing)
    let move = AdoptionMove(
      from: file, to: "\(backing)/disk.img", bytes: 64 << 20, modified: AdoptionFiles.modified(status))
    let seeding = AdoptionSeeding(
      name: name, backingDirectory: backing, seeds: [AdoptionSeed(move: move, isCopied: true)])
    let jobs = SeedJobs()
    #expect(try jobs.seed(seeding) == 0)
    var other = seeding
    other.seeds[0].move.modified += 1
    #expect(errorOf { _ = try jobs.seed(other) }?.why.contains("another add") == true)
    try jobs.unseed(seeding)
    #expect(try AdoptionFiles.names(in: backing).isEmpty)
    #expect(try AdoptionFiles.names(in: carried) == ["disk.img"])
    // A request must not reach outside of the module's folder.
    for (from, to) in [(file, "\(hosts.peerImages)/x"), (file, "\(backing)/../x"), ("\(backing)/a", "\(backing)/b")] {
      other.seeds[0].move.from = from
      other.seeds[0].move.to = to
      #expect(errorOf { _ = try jobs.seed(other) }?.why.contains("does not belong") == true, "\(from) \(to)")
      #expect(errorOf { try jobs.unseed(other) }?.why.contains("does not belong") == true, "\(from) \(to)")
    }
  }
}
