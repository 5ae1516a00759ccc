import CFuse3
import Glibc
import HostSystem
import Replication

/// The durable write-intent map of one module on one node (R3): a file that holds a snapshot and a log of batches.
/// One thread at a time; the caller guarantees that.
///
/// A file is only ever appended to by the object that made it, in one go without errors: after `open`, and after any
/// failure, a checkpoint to a new file comes first, so no bytes of an older or torn append can be taken for newer ones.
/// R3: what `open` read is durable when that checkpoint is, and not before: a process that died may have left it in the page
/// cache only. Syncing the file that is there would not do: after a failed sync its pages count as clean, and the next succeeds.
final class IntentFile: @unchecked Sendable {
  enum Code: String, Sendable {
    /// The kernel refused; `errno` says why.
    case system
    /// Nothing may be appended before a checkpoint has succeeded.
    case needsCheckpoint
  }

  /// The map could not be made durable: no write that waits for it may go on.
  struct Failure: Error, CustomStringConvertible {
    let code: Code
    let errno: Int32
    let message: String
    var description: String { message }
  }

  let path: String
  private let folder: String
  private let temporary: String
  private let logBytes: Int

  /// The file that can be appended to.
  private struct Current {
    let file: Int32
    var appender: IntentAppender
  }
  private var current: Current?

  private init(path: String, logBytes: Int) {
    self.path = path
    self.logBytes = logBytes
    folder = DurableFile.parent(of: path)
    temporary = DurableFile.temporaryPath(path)
  }

  deinit {
    if let current { close(current.file) }
  }

  /// Reads the map and changes nothing; what it says is not durable for that. A file that is missing, damaged or cannot be
  /// read comes out as `IntentSnapshot.everything`, with the reason in `note`; the note also tells of damage that was made
  /// good. Throws only if there is no folder to keep the map in.
  /// Labels: intents.folder, .open, .size, .read.
  static func open(
    path: String, logBytes: Int = IntentLog.logBytes
  ) throws -> (file: IntentFile, snapshot: IntentSnapshot, note: String?) {
    let file = IntentFile(path: path, logBytes: logBytes)
    try file.explained("open", hint: "the folder of the write-intent map must exist") {
      let folder = try HostCalls.perform("intents.folder", path: file.folder) {
        Glibc.open(file.folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
      }
      close(folder)
    }
    do {
      let bytes = try contents(path)
      let reading = bytes.withUnsafeBytes { IntentLog.read($0) }
      return (file, reading.snapshot, reading.note.map { "\(path): \($0)" })
    } catch {
      let why = error.errno == ENOENT ? "\(path) does not exist" : "\(error)"
      return (file, .everything, "Everything is taken as different: \(why).")
    }
  }

  private static func contents(_ path: String) throws(HostError) -> [UInt8] {
    do {
      let file = try HostCalls.perform("intents.open", path: path) {
        Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
      }
      defer { close(file) }
      var status = stat()
      try HostCalls.perform("intents.size", path: path) { fstat(file, &status) }
      guard status.st_mode & S_IFMT == S_IFREG, (0...IntentLog.fileBytesMax).contains(Int(status.st_size)) else {
        throw HostError(.invalid, "intents.size", path: path, "not a file of at most \(IntentLog.fileBytesMax) bytes")
      }
      var bytes = [UInt8](repeating: 0, count: Int(status.st_size))
      var done = 0
      while done < bytes.count {
        let count = try bytes.withUnsafeMutableBytes { buffer in
          let rest = UnsafeMutableRawBufferPointer(rebasing: buffer[done...])
          return try HostCalls.perform("intents.read", path: path) {
            pread(file, rest.baseAddress, rest.count, off_t(done))
          }
        }
        // It became shorter; the reader sees that the rest is not there.
        if count == 0 { bytes.removeLast(bytes.count - done) }
        done += count
      }
      return bytes
    } catch let error as HostError {
      throw error
    } catch {
      throw HostError(.invalid, "intents.read", path: path, "\(error)")
    }
  }

  // MARK: - writing

  /// The next thing to be stored has to be a checkpoint: after `open`, after any failure, and when the log is full.
  var needsCheckpoint: Bool { current?.appender.isFull ?? true }

  /// Appends the batch; where that is not possible, a checkpoint of `snapshot()` stores it, which must have been
  /// taken from the map after the batch was. Durable when it returns. Throws `Failure`: then nothing may be relied on
  /// that was not durable before; it may be on the disk all the same.
  func store(_ batch: IntentBatch, snapshot: () -> IntentSnapshot) throws(Failure) {
    guard try appendIfPossible(batch) else { return try checkpoint(snapshot()) }
  }

  /// As `store`, for a file that does not need a checkpoint and has room; else throws `needsCheckpoint`.
  /// Labels: intents.write, intents.sync.
  func append(_ batch: IntentBatch) throws(Failure) {
    guard try appendIfPossible(batch) else {
      throw Failure(
        code: .needsCheckpoint, errno: 0,
        message: "\(path): a batch of write intents cannot be appended before a checkpoint; make one")
    }
  }

  /// false = no file of this object, or no room in its log: nothing was done.
  private func appendIfPossible(_ batch: IntentBatch) throws(Failure) -> Bool {
    guard var next = current, let piece = next.appender.append(batch) else { return false }
    current = next
    try write(piece, to: next.file)
    return true
  }

  private func write(_ piece: IntentAppender.Piece, to file: Int32) throws(Failure) {
    do {
      try explained("append to", hint: "guest writes wait until it can be stored") {
        try piece.bytes.withUnsafeBytes { bytes in
          let last = UnsafeRawBufferPointer(rebasing: bytes[..<IntentAppender.Piece.lastBytes])
          let others = UnsafeRawBufferPointer(rebasing: bytes[IntentAppender.Piece.lastBytes...])
          // The first block is the proof that the others are there, so it comes after them.
          if !others.isEmpty { try put(others, file, piece.offset + last.count) }
          try put(last, file, piece.offset)
        }
      }
    } catch {
      // Part of it may be on the disk: nothing may follow it in this file.
      abandon()
      throw error
    }
  }

  private func put(_ bytes: UnsafeRawBufferPointer, _ file: Int32, _ offset: Int) throws {
    try writeAll(bytes, file, offset, label: "intents.write")
    // The blocks were allocated and written by the checkpoint, so this waits for the data only.
    try HostCalls.perform("intents.sync", path: path) { fdatasync(file) }
  }

  /// Replaces the file by one that holds this snapshot and an empty log. A crash at any point leaves the old or the
  /// new one; when this throws, either may be there. Durable when it returns.
  /// Labels: intents.create, .mode, .fill, .flush, .rename, .folder.
  func checkpoint(_ snapshot: IntentSnapshot) throws(Failure) {
    abandon()
    try explained("rewrite", hint: "guest writes wait until it can be stored") {
      let file = try HostCalls.perform("intents.create", path: path) {
        Glibc.open(temporary, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0o600)
      }
      do {
        current = Current(file: file, appender: try fill(file, snapshot))
      } catch {
        close(file)
        // Whatever failed, the temporary file is of no use; the error is the one that counts.
        unlink(temporary)
        throw error
      }
    }
  }

  private func fill(_ file: Int32, _ snapshot: IntentSnapshot) throws -> IntentAppender {
    let nonce = randomUInt64()
    let start = IntentLog.start(snapshot, nonce: nonce, logBytes: logBytes)
    try HostCalls.perform("intents.mode", path: path) { fchmod(file, 0o600) }
    // Zeros are written, not only allocated: later appends then change no metadata of the file.
    let contents = start + [UInt8](repeating: 0, count: logBytes)
    try contents.withUnsafeBytes { try writeAll($0, file, 0, label: "intents.fill") }
    try HostCalls.perform("intents.flush", path: path) { fsync(file) }
    try HostCalls.perform("intents.rename", path: path) { rename(temporary, path) }
    let opened = try HostCalls.perform("intents.folder", path: folder) {
      Glibc.open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    }
    defer { close(opened) }
    try HostCalls.perform("intents.folder", path: folder) { fsync(opened) }
    return IntentAppender(startBytes: start.count, nonce: nonce, logBytes: logBytes)
  }

  private func abandon() {
    if let current { close(current.file) }
    current = nil
  }

  private func writeAll(_ bytes: UnsafeRawBufferPointer, _ file: Int32, _ offset: Int, label: String) throws {
    var done = 0
    while done < bytes.count {
      let rest = UnsafeRawBufferPointer(rebasing: bytes[done...])
      let count = try HostCalls.perform(label, path: path) {
        pwrite(file, rest.baseAddress, rest.count, off_t(offset + done))
      }
      guard count > 0 else { throw HostError.system(label, path: path, errno: ENOSPC) }
      done += count
    }
  }

  private func explained(_ action: String, hint: String, _ work: () throws -> Void) throws(Failure) {
    do {
      try work()
    } catch {
      let errno = (error as? HostError)?.errno ?? 0
      throw Failure(
        code: .system, errno: errno, message: "cannot \(action) the write-intent map \(path): \(error); \(hint)")
    }
  }
}
