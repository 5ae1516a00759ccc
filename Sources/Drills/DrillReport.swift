import ControlAPI
import Model

public enum DrillKind: String, Sendable, Codable, Hashable, CaseIterable {
  /// The planned exchange of roles, there and back.
  case swap
  /// QEMU is killed where it runs.
  case crash
}

/// What is measured, in the order in which it comes.
public enum DrillPhase: String, Sendable, Codable, Hashable, CaseIterable {
  /// The guest's end was seen by vmhad (crash), or the guest is off (swap).
  case noticed
  /// The node that serves next may start the guest.
  case promoted
  /// libvirt reports the guest running.
  case started
  /// The guest answers the check of module.xml again.
  case answering
}

/// One exchange or crash, from its command to the guest's first answer. JSON names are stable.
public struct DrillLeg: Sendable, Codable, Hashable {
  public struct Measured: Sendable, Codable, Hashable {
    public var phase: DrillPhase
    /// Since the leg's command was accepted.
    public var milliseconds: Int
    public init(phase: DrillPhase, milliseconds: Int) {
      self.phase = phase
      self.milliseconds = milliseconds
    }
  }
  /// "swap", "crash" or "swap back".
  public var name: String
  /// Names of nodes; `to` nil = nobody served the guest in time.
  public var from: String
  public var to: String?
  /// In the order of `DrillPhase`; what did not come, or was not looked for, is missing.
  public var phases: [Measured]
  /// From the guest's last answer before to its first one after, as seen from this host; nil without a check.
  public var silenceMilliseconds: Int?

  public init(name: String, from: String) {
    self.name = name
    self.from = from
    phases = []
  }
  public subscript(phase: DrillPhase) -> Int? { phases.first { $0.phase == phase }?.milliseconds }
  enum CodingKeys: String, CodingKey {
    case name, from, to, phases
    case silenceMilliseconds = "silence_ms"
  }
}

/// What a drill came to; the JSON file in the drills folder.
public struct DrillReport: Sendable, Codable, Hashable {
  public var version: String
  public var time: WallTime
  public var cluster: String
  /// The node the drill was run from.
  public var host: String
  public var module: String
  public var kind: DrillKind
  /// "tcp 10.77.0.21 port 80"; nil: module.xml names none, so `answering` is not measured.
  public var check: String?
  public var legs: [DrillLeg]
  /// Every leg was finished, and the module is protected and where it was before.
  public var succeeded: Bool
  /// Why not.
  public var problem: String?

  public init(time: WallTime, cluster: String, host: String, module: String, kind: DrillKind, check: String?) {
    version = ProductVersion.text
    self.time = time
    self.cluster = cluster
    self.host = host
    self.module = module
    self.kind = kind
    self.check = check
    legs = []
    succeeded = false
  }

  /// Name of its file: "2026-11-22T20-56-14.123Z-vm1-crash.json".
  public var fileName: String {
    "\(time.description.map { $0 == ":" ? "-" : String($0) }.joined())-\(module)-\(kind.rawValue).json"
  }
}
