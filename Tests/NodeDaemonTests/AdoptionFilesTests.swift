import Glibc
import HostSystem
import Model
import ModuleConfig
import Testing
import VirtualMachines

@testable import NodeDaemon

private func move(_ from: String, _ to: String, isOptional: Bool = false) throws -> AdoptionMove {
  let status = try AdoptionFiles.status(from)
  return AdoptionMove(
    from: from, to: to, bytes: UInt64(status?.st_size ?? 0), modified: status.map(AdoptionFiles.modified) ?? 0,
    isOptional: isOptional)
}

@Test func copyKeepsHolesOwnerModeAndTime() throws {
  try withAdoptionFolder(below: "/tmp") { folder in
    let from = "\(folder)/a.raw"
    let file = open(from, O_RDWR | O_CREAT, 0o640)
    defer { close(file) }
    ftruncate(file, 64 << 20)
    pwrite(file, [UInt8](repeating: 1, count: 5000), 5000, 10 << 20)
    pwrite(file, [UInt8](repeating: 2, count: 5000), 5000, (64 << 20) - 5000)
    fsync(file)
    chown(from, 1234, 2345)
    chmod(from, 0o640)
    let old = [timespec(tv_sec: 1_000_000_000, tv_nsec: 5), timespec(tv_sec: 1_100_000_000, tv_nsec: 7)]
    futimens(file, old)
    let work = try move(from, "\(folder)/b.raw")
    var last: UInt64 = 0
    try AdoptionFiles.copy(work) { bytes in
      #expect(bytes >= last)
      last = bytes
    }
    #expect(last == 64 << 20)
    let copy = try #require(try AdoptionFiles.status(work.to))
    #expect(copy.st_size == 64 << 20 && copy.st_blocks < 200)
    #expect(copy.st_uid == 1234 && copy.st_gid == 2345 && copy.st_mode & 0o7777 == 0o640)
    #expect(AdoptionFiles.modified(copy) == work.modified)
    let same = try ChildProcess.run(["cmp", from, work.to], timeout: .seconds(30))
    #expect(same.status == 0)
    // Once more: nothing to do. Then the source goes, once and again.
    try AdoptionFiles.copy(work) { _ in }
    try AdoptionFiles.discardSource(work)
    try AdoptionFiles.discardSource(work)
    #expect(try AdoptionFiles.status(from) == nil)
    // The only copy left is never taken back.
    #expect(throws: HostError.self) { try AdoptionFiles.uncopy(work) }
    #expect(try AdoptionFiles.status(work.to) != nil)
  }
}

/// The step behind a copy may delete its source, on another disk: a copy that is found done must not be lost with the power any more.
@Test func aCopyThatWasDoneIsMadeDurable() throws {
  try withAdoptionFolder { folder in
    try DurableFile.write([1, 2, 3], to: "\(folder)/a")
    try DurableFile.makeFolder("\(folder)/there")
    let work = try move("\(folder)/a", "\(folder)/there/a")
    HostCalls.setFaultHook { label, path in label == "durable.folder" && path == "\(folder)/there" ? EIO : nil }
    defer { HostCalls.setFaultHook(nil) }
    for _ in 0..<2 {
      #expect(throws: HostError.self) { try AdoptionFiles.copy(work) { _ in } }
      #expect(try AdoptionFiles.status(work.to) != nil)
    }
    HostCalls.setFaultHook(nil)
    try AdoptionFiles.copy(work) { _ in }
  }
}

@Test func copyOfAChangedFileIsRefused() throws {
  try withAdoptionFolder { folder in
    try DurableFile.write([1, 2, 3], to: "\(folder)/a")
    let work = try move("\(folder)/a", "\(folder)/b")
    try DurableFile.write([1, 2, 4, 5], to: "\(folder)/a")
    #expect(throws: HostError.self) { try AdoptionFiles.copy(work) { _ in } }
    #expect(try AdoptionFiles.names(in: folder) == ["a"])
    // Another file in the place of the copy is neither overwritten nor deleted.
    let again = try move("\(folder)/a", "\(folder)/b")
    try DurableFile.write([9, 9, 9, 9], to: "\(folder)/b")
    #expect(throws: HostError.self) { try AdoptionFiles.copy(again) { _ in } }
    #expect(try DurableFile.read("\(folder)/b") == [9, 9, 9, 9])
  }
}

/// A full file system: an error that says so, and no half of a file.
@Test func copyToAFullFileSystem() throws {
  try withAdoptionFolder(below: "/tmp") { folder in
    let small = "\(folder)/small"
    try DurableFile.makeFolder(small)
    try #require(
      try ChildProcess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], timeout: .seconds(10)).status == 0)
    defer { umount2(small, Int32(MNT_DETACH)) }
    try DurableFile.write([UInt8](repeating: 5, count: 3 << 20), to: "\(folder)/a")
    let error = #expect(throws: HostError.self) {
      try AdoptionFiles.copy(try move("\(folder)/a", "\(small)/a")) { _ in }
    }
    #expect(error?.errno == ENOSPC)
    #expect(try AdoptionFiles.names(in: small).isEmpty)
    #expect(try AdoptionSurvey.here.placeFacts(small, mounts: try MountTable.read()) == .mounted)
    let mounts = try MountTable.read()
    #expect(mounts.mount(of: "\(small)/x") != mounts.mount(of: folder))
  }
}

extension AdoptionSurvey {
  fileprivate static var here: AdoptionSurvey {
    AdoptionSurvey(paths: HostPaths(), node: .first, hypervisor: FakeHypervisor())
  }
}

@Test func renameIsRepeatable() throws {
  try withAdoptionFolder { folder in
    try DurableFile.write([1], to: "\(folder)/a")
    for _ in 0..<2 { try AdoptionFiles.rename(from: "\(folder)/a", to: "\(folder)/b", isOptional: false) }
    #expect(try AdoptionFiles.names(in: folder) == ["b"])
    try DurableFile.write([2], to: "\(folder)/a")
    #expect(throws: HostError.self) {
      try AdoptionFiles.rename(from: "\(folder)/a", to: "\(folder)/b", isOptional: false)
    }
    #expect(try DurableFile.read("\(folder)/b") == [1])
    #expect(throws: HostError.self) {
      try AdoptionFiles.rename(from: "\(folder)/x", to: "\(folder)/y", isOptional: false)
    }
    try AdoptionFiles.rename(from: "\(folder)/x", to: "\(folder)/y", isOptional: true)
  }
}

@Test func placesAreSeen() throws {
  try withAdoptionFolder { folder in
    let survey = AdoptionSurvey.here
    let mounts = try MountTable.read()
    #expect(try survey.placeFacts("\(folder)/x", mounts: mounts) == .absent)
    try DurableFile.makeFolder("\(folder)/x")
    #expect(try survey.placeFacts("\(folder)/x", mounts: mounts) == .emptyFolder)
    try DurableFile.write([], to: "\(folder)/x/y")
    #expect(try survey.placeFacts("\(folder)/x", mounts: mounts) == .occupied)
    #expect(try survey.placeFacts("\(folder)/x/y", mounts: mounts) == .occupied)
    #expect(try survey.placeFacts("/proc", mounts: mounts) == .mounted)
  }
}

@Test func mountTableIsRead() {
  let table = MountTable(
    text: """
      22 1 8:1 / / rw - ext4 /dev/sda1 rw
      30 22 0:50 / /srv/my\\040disks rw shared:5 - ext4 /dev/sdb rw
      31 22 0:51 / /srv rw,noatime master:1 - xfs /dev/sdc rw
      nonsense
      """)
  #expect(table.entries.map(\.id) == [22, 30, 31])
  #expect(table.mount(of: "/etc") == 22)
  #expect(table.mount(of: "/srv/my disks/a") == 30)
  #expect(table.mount(of: "/srv/my") == 31)
  #expect(table.mount(of: "/srvx") == 22)
  #expect(table.isMounted(at: "/srv") && !table.isMounted(at: "/srv/my"))
}

@Test func openFilesAreFound() throws {
  try withAdoptionFolder { folder in
    let path = "\(folder)/a"
    try DurableFile.write([1], to: path)
    #expect(try OpenFiles.users(of: [path]).isEmpty)
    let file = open(path, O_RDONLY)
    defer { close(file) }
    let users = try OpenFiles.users(of: [path, "\(folder)/b"])
    #expect(users.count == 1)
    #expect(users[path]?.first?.hasPrefix("process \(getpid()) (") == true)
  }
}

/// What a wrong or confused request must never do to the other node.
@Test func peerRefusesWhatIsNotItsModule() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    let handler = AdoptionPeerHandler(paths: hosts.paths, node: .first, hypervisor: hosts.here, seeds: SeedJobs()) {
      _ in
    } willWithdraw: { _ in
    } record: { _ in
      .absent
    }
    let name = try #require(ModuleName("vm1"))
    let precious = "\(hosts.images)/precious"
    try DurableFile.makeFolder(precious)
    try DurableFile.write([1], to: "\(precious)/file")
    func withdraw(_ backing: String, _ mount: String) -> AdoptionPeerReply {
      handler.handle(
        .withdraw(
          .init(name: name, uuid: "u", backingDirectory: backing, mountPoint: mount, copy: .purge)))
    }
    for (backing, mount) in [
      (precious, "\(hosts.images)/vm1"), (precious, precious), ("\(hosts.images)/.vmha-vm2", "\(hosts.images)/vm1"),
    ] {
      guard case .failed = withdraw(backing, mount) else {
        Issue.record("accepted \(backing)")
        continue
      }
    }
    // Never installed here: a folder and a VM of these names are somebody else's.
    let backing = "\(hosts.images)/.vmha-vm1"
    try DurableFile.makeFolder(backing)
    try DurableFile.write([1], to: "\(backing)/file")
    #expect(withdraw(backing, "\(hosts.images)/vm1") == .withdrawn(keptCopy: backing))
    #expect(try DurableFile.read("\(backing)/file") == [1])
    #expect(try DurableFile.read("\(precious)/file") == [1])
  }
}

@Test func peerRefusesConflictingInstalls() throws {
  try withAdoptionFolder { folder in
    let hosts = try TwoHosts(folder: folder)
    let handler = AdoptionPeerHandler(paths: hosts.paths, node: .first, hypervisor: hosts.here, seeds: SeedJobs()) {
      _ in
    } willWithdraw: { _ in
    } record: { _ in
      .absent
    }
    func files(_ text: String, _ number: Int, _ uuid: String) throws -> AdoptionModuleFiles {
      let name = try #require(ModuleName(text))
      return AdoptionModuleFiles(
        module: ModuleConfiguration(
          name: name, number: try #require(ModuleNumber(rawValue: number)), uuid: uuid,
          backingDirectory: "\(hosts.images)/.vmha-\(text)", mountPoint: "\(hosts.images)/\(text)",
          preferredNode: .first,
          disks: [.init(target: "vda", file: "a", originalPath: "/srv/\(text)", format: "raw")]),
        domainXML: "<domain><name>\(text)</name><uuid>\(uuid)</uuid><devices/></domain>",
        record: AdoptionRecord(originalXML: "", wasAutostarted: false, rebases: [], optionalFiles: []))
    }
    let u1 = "6c616200-0000-4000-8000-000000000001"
    let u2 = "6c616200-0000-4000-8000-000000000002"
    for _ in 0..<2 { #expect(handler.handle(.install(try files("vm1", 1, u1))) == .done) }
    let before = try hosts.snapshot()
    func refused(_ files: AdoptionModuleFiles, _ says: String) throws {
      guard case .failed(let error) = handler.handle(.install(files)) else {
        Issue.record("accepted: \(says)")
        return
      }
      #expect(error.description.contains(says), "\(error)")
      #expect(try hosts.snapshot() == before)
    }
    try refused(try files("vm2", 1, u2), "number 1 belongs to vm1")
    try refused(try files("vm1", 1, u2), "another VM named vm1")
    try refused(try files("vm2", 2, u1), "VM vm1 has the same UUID")
    hosts.here.change { $0.domains["vm1"]?.state = .running }
    try refused(try files("vm1", 1, u1), "vm1 runs there")
    hosts.here.change { $0.domains["vm1"]?.state = .shutOff }
    try DurableFile.write([], to: "\(hosts.images)/vm3")
    let occupied = try files("vm3", 3, u2)
    guard case .failed(let error) = handler.handle(.install(occupied)) else {
      Issue.record("accepted an occupied place")
      return
    }
    #expect(error.description.contains("there is something in"))
  }
}
