import CPosixCalls
import Glibc
import HostSystem
import Model
import Synchronization

@testable import ReplicatedFiles

/// A pair of engines, the mount of one of them, and a plain folder beside it, in which the same is done.
final class Stage: @unchecked Sendable {
  let pair: Pair
  private let reference: String
  private let runs = Atomic<Int>(0)
  private let formerMask: mode_t
  private let hasEnded = Flag()

  init() throws {
    // As the engine's own process has it: modes are the guest's, exactly.
    formerMask = umask(0)
    pair = try Pair()
    reference = "\(pair.folder)/plain"
    guard mkdir(reference, 0o755) == 0, posix_bind_plain(reference) == 0 else {
      throw TestFailure("cannot mount \(reference): \(String(cString: strerror(errno)))")
    }
    // A mount that is frozen for good would hang the steps, and the test with them: they go on, and the comparison of the nodes
    // says what is wrong.
    let (engine, hasEnded) = (pair.one.engine, hasEnded)
    try HostThread.start(name: "thaw") {
      var frozenFor = 0
      while !hasEnded.isSet {
        usleep(250_000)
        frozenFor = engine.report().policy == .frozen && engine.report().isMounted ? frozenFor + 1 : 0
        if frozenFor == 40 { engine.perform(.setPolicy(.alone)) }
      }
    }
  }

  func end() {
    hasEnded.set()
    posix_unmount(reference)
    pair.end()
    umask(formerMask)
  }

  static func text(_ steps: [Step]) -> String {
    steps.enumerated().map { "  \($0.offset): \($0.element)" }.joined(separator: "\n")
  }

  // MARK: runs

  struct Worlds {
    let mount: StepWorld
    let plain: StepWorld
  }

  /// Two empty trees.
  func worlds() throws -> Worlds {
    let number = runs.add(1, ordering: .relaxed).newValue
    return Worlds(
      mount: try StepWorld("\(pair.one.mountPoint)/r\(number)"), plain: try StepWorld("\(reference)/r\(number)"))
  }

  /// Does the steps on a thread of their own. Answers what was different, nil = nothing.
  func run(_ steps: [Step], before: @escaping @Sendable (Int) throws -> Void = { _ in }) throws -> String? {
    let result = Mutex<Result<String?, any Error>>(.success(nil))
    let thread = try HostThread.start(name: "model", detached: false) { [self] in
      let done = Result { try walk(steps, worlds(), before: before) }
      result.withLock { $0 = done }
    }
    thread.join()
    return try result.withLock { try $0.get() }
  }

  /// On the calling thread, which is of no other use.
  func walk(_ steps: [Step], _ worlds: Worlds, before: (Int) throws -> Void) throws -> String? {
    guard posix_own_umask() == 0 else { throw TestFailure("a umask of one's own needs root: \(errno)") }
    for (index, step) in steps.enumerated() {
      try before(index)
      let (mine, theirs) = (try worlds.mount.apply(step), try worlds.plain.apply(step))
      guard mine.isSame(as: theirs) else {
        return "step \(index) (\(step))\n    the mount answers:    \(mine)\n    a plain folder gives: \(theirs)"
      }
    }
    let differences = try TreePicture(worlds.mount.path, []).differences(from: TreePicture(worlds.plain.path, []))
    return differences.isEmpty ? nil : "the trees differ: " + differences.joined(separator: "\n    ")
  }

  /// What the two nodes have different, once all is applied.
  func nodesDiffer(layout: Bool) throws -> [String] {
    try pair.one.drain()
    let options: TreePicture.Options = layout ? [.layout, .identities] : .identities
    return try TreePicture(pair.one.backing, options).differences(from: TreePicture(pair.two.backing, options))
  }

  // MARK: shortening

  static let shorteningMax: Duration = .seconds(60)

  /// Takes steps away as long as what is left still fails; for reading, so it need not be the very least.
  func shortened(_ steps: [Step], _ failure: String) throws -> (steps: [Step], failure: String) {
    var (least, why) = (steps, failure)
    // What comes after the step that failed is not needed.
    if let index = Self.failedStep(failure) { least = Array(steps[...index]) }
    let clock = ContinuousClock()
    let end = clock.now + Self.shorteningMax
    var piece = max(least.count / 2, 1)
    while clock.now < end {
      var from = 0
      var isShorter = false
      while from < least.count, clock.now < end {
        var fewer = least
        fewer.removeSubrange(from..<min(from + piece, least.count))
        if let failure = try run(fewer) {
          (least, why, isShorter) = (fewer, failure, true)
        } else {
          from += piece
        }
      }
      if piece == 1, !isShorter { break }
      piece = max(piece / 2, 1)
    }
    return (least, why)
  }

  private static func failedStep(_ failure: String) -> Int? {
    guard failure.hasPrefix("step ") else { return nil }
    return failure.dropFirst(5).split(separator: " ").first.flatMap { Int($0) }
  }
}
