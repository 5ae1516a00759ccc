import ControlAPI
import FoundationEssentials
import Glibc
import HostSystem
import MirrorModule
import Model

/// A state file as it was found, durably. A file that the host did not let be read is none of these: its contents are not known (R0).
enum Stored<Value: Decodable> {
  case valid(Value)
  case absent
  /// Read, and not what was ever written.
  case damaged(String)

  static func decoding(_ bytes: [UInt8], from path: String) -> Stored {
    do { return .valid(try JSONDecoder().decode(Value.self, from: Data(bytes))) } catch {
      return .damaged("\(path): it is not understood")
    }
  }

  static func reading(_ path: String) throws -> Stored {
    do {
      guard let bytes = try DurableFile.readDurable(path) else { return .absent }
      return decoding(bytes, from: path)
    } catch let error as HostError where error.code == .limit {
      return .damaged("\(error)")
    }
  }
}

extension Stored: Sendable where Value: Sendable {}

/// What a module's core begins with.
struct LoadedModule {
  /// nil = there is none that can be used (R0).
  var record: DurableRecord?
  var wish: Wish
  var limits: ModuleLimits
  /// What was lost, and where it is now.
  var notes: [Reason] = []
}

extension ModuleStore {
  /// For names of files that are set aside: sorts by age, without characters that shells mind.
  static func stamp() -> String { "\(WallTime.now())".filter { $0 != ":" } }

  /// R0: a wish or counts that are absent are new, a record that is absent is lost: `vmha add` wrote one before the module was served.
  /// What is damaged is set aside, and counts as lost: a crash before the core has written what that means finds it absent. What the
  /// host does not let be read is not known: throws `HostError`, and nothing was written over it.
  /// `hasGuest`: a guest is there at this moment, or may be.
  func load(hasGuest: Bool) throws -> LoadedModule {
    var loaded = LoadedModule(wish: Wish(started: false, version: 0), limits: ModuleLimits())
    // Read all before anything is set aside.
    let (record, wish) = (try readRecord(), try readWish())
    loaded.limits = try loadLimits(&loaded.notes)
    switch record {
    case .valid(let valid):
      loaded.record = valid
      try mendRecord(valid, &loaded.notes)
    case .absent: break
    case .damaged(let why):
      try setRecordAside(stamp: Self.stamp())
      loaded.notes.append(Self.setAsideNote("the durable record", why, "this copy counts as not up to date"))
    }
    switch wish {
    case .valid(let valid): loaded.wish = valid
    case .absent:
      // A power cut just after it was set aside; a module without a record has no guest.
      loaded.wish.started = hasGuest && loaded.record != nil
    case .damaged(let why):
      // A guest that runs was wanted. The other node's wish is newer than this one, and is followed when both meet.
      loaded.wish.started = hasGuest
      try DurableFile.setAside(wishFile, stamp: Self.stamp())
      try write(loaded.wish)
      let meaning = hasGuest ? "started, as the guest is" : "stopped, until the other node tells or 'vmha start'"
      loaded.notes.append(Self.setAsideNote("the operator's wish", why, "it counts as \(meaning)"))
    }
    return loaded
  }

  /// Both copies say the same before anybody acts on one of them: else the loss of the newer one would bring the older one back.
  private func mendRecord(_ record: DurableRecord, _ notes: inout [Reason]) throws {
    guard try !isRecordWhole() else { return }
    do { try write(record) } catch {
      // The valid copy is all the same what it is.
      notes.append(Reason("one copy of the durable record is bad and cannot be written anew: \(error)", rule: "R0"))
    }
  }

  /// Worth less than the module's running: a file that stays unreadable costs the counts, and nothing is set aside for it.
  private func loadLimits(_ notes: inout [Reason]) throws -> ModuleLimits {
    do {
      switch try readLimits() {
      case .valid(let stored): return stored.limits(at: monotonicNow(), wall: WallTime.now())
      case .absent: break
      case .damaged(let why):
        try DurableFile.setAside(limitsFile, stamp: Self.stamp())
        notes.append(Self.setAsideNote("what was counted of restarts and takeovers", why, "counting begins anew"))
      }
    } catch let error as HostError where error.errno == EIO {
      notes.append(Reason("what was counted of restarts and takeovers cannot be read, it begins anew: \(error)"))
    }
    return ModuleLimits()
  }

  private static func setAsideNote(_ what: String, _ why: String, _ meaning: String) -> Reason {
    Reason("\(what) is damaged (\(why)) and set aside beside its place as *.damaged-*; \(meaning)", rule: "R0")
  }
}
