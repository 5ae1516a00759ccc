import Glibc
import HostSystem
import Model
import Synchronization
import Testing

@testable import NodeDaemon

/// R12: a branch is archived as a whole or not at all, and comes out as it was. Needs root (owners, trusted attributes).
@Suite(.serialized) struct BranchArchiveTests {
  private final class Place {
    let folder = "/tmp/vmha-branch-\(getpid())-\(randomUInt64() % 1_000_000)"
    let archive: BranchArchive
    var backing: String { "\(folder)/.vmha-vm" }

    init() throws {
      guard let module = ModuleName("vm") else { preconditionFailure("'vm' is a name") }
      archive = BranchArchive(module: module, backingDirectory: "\(folder)/.vmha-vm")
      try shell(
        """
        mkdir -p $1/deep/er; cd $1; chmod 750 .; head -c 3000000 /dev/urandom > disk.img; truncate -s 40M sparse.img
        printf x | dd of=sparse.img bs=1 seek=30000000 conv=notrunc status=none; ln disk.img deep/twin; ln -s nowhere link
        mkfifo pipe; chown 7:8 deep; chmod 4751 deep/er; setfattr -n user.a -v 1 disk.img; touch -d 2001-02-03 deep/er
        setfattr -n trusted.vmha.file -v 0x000102030405060708090a0b0c0d0e0f disk.img; setfattr -n trusted.other -v 2 link -h
        """, backing)
    }
    deinit { _ = try? ChildProcess.run(["rm", "-rf", "--one-file-system", folder], timeout: .seconds(60)) }

    func record(_ branch: UInt64) -> BranchRecord {
      BranchRecord(
        module: archive.module, node: "node2", generation: Generation(number: 5, branch: BranchID(rawValue: branch)),
        kept: Generation(number: 5, branch: BranchID(rawValue: 99)), archivedAt: 1, bytes: 0, files: 0)
    }

    /// Everything a tree can say of itself, one line each; without the times of folders, which hold the names alone.
    func account(_ path: String, identities: Bool) throws -> String {
      try shell(
        """
        cd $1; find . -printf '%P %y %m %U %G %n %s %T@ %l\\n' | sort; find . -type f -exec sha256sum {} + | sort -k2
        getfattr -R -h -d -m - . 2>/dev/null | grep -v -e '^$' \(identities ? "" : "-e trusted.vmha.file")
        """, path)
    }

    var names: [String] { (try? folderNames(archive.directory, operation: "test").sorted()) ?? [] }
  }

  @Test func aBranchComesOutAsItWas() throws {
    let place = try Place()
    let before = try place.account(place.backing, identities: true)
    let visible = try place.account(place.backing, identities: false)
    let made = try place.archive.archive(place.record(5))
    #expect(made.files == 2 && made.bytes > 3_000_000 && made.bytes < 5_000_000)
    #expect(try place.account(place.backing, identities: true) == before, "the copy itself is not touched")
    // The resync overwrites the copy, block for block and file for file.
    try shell(
      "cd $1; head -c 3000000 /dev/zero | dd of=disk.img conv=notrunc status=none; rm -r deep link", place.backing)
    #expect(try place.account(place.archive.files(BranchID(rawValue: 5)), identities: true) == before)
    #expect(try place.archive.list() == [made])
    let out = "\(place.folder)/out"
    try place.archive.export(BranchID(rawValue: 5), to: out)
    #expect(try place.account(out, identities: false) == visible)
    #expect(try !place.account(out, identities: true).contains("trusted.vmha"), "its files are nobody's on this host")
    #expect(try shell("du -k $1/sparse.img | cut -f1", out) == "4\n", "holes stay holes")
    #expect(throws: HostError.self) { try place.archive.export(BranchID(rawValue: 5), to: out) }
    #expect(throws: HostError.self) { try place.archive.export(BranchID(rawValue: 6), to: "\(out)2") }
    try place.archive.drop(BranchID(rawValue: 5))
    #expect(place.names == [])
    #expect(throws: HostError.self) { try place.archive.drop(BranchID(rawValue: 5)) }
  }

  /// Every labelled call fails once: the branch is there as a whole or not at all, and the next try is as good as the first.
  @Test func aFailureAnywhereLeavesAWholeBranchOrNone() throws {
    let place = try Place()
    let before = try place.account(place.backing, identities: true)
    defer { HostCalls.setFaultHook(nil) }
    var failing = 0
    var failures = 0
    while true {
      let count = Mutex(0)
      let victim = failing
      HostCalls.setFaultHook { label, path in
        guard path.contains("/vmha-branch-"), label != "branch.stat" else { return nil }
        return count.withLock { count in
          count += 1
          return count - 1 == victim ? ENOSPC : nil
        }
      }
      defer { HostCalls.setFaultHook(nil) }
      do {
        _ = try place.archive.archive(place.record(UInt64(100 + failing)))
        HostCalls.setFaultHook(nil)
        if count.withLock({ $0 }) <= failing { break }
      } catch { failures += 1 }
      HostCalls.setFaultHook(nil)
      for branch in try place.archive.list().map(\.generation.branch) {
        #expect(try place.account(place.archive.files(branch), identities: true) == before, "call \(failing)")
        try place.archive.drop(branch)
      }
      #expect(place.names == [], "call \(failing) leaves something behind")
      failing += 1
    }
    #expect(failures >= 8, "only \(failures) calls could fail")
  }

  /// vmhad was killed: what it left is garbage and in nobody's way.
  @Test func leftoversAreRemoved() throws {
    let place = try Place()
    let left = "\(place.archive.directory)/.unfinished-0000000000000005-7"
    try shell("mkdir -p $1/files/sub; touch $1/files/x", left)
    #expect(try place.archive.list() == [])
    #expect(throws: HostError.self) { try place.archive.export(BranchID(rawValue: 5), to: "\(place.folder)/out") }
    _ = try place.archive.archive(place.record(5))
    #expect(place.names == ["0000000000000005"])
    // The record did not follow before a crash: the branch goes on, and is archived anew with what it has by then.
    try shell("echo more > $1/more", place.backing)
    let again = try place.archive.archive(place.record(5))
    #expect(again.files == 3)
    #expect(place.names == ["0000000000000005"])
    #expect(access("\(place.archive.files(BranchID(rawValue: 5)))/more", F_OK) == 0)
  }

  /// Somebody writes to the copy meanwhile: refused, not archived torn.
  @Test func aChangeMeanwhileIsRefused() throws {
    let place = try Place()
    defer { HostCalls.setFaultHook(nil) }
    let backing = place.backing
    HostCalls.setFaultHook { label, path in
      guard label == "branch.copy", path.contains("/vmha-branch-") else { return nil }
      let file = open("\(backing)/disk.img", O_WRONLY)
      pwrite(file, "new", 3, 1000)
      close(file)
      return nil
    }
    #expect(throws: HostError.self) { try place.archive.archive(place.record(5)) }
    HostCalls.setFaultHook(nil)
    #expect(place.names == [])
  }

  @Test func tooLittleRoomIsSaidBefore() throws {
    let place = try Place()
    // More than any disk has; a file system with reflinks needs none.
    let branch = BranchID(rawValue: 5)
    let sharing = try place.archive.bytesNeeded(1) == 0
    if sharing {
      try place.archive.checkRoom(for: branch, 1 << 50)
    } else {
      #expect(throws: HostError.self) { try place.archive.checkRoom(for: branch, 1 << 50) }
    }
    try place.archive.checkRoom(for: branch, 1)
  }
}

@discardableResult
private func shell(_ script: String, _ path: String) throws -> String {
  let result = try ChildProcess.run(["bash", "-c", "set -euo pipefail\n" + script, "sh", path], timeout: .seconds(60))
  struct Failed: Error { let text: String }
  guard result.status == 0 else { throw Failed(text: "\(result.errorText)\n\(script)") }
  return result.outputText
}
