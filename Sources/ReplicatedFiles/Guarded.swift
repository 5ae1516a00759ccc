import CFuse3
import Glibc
import HostSystem
import Model

/// A value behind a lock, with waiting. Unlike `Monitor` it wakes nobody unless told to: the data path changes values far
/// more often than anyone waits for them, and every wake-up costs microseconds.
final class Guarded<Value>: @unchecked Sendable {
  private let lock = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
  private let condition = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
  private var value: Value

  init(_ value: sending Value) {
    self.value = value
    var attributes = pthread_condattr_t()
    pthread_condattr_init(&attributes)
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

  @inline(__always)
  func withLock<Result, Failure: Error>(_ body: (inout Value) throws(Failure) -> Result) throws(Failure) -> Result {
    pthread_mutex_lock(lock)
    defer { pthread_mutex_unlock(lock) }
    return try body(&value)
  }

  /// Wakes every waiter to look again.
  func wake() { pthread_cond_broadcast(condition) }

  /// Waits until `body` answers something; nil when `timeout` has passed.
  func wait<Result>(timeout: Duration? = nil, until body: (inout Value) -> Result?) -> Result? {
    let end = timeout.map { deadline(in: $0) }
    pthread_mutex_lock(lock)
    defer { pthread_mutex_unlock(lock) }
    while true {
      if let result = body(&value) { return result }
      guard var end else {
        pthread_cond_wait(condition, lock)
        continue
      }
      if pthread_cond_timedwait(condition, lock, &end) == ETIMEDOUT { return body(&value) }
    }
  }

  private func deadline(in timeout: Duration) -> timespec {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    let nanoseconds = Int64(time.tv_nsec) + timeout.nanoseconds
    time.tv_sec += Int(nanoseconds / 1_000_000_000)
    time.tv_nsec = Int(nanoseconds % 1_000_000_000)
    return time
  }
}
