import ControlAPI
import Model

/// What `vmha start --force` may cost, said before it is done.
enum ForceWarning {
  static func lines(_ module: ModuleStatus, on node: String, now: WallTime) -> [String] {
    guard let mine = module.nodes.first(where: { $0.node == node }) else { return [] }
    let other = module.nodes.first { $0.node != node }
    let peer = other?.node ?? "the other node"
    if !module.split, mine.readiness == .ready, mine.state == .prim || mine.state == .alone {
      return ["\(module.name) runs on \(node) already: --force changes nothing."]
    }
    var lines: [String] = []
    if module.split {
      lines.append("\(module.name) is SPLIT. This copy has writes of its own, and \(peer)'s copy has others:")
      for entry in module.nodes {
        lines.append("  \(entry.node): \(entry.branch.map(Wording.branch) ?? "nothing more is known of it")")
      }
      lines.append(
        "The guest goes on with this copy's; both copies stay until: vmha resolve \(module.name) --keep NODE")
      return lines
    }
    switch mine.standing {
    case _ where mine.recordLost == true:
      lines.append(
        "\(module.name) on \(node): its record is LOST, and nobody knows what this copy is worth: the newest there is, older than"
      )
      lines.append("\(peer)'s, or, if it was being resynchronised, half of one and half of another.")
    case .inconsistent:
      lines.append(
        "\(module.name) on \(node): this copy is in the middle of a resync and not usable: it will be refused.")
      return lines
    case .outdated:
      lines.append(
        "\(module.name) on \(node): this copy is OUTDATED: \(peer) went on without it, and what was written there")
      lines.append("since is not in it.")
    case .uptodate:
      lines.append(
        "\(module.name) on \(node): this copy was in sync; whether \(peer) went on without it is not known. If it did,")
      lines.append("what was written there since is not in this copy.")
    case nil: lines.append("\(module.name) on \(node): nothing is known of what this copy is worth.")
    }
    if other?.recordLost == true {
      lines.append(
        "\(peer) lost its record: its copy, which may be the newer one, is overwritten by the one that is forced.")
    }
    if let facts = mine.branch { lines.append("  its data: \(Wording.age(facts, now: now))") }
    let serves = other.map { $0.current && ($0.state == .prim || $0.state == .alone) } ?? false
    lines.append(
      serves
        ? "  \(peer) is there and serves it: it will be refused."
        : "If \(peer) still runs, or comes back with writes of its own, the module splits: both copies are kept, one is chosen."
    )
    return lines
  }
}
