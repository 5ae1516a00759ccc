import Glibc
import HostSystem
import Membership
import Model
import SecureLinks
import Synchronization

public struct HeartbeatConfiguration: Sendable, Hashable {
  public var node: NodeID
  /// Empty while the other host has not joined: nothing is sent and nobody counts as lost.
  public var links: [HeartbeatLink]
  public var settings: MembershipSettings
  /// Revision of cluster.xml.
  public var revision: UInt32
  public init(node: NodeID, links: [HeartbeatLink], settings: MembershipSettings, revision: UInt32) {
    self.node = node
    self.links = links
    self.settings = settings
    self.revision = revision
  }
}

public enum HeartbeatEvent: Sendable, Hashable {
  case peer(PeerPresence, why: String)
  case link(String, LinkState, why: String)
  /// The peer has a new boot id: whatever it held in memory is gone.
  case peerRestarted(boot: String)
  /// This node stood still for so long: suspend first, ask later.
  case ownStall(Duration)
  /// The peer's modules, whenever they changed, and always after `peer(.up)`.
  case peerModules([ModuleBeat])
  /// The peer's cluster.xml has this revision (told when it changes).
  case peerRevision(UInt32)
  /// The peer says that it is going down in good order.
  case peerLeaving
  case socketReady(link: String)
  case socketProblem(link: String, why: String)
  /// Priority or memory lock could not be had; the heartbeat goes on without.
  case warning(String)
}

/// What the heartbeat knows now.
public struct HeartbeatSnapshot: Sendable, Hashable {
  public struct Link: Sendable, Hashable {
    public var name: String
    public var localAddress: String
    public var peerAddress: String
    public var state: LinkState
    public var since: Instant
    public var heardAt: Instant?
    public var problem: String?
  }
  public var presence = PeerPresence.unknown
  public var since: Instant
  public var peerBoot: String?
  public var peerRevision: UInt32?
  public var links: [Link] = []
  /// As last heard, also when the peer is lost by now.
  public var peerModules: [ModuleBeat] = []
  /// Datagrams that were not sealed with this cluster's key, or not a beat of the peer.
  public var rejected: UInt64 = 0
}

/// Sends and hears the beats of all modules on a thread of its own, which runs before everything else on the host.
public final class HeartbeatService: Sendable {
  /// Called on the heartbeat thread: must only hand the event on (a queue push), never wait.
  public typealias Handler = @Sendable (HeartbeatEvent) -> Void
  /// SCHED_FIFO priority: above every ordinary thread, below the kernel's own.
  static let priority: Int32 = 20
  /// Changed modules are sent at once, but not more often than this.
  static let extraBeatGap: Duration = .milliseconds(20)

  private struct Box {
    var configuration: HeartbeatConfiguration
    var isChanged = false
    var modules: [ModuleBeat] = []
    var isLeaving = false
    var isUrgent = false
    var isStopping = false
    var snapshot: HeartbeatSnapshot
  }

  private let box: Mutex<Box>
  private let seal: HeartbeatSeal
  private let boot: String
  private let handler: Handler
  private let port: Int
  private let isRealTime: Bool
  private let wake: WakePipe
  private let over = Monitor(false)

  /// Starts the thread. `isRealTime` false is for tests: ordinary priority, memory not locked. Throws `HostError`.
  public init(
    configuration: HeartbeatConfiguration, seal: HeartbeatSeal, boot: String, port: Int, isRealTime: Bool = true,
    handler: @escaping Handler
  ) throws {
    let snapshot = HeartbeatSnapshot(since: monotonicNow())
    box = Mutex(Box(configuration: configuration, snapshot: snapshot))
    self.seal = seal
    self.boot = boot
    self.port = port
    self.isRealTime = isRealTime
    self.handler = handler
    wake = try WakePipe()
    // Started last: the thread sees a whole object.
    try HostThread.start(name: "heartbeat") { [self] in
      var loop = HeartbeatLoop(
        configuration: configuration, seal: seal, boot: boot, port: port, now: monotonicNow())
      run(&loop)
      loop.end()
      over.withLock { $0 = true }
    }
  }

  /// Links, times and revision may change at any moment; the node may not.
  public func use(_ configuration: HeartbeatConfiguration) {
    box.withLock {
      $0.configuration = configuration
      $0.isChanged = true
    }
    wake.signal()
  }

  /// What the next beats say about this node's modules, at most `moduleCountMax`. A change leaves at once.
  public func setModules(_ modules: [ModuleBeat]) {
    let isNew = box.withLock { box in
      guard box.modules != modules else { return false }
      box.modules = Array(modules.prefix(moduleCountMax))
      box.isUrgent = true
      return true
    }
    if isNew { wake.signal() }
  }

  /// The beats say from now on that this node goes down in good order.
  public func setLeaving() {
    box.withLock {
      $0.isLeaving = true
      $0.isUrgent = true
    }
    wake.signal()
  }

  public func snapshot() -> HeartbeatSnapshot { box.withLock { $0.snapshot } }

  /// Ends the thread and closes its sockets; returns when that is done. No event comes after it.
  public func stop() {
    box.withLock { $0.isStopping = true }
    wake.signal()
    _ = over.wait(timeout: .seconds(5)) { $0 ? true : nil }
  }

  private func run(_ loop: inout HeartbeatLoop) {
    if isRealTime { Self.raisePriority().map(HeartbeatEvent.warning).forEach(handler) }
    while true {
      let input = box.withLock { box in
        defer { (box.isChanged, box.isUrgent) = (false, false) }
        return HeartbeatLoop.Input(
          configuration: box.isChanged ? box.configuration : nil, modules: box.modules, isLeaving: box.isLeaving,
          isUrgent: box.isUrgent, isStopping: box.isStopping)
      }
      if input.isStopping { return }
      let events = loop.turn(input)
      let snapshot = loop.snapshot
      box.withLock { $0.snapshot = snapshot }
      events.forEach(handler)
      loop.wait(wake)
    }
  }

  /// For the calling thread and the whole process' memory. What could not be had, in words.
  private static func raisePriority() -> [String] {
    var warnings: [String] = []
    var parameters = sched_param(sched_priority: priority)
    let result = pthread_setschedparam(pthread_self(), SCHED_FIFO, &parameters)
    if result != 0 {
      let isNice = setpriority(__priority_which_t(PRIO_PROCESS.rawValue), 0, -20) == 0
      warnings.append(
        "the heartbeat cannot have real-time priority (\(errnoText(result))); it runs with "
          + (isNice ? "nice -20" : "ordinary priority, so a busy host may miss beats"))
    }
    if mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) != 0 {
      warnings.append("vmhad cannot lock its memory (\(errnoText(errno))): swapping may delay its beats")
    }
    return warnings
  }
}
