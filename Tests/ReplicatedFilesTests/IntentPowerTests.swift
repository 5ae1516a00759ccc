import Glibc
import HostSystem
import Model
import Replication
import Synchronization
import Testing

@testable import ReplicatedFiles

/// R3, over the end of a process and a power cut after it: what the next process reads is durable only when that one has made it so.
/// The map is on a disk of its own, which loses what was not synced.
@Suite(.serialized, .timeLimit(.minutes(2)))
struct IntentPowerTests {
  private static let file = FileID(rawValue: 7)
  private static let zone = 5 << 20..<(5 << 20) + 100 as Range<UInt64>

  private final class Disk {
    let folder: String
    private let image: String
    private let device: String
    var map: String { "\(folder)/intents" }

    init() throws {
      folder = "/dev/shm/vmha-intents-\(getpid())-\(randomUInt64())"
      image = "\(folder).img"
      mkdir(folder, 0o755)
      let made = try shell(
        """
        truncate -s 32M $1; device=$(losetup --find --show $1); echo $device
        { mkfs.ext4 -q -b 4096 $device && mount $device $2; } || { losetup -d $device; rm -rf $1 $2; false; }
        """, [image, folder])
      device = made.split(separator: "\n").first.map(String.init) ?? ""
    }

    func cutPower() throws {
      try losePower(folder)
      try shell("for i in $(seq 100); do umount $1 && break; sleep 0.05; done; mount $2 $1", [folder, device])
    }

    func end() {
      HostCalls.setFaultHook(nil)
      umount2(folder, 2)
      _ = try? shell("losetup -d $1 || true; rm -rf --one-file-system $2 $3", [device, image, folder])
    }
  }

  /// The call fails and none is made after it, as if the process had been killed before it: nothing of the page cache is lost.
  private func ending(_ disk: Disk, at label: String, _ work: () throws -> Void) {
    let isOver = Mutex(false)
    let folder = disk.folder
    HostCalls.setFaultHook { met, path in
      guard path.hasPrefix(folder) else { return nil }
      return isOver.withLock { isOver in
        isOver = isOver || met == label
        return isOver ? EIO : nil
      }
    }
    defer { HostCalls.setFaultHook(nil) }
    #expect(throws: (any Error).self) { try work() }
    #expect(isOver.withLock { $0 }, "\(label) was not met")
  }

  /// As the mirror does it; false = the write was refused, and has changed nothing.
  private func write(_ intents: Intents, _ object: Int32) -> Bool {
    for _ in 0..<3 {
      switch intents.covers(Self.file, Self.zone, object: { object }) {
      case .durable: return true
      case .failed: return false
      case .pending: if intents.store({ _ in }) != .all { return false }
      }
    }
    return false
  }

  private struct Refused: Error {}

  private func withMap(_ body: (Disk, Int32, FileIdentity) throws -> Void) throws {
    let disk = try Disk()
    defer { disk.end() }
    // Somewhere else: a file that is open keeps the disk mounted.
    let path = "/tmp/vmha-intents-\(getpid())-\(randomUInt64())"
    let object = open(path, O_RDWR | O_CREAT, 0o600)
    defer {
      close(object)
      unlink(path)
    }
    let identity = try #require(try FileIdentities.give(object))
    try process(disk) { try $0.clear() }
    try body(disk, object, identity)
  }

  /// One life of an engine: nothing of it is left behind, but for what it wrote.
  private func process(_ disk: Disk, _ body: (Intents) throws -> Void) throws { try body(try Intents(path: disk.map)) }

  private func isMarked(_ identity: FileIdentity, in disk: Disk) throws -> Bool {
    switch try Intents(path: disk.map).content(of: identity) {
    case .whole: true
    case .zones(let zones): ZoneSet(zones).contains(5)
    case .fresh: false
    }
  }

  /// Killed between the write of a mark and its sync, or anywhere in the checkpoint that holds it.
  @Test(arguments: ["intents.sync", "intents.rename", "intents.folder"])
  func aMarkOfADeadProcessIsMadeDurableBeforeAWriteReliesOnIt(label: String) throws {
    try withMap { disk, object, identity in
      try process(disk) { first in
        if label == "intents.sync" { try first.prepare() }
        ending(disk, at: label) { guard write(first, object) else { throw Refused() } }
      }
      try process(disk) { #expect(write($0, object)) }
      try disk.cutPower()
      #expect(try isMarked(identity, in: disk), "a zone was written to, and its mark is lost")
    }
  }

  /// The next process cannot make it durable either: then nothing goes on, however often it reads the mark.
  @Test(arguments: ["intents.create", "intents.fill", "intents.flush", "intents.rename", "intents.folder"])
  func aMarkThatCannotBeMadeDurableIsNone(label: String) throws {
    try withMap { disk, object, identity in
      try process(disk) { first in
        try first.prepare()
        ending(disk, at: "intents.sync") { guard write(first, object) else { throw Refused() } }
      }
      try process(disk) { second in
        ending(disk, at: label) { try second.prepare() }
        let folder = disk.folder
        HostCalls.setFaultHook { met, path in met == label && path.hasPrefix(folder) ? EIO : nil }
        #expect(!write(second, object), "a write relies on a mark that nobody has made durable")
        HostCalls.setFaultHook(nil)
        // The disk is well again: the same process goes on.
        #expect(write(second, object))
      }
      try disk.cutPower()
      #expect(try isMarked(identity, in: disk))
    }
  }

  /// The target's marks, before files get the source's identities: its engine has no mount that would prepare the map.
  @Test func theMarkOfAWholeFileIsMadeDurableToo() throws {
    try withMap { disk, _, identity in
      try process(disk) { first in
        try first.prepare()
        ending(disk, at: "intents.sync") { try first.markWhole([identity]) }
      }
      try process(disk) { try $0.markWhole([identity]) }
      try disk.cutPower()
      #expect(try isMarked(identity, in: disk), "the file was changed, and its mark is lost")
    }
  }
}
