import CHostShims
import Glibc
import Model

/// Starts a named thread (the kernel keeps 15 bytes of the name). Join it, or it is detached.
public final class HostThread: @unchecked Sendable {
  private let handle: pthread_t

  private final class Body {
    let name: String
    let work: @Sendable () -> Void
    init(_ name: String, _ work: @escaping @Sendable () -> Void) {
      self.name = name
      self.work = work
    }
  }

  private init(_ handle: pthread_t) { self.handle = handle }

  /// `stackBytes` 0 = the system's default.
  @discardableResult
  public static func start(
    name: String, stackBytes: Int = 1 << 20, detached: Bool = true, _ work: @escaping @Sendable () -> Void
  ) throws -> HostThread {
    var attributes = pthread_attr_t()
    pthread_attr_init(&attributes)
    defer { pthread_attr_destroy(&attributes) }
    if stackBytes > 0 { pthread_attr_setstacksize(&attributes, stackBytes) }
    if detached { pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED)) }
    let body = Unmanaged.passRetained(Body(name, work))
    var handle = pthread_t()
    let result = pthread_create(
      &handle, &attributes,
      { argument in
        guard let argument else { return nil }
        let body = Unmanaged<Body>.fromOpaque(argument).takeRetainedValue()
        vmha_name_thread(String(body.name.utf8.prefix(15)) ?? body.name)
        body.work()
        return nil
      }, body.toOpaque())
    guard result == 0 else {
      body.release()
      throw HostError.system("thread.start", path: name, errno: result)
    }
    return HostThread(handle)
  }

  /// Waits for the end of a thread that was started with `detached: false`. Once only.
  public func join() { pthread_join(handle, nil) }

  /// Blocks the calling thread for so long; no signal ends it earlier.
  public static func sleep(for time: Duration) { _ = Monitor(false).wait(timeout: time) { $0 ? true : nil } }
}

/// A named thread with a bounded queue: events come from anywhere, the handler runs one at a time, in order.
public final class Worker<Event: Sendable>: Sendable {
  public typealias Handler = @Sendable (Event) -> Void

  private struct Queue {
    var events: [Event] = []
    var head = 0
    var wakeUp: Instant?
    var isStopping = false
    var isOver = false
    var count: Int { events.count - head }
    mutating func pop() -> Event? {
      guard head < events.count else { return nil }
      let event = events[head]
      head += 1
      if head == events.count || head >= 1024 {
        events.removeFirst(head)
        head = 0
      }
      return event
    }
  }

  private enum Next { case event(Event), wakeUp, changed, over }

  private let queue: Monitor<Queue>
  private let eventsMax: Int

  /// `onWakeUp` runs on the same thread when the time given to `setWakeUp` has come.
  public init(
    name: String, eventsMax: Int, onWakeUp: @escaping @Sendable () -> Void = {}, handler: @escaping Handler
  ) throws {
    self.eventsMax = eventsMax
    let queue = Monitor(Queue())
    self.queue = queue
    try HostThread.start(name: name) {
      Self.run(queue, onWakeUp, handler)
      queue.withLock { $0.isOver = true }
    }
  }

  private static func run(_ queue: Monitor<Queue>, _ onWakeUp: () -> Void, _ handler: Handler) {
    while true {
      switch next(queue) {
      case .event(let event): handler(event)
      case .wakeUp: onWakeUp()
      case .changed: continue
      case .over: return
      }
    }
  }

  private static func next(_ queue: Monitor<Queue>) -> Next {
    let wakeUp = queue.withLock { $0.wakeUp }
    let found: Next? = queue.wait(timeout: wakeUp.map { $0 - monotonicNow() }) { queue in
      if let time = queue.wakeUp, time <= monotonicNow() {
        queue.wakeUp = nil
        return .wakeUp
      }
      if let event = queue.pop() { return .event(event) }
      if queue.isStopping { return .over }
      // The wake-up was changed while this thread waited: wait anew, for the new time.
      return queue.wakeUp == wakeUp ? nil : .changed
    }
    return found ?? .changed
  }

  /// false if the queue is full or the worker stopped: the event was not taken.
  public func push(_ event: Event) -> Bool {
    queue.withLock { queue in
      guard !queue.isStopping, queue.count < eventsMax else { return false }
      queue.events.append(event)
      return true
    }
  }

  /// One wake-up at a time: a new one replaces the old; nil takes it back. From any thread.
  public func setWakeUp(at time: Instant?) {
    queue.withLock { $0.wakeUp = time }
  }

  /// Lets the worker finish what is queued, then waits for its end. Not from its own thread.
  public func stop() {
    queue.withLock {
      $0.isStopping = true
      $0.wakeUp = nil
    }
    _ = queue.wait(timeout: nil) { $0.isOver ? true : nil }
  }
}
