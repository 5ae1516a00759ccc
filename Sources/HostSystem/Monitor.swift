import Glibc
import Model

/// A value behind a lock that threads can wait on (Synchronization's Mutex has no condition variable).
public final class Monitor<Value>: @unchecked Sendable {
  // Both live at fixed addresses, as pthread asks; the value is only touched while the lock is held.
  private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var value: Value

  public init(_ value: sending Value) {
    self.value = value
    var attributes = pthread_condattr_t()
    pthread_condattr_init(&attributes)
    // Waits must not follow the wall clock when somebody sets it.
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
    pthread_mutex_init(lock, nil)
    pthread_cond_init(condition, &attributes)
    pthread_condattr_destroy(&attributes)
  }

  deinit {
    pthread_cond_destroy(condition)
    pthread_mutex_destroy(lock)
    lock.deallocate()
    condition.deallocate()
  }

  /// Changes the value and wakes every waiter to look again.
  public func withLock<Result>(_ body: (inout Value) throws -> Result) rethrows -> Result {
    pthread_mutex_lock(lock)
    defer {
      pthread_cond_broadcast(condition)
      pthread_mutex_unlock(lock)
    }
    return try body(&value)
  }

  /// Calls `body` now and after every change until it answers something; nil when `timeout` has passed (nil = wait for
  /// ever).
  public func wait<Result>(timeout: Duration?, until body: (inout Value) throws -> Result?) rethrows -> Result? {
    let deadline = timeout.map { monotonicNow() + $0 }
    pthread_mutex_lock(lock)
    defer { pthread_mutex_unlock(lock) }
    while true {
      if let result = try body(&value) {
        pthread_cond_broadcast(condition)
        return result
      }
      guard let deadline else {
        pthread_cond_wait(condition, lock)
        continue
      }
      let left = deadline - monotonicNow()
      if left <= .zero { return nil }
      var until = timespec()
      clock_gettime(CLOCK_MONOTONIC, &until)
      let nanoseconds = Int64(until.tv_nsec) + left.nanoseconds
      until.tv_sec += Int(nanoseconds / 1_000_000_000)
      until.tv_nsec = Int(nanoseconds % 1_000_000_000)
      pthread_cond_timedwait(condition, lock, &until)
    }
  }
}
