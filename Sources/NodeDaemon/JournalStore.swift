import ControlAPI
import Foundation
import GRDB

/// The journal's SQLite file. Opened and written by the journal's thread, read from any.
struct JournalStore: Sendable {
  /// Damaged files kept beside the journal.
  static let damagedFileCountMax = 3
  /// Rows are removed after this many more were written.
  static let pruneEveryRows: Int64 = 1000
  private static let schemaVersion = 1
  /// Ids begin anew above the next multiple of this each time the file is opened: rows that a power cut took may be known by
  /// their ids elsewhere (the peer's copy, a client's cursor).
  static let idsPerOpening: Int64 = 1_000_000

  struct Opened {
    var store: JournalStore
    var lastID: Int64
    /// What was found wrong and put aside.
    var damage: String?
  }

  private let pool: DatabasePool

  /// Opens the file, or makes it. One that is damaged, or was written by a newer vmha, is renamed and a new one begun.
  static func open(_ path: String) throws -> Opened {
    do {
      return try openAsIs(path)
    } catch {
      guard isDamage(error) || error is NewerSchema else { throw error }
      let aside = try putAside(path)
      var opened = try openAsIs(path)
      // Cursors of the old file are out there: ids must not start anew below them.
      opened.lastID = Int64(Date().timeIntervalSince1970 * 1000)
      opened.damage = "the journal \(path) was damaged (\(error)); it was put aside as \(aside), and a new one begun"
      return opened
    }
  }

  /// True for errors that say the file itself is no good.
  static func isDamage(_ error: any Error) -> Bool {
    guard let error = error as? DatabaseError else { return false }
    return error.resultCode == .SQLITE_CORRUPT || error.resultCode == .SQLITE_NOTADB
  }

  private struct NewerSchema: Error, CustomStringConvertible {
    var version: Int
    var description: String { "it was written by a newer vmha, format \(version)" }
  }

  private static func openAsIs(_ path: String) throws -> Opened {
    var configuration = Configuration()
    configuration.label = "journal"
    configuration.maximumReaderCount = 3
    // Somebody may look at it with sqlite3.
    configuration.busyMode = .timeout(2)
    // What is told of a crash must have survived it.
    configuration.prepareDatabase { try $0.execute(sql: "PRAGMA synchronous = FULL") }
    let pool = try DatabasePool(path: path, configuration: configuration)
    let lastID = try pool.write { database in
      let verdict = try String.fetchOne(database, sql: "PRAGMA quick_check(1)")
      guard verdict == "ok" else { throw DatabaseError(resultCode: .SQLITE_CORRUPT, message: verdict) }
      let version = try Int.fetchOne(database, sql: "PRAGMA user_version") ?? 0
      guard version <= schemaVersion else { throw NewerSchema(version: version) }
      if version == 0 { try create(database) }
      return try Int64.fetchOne(database, sql: "SELECT max(id) FROM event") ?? 0
    }
    return Opened(
      store: JournalStore(pool: pool), lastID: lastID == 0 ? 0 : (lastID / idsPerOpening + 1) * idsPerOpening,
      damage: nil)
  }

  private static func create(_ database: Database) throws {
    try database.execute(
      sql: """
        CREATE TABLE event (
          id INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, monotonic_ns INTEGER NOT NULL, node TEXT NOT NULL, module TEXT,
          kind TEXT NOT NULL, severity TEXT NOT NULL, rule TEXT, sentence TEXT NOT NULL, details TEXT NOT NULL
        ) STRICT;
        CREATE INDEX event_by_module ON event (module, id);
        PRAGMA user_version = \(schemaVersion);
        """)
  }

  /// The new name of the damaged file. Its write-ahead files go with it.
  private static func putAside(_ path: String) throws -> String {
    let files = FileManager.default
    let aside = "\(path).damaged-\(Int64(Date().timeIntervalSince1970 * 1000))"
    try files.moveItem(atPath: path, toPath: aside)
    for suffix in ["-wal", "-shm"] where files.fileExists(atPath: path + suffix) {
      try files.moveItem(atPath: path + suffix, toPath: aside + suffix)
    }
    let folder = URL(fileURLWithPath: path).deletingLastPathComponent().path
    let prefix = URL(fileURLWithPath: path).lastPathComponent + ".damaged-"
    let older = try files.contentsOfDirectory(atPath: folder)
      .filter { $0.hasPrefix(prefix) && !$0.hasSuffix("-wal") && !$0.hasSuffix("-shm") }.sorted()
    for name in older.dropLast(damagedFileCountMax) {
      try files.removeItem(atPath: "\(folder)/\(name)")
      for suffix in ["-wal", "-shm"] where files.fileExists(atPath: "\(folder)/\(name)\(suffix)") {
        try files.removeItem(atPath: "\(folder)/\(name)\(suffix)")
      }
    }
    return aside
  }

  /// All of them in one transaction.
  func write(_ events: [JournalEvent], rowCountMax: Int) throws {
    try pool.write { database in
      let insert = try database.cachedStatement(
        sql: """
          INSERT INTO event (id, time_ms, monotonic_ns, node, module, kind, severity, rule, sentence, details)
          VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
          """)
      for event in events {
        let details = String(decoding: try ControlCoding.encode(event.details), as: UTF8.self)
        try insert.execute(arguments: [
          event.id, event.time.milliseconds, event.monotonicNanoseconds, event.node, event.module, event.kind.rawValue,
          event.severity.rawValue, event.rule, event.sentence, details,
        ])
      }
      guard let first = events.first?.id, let last = events.last?.id,
        first / Self.pruneEveryRows != (last + 1) / Self.pruneEveryRows
      else { return }
      try database.execute(
        sql: "DELETE FROM event WHERE id <= (SELECT id FROM event ORDER BY id DESC LIMIT 1 OFFSET ?)",
        arguments: [rowCountMax])
    }
  }

  /// With `cursor`: the first `limit` after it; without: the last `limit`; none beyond `last`. In rising order.
  func read(after cursor: Int64?, through last: Int64, module: String?, limit: Int) throws -> [JournalEvent] {
    let condition = "id > ? AND id <= ?" + (module == nil ? "" : " AND module = ?")
    let order = cursor == nil ? "DESC" : "ASC"
    var arguments: StatementArguments = [cursor ?? 0, last]
    if let module { arguments += [module] }
    arguments += [limit]
    let rows = try pool.read { database in
      try Row.fetchAll(
        database, sql: "SELECT * FROM event WHERE \(condition) ORDER BY id \(order) LIMIT ?", arguments: arguments)
    }
    let events = try rows.map(Self.event)
    return cursor == nil ? events.reversed() : events
  }

  /// The last `limit` that concern the module (nil = any), and those of no module that are worth a notice. In rising order.
  func timeline(of module: String?, through last: Int64, limit: Int) throws -> [JournalEvent] {
    let rows = try pool.read { database in
      try Row.fetchAll(
        database,
        sql: """
          SELECT * FROM event WHERE id <= ? AND (module IS NULL AND severity <> 'info' OR module IS NOT NULL AND (? IS NULL OR module = ?))
          ORDER BY id DESC LIMIT ?
          """, arguments: [last, module, module, limit])
    }
    return try rows.map(Self.event).reversed()
  }

  func removeAll() throws { try pool.write { try $0.execute(sql: "DELETE FROM event") } }

  private static func event(_ row: Row) throws -> JournalEvent {
    let details: String = row["details"]
    return JournalEvent(
      id: row["id"], time: WallTime(milliseconds: row["time_ms"]), monotonicNanoseconds: row["monotonic_ns"],
      node: row["node"], module: row["module"], kind: EventKind(rawValue: row["kind"]),
      severity: Severity(rawValue: row["severity"]) ?? .info, rule: row["rule"], sentence: row["sentence"],
      details: try ControlCoding.decode([String: String].self, from: Data(details.utf8)))
  }
}
