import Model

/// What is known of whether both copies of a module are the same, beyond what replication promises.
public struct VerificationStatus: Sendable, Codable, Hashable {
  /// Beginning of the last comparison that was completed with both copies the same at its end: all that was there then has been read
  /// on both nodes' disks and was the same. nil = never.
  public var identicalUpTo: WallTime?
  /// The last comparison that was completed, or found something.
  public var last: VerificationResult?
  /// The one that goes on.
  public var running: VerificationProgress?
  /// When the next scrub is due, as far as this node knows; nil = none is wanted, or the module is not in sync.
  public var nextScrub: WallTime?
  public init() {}

  /// Places known to differ and not repaired.
  public var differingCount: Int { last?.differingCount ?? 0 }

  enum CodingKeys: String, CodingKey {
    case last, running
    case identicalUpTo = "identical_up_to"
    case nextScrub = "next_scrub"
  }
}

/// What one comparison came to.
public struct VerificationResult: Sendable, Codable, Hashable {
  /// Name of the primary, which compared.
  public var node: String
  /// By that node's clock.
  public var startedAt: WallTime
  public var endedAt: WallTime
  /// Everything was compared.
  public var complete: Bool
  /// Why not.
  public var why: String?
  /// Bytes of data read on the primary and compared.
  public var bytes: UInt64
  /// The first `VerifyReport.findingsMax` places.
  public var findings: [VerifyFinding]
  public var findingsCount: Int
  public var repairedCount: Int

  public init(
    node: String, startedAt: WallTime, endedAt: WallTime, complete: Bool, why: String? = nil, bytes: UInt64,
    findings: [VerifyFinding] = [], findingsCount: Int = 0, repairedCount: Int = 0
  ) {
    self.node = node
    self.startedAt = startedAt
    self.endedAt = endedAt
    self.complete = complete
    self.why = why
    self.bytes = bytes
    self.findings = findings
    self.findingsCount = findingsCount
    self.repairedCount = repairedCount
  }

  public var differingCount: Int { findingsCount - repairedCount }

  enum CodingKeys: String, CodingKey {
    case node, complete, why, bytes, findings
    case startedAt = "started_at"
    case endedAt = "ended_at"
    case findingsCount = "findings_count"
    case repairedCount = "repaired_count"
  }
}

public struct VerificationProgress: Sendable, Codable, Hashable {
  public var startedAt: WallTime
  public var repairs: Bool
  public var bytesDone: UInt64
  public var bytesTotal: UInt64
  public var bytesPerSecond: UInt64
  /// nil until a rate is known.
  public var secondsLeft: Int?
  /// Places found so far.
  public var findingsCount: Int

  public init(_ report: VerifyReport) {
    startedAt = WallTime(milliseconds: report.startedAtMs)
    repairs = report.repairs
    bytesDone = report.bytesDone
    bytesTotal = report.bytesTotal
    bytesPerSecond = report.bytesPerSecond
    secondsLeft = report.secondsLeft
    findingsCount = report.findingsCount
  }

  enum CodingKeys: String, CodingKey {
    case repairs
    case startedAt = "started_at"
    case bytesDone = "bytes_done"
    case bytesTotal = "bytes_total"
    case bytesPerSecond = "bytes_per_second"
    case secondsLeft = "seconds_left"
    case findingsCount = "findings_count"
  }
}
