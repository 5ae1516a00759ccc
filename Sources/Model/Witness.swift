// R5: what the witness, a register in etcd, keeps of one module and what a node keeps of the witness.

/// The value of a module's register: who holds the right to be alone, or held it last.
public struct WitnessRegister: Sendable, Codable, Hashable {
  public var branch: BranchID
  /// For people only: generations are compared by descent.
  public var number: UInt32
  public var holder: NodeID
  /// The branch that the holder was on before this one.
  public var parent: BranchID
  public init(branch: BranchID, number: UInt32, holder: NodeID, parent: BranchID) {
    self.branch = branch
    self.number = number
    self.holder = holder
    self.parent = parent
  }
}

/// The witness as a node knows it: durable (R0). It rises with what the node reads; it is made, lowered or moved to another cluster
/// only while both nodes are in sync and both agree.
public struct WitnessMark: Sendable, Codable, Hashable {
  /// etcd's cluster id.
  public var cluster: UInt64
  /// The store's revision when the register was last seen changed; a lower one = the store was set back.
  public var revision: Int64
  /// The register's last change then; an older one = it was set back, and others have written to the store since. 0 = there was none.
  public var modRevision: Int64
  /// The change that made the register; another one = it was deleted and made anew. nil = there was none, or a record of a version that
  /// did not keep it: to be agreed on again.
  public var createRevision: Int64?
  public init(cluster: UInt64, revision: Int64, modRevision: Int64, createRevision: Int64?) {
    self.cluster = cluster
    self.revision = revision
    self.modRevision = modRevision
    self.createRevision = createRevision
  }
}

/// One linearizable read.
public struct WitnessReading: Sendable, Codable, Hashable {
  public var cluster: UInt64
  /// Of the whole store.
  public var revision: Int64
  /// Of the register's last change; 0 = there is no register.
  public var modRevision: Int64
  /// The change that made the register; nil = there is none.
  public var createRevision: Int64?
  /// nil: there is none, or what is there is no register.
  public var register: WitnessRegister?
  public init(
    cluster: UInt64, revision: Int64, modRevision: Int64, createRevision: Int64?, register: WitnessRegister?
  ) {
    self.cluster = cluster
    self.revision = revision
    self.modRevision = modRevision
    self.createRevision = createRevision
    self.register = register
  }
  public var mark: WitnessMark {
    WitnessMark(cluster: cluster, revision: revision, modRevision: modRevision, createRevision: createRevision)
  }
}
