import Model
import VirtualMachines

// What the node that adds or removes asks of the other one, over whatever transport the daemon has between them.

/// Taking a module off the other node.
public struct AdoptionWithdrawal: Codable, Sendable, Hashable {
  public enum Copy: String, Codable, Sendable, Hashable {
    /// The folder is removed if it is empty: an add that is taken back must not delete data.
    case removeIfEmpty
    case keep
    case purge
  }
  public var name: ModuleName
  public var uuid: String
  public var backingDirectory: String
  public var mountPoint: String
  public var copy: Copy
  /// What the copy is that is given back; the other one must not be newer. nil: an add is taken back, there is only one.
  public var keptRecord: DurableRecord?
  public init(
    name: ModuleName, uuid: String, backingDirectory: String, mountPoint: String, copy: Copy,
    keptRecord: DurableRecord? = nil
  ) {
    self.name = name
    self.uuid = uuid
    self.backingDirectory = backingDirectory
    self.mountPoint = mountPoint
    self.copy = copy
    self.keptRecord = keptRecord
  }
}

public enum AdoptionPeerRequest: Codable, Sendable, Hashable {
  /// Answered by `facts`.
  case facts(AdoptionPeerQuestion)
  /// Makes folders and module files, defines the domain, autostart off. Repeatable. Answered by `done`.
  case install(AdoptionModuleFiles)
  /// After `install`: takes carried files over. Repeated until it is answered by `done`; before, `seeding` says how far it is.
  case seed(AdoptionSeeding)
  /// Before `withdraw`: gives them back. Repeatable. Answered by `done`.
  case unseed(AdoptionSeeding)
  /// Answered by `removalFacts`.
  case removalFacts(AdoptionWithdrawal)
  /// Undefines the domain, removes the module's files and folders. Repeatable. Answered by `withdrawn`.
  case withdraw(AdoptionWithdrawal)
}

public enum AdoptionPeerReply: Codable, Sendable, Hashable {
  case facts(AdoptionPeerFacts)
  case removalFacts(AdoptionPeerRemovalFacts)
  case done
  case seeding(bytesDone: UInt64)
  /// Where a copy of the disks is left, nil if none is.
  case withdrawn(keptCopy: String?)
  /// It could not be done; what was done before stays and does no harm to a repetition.
  case failed(AdoptionError)
}

/// What the other node knows before a remove.
public struct AdoptionPeerRemovalFacts: Codable, Sendable, Hashable {
  /// nil: not defined there.
  public var domain: DomainFacts?
  public var hypervisorProblem: String?
  public var mountPoint: PlaceFacts
  /// What speaks against giving its copy up; see `AdoptionWithdrawal.objection`.
  public var objection: AdoptionFinding?
  public init(domain: DomainFacts?, hypervisorProblem: String? = nil, mountPoint: PlaceFacts) {
    self.domain = domain
    self.hypervisorProblem = hypervisorProblem
    self.mountPoint = mountPoint
  }
}
