import ControlAPI
import Model

/// `ClusterStatus` as tables.
struct StatusRendering {
  let status: ClusterStatus
  let console: Console

  init(_ status: ClusterStatus, _ console: Console) {
    self.status = status
    self.console = console
  }

  func overview() -> [String] {
    guard let cluster = status.cluster else {
      return [
        "\(status.thisNode) belongs to no cluster.",
        "Make one: vmha cluster init --help; or join one: vmha cluster join --help",
      ]
    }
    var lines = [Styled("cluster \(cluster.name)", .bold).rendered(console)]
    lines += hosts()
    lines += ["", "arbiter: \(status.arbiter)"]
    lines += status.modules.filter { $0.arbiter?.own ?? false }
      .map { "  \($0.name) has its own: \($0.arbiter?.text ?? "")" }
    lines += status.warnings.flatMap { warning in
      [Styled("warning: ", .yellow).rendered(console) + warning.what, "         \(warning.whatToDo)"]
    }
    lines.append("")
    if status.modules.isEmpty {
      lines.append("No VM is protected yet. Protect one: vmha add VM")
    } else {
      lines += modules()
    }
    return lines
  }

  private func hosts() -> [String] {
    var table = Table()
    table.indent = "  "
    for node in status.nodes {
      let state = node.reachable ? Styled("up", .green) : Styled("lost", .red)
      let note = node.name == status.thisNode ? "this node" : since(node.since)
      table.add([Styled("node"), Styled(node.name), state, Styled(note)])
    }
    for link in status.links {
      let addresses = status.nodes.map { link.addresses[$0.name] ?? "-" }.joined(separator: " - ")
      let colour: Colour = link.state == .up ? .green : link.state == .late ? .yellow : .red
      let note = link.state == .up ? "" : since(link.since)
      let use = link.replication ? "replication" : "heartbeat only"
      table.add([
        Styled("link"), Styled(link.name), Styled(link.state.rawValue, colour),
        Styled([addresses, use, note].filter { !$0.isEmpty }.joined(separator: ", ")),
      ])
    }
    return table.lines(console)
  }

  private func since(_ time: WallTime?) -> String {
    guard let time else { return "not seen yet" }
    return "for \(Wording.roughly(seconds: (status.time - time).components.seconds))"
  }

  private func modules() -> [String] {
    var table = Table()
    let nodeNames = status.nodes.map(\.name)
    table.add((["VM"] + nodeNames + ["GUEST", "CHECK", ""]).map { Styled($0, .dim) })
    for module in status.modules {
      let cells = nodeNames.map { name in module.nodes.first { $0.node == name }.map(state) ?? Styled("-") }
      table.add([Styled(module.name, .bold)] + cells + [guest(module), check(module), note(module)])
    }
    return table.lines(console)
  }

  /// "PRIM", "SECOND transient, inconsistent", "WAIT blocked, record lost", "(PRIM)" for what was last known of a node that is lost.
  func state(_ node: ModuleNodeStatus) -> Styled {
    var text = node.state.rawValue
    if node.readiness != .ready { text += " \(node.readiness.rawValue)" }
    if node.recordLost == true {
      text += ", record lost"
    } else if let standing = node.standing, standing != .uptodate {
      text += ", \(standing.rawValue)"
    }
    guard node.current else { return Styled("(\(text))", .dim) }
    switch (node.readiness, node.state) {
    case (.blocked, _): return Styled(text, .red)
    case (.transient, _), (.ready, .alone), (.ready, .wait): return Styled(text, .yellow)
    case (.ready, .prim), (.ready, .second): return Styled(text, .green)
    case (.ready, .stop): return Styled(text, .dim)
    }
  }

  private func guest(_ module: ModuleStatus) -> Styled {
    let alive = module.nodes.filter { $0.current && ($0.guest == .running || $0.guest == .paused) }
    if alive.isEmpty {
      return Styled(module.nodes.contains { $0.guest == .unknown && $0.current } ? "unknown" : "off", .dim)
    }
    let text = alive.map { "\($0.guest.rawValue) on \($0.node)" }.joined(separator: ", ")
    return Styled(text, alive.count > 1 ? .red : alive[0].guest == .paused ? .yellow : nil)
  }

  private func check(_ module: ModuleStatus) -> Styled {
    guard let check = module.check, check.time != nil else { return "-" }
    return check.answers ? Styled("answers", .green) : Styled("silent", .red)
  }

  /// The one sentence that says most.
  private func note(_ module: ModuleStatus) -> Styled {
    if module.split { return Styled("SPLIT: both copies are kept, see vmha status \(module.name)", .red) }
    if let operation = module.operation { return Styled(operation, .yellow) }
    let current = module.nodes.filter(\.current)
    if let blocked = current.first(where: { $0.readiness == .blocked }) {
      let age = blocked.branch.map { ". Its data: " + Wording.age($0, now: status.time) } ?? ""
      return Styled("\(blocked.node): \(blocked.sentence)\(age)", .red)
    }
    if let count = module.verification?.differingCount, count > 0 {
      return Styled("the copies DIFFER, see vmha status \(module.name)", .red)
    }
    if let wait = current.lazy.compactMap(\.resyncWait).first { return Styled("its copy " + Wording.wait(wait)) }
    if let resync = current.lazy.compactMap(\.resync).first { return Styled("copying " + Wording.resync(resync)) }
    if let moving = current.first(where: { $0.readiness == .transient }) {
      return Styled("\(moving.node): \(moving.sentence)")
    }
    return Styled(module.primary?.sentence ?? current.first?.sentence ?? "")
  }

  /// All that is known of one module.
  func details(_ module: ModuleStatus) -> [String] {
    var lines = [Styled("\(module.name)", .bold).rendered(console) + "  (module \(module.number))"]
    var facts = Table()
    facts.indent = "  "
    facts.add(["wished", Styled(module.wish == .started ? "started" : "stopped")])
    facts.add(["preferred", Styled(module.preferredNode)])
    if let priority = module.resyncPriority, priority != .normal {
      facts.add(["resync", Styled("\(priority.rawValue) priority")])
    }
    if let arbiter = module.arbiter { facts.add(["arbiter", Styled((arbiter.own ? "its own, " : "") + arbiter.text)]) }
    facts.add(["replication", Styled(module.replicationLink.map { "over link \($0)" } ?? "no session")])
    facts.add(["in flight", Styled("\(module.requestsInFlight) requests")])
    if let check = module.check { facts.add(["check", Styled(text(check))]) }
    if let operation = module.operation { facts.add(["operation", Styled(operation)]) }
    if let verification = module.verification { facts.add(["copies", copies(verification)]) }
    if let running = module.verification?.running { facts.add(["comparing", Styled(text(running))]) }
    if let time = module.verification?.nextScrub, module.verification?.running == nil {
      facts.add(["next scrub", Styled(time <= status.time ? "due" : "\(time.localDate) \(time.localTimeOfDay)")])
    }
    if module.split {
      facts.add(["split", Styled("neither copy descends from the other; both are kept", .red)])
      facts.add(["choose", Styled("vmha resolve \(module.name) --keep NODE")])
    }
    if let event = module.lastEvent {
      facts.add(["last event", Styled("\(event.time.localTimeOfDay) \(event.node): \(event.sentence)")])
    }
    lines += facts.lines(console)
    if let last = module.verification?.last, last.differingCount > 0 {
      lines += last.findings.filter { !$0.isRepaired }.map { "    " + Wording.finding($0) }
    }
    for node in module.nodes {
      lines.append("  \(node.node): \(state(node).rendered(console))" + (node.current ? "" : "  last known"))
      var table = Table()
      table.indent = "    "
      table.add(["because", Styled(node.sentence)])
      table.add(["guest", Styled(node.guest.rawValue)])
      let generation = node.generation.map { "generation \($0.number), branch \($0.branch)" } ?? "no generation"
      let copy =
        node.recordLost == true
        ? "its record is lost: nobody knows what it is worth" : "\(node.standing?.rawValue ?? "unknown"), \(generation)"
      table.add(["copy", Styled(copy)])
      if let wait = node.resyncWait { table.add(["resync", Styled(Wording.wait(wait))]) }
      if let resync = node.resync { table.add(["resync", Styled(text(resync))]) }
      if let branch = node.branch {
        let text = module.split ? Wording.branch(branch) : Wording.age(branch, now: status.time)
        table.add([module.split ? "branch" : "data", Styled(text)])
      }
      if let time = node.since { table.add(["since", Styled("\(time.localDate) \(time.localTimeOfDay)")]) }
      lines += table.lines(console)
    }
    return lines
  }

  private func text(_ resync: ResyncStatus) -> String {
    "\(Wording.bytes(resync.bytesDone)) of \(Wording.bytes(resync.bytesTotal)), \(Wording.resync(resync)), "
      + "\(Wording.bytes(resync.bytesSent)) sent"
  }

  /// "identical up to 14:03 (verified 2026-11-22)", "never verified", "DIFFER in 3 places".
  private func copies(_ verification: VerificationStatus) -> Styled {
    var proven = "never verified"
    if let time = verification.identicalUpTo {
      proven = "identical up to \(time.localTimeOfDay.prefix(5)) (verified \(time.localDate))"
    }
    guard let last = verification.last, last.differingCount > 0 else { return Styled(proven) }
    let places = last.differingCount == 1 ? "1 place" : "\(last.differingCount) places"
    let time = "\(last.endedAt.localDate) \(last.endedAt.localTimeOfDay)"
    return Styled("DIFFER in \(places), found \(time) by \(last.node); \(proven)", .red)
  }

  private func text(_ running: VerificationProgress) -> String {
    let percent = min(100, running.bytesDone * 100 / max(1, running.bytesTotal))
    var text = "\(percent) % of \(Wording.bytes(running.bytesTotal)), \(Wording.bytes(running.bytesPerSecond))/s"
    if let left = running.secondsLeft { text += ", \(Wording.roughly(seconds: Int64(left))) left" }
    return text + (running.findingsCount > 0 ? ", \(running.findingsCount) differing" : "")
  }

  private func text(_ check: CheckStatus) -> String {
    let target = check.port.map { "\(check.address) port \($0)" } ?? check.address
    let result = check.time == nil ? "not tried yet" : check.answers ? "answers" : "silent"
    return "\(check.kind.rawValue) \(target): \(result)" + (check.why.map { " (\($0))" } ?? "")
  }
}
