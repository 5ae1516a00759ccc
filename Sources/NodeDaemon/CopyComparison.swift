import MirrorModule
import Model

/// Two copies of a module that is stopped on both nodes, of which one is to be kept. Pure.
struct CopyComparison {
  let mine: DurableRecord
  let theirs: DurableRecord
  /// Whose is `mine`.
  let node: NodeID

  /// R7 decides, as it would if both met: nil = `mine` is the newest there is, for certain.
  func objection(_ name: String) -> AdoptionFinding? {
    if theirs.generation.branch == .empty, theirs.recordLost != true { return nil }
    switch Lineage.decide(hello(node, mine), hello(node.peer, theirs)) {
    case .source(node, _): return nil
    case .source(_, let why):
      return AdoptionFinding(
        .error, "the other node's copy is the newer one: \(why)", whatToDo: "run the command on the other node")
    case .split:
      return AdoptionFinding(
        .error, "the two copies have writes of their own each (SPLIT); one of them would be lost",
        whatToDo: "choose first: vmha resolve \(name)")
    case .noSource, .awaitsProof:
      return AdoptionFinding(
        .error, "it is not certain that this node's copy is the newest",
        whatToDo: "let both nodes decide it: vmha start \(name), wait until both are ready, and stop it again")
    }
  }

  private func hello(_ node: NodeID, _ record: DurableRecord) -> Hello {
    Hello(node: node, record: record, isAlone: false, guestRunning: false, continuous: false)
  }
}

extension AdoptionWithdrawal {
  /// What speaks against giving up the copy of `node`, whose record `read` answers; nil = nothing.
  func objection(of node: NodeID, _ read: () throws -> Stored<DurableRecord>) -> AdoptionFinding? {
    guard let keptRecord else { return nil }
    func unknown(_ why: String) -> AdoptionFinding {
      AdoptionFinding(
        .error, "the other node cannot tell what its copy is worth: \(why)", whatToDo: "see there: vmha why \(name)")
    }
    do {
      switch try read() {
      case .absent: return nil
      case .damaged(let why): return unknown("its record is damaged: \(why)")
      case .valid(let record):
        return CopyComparison(mine: keptRecord, theirs: record, node: node.peer).objection(name.text)
      }
    } catch { return unknown("\(error)") }
  }
}
