import ControlAPI
import FoundationEssentials
import HostSystem
import Model

/// Until when a copy was in sync, as a date that survives a power cut: what an operator asks of a copy that waits for its peer. For
/// people only; no decision looks at it.
struct SyncNotes {
  /// A note is written this often while in sync, and once more behind the end: after a power cut it is at most this old.
  static let interval: Duration = .seconds(60)

  private struct Note: Codable { var until: Int64 }
  private struct Watched {
    var seen: WallTime
    var noted: WallTime?
  }
  private let paths: HostPaths
  private var watched: [ModuleName: Watched] = [:]

  init(paths: HostPaths) { self.paths = paths }

  /// Called about once a second. A note that cannot be written leaves the older one: the age shown is too old, never too young.
  mutating func look(at module: ModuleName, inSync: Bool, now: WallTime) throws {
    guard inSync else {
      guard let last = watched.removeValue(forKey: module), last.noted != last.seen else { return }
      return try write(last.seen, module)
    }
    var known = watched[module] ?? Watched(seen: now)
    known.seen = now
    // A clock that was set back is noted again at once.
    let isDue = known.noted.map { now - $0 >= Self.interval || now < $0 } ?? true
    if isDue { known.noted = now }
    watched[module] = known
    if isDue { try write(now, module) }
  }

  /// What is no longer protected is forgotten: a module of the same name later is another one.
  mutating func forget(allBut modules: some Collection<ModuleName>) {
    watched = watched.filter { modules.contains($0.key) }
  }

  private func write(_ time: WallTime, _ module: ModuleName) throws {
    try DurableFile.write([UInt8](JSONEncoder().encode(Note(until: time.milliseconds))), to: paths.syncNote(module))
  }

  static func read(_ paths: HostPaths, _ module: ModuleName) -> WallTime? {
    guard let bytes = try? DurableFile.readIfPresent(paths.syncNote(module)) else { return nil }
    return (try? JSONDecoder().decode(Note.self, from: Data(bytes))).map { WallTime(milliseconds: $0.until) }
  }
}
