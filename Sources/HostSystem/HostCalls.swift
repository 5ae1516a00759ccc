import Glibc
import Synchronization

/// Every host call that matters for durability goes through here with a label ("record.rename"), so that a test can
/// make exactly that one fail, or stop the world there.
public enum HostCalls {
  /// Called before each labelled call with label and path; a value other than nil is the errno to fail with, the call
  /// is not made.
  public typealias FaultHook = @Sendable (_ label: String, _ path: String) -> Int32?

  private static let hook = Mutex<FaultHook?>(nil)
  private static let isHooked = Atomic<Bool>(false)

  /// For tests only; nil in production. One hook at a time: look at the path to tell tests apart.
  public static func setFaultHook(_ new: FaultHook?) {
    hook.withLock { $0 = new }
    isHooked.store(new != nil, ordering: .releasing)
  }

  /// The errno a test wants this call to fail with; nil, always in production: make the call. For callers that make it
  /// themselves; costs them one load. `path` is only asked for when there is a hook.
  public static func fault(_ label: String, _ path: @autoclosure () -> String) -> Int32? {
    guard isHooked.load(ordering: .acquiring), let installed = hook.withLock({ $0 }) else { return nil }
    return installed(label, path())
  }

  /// Makes a call that answers -1 and sets errno on failure; repeats it while it is interrupted by a signal.
  @discardableResult
  public static func perform<Result: FixedWidthInteger>(
    _ label: String, path: String = "", _ call: () -> Result
  ) throws -> Result {
    if let number = fault(label, path) { throw HostError.system(label, path: path, errno: number) }
    while true {
      let result = call()
      guard result == -1 else { return result }
      let number = errno
      if number != EINTR { throw HostError.system(label, path: path, errno: number) }
    }
  }

  /// As `perform`, for a piece of work that throws by itself.
  public static func performThrowing<Result>(
    _ label: String, path: String = "", _ work: () throws -> Result
  ) throws -> Result {
    if let number = fault(label, path) { throw HostError.system(label, path: path, errno: number) }
    return try work()
  }
}
