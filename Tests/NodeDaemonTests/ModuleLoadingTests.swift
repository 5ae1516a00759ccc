import ControlAPI
import Glibc
import HostSystem
import MirrorModule
import Model
import Synchronization
import Testing

@testable import NodeDaemon

/// What a node believes of its state files when it begins (R0): absent, not readable now, or damaged are three different things.
@Suite(.serialized) struct ModuleLoadingTests {
  private static let record = DurableRecord(
    generation: Generation(number: 7, branch: BranchID(rawValue: 0xfeed_beef_0123_4567)), standing: .uptodate)
  private static let wish = Wish(started: true, version: 12)

  private struct Place {
    let store: ModuleStore
    let folder: String
    /// Every file of the module with its contents.
    func contents() throws -> [String: [UInt8]] {
      var all: [String: [UInt8]] = [:]
      for name in try folderNames(folder, operation: "test") { all[name] = try DurableFile.read("\(folder)/\(name)") }
      return all
    }
    func damage(_ name: String) throws { try DurableFile.write(Array("damaged".utf8), to: "\(folder)/\(name)") }
    func aside() throws -> [String] {
      try folderNames(folder, operation: "test").filter { $0.contains(".damaged-") }.sorted()
    }
  }

  /// With record, wish and limits on disk; a folder of its own for each test, removed afterwards.
  private func withModule(_ body: (Place) throws -> Void) throws {
    try withAdoptionFolder { root in
      defer { HostCalls.setFaultHook(nil) }
      for folder in ["/var", "/var/lib", "/var/lib/vmha"] { try DurableFile.makeFolder(root + folder) }
      let name = try #require(ModuleName("vm1"))
      let paths = HostPaths(root: root)
      let store = ModuleStore(paths: paths, module: name)
      var older = Self.record
      older.standing = .outdated
      try store.write(older)
      try store.write(Self.record)
      try store.write(Self.wish)
      var limits = ModuleLimits()
      limits.stopped = "it keeps dying"
      try store.write(StoredLimits(limits, at: monotonicNow(), wall: WallTime.now()))
      try body(Place(store: store, folder: paths.moduleState(name)))
    }
  }

  private final class Calls: Sendable {
    private let count = Mutex(0)
    var made: Int { count.withLock { $0 } }
    func next() -> Int {
      count.withLock {
        $0 += 1
        return $0
      }
    }
  }

  /// The n-th labelled call below the folder fails.
  private func failing(_ place: Place, call: Int, with error: Int32) -> Calls {
    let calls = Calls()
    let folder = place.folder
    HostCalls.setFaultHook { _, path in path.hasPrefix(folder) && calls.next() == call ? error : nil }
    return calls
  }

  /// Whatever the host refuses while the files are read, they are not taken for absent or damaged, and stay as they are.
  @Test(arguments: [EIO, EMFILE, ENOMEM, EACCES]) func aHostThatDoesNotLetThemBeReadChangesNothing(error: Int32) throws
  {
    try withModule { place in
      let before = try place.contents()
      var call = 0
      var failures = 0
      while call < 200 {
        call += 1
        let calls = failing(place, call: call, with: error)
        let result = Result { try place.store.load(hasGuest: false) }
        HostCalls.setFaultHook(nil)
        switch result {
        case .success(let loaded):
          #expect(loaded.record == Self.record && loaded.wish == Self.wish, "call \(call)")
        case .failure(let refused as HostError):
          failures += 1
          #expect(refused.errno == error && refused.path.hasPrefix(place.folder), "call \(call)")
          #expect(try place.contents() == before, "call \(call) changed something")
        case .failure(let other): Issue.record("call \(call): \(other)")
        }
        if calls.made < call { break }
      }
      #expect(failures > 0 && call < 200)
      #expect(try place.aside() == [])
      let loaded = try place.store.load(hasGuest: false)
      #expect(loaded.record == Self.record && loaded.wish == Self.wish && loaded.limits.stopped != nil)
    }
  }

  /// One bad sector is what there are two copies for; both are good again afterwards.
  @Test(arguments: [".a", ".b"]) func oneCopyOnABadSectorIsMendedFromTheOther(copy: String) throws {
    try withModule { place in
      let bad = "\(place.folder)/record\(copy)"
      HostCalls.setFaultHook { label, path in label == "file.read" && path == bad ? EIO : nil }
      let mended = try place.store.load(hasGuest: false)
      HostCalls.setFaultHook(nil)
      #expect(mended.record == Self.record)
      #expect(try place.store.isRecordWhole())
      #expect(try place.store.load(hasGuest: false).record == Self.record)
    }
  }

  /// A power cut between the two writes of a record: from the first load on both copies say what was believed.
  @Test func whatIsBelievedIsInBothCopies() throws {
    try withModule { place in
      var next = Self.record
      next.standing = .outdated
      let folder = place.folder
      let renames = Calls()
      HostCalls.setFaultHook { label, path in
        label == "durable.rename" && path.hasPrefix("\(folder)/record") && renames.next() == 2 ? EIO : nil
      }
      #expect(throws: HostError.self) { try place.store.write(next) }
      HostCalls.setFaultHook(nil)
      #expect(try !place.store.isRecordWhole())
      #expect(try place.store.load(hasGuest: false).record == next)
      for copy in [".a", ".b"] {
        let good = try place.contents()
        try place.damage("record\(copy)")
        #expect(try place.store.load(hasGuest: false).record == next)
        for (name, bytes) in good { try DurableFile.write(bytes, to: "\(folder)/\(name)") }
      }
    }
  }

  /// vmhad ends between the rename of a record and the sync of its folder: a power cut may still bring the older one back, so it is not
  /// known before the next vmhad has made it durable.
  @Test func aRecordThatIsNotDurableIsNotKnown() throws {
    try withModule { place in
      var next = Self.record
      next.standing = .outdated
      let folder = place.folder
      HostCalls.setFaultHook { label, path in label == "durable.folder" && path == folder ? EIO : nil }
      #expect(throws: HostError.self) { try place.store.write(next) }
      let refused = #expect(throws: HostError.self) { try place.store.load(hasGuest: false) }
      #expect(refused?.errno == EIO)
      HostCalls.setFaultHook(nil)
      let loaded = try place.store.load(hasGuest: false)
      #expect(loaded.record == next)
      #expect(try place.store.isRecordWhole())
    }
  }

  /// Damaged: lost, loudly, and still there to be looked at; at most so many.
  @Test func aDamagedRecordIsSetAsideAndCountsAsLost() throws {
    try withModule { place in
      for _ in 0..<DurableFile.keptAsideMax + 2 {
        for copy in [".a", ".b"] { try place.damage("record\(copy)") }
        let loaded = try place.store.load(hasGuest: true)
        #expect(loaded.record == nil && loaded.wish == Self.wish)
        #expect(loaded.notes.count == 1 && loaded.notes[0].sentence.contains("durable record"))
        guard case .absent = try place.store.readRecord() else { return #expect(Bool(false), "it is still there") }
        usleep(2000)  // Stamps are milliseconds.
      }
      // Whoever dies before the core has written what that means finds no record, which means the same.
      #expect(try place.store.load(hasGuest: true).record == nil)
      try place.store.write(.lost)
      #expect(try place.store.load(hasGuest: true).record == .lost)
      let aside = try place.aside()
      #expect(aside.count == 2 * DurableFile.keptAsideMax, "\(aside)")
      #expect(try DurableFile.read("\(place.folder)/\(aside[0])") == Array("damaged".utf8))
      try place.store.removeAll()
      #expect(try place.aside() == [])
    }
  }

  /// A crash or an error at any call of setting aside: never believed, never lost, and the next load ends it.
  @Test func settingAsideThatIsCutShortIsRepeated() throws {
    for call in 1...40 {
      try withModule { place in
        for copy in [".a", ".b"] { try place.damage("record\(copy)") }
        try place.damage("wish.json")
        let calls = failing(place, call: call, with: EROFS)
        _ = try? place.store.load(hasGuest: true)
        HostCalls.setFaultHook(nil)
        let loaded = try place.store.load(hasGuest: true)
        #expect(loaded.record == nil, "call \(call)")
        let names = try place.aside()
        for file in ["record.a", "record.b", "wish.json"] {
          #expect(names.contains { $0.hasPrefix(file) }, "call \(call): \(file) is nowhere")
        }
        if calls.made < call { return }
      }
    }
  }

  /// A guest that runs was wanted; without one the other node's wish or the operator decides.
  @Test(arguments: [true, false]) func aDamagedWishDoesNotStopAGuest(hasGuest: Bool) throws {
    try withModule { place in
      try place.damage("wish.json")
      let loaded = try place.store.load(hasGuest: hasGuest)
      #expect(loaded.wish == Wish(started: hasGuest, version: 0) && loaded.record == Self.record)
      #expect(loaded.notes.count == 1)
      // It is on disk, whatever the guest does next.
      #expect(try place.store.load(hasGuest: !hasGuest).wish == loaded.wish)
      // The same after a power cut just behind the rename.
      try DurableFile.remove(place.store.wishFile)
      #expect(try place.store.load(hasGuest: hasGuest).wish.started == hasGuest)
    }
  }

  /// Of a later version: refused, and not written over.
  @Test func aRecordOfALaterVersionIsRefused() throws {
    try withModule { place in
      let path = "\(place.folder)/record.b"
      var bytes = try DurableFile.read(path)
      bytes[8] = 2
      let covered = Array(bytes[..<24]) + Array(bytes[28...])
      withUnsafeBytes(of: Checksum.crc32c(covered).littleEndian) { bytes.replaceSubrange(24..<28, with: $0) }
      try DurableFile.write(bytes, to: path)
      let before = try place.contents()
      let refused = #expect(throws: HostError.self) { try place.store.load(hasGuest: false) }
      #expect(refused?.description.contains("version 2") == true)
      #expect(throws: HostError.self) { try place.store.write(Self.record) }
      #expect(try place.contents() == before)
    }
  }
}

/// QEMU's word for a full disk becomes what to do; any other one is told as it is.
@Test func aGuestWithoutRoomSaysHowItGoesOn() throws {
  let name = try #require(ModuleName("vm1"))
  let full = GuestKeeper.pauseText(name, path: "/srv/vm1/disk.raw", reason: "enospc")
  #expect(full.contains("/srv/vm1/disk.raw") && full.contains("virsh resume vm1"))
  let broken = GuestKeeper.pauseText(name, path: "/srv/vm1/disk.raw", reason: "eio")
  #expect(broken.contains("eio") && !broken.contains("virsh resume"))
}
