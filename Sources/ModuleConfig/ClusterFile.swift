import Model

// cluster.xml: reading, relations, writing.

extension ClusterConfiguration {
  /// Reads and checks cluster.xml. `file` is only what errors call it.
  public init(xml bytes: [UInt8], file: String) throws(ConfigurationError) {
    self = try readConfiguration(
      bytes, file: file, root: "cluster", schema: Schemas.cluster,
      { (root) throws(ConfigurationError) in try Self.read(root, file: file) }, problems: { $0.problems() })
  }

  /// Checks a configuration that was changed by command. Throws the first problem.
  public func validate() throws(ConfigurationError) {
    guard let problem = problems().first else { return }
    throw ConfigurationError(
      problem.code, file: "cluster.xml", element: problem.element, what: problem.what, allowed: problem.allowed)
  }

  private static func read(_ root: XMLElement, file: String) throws(ConfigurationError) -> ClusterConfiguration {
    let cluster = try ElementReader(
      root, file: file, labelled: "name", attributes: ["name", "uuid", "revision"],
      children: ["node", "link", "heartbeat", "arbiter", "boot", "split", "scrub"])
    var nodes: [ClusterNode] = []
    for element in try cluster.many("node", 1...2) {
      let node = try ElementReader(element, file: file, labelled: "name", attributes: ["id", "name"])
      nodes.append(
        ClusterNode(
          id: try node.value("id", allowed: nodeAllowed, nodeID),
          name: try node.value("name", allowed: Values.nameAllowed, Values.name)))
    }
    var links: [ClusterLink] = []
    for element in try cluster.many("link", 1...linkCountMax) { links.append(try readLink(element, file: file)) }
    var configuration = ClusterConfiguration(
      uuid: try cluster.value("uuid", allowed: Values.uuidAllowed, Values.uuid),
      name: try cluster.value("name", allowed: Values.nameAllowed, Values.name),
      revision: try cluster.value("revision", allowed: "a whole number from 1 is needed") {
        Int($0).flatMap { $0 >= 1 ? $0 : nil }
      },
      nodes: nodes.sorted { $0.id < $1.id }, links: links)
    if let element = try cluster.atMostOne("heartbeat") {
      let heartbeat = try ElementReader(element, file: file, attributes: ["pulse", "detection"])
      configuration.pulse = try heartbeat.duration("pulse", default: pulseDefault)
      configuration.detection = try heartbeat.duration("detection", default: detectionDefault)
    }
    if let element = try cluster.atMostOne("arbiter") {
      try configuration.readArbiter(element, file: file)
    }
    if let element = try cluster.atMostOne("boot") {
      let boot = try ElementReader(element, file: file, attributes: ["wait", "policy", "force-after"])
      configuration.bootWait = try boot.duration("wait", default: bootWaitDefault)
      configuration.bootPolicy = try boot.value(
        "policy", default: .arbiter, allowed: words(BootPolicy.self), BootPolicy.init(rawValue:))
      configuration.forceAfter = try boot.value(
        "force-after", default: .zero, allowed: "'off' or a time such as 30m, 2h is needed"
      ) { $0 == "off" ? .zero : TimeText.parse($0) }
    }
    if let element = try cluster.atMostOne("split") {
      let split = try ElementReader(element, file: file, attributes: ["policy"])
      configuration.splitPolicy = try split.value(
        "policy", default: .ask, allowed: words(SplitPolicy.self), SplitPolicy.init(rawValue:))
    }
    if let element = try cluster.atMostOne("scrub") { try configuration.readScrub(element, file: file) }
    return configuration
  }

  private mutating func readScrub(_ element: XMLElement, file: String) throws(ConfigurationError) {
    let scrub = try ElementReader(element, file: file, attributes: ["interval", "rate"])
    scrubInterval = try scrub.value(
      "interval", default: Self.scrubIntervalDefault, allowed: "'off' or a time such as 12h, 7d is needed"
    ) { $0 == "off" ? .zero : TimeText.parse($0) }
    scrubRateMiB = try scrub.value(
      "rate", default: Self.scrubRateMiBDefault, allowed: "a number of MiB a second is needed"
    ) { Int($0) }
  }

  private static func readLink(_ element: XMLElement, file: String) throws(ConfigurationError) -> ClusterLink {
    let link = try ElementReader(
      element, file: file, labelled: "name", attributes: ["name", "replication"], children: ["address"])
    var addresses: [NodeID: String] = [:]
    for element in try link.many("address", 1...2) {
      let address = try ElementReader(element, file: file, labelled: "node", attributes: ["node", "ip"])
      let node = try address.value("node", allowed: nodeAllowed, nodeID)
      let ip = try address.value("ip", allowed: Values.addressAllowed, Values.address)
      if addresses.updateValue(ip, forKey: node) != nil {
        throw link.error(.relation, "\(node) has two addresses", "one for each node", line: element.line)
      }
    }
    return ClusterLink(
      name: try link.value("name", allowed: Values.nameAllowed, Values.name),
      replication: try link.value("replication", allowed: "'yes' or 'no' is needed", yesOrNo), addresses: addresses)
  }

  /// Everything that contradicts itself, first things first.
  func problems() -> [ConfigurationProblem] {
    var found: [ConfigurationProblem] = []
    let ids = Set(nodes.map(\.id))
    let label = ElementReader.label
    if ids.count != nodes.count || !ids.contains(.first) {
      found.append(.init(.relation, "cluster", "the nodes' ids are not 1 and 2", "node 1, then node 2, each once"))
    }
    if Set(nodes.map(\.name)).count != nodes.count {
      found.append(.init(.relation, label("node", nodes[0].name), "both nodes have this name", "names must differ"))
    }
    for node in nodes where Values.name(node.name) == nil {
      found.append(.init(.value, label("node", node.name), "its name is not accepted", Values.nameAllowed))
    }
    if Values.name(name) == nil {
      found.append(.init(.value, label("cluster", name), "its name is not accepted", Values.nameAllowed))
    }
    found += linkProblems(ids: ids) + timingProblems() + arbiterProblems()
    return found
  }

  private func linkProblems(ids: Set<NodeID>) -> [ConfigurationProblem] {
    var found: [ConfigurationProblem] = []
    var names: Set<String> = []
    var used: [String: String] = [:]
    if !(1...Self.linkCountMax).contains(links.count) {
      found.append(.init(.structure, "cluster", "\(links.count) links", "1 to \(Self.linkCountMax) are needed"))
    }
    for link in links {
      let label = ElementReader.label("link", link.name)
      if Values.name(link.name) == nil {
        found.append(.init(.value, label, "its name is not accepted", Values.nameAllowed))
      }
      if !names.insert(link.name).inserted {
        found.append(.init(.relation, label, "two links have this name", "names must differ"))
      }
      if Set(link.addresses.keys) != ids {
        found.append(
          .init(
            .relation, label, "it has addresses for \(list(link.addresses.keys))",
            "one for each of \(list(ids)) is needed"))
      }
      let parsed = link.addresses.sorted { $0.key < $1.key }.map { IPAddress($0.value) }
      if parsed.contains(nil) {
        found.append(.init(.value, label, "an address is not accepted", Values.addressAllowed))
      }
      if Set(parsed.compactMap { $0?.family }).count > 1 {
        found.append(.init(.relation, label, "it mixes IPv4 and IPv6", "both addresses must be of one family"))
      }
      for address in parsed.compactMap({ $0?.text }) {
        if let other = used.updateValue(link.name, forKey: address) {
          let where_ = other == link.name ? "both nodes" : "link '\(other)' too"
          found.append(.init(.relation, label, "\(address) is used by \(where_)", "every address must be different"))
        }
      }
    }
    if !links.isEmpty, replicationLinks.isEmpty {
      found.append(.init(.relation, "cluster", "no link carries replication", "set replication='yes' on at least one"))
    }
    return found
  }

  private func timingProblems() -> [ConfigurationProblem] {
    var found: [ConfigurationProblem] = []
    func require(_ holds: Bool, _ element: String, _ inequality: String, _ values: String) {
      if !holds { found.append(.init(.relation, element, "\(values)", "\(inequality) must hold")) }
    }
    let time = TimeText.format
    require(
      pulse >= .milliseconds(50) && pulse <= .seconds(5), "heartbeat", "50ms <= pulse <= 5s", "pulse is \(time(pulse))")
    require(
      detection >= .seconds(1) && detection <= .seconds(120), "heartbeat", "1s <= detection <= 120s",
      "detection is \(time(detection))")
    require(
      pulse * 4 <= detection, "heartbeat", "pulse * 4 <= detection",
      "pulse is \(time(pulse)) and detection \(time(detection))")
    require(
      suspendAfter + Self.suspendMargin < detection, "heartbeat",
      "suspendAfter + \(time(Self.suspendMargin)) < detection", "detection is \(time(detection))")
    require(
      detection <= bootWait && bootWait <= .seconds(3600), "boot", "detection <= wait <= 1h",
      "wait is \(time(bootWait)) and detection \(time(detection))")
    require(
      forceAfter == .zero || bootWait <= forceAfter && forceAfter <= .seconds(30 * 86_400), "boot",
      "force-after = off or wait <= force-after <= 30d",
      "force-after is \(time(forceAfter)) and wait \(time(bootWait))")
    require(
      scrubInterval == .zero || scrubInterval >= .seconds(60) && scrubInterval <= .seconds(366 * 86_400), "scrub",
      "interval = off or 1m <= interval <= 366d", "interval is \(time(scrubInterval))")
    require((1...10_240).contains(scrubRateMiB), "scrub", "1 <= rate <= 10240", "rate is \(scrubRateMiB)")
    if revision < 1 { found.append(.init(.value, "cluster", "revision is \(revision)", "1 or more is needed")) }
    return found
  }

  /// What an operator should know although it is allowed.
  public var warnings: [ConfigurationWarning] {
    var found: [ConfigurationWarning] = []
    if nodes.count < 2 {
      found.append(
        .init(
          what: "the cluster has one node; nothing is protected",
          whatToDo: "print a join line with 'vmha cluster ticket' and run it on the other host"))
    }
    if links.count < 2 {
      found.append(
        .init(
          what: "one link only: a broken cable or switch looks like a dead host",
          whatToDo: "add a second, independent network with 'vmha cluster set --add-link NAME=ADDRESS-1,ADDRESS-2'"))
    }
    if arbiter.canSplit {
      found.append(
        .init(
          what:
            "can split: no witness; with arbiter \(arbiter.rawValue) both nodes go on alone when they lose sight of "
            + "each other",
          whatToDo: "vmha cluster set arbiter=witness witness-endpoints=URL (docs/operating/arbiters.md)"))
    }
    if let own = ownSplitWarning(of: moduleArbiters.keys.sorted()) { found.append(own) }
    if forceAfter != .zero {
      found.append(
        .init(
          what:
            "can split: a copy that waits \(TimeText.format(forceAfter)) for a lost node is started by force, whatever it is "
            + "worth",
          whatToDo: "vmha cluster set force-after=off"))
    }
    return found
  }

  /// The file's text: the same configuration always gives the same text.
  public func xml() -> String {
    var out = """
      <?xml version="1.0" encoding="UTF-8"?>
      <!-- vmha: the cluster, the same on both nodes. Change it with 'vmha cluster set', which writes both
           copies and raises the revision; vmhad reads it again without a restart. -->
      <cluster name="\(escapedXML(name))" uuid="\(escapedXML(uuid))" revision="\(revision)">

      """
    for node in nodes.sorted(by: { $0.id < $1.id }) {
      out += "  <node id=\"\(node.id.rawValue)\" name=\"\(escapedXML(node.name))\"/>\n"
    }
    out += "\n  <!-- Networks between the nodes, best first. The heartbeat uses all of them. -->\n"
    for link in links {
      out += "  <link name=\"\(escapedXML(link.name))\" replication=\"\(link.replication ? "yes" : "no")\">\n"
      for (node, address) in link.addresses.sorted(by: { $0.key < $1.key }) {
        out += "    <address node=\"\(node.rawValue)\" ip=\"\(escapedXML(address))\"/>\n"
      }
      out += "  </link>\n"
    }
    let time = TimeText.format
    out += """

        <!-- A beat each pulse on every link; no beat on any link for the detection time: the peer is lost. -->
        <heartbeat pulse="\(time(pulse))" detection="\(time(detection))"/>

        <!-- Who may let a node go on alone: policy=none = nobody is asked (can split), wait = peer or operator;
             witness, fence and others: docs/operating/arbiters.md. <module>: a VM with another one ('vmha set'). -->
      \(arbiterXML())

        <!-- A node that boots waits this long for its peer; then policy: arbiter = as above, wait = go on waiting.
             A copy that still waits after force-after then is started by force (off = never; can split). -->
        <boot wait="\(time(bootWait))" policy="\(bootPolicy.rawValue)" force-after="\(off(forceAfter))"/>

        <!-- Whose copy of a SPLIT VM goes on: ask = the operator chooses, keep-preferred = its preferred node's. -->
        <split policy="\(splitPolicy.rawValue)"/>

        <!-- Both copies of each VM are compared this often (off = never), reading at most so many MiB a second. -->
        <scrub interval="\(off(scrubInterval))" rate="\(scrubRateMiB)"/>
      </cluster>

      """
    return out
  }
}

private func off(_ time: Duration) -> String { time == .zero ? "off" : TimeText.format(time) }
let nodeAllowed = "1 or 2 is needed"
func nodeID(_ text: String) -> NodeID? { Int(text).flatMap(NodeID.init(rawValue:)) }
func yesOrNo(_ text: String) -> Bool? { ["yes": true, "no": false][text] }
func words<T: RawRepresentable & CaseIterable>(_: T.Type) -> String where T.RawValue == String {
  "one of these is needed: " + T.allCases.map(\.rawValue).joined(separator: ", ")
}
private func list(_ nodes: some Collection<NodeID>) -> String {
  nodes.isEmpty ? "no node" : nodes.sorted().map(\.description).joined(separator: " and ")
}
