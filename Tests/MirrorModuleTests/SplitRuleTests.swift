import MirrorModule
import Model
import Testing

@testable import Simulation

/// R12, step by step: no branch is given up before the other node has agreed to go on and the archive has it.
@Suite struct SplitRuleTests {
  private let session = SessionID(rawValue: 9)
  private let start = Instant(nanoseconds: 0)
  private let mine = DurableRecord(
    generation: Generation(number: 4, branch: BranchID(rawValue: 44)), standing: .uptodate)
  private let theirs = DurableRecord(
    generation: Generation(number: 4, branch: BranchID(rawValue: 55)), standing: .uptodate)
  private var archive: Directive { .archiveBranch(mine.generation, kept: theirs.generation) }

  /// Node `node`, told to give its branch up, and what it did then.
  private func surrendering(_ node: NodeID) -> (core: MirrorModule, did: [Directive]) {
    let hello = Hello(node: node.peer, record: theirs, isAlone: false, guestRunning: false, continuous: false)
    var (core, _) = World.core(
      mine, of: node, then: .ready(.idle), .engine(.connected(session, link: "storage")),
      .peerMessage(session, .hello(hello)))
    #expect(core.status.isSplit)
    let verb = Command.Verb.resolve(mine: mine.generation, theirs: theirs.generation)
    let did = core.handle(.command(Command(id: 1, verb: verb, wishVersion: 1)), at: start)
    return (core, did)
  }

  private func refuses(_ directives: [Directive]) -> Bool {
    directives.contains { if case .answer(1, .refused) = $0 { true } else { false } }
  }

  @Test(arguments: [NodeID.first, .second]) func nothingIsGivenUpWithoutAgreement(_ node: NodeID) {
    var (core, did) = surrendering(node)
    #expect(did.contains(.sendPeer(session, .giveUp(mine.generation, kept: theirs.generation))))
    did += core.handle(.timer, at: start + .milliseconds(100))
    #expect(!did.contains(archive) && !did.contains(.engine(.endSession)))
    #expect(core.durableRecord == mine && core.status.isSplit)
    // Without an answer it is refused in the end, and may be repeated.
    did = core.handle(.timer, at: start + MirrorSettings.surrenderAnswerMax)
    #expect(refuses(did) && !did.contains(archive))
  }

  /// Of two that are told at the same time the first node's wish goes first.
  @Test(arguments: [NodeID.first, .second]) func ofTwoCrossingWishesOneIsCarriedOut(_ node: NodeID) {
    var (core, _) = surrendering(node)
    let crossing = PeerMessage.giveUp(theirs.generation, kept: mine.generation)
    let did = core.handle(.peerMessage(session, crossing), at: start)
    let agrees = did.contains(.sendPeer(session, .goOn(mine.generation)))
    #expect(agrees == (node == .second))
    #expect(refuses(did) == (node == .second))
    let late = core.handle(.peerMessage(session, .goOn(theirs.generation)), at: start)
    #expect(late.contains(archive) == (node == .first))
  }

  @Test func aFailedArchiveGivesNothingUp() {
    var (core, _) = surrendering(.first)
    #expect(core.handle(.peerMessage(session, .goOn(theirs.generation)), at: start).contains(archive))
    var failed = core
    let did = failed.handle(.branchArchiveFailed(mine.generation.branch, why: "no space"), at: start)
    #expect(persisted(did) == nil && failed.durableRecord == mine && failed.status.state == .wait)
    // The copy is rebuilt only behind an archive that is whole.
    let done = core.handle(.branchArchived(mine.generation.branch), at: start)
    #expect(persisted(done)?.standing == .inconsistent && persisted(done)?.generation.branch == .empty)
  }
}
