import Model

// module.xml: reading, relations, writing.

extension ModuleConfiguration {
  /// Reads and checks module.xml. `file` is only what errors call it.
  public init(xml bytes: [UInt8], file: String) throws(ConfigurationError) {
    self = try readConfiguration(
      bytes, file: file, root: "module", schema: Schemas.module,
      { (root) throws(ConfigurationError) in try Self.read(root, file: file) }, problems: { $0.problems() })
  }

  /// Checks a configuration that was made by command. Throws the first problem.
  public func validate() throws(ConfigurationError) {
    guard let problem = problems().first else { return }
    throw ConfigurationError(
      problem.code, file: "module.xml of \(name)", element: problem.element, what: problem.what,
      allowed: problem.allowed)
  }

  private static func read(_ root: XMLElement, file: String) throws(ConfigurationError) -> ModuleConfiguration {
    let module = try ElementReader(
      root, file: file, labelled: "name", attributes: ["name", "number", "uuid", "resync-priority"],
      children: ["directory", "preferred", "start", "stop", "restarts", "check", "disks", "files"])
    let directory = try ElementReader(
      try module.one("directory"), file: file, attributes: ["backing", "mount"])
    let preferred = try ElementReader(try module.one("preferred"), file: file, attributes: ["node"])
    let disks = try ElementReader(try module.one("disks"), file: file, attributes: [], children: ["disk"])
    var configuration = ModuleConfiguration(
      name: try module.value("name", allowed: moduleNameAllowed, ModuleName.init),
      number: try module.value("number", allowed: "1 to \(moduleCountMax) is needed") {
        Int($0).flatMap(ModuleNumber.init(rawValue:))
      },
      uuid: try module.value("uuid", allowed: Values.uuidAllowed, Values.uuid),
      backingDirectory: try directory.value("backing", allowed: Values.pathAllowed, Values.absolutePath),
      mountPoint: try directory.value("mount", allowed: Values.pathAllowed, Values.absolutePath),
      preferredNode: try preferred.value("node", allowed: nodeAllowed, nodeID), disks: [])
    for element in try disks.many("disk", 1...diskCountMax) {
      configuration.disks.append(try readDisk(element, file: file))
    }
    if let element = try module.atMostOne("files") {
      let files = try ElementReader(element, file: file, attributes: [], children: ["file"])
      for element in try files.many("file", 0...fileCountMax) {
        let reader = try ElementReader(element, file: file, labelled: "path", attributes: ["path", "original"])
        configuration.otherFiles.append(
          ModuleFile(
            file: try reader.value("path", allowed: Values.filePathAllowed, Values.relativePath),
            originalPath: try reader.value("original", allowed: Values.pathAllowed, Values.absolutePath)))
      }
    }
    let priority = try module.value(
      "resync-priority", default: ResyncPriority.normal, allowed: "high, normal or low is needed"
    ) { ResyncPriority(rawValue: $0) }
    configuration.resyncPriority = priority == .normal ? nil : priority
    try configuration.readTimes(module)
    if let element = try module.atMostOne("check") { configuration.check = try readCheck(element, file: file) }
    return configuration
  }

  private mutating func readTimes(_ module: ElementReader) throws(ConfigurationError) {
    if let element = try module.atMostOne("start") {
      let start = try ElementReader(element, file: module.file, attributes: ["timeout"])
      startTimeout = try start.duration("timeout", default: startTimeout)
    }
    if let element = try module.atMostOne("stop") {
      let stop = try ElementReader(element, file: module.file, attributes: ["timeout"])
      stopTimeout = try stop.duration("timeout", default: stopTimeout)
    }
    if let element = try module.atMostOne("restarts") {
      let restarts = try ElementReader(element, file: module.file, attributes: ["max", "window"])
      restartsMax = try restarts.value("max", default: restartsMax, allowed: "0 to 100 is needed") { Int($0) }
      restartWindow = try restarts.duration("window", default: restartWindow)
    }
  }

  private static func readDisk(_ element: XMLElement, file: String) throws(ConfigurationError) -> ModuleDisk {
    let disk = try ElementReader(
      element, file: file, labelled: "target", attributes: ["target", "path", "format", "original"])
    return ModuleDisk(
      target: try disk.value("target", allowed: wordAllowed, word),
      file: try disk.value("path", allowed: Values.filePathAllowed, Values.relativePath),
      originalPath: try disk.value("original", allowed: Values.pathAllowed, Values.absolutePath),
      format: try disk.value("format", allowed: wordAllowed, word))
  }

  private static func readCheck(_ element: XMLElement, file: String) throws(ConfigurationError) -> ModuleCheck {
    let check = try ElementReader(element, file: file, attributes: [], children: ["tcp", "ping"])
    let tcp = try check.atMostOne("tcp")
    let ping = try check.atMostOne("ping")
    switch (tcp, ping) {
    case (.some(let element), nil):
      let reader = try ElementReader(element, file: file, attributes: ["address", "port"])
      return .tcp(
        address: try reader.value("address", allowed: Values.addressAllowed, Values.address),
        port: try reader.value("port", allowed: "1 to 65535 is needed") {
          Int($0).flatMap { (1...65535).contains($0) ? $0 : nil }
        })
    case (nil, .some(let element)):
      let reader = try ElementReader(element, file: file, attributes: ["address"])
      return .ping(address: try reader.value("address", allowed: Values.addressAllowed, Values.address))
    default:
      throw check.error(.structure, "it does not say what to check", "exactly one of <tcp> and <ping> is needed")
    }
  }

  func problems() -> [ConfigurationProblem] {
    var found: [ConfigurationProblem] = []
    let time = TimeText.format
    func require(_ holds: Bool, _ element: String, _ what: String, _ allowed: String) {
      if !holds { found.append(.init(.relation, element, what, allowed)) }
    }
    let parent = mountPoint.split(separator: "/").dropLast().map { "/" + $0 }.joined()
    require(
      mountPoint == Self.mountPoint(of: name, in: parent), "directory", "mount is \(mountPoint)",
      "its last part must be the module's name, '\(name)'")
    require(
      backingDirectory == Self.backingDirectory(of: name, in: parent), "directory", "backing is \(backingDirectory)",
      "it must be \(Self.backingDirectory(of: name, in: parent)), beside the mount point")
    require(
      startTimeout >= .seconds(1) && startTimeout <= .seconds(3600), "start", "timeout is \(time(startTimeout))",
      "1s <= timeout <= 1h must hold")
    require(
      stopTimeout >= .seconds(1) && stopTimeout <= .seconds(3600), "stop", "timeout is \(time(stopTimeout))",
      "1s <= timeout <= 1h must hold")
    require((0...100).contains(restartsMax), "restarts", "max is \(restartsMax)", "0 <= max <= 100 must hold")
    require(
      restartWindow >= .seconds(60) && restartWindow <= .seconds(30 * 86_400), "restarts",
      "window is \(time(restartWindow))", "1m <= window <= 30d must hold")
    require(Values.uuid(uuid) == uuid, "module", "uuid is '\(uuid)'", Values.uuidAllowed)
    found += fileProblems()
    return found
  }

  private func fileProblems() -> [ConfigurationProblem] {
    var found: [ConfigurationProblem] = []
    var targets: Set<String> = []
    for disk in disks where !targets.insert(disk.target).inserted {
      let label = ElementReader.label("disk", disk.target)
      found.append(.init(.relation, label, "two disks have this target", "targets must differ"))
    }
    if !(1...Self.diskCountMax).contains(disks.count) {
      found.append(.init(.structure, "disks", "\(disks.count) disks", "1 to \(Self.diskCountMax) are needed"))
    }
    var originals: [String: String] = [:]
    for file in Set(allFiles).sorted(by: { $0.file < $1.file }) {
      if Values.relativePath(file.file) == nil || Values.absolutePath(file.originalPath) == nil {
        found.append(.init(.value, "files", "'\(file.file)' from '\(file.originalPath)'", Values.filePathAllowed))
      }
      if let other = originals.updateValue(file.originalPath, forKey: file.file), other != file.originalPath {
        found.append(
          .init(.relation, "files", "'\(file.file)' comes from two places", "one original path for each file"))
      }
    }
    let count = Set(allFiles.map(\.originalPath)).count
    if count != originals.count {
      found.append(.init(.relation, "files", "two files come from one place", "original paths must differ"))
    }
    return found
  }

  /// The file's text: the same configuration always gives the same text.
  public func xml() -> String {
    let time = TimeText.format
    let priority = resyncPriority.map { " resync-priority=\"\($0.rawValue)\"" } ?? ""
    var out = """
      <?xml version="1.0" encoding="UTF-8"?>
      <!-- vmha: one protected virtual machine, the same on both nodes. Written by 'vmha add'.
           Names, paths and number are facts and stay as they are; times, limits and the check may be changed
           (on both nodes alike) and count from the next start of vmhad. -->
      <module name="\(name)" number="\(number.rawValue)" uuid="\(escapedXML(uuid))"\(priority)>
        <!-- The files are in 'backing'; the guest sees them in 'mount', which is empty while the VM is not here. -->
        <directory backing="\(escapedXML(backingDirectory))" mount="\(escapedXML(mountPoint))"/>

        <!-- Where the VM runs when both nodes could run it. -->
        <preferred node="\(preferredNode.rawValue)"/>

        <start timeout="\(time(startTimeout))"/>
        <!-- From the ACPI request until the guest is forced off. -->
        <stop timeout="\(time(stopTimeout))"/>
        <!-- Restarts of a guest that dies, within the window, before the module stops; 0 = never restarted. -->
        <restarts max="\(restartsMax)" window="\(time(restartWindow))"/>

        <!-- Does the service answer? Used by status and drills: <tcp address="192.0.2.10" port="80"/> or
             <ping address="192.0.2.10"/>. -->

      """
    switch check {
    case .tcp(let address, let port):
      out += "  <check><tcp address=\"\(escapedXML(address))\" port=\"\(port)\"/></check>\n"
    case .ping(let address): out += "  <check><ping address=\"\(escapedXML(address))\"/></check>\n"
    case nil: break
    }
    out += "\n  <!-- Paths below 'mount', and where 'vmha remove' puts the files back. -->\n  <disks>\n"
    for disk in disks {
      out += "    <disk target=\"\(escapedXML(disk.target))\" path=\"\(escapedXML(disk.file))\""
      out += " format=\"\(escapedXML(disk.format))\"\n"
      out += "      original=\"\(escapedXML(disk.originalPath))\"/>\n"
    }
    out += "  </disks>\n"
    if !otherFiles.isEmpty {
      out += "  <files>\n"
      for file in otherFiles {
        out += "    <file path=\"\(escapedXML(file.file))\" original=\"\(escapedXML(file.originalPath))\"/>\n"
      }
      out += "  </files>\n"
    }
    return out + "</module>\n"
  }
}

let moduleNameAllowed = "1 to 64 of A-Z a-z 0-9 . _ + - are allowed, not starting with . or -"
private let wordAllowed = "1 to 32 letters, digits, dashes or underscores are needed"
private func word(_ text: String) -> String? {
  let isAllowed = text.allSatisfy { $0.isASCII && ($0.isLetter || $0.isNumber || $0 == "-" || $0 == "_") }
  return isAllowed && (1...32).contains(text.count) ? text : nil
}
