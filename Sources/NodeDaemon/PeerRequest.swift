import ControlAPI
import MirrorModule
import Model
import Replication

/// What one vmhad asks of the other on the control link. JSON, one request and one reply at a time (docs/wire-protocol.md).
enum PeerRequest: Codable, Sendable {
  /// R5
  case consent(ModuleName, ConsentRequest)
  case command(ModuleName, PeerVerb, wishVersion: UInt64)
  /// Both sides tell their wishes; the higher version wins.
  case wishes([ModuleName: Wish])
  /// For `vmha status` on the asking node.
  case report
  /// What comes after this id in the node's journal.
  case journal(since: Int64)
  case adoption(AdoptionPeerRequest)
  case crashGuest(ModuleName)
  /// R12, to the node whose copy is given up.
  case resolve(ModuleName, mine: Generation, theirs: Generation)
  /// Archived branches of this module.
  case branches(ModuleName)
  /// To the primary: compare both copies, under this id.
  case verify(ModuleName, id: UInt64, repairs: Bool)
  case stopVerify(ModuleName)
  case cluster(ClusterPeerRequest)
  case set(ModuleName, ModuleChanges)
  /// Try the arbiter from there: the present one, or that of a cluster.xml that is to be set.
  case rehearse(configuration: [UInt8]?)
}

enum PeerVerb: Codable, Sendable {
  case start(force: Bool)
  case stop(timeout: Duration?)
  case swap
}

enum PeerReply: Codable, Sendable {
  case consent(ConsentReply)
  case answer(Answer)
  case wishes([ModuleName: Wish])
  case report([ModuleReport])
  case journal(JournalPiece)
  case branches([ArchivedBranch])
  case adoption(AdoptionPeerReply)
  case cluster(ClusterPeerReply)
  case checks([ArbiterCheck])
  case done
  /// A start that neither node may carry out.
  case forbidden(what: String, why: String, next: String)
  case failed(why: String)
}

/// A module on one node, as that node tells it.
struct ModuleReport: Codable, Sendable {
  var module: ModuleName
  var status: MirrorStatus
  var wish: Wish
  var since: WallTime
  var engine: EngineReport?
  /// Only while it is SPLIT.
  var branch: BranchFacts?
  var verification: VerificationRecord?
  /// While it waits for its turn to be resynchronised from there.
  var resyncAhead: ResyncWait?
}
