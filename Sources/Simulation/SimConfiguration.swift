import MirrorModule
import Model

/// The cluster's arbiter is changed while the module runs, as `Daemon.change` does it: only in sync, both nodes acknowledge each step, and
/// between two arbiters lies `wait`, under which a node that has not heard of the step harms nobody.
extension World {
  /// What the newest configuration says.
  var arbiter: ArbiterPolicy { (nodes[0].revision >= nodes[1].revision ? nodes[0] : nodes[1]).arbiter }

  private func mayTalk() -> Bool {
    nodes.allSatisfy { reaches(from: $0) && !$0.isFrozen && $0.daemon != nil }
  }

  /// Daemon.stepsToArbiter
  func changeArbiter(to next: ArbiterPolicy, by node: SimNode) {
    guard isConverged, mayTalk(), next != arbiter, nodes[0].revision == nodes[1].revision else { return }
    step(next == .wait || arbiter == .wait ? [next] : [.wait, next], by: node)
  }

  private func step(_ steps: [ArbiterPolicy], by node: SimNode) {
    guard let arbiter = steps.first, isConverged, mayTalk() else { return }
    let revision = max(nodes[0].revision, nodes[1].revision) + 1
    let peer = self.peer(of: node)
    take(arbiter, revision, at: node)
    meet(.arbiterChangedHalf)
    node.after(delay(20, 1...1500)) { [unowned self, unowned node, unowned peer] in
      guard mayTalk(), peer.revision < revision else { return }
      take(arbiter, revision, at: peer)
      meet(.arbiterChanged)
      node.after(delay(20, 1...800)) { [unowned self, unowned node] in step(Array(steps.dropFirst()), by: node) }
    }
  }

  /// A heartbeat says which revision its node has: the older one is replaced (Daemon.reconcileCluster).
  func shareArbiter() {
    guard nodes[0].revision != nodes[1].revision, mayTalk(), options.isCalm || random.chance(20) else { return }
    let (newer, older) = nodes[0].revision > nodes[1].revision ? (nodes[0], nodes[1]) : (nodes[1], nodes[0])
    meet(.arbiterTakenOver)
    take(newer.arbiter, newer.revision, at: older)
  }

  private func take(_ arbiter: ArbiterPolicy, _ revision: Int, at node: SimNode) {
    node.arbiter = arbiter
    node.revision = revision
    if arbiter.isUnproven { allowSplit() }
    if arbiter.fences { allowPowerCuts() }
    faultRecorder?("\(node.name)'s arbiter is \(arbiter.rawValue) from revision \(revision) on")
    node.daemon?.configure(arbiter)
  }
}
