import Foundation

/// Everything vmhad does for the CLI, the console and the drills. Implemented by the daemon, served by `ControlServer`,
/// and implemented again by `ControlClient` on the other end of the socket.
///
/// Every call throws `ControlError`; anything else that is thrown becomes code `failed`, status 500. A call may be made from
/// any task, many at the same time. Names of modules arrive unchecked.
public protocol ControlService: Sendable {
  /// Never waits for the peer: answers from what is known.
  func status() async throws -> ClusterStatus
  func module(_ name: String) async throws -> ModuleStatus

  /// Start the VM on its preferred node, or where the only good copy is. Accepted = the wish is durable. Already started is a success.
  /// `force` starts from a copy that is not known to be the newest: it can lose writes or split, and the journal says so.
  func startModule(_ name: String, force: Bool) async throws -> Acceptance
  /// ACPI shutdown; after `timeoutSeconds` (nil = the module's `stopTimeout`) forced. Already stopped is a success.
  func stopModule(_ name: String, timeoutSeconds: Int?) async throws -> Acceptance
  /// Exchange the roles; refused unless the other copy is in sync and up to date (R10).
  func swapModule(_ name: String) async throws -> Acceptance
  /// Changes the module's settings on both nodes, the peer first; refused without the peer.
  func setModule(_ name: String, _ changes: ModuleChanges) async throws
  /// R12: one node's copy of a SPLIT module goes on, the other one's is archived on its node and rebuilt. Refused unless the
  /// module is SPLIT, the nodes see each other, the branches are those of the request, and the archive fits.
  func resolve(_ name: String, _ request: ResolveRequest) async throws -> Acceptance
  /// Archived branches on both nodes; of this one only, while the other cannot be reached.
  func branches(_ name: String) async throws -> [ArchivedBranch]
  /// Writes an archived branch of this node into a new folder, as its files were.
  func exportBranch(_ name: String, _ branch: String, to directory: String) async throws -> OperationID
  /// Deletes an archived branch of this node for good.
  func dropBranch(_ name: String, _ branch: String) async throws -> OperationID
  /// For drills only: SIGKILL to the guest's QEMU on the node where it runs. Refused unless the module is protected
  /// (`ModuleStatus.isProtected`).
  func crashGuest(_ name: String) async throws -> Acceptance

  /// Compares both copies while the guest goes on; refused unless they are in sync. `repair` overwrites what differs on the other node with
  /// the primary's contents. May be given on either node.
  func verifyModule(_ name: String, repair: Bool) async throws -> OperationID
  /// Ends a verification or scrub that goes on; none is a success.
  func stopVerification(_ name: String) async throws

  /// Checks on both nodes and says what `add` would do. Changes nothing.
  func planAdd(_ request: AddRequest) async throws -> AddPlan
  /// Begins it; throws `checksFailed` if the plan has errors. Repeating it after a failure or crash completes it.
  func add(_ request: AddRequest) async throws -> OperationID
  /// Stops protecting the VM and gives it back as plain files on the primary. Refused while the guest runs.
  func remove(_ name: String, purgeCopy: Bool) async throws -> OperationID
  func operation(_ id: OperationID) async throws -> OperationStatus

  func clusterInitialise(_ request: ClusterInitialiseRequest) async throws -> JoinTicket
  /// A new ticket; earlier ones stop working.
  func clusterTicket() async throws -> JoinTicket
  func clusterJoin(_ request: ClusterJoinRequest) async throws -> ClusterDescription
  func clusterShow() async throws -> ClusterDescription
  /// Changes both nodes, the peer first; refused without the peer.
  func clusterSet(_ changes: ClusterChanges) async throws -> ClusterDescription
  /// Rehearses the arbiter on both nodes: nothing is powered off. What does not work is in the report, not thrown.
  func check() async throws -> CheckReport

  /// With `since`: the first `limit` events after that cursor. Without: the last `limit`. Both in rising order.
  /// `module` nil = all, those of no module included. `limit` 1...`JournalPage.limitMax`.
  func log(since cursor: Int64?, module: String?, limit: Int) async throws -> JournalPage
  /// The last `limit` (1...`Timeline.limitMax`) events of both nodes that concern the module (nil = of all).
  func timeline(module: String?, limit: Int) async throws -> Timeline
  /// The flight recorder of the module's core on this node, as JSON: its last decisions, to be replayed by a developer.
  func decisions(_ name: String) async throws -> Data
  /// Events from now on. The stream may leave events out when its reader is slow (ids show it); it ends when vmhad stops.
  func events() -> AsyncStream<JournalEvent>
}
