import Model

/// etcd, 3.4 or later, outside the two hosts.
public struct WitnessConfiguration: Codable, Sendable, Hashable {
  public static let endpointCountMax = 5
  /// `https://host:2379`, best first; http:// too. 1 to `endpointCountMax` members of one etcd cluster.
  public var endpoints: [String]
  /// PEM, on both nodes at the same path. nil = the host's own trusted CAs.
  public var authorityFile: String?
  /// Both or neither, PEM.
  public var certificateFile: String?
  public var keyFile: String?
  /// Both or neither. The file holds the password in its first line, mode 0600.
  public var user: String?
  public var passwordFile: String?
  public init(endpoints: [String]) { self.endpoints = endpoints }

  /// What must be on both nodes.
  public var files: [String] { [authorityFile, certificateFile, keyFile, passwordFile].compactMap { $0 } }
}

/// How one node is powered off.
public struct FenceConfiguration: Codable, Sendable, Hashable {
  /// A program of Debian's fence-agents, or one that speaks as they do: `fence_ipmilan`, or an absolute path.
  public var agent: String
  /// `key=value` lines for the agent's standard input, mode 0600, on the other node (which runs it).
  public var optionsFile: String
  public init(agent: String, optionsFile: String) {
    self.agent = agent
    self.optionsFile = optionsFile
  }
}

extension ClusterConfiguration {
  public static let pingAddressCountMax = 4

  /// R5: the one that decides for this module.
  public func arbiter(of module: ModuleName) -> Arbiter { moduleArbiters[module] ?? arbiter }
  /// Everything that some module may ask, each once.
  public var arbitersInUse: Set<Arbiter> { Set(moduleArbiters.values).union([arbiter]) }

  /// What the operator must know of those of `modules` that can split by an arbiter of their own (R5); nil = there are none.
  public func ownSplitWarning(of modules: [ModuleName]) -> ConfigurationWarning? {
    let own = modules.filter { moduleArbiters[$0]?.canSplit ?? false }.map(\.text)
    guard !own.isEmpty else { return nil }
    // The cluster's is no way out where it can split itself.
    let safe = arbiter.canSplit ? Arbiter.wait.rawValue : "cluster"
    return ConfigurationWarning(
      what: "can split by an arbiter of its own, without a witness: \(own.joined(separator: ", "))",
      whatToDo: "vmha set \(own.joined(separator: " ")) --arbiter \(safe) (docs/operating/arbiters.md); or accept it")
  }

  mutating func readArbiter(_ element: XMLElement, file: String) throws(ConfigurationError) {
    let reader = try ElementReader(
      element, file: file, attributes: ["kind"], children: ["witness", "fence", "ping", "module"])
    arbiter = try reader.value("kind", allowed: words(Arbiter.self), Arbiter.init(rawValue:))
    if let element = try reader.atMostOne("witness") { witness = try Self.readWitness(element, file: file) }
    for element in try reader.many("fence", 0...2) {
      let fence = try ElementReader(element, file: file, attributes: ["node", "agent", "options"])
      let configuration = FenceConfiguration(
        agent: try fence.value("agent", allowed: Values.agentAllowed, Values.agent),
        optionsFile: try fence.value("options", allowed: Values.pathAllowed, Values.absolutePath))
      if fences.updateValue(configuration, forKey: try fence.value("node", allowed: nodeAllowed, nodeID)) != nil {
        throw fence.error(.relation, "this node has two fence agents", "one for each node")
      }
    }
    for element in try reader.many("ping", 0...Self.pingAddressCountMax) {
      let ping = try ElementReader(element, file: file, attributes: ["address"])
      pingAddresses.append(try ping.value("address", allowed: Values.addressAllowed, Values.address))
    }
    for element in try reader.many("module", 0...moduleCountMax) {
      let module = try ElementReader(element, file: file, labelled: "name", attributes: ["name", "kind"])
      let kind = try module.value("kind", allowed: words(Arbiter.self), Arbiter.init(rawValue:))
      let name = try module.value("name", allowed: moduleNameAllowed, ModuleName.init)
      if moduleArbiters.updateValue(kind, forKey: name) != nil {
        throw module.error(.relation, "this module has two arbiters", "one for each module")
      }
    }
  }

  private static func readWitness(
    _ element: XMLElement, file: String
  ) throws(ConfigurationError) -> WitnessConfiguration {
    let reader = try ElementReader(
      element, file: file, attributes: ["ca", "certificate", "key", "user", "password-file"], children: ["endpoint"])
    var witness = WitnessConfiguration(endpoints: [])
    for element in try reader.many("endpoint", 1...WitnessConfiguration.endpointCountMax) {
      let endpoint = try ElementReader(element, file: file, attributes: ["url"])
      witness.endpoints.append(try endpoint.value("url", allowed: Values.endpointAllowed, Values.endpoint))
    }
    func path(_ attribute: String) throws(ConfigurationError) -> String? {
      guard reader.element.attributes[attribute] != nil else { return nil }
      return try reader.value(attribute, allowed: Values.pathAllowed, Values.absolutePath)
    }
    witness.authorityFile = try path("ca")
    witness.certificateFile = try path("certificate")
    witness.keyFile = try path("key")
    witness.passwordFile = try path("password-file")
    witness.user = reader.element.attributes["user"]
    return witness
  }

  func arbiterProblems() -> [ConfigurationProblem] {
    var found: [ConfigurationProblem] = []
    func refuse(_ what: String, _ allowed: String) {
      found.append(.init(.relation, "arbiter", what, allowed))
    }
    found += missingParts(of: arbiter, "arbiter=\(arbiter.rawValue)")
    for (module, kind) in moduleArbiters.sorted(by: { $0.key < $1.key }) {
      found += missingParts(of: kind, "\(kind.rawValue), the arbiter of \(module),")
    }
    if moduleArbiters.count > moduleCountMax {
      refuse("\(moduleArbiters.count) modules with an arbiter of their own", "at most \(moduleCountMax)")
    }
    if let witness {
      let count = WitnessConfiguration.endpointCountMax
      if !(1...count).contains(witness.endpoints.count) || Set(witness.endpoints).count != witness.endpoints.count {
        refuse("\(witness.endpoints.count) witness endpoints", "1 to \(count) different ones are needed")
      }
      for endpoint in witness.endpoints where Values.endpoint(endpoint) == nil {
        refuse("the endpoint '\(endpoint)' is not accepted", Values.endpointAllowed)
      }
      for file in witness.files where Values.absolutePath(file) == nil {
        refuse("'\(file)' is not accepted", Values.pathAllowed)
      }
      if (witness.certificateFile == nil) != (witness.keyFile == nil) {
        refuse("a client certificate needs its key", "witness-certificate and witness-key, both or neither")
      }
      if (witness.user == nil) != (witness.passwordFile == nil) {
        refuse("a witness user needs a password", "witness-user and witness-password-file, both or neither")
      }
      if let user = witness.user, Values.name(user) == nil {
        refuse("the witness user '\(user)' is not accepted", Values.nameAllowed)
      }
      if witness.user != nil, witness.endpoints.contains(where: { $0.hasPrefix("http:") }) {
        refuse("a password would go over the network unencrypted", "witness-user needs https:// endpoints")
      }
    }
    for fence in fences.values {
      if Values.agent(fence.agent) == nil { refuse("the agent '\(fence.agent)' is not accepted", Values.agentAllowed) }
      if Values.absolutePath(fence.optionsFile) == nil {
        refuse("'\(fence.optionsFile)' is not accepted", Values.pathAllowed)
      }
    }
    for address in pingAddresses where Values.address(address) == nil {
      refuse("the ping address '\(address)' is not accepted", Values.addressAllowed)
    }
    if pingAddresses.count > Self.pingAddressCountMax {
      refuse("\(pingAddresses.count) ping addresses", "at most \(Self.pingAddressCountMax)")
    }
    return found
  }

  private func missingParts(of kind: Arbiter, _ who: String) -> [ConfigurationProblem] {
    var found: [ConfigurationProblem] = []
    func refuse(_ what: String, _ needs: String) {
      found.append(.init(.relation, "arbiter", what, "\(who) needs \(needs)"))
    }
    if kind.asksWitness, witness == nil { refuse("the witness has no endpoint", "witness-endpoints=URL[,URL]") }
    if kind.fences, nodes.contains(where: { fences[$0.id] == nil }) {
      refuse("not every node has a fence agent", "fence-1=AGENT:FILE and fence-2=AGENT:FILE")
    }
    if kind == .policyPing, pingAddresses.isEmpty {
      refuse("there is no ping address", "ping=ADDRESS[,ADDRESS]")
    }
    return found
  }

  func arbiterXML() -> String {
    var inner = ""
    if let witness {
      let attributes = [
        ("ca", witness.authorityFile), ("certificate", witness.certificateFile), ("key", witness.keyFile),
        ("user", witness.user), ("password-file", witness.passwordFile),
      ].compactMap { name, value in value.map { " \(name)=\"\(escapedXML($0))\"" } }.joined()
      inner += "    <witness\(attributes)>\n"
      for endpoint in witness.endpoints { inner += "      <endpoint url=\"\(escapedXML(endpoint))\"/>\n" }
      inner += "    </witness>\n"
    }
    for (node, fence) in fences.sorted(by: { $0.key < $1.key }) {
      inner += "    <fence node=\"\(node.rawValue)\" agent=\"\(escapedXML(fence.agent))\""
      inner += " options=\"\(escapedXML(fence.optionsFile))\"/>\n"
    }
    for address in pingAddresses { inner += "    <ping address=\"\(escapedXML(address))\"/>\n" }
    for (module, kind) in moduleArbiters.sorted(by: { $0.key < $1.key }) {
      inner += "    <module name=\"\(escapedXML(module.text))\" kind=\"\(kind.rawValue)\"/>\n"
    }
    let head = "  <arbiter kind=\"\(arbiter.rawValue)\""
    return inner.isEmpty ? "\(head)/>" : "\(head)>\n\(inner)  </arbiter>"
  }
}

extension Values {
  static let endpointAllowed = "a URL such as https://10.0.0.3:2379 is needed, without a path"
  static func endpoint(_ text: String) -> String? {
    guard let scheme = ["https://", "http://"].first(where: text.hasPrefix) else { return nil }
    let place = text.dropFirst(scheme.count)
    let isPlain = place.unicodeScalars.allSatisfy { isAlphanumeric($0) || ".-:[]_".unicodeScalars.contains($0) }
    guard isPlain, !place.isEmpty, text.utf8.count <= 256, let colon = place.lastIndex(of: ":"),
      colon > place.startIndex, let port = Int(place[place.index(after: colon)...]), (1...65535).contains(port)
    else { return nil }
    return text
  }

  static let agentAllowed = "a fence agent such as fence_ipmilan is needed, or the absolute path of a program"
  static func agent(_ text: String) -> String? {
    if text.hasPrefix("/") { return absolutePath(text) }
    let isWord = text.unicodeScalars.allSatisfy {
      ("0"..."9").contains($0) || ("a"..."z").contains($0) || $0 == "_"
    }
    return isWord && text.hasPrefix("fence_") && text.utf8.count <= 64 ? text : nil
  }
}
