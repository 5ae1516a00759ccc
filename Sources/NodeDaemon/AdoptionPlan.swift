import Model
import ModuleConfig
import VirtualMachines

/// Decides whether a VM can be added and how. Pure: the facts of both nodes in, findings and steps out.
struct AdoptionPlanner {
  let request: AdoptionRequest
  let facts: AdoptionFacts
  /// nil: the other node could not be asked; `peerProblem` says why.
  let peer: AdoptionPeerFacts?
  let peerProblem: String

  /// Folder of the backing files: others may pass through it, as QEMU must, but not list it.
  static let backingMode: UInt32 = 0o711
  static let mountMode: UInt32 = 0o755

  /// What the other node must be asked; nil if this node's facts already forbid it.
  static func question(_ request: AdoptionRequest, _ facts: AdoptionFacts) -> AdoptionPeerQuestion? {
    guard let name = ModuleName(request.name), let definition = facts.definition else { return nil }
    var networks: Set<String> = []
    var devices: Set<String> = []
    for interface in definition.interfaces {
      switch interface {
      case .network(let name): networks.insert(name)
      case .bridge(let name), .direct(let name): devices.insert(name)
      case .user, .other: break
      }
    }
    let items = AdoptionPlanner(request: request, facts: facts, peer: nil, peerProblem: "").items(definition)
    return AdoptionPeerQuestion(
      name: name, uuid: definition.identity.uuid, directory: facts.host.directory.path, networks: networks.sorted(),
      devices: devices.sorted(), files: neededFiles(definition), machine: definition.machine,
      seed: request.seedDirectory.map { AdoptionSeedPlanner.question($0, items) })
  }

  /// Files that are not moved and that every host that runs the VM must have.
  static func neededFiles(_ definition: DomainDefinition) -> [String] {
    var files = Set(definition.hostFiles.map(\.path))
    for disk in definition.disks where !disk.isWritable {
      if case .file(let path) = disk.source { files.insert(path) }
    }
    return files.sorted()
  }

  /// Where the UEFI variables are or will be; nil for a guest without.
  static func nvramPath(_ definition: DomainDefinition) -> String? {
    guard definition.hasUEFIVariables else { return nil }
    return definition.nvram ?? "/var/lib/libvirt/qemu/nvram/\(definition.identity.name)_VARS.fd"
  }

  func plan() -> AdoptionPlan {
    let number = freeNumber()
    var findings = AdoptionChecks(request: request, facts: facts, peer: peer, peerProblem: peerProblem).findings()
    if number == nil {
      findings.append(
        .init(
          .error, "there are \(moduleCountMax) modules, the most that one cluster carries",
          whatToDo: "remove one with 'vmha remove', or put this VM into another cluster"))
    }
    let seeding = seedPlan()
    findings += seeding.findings
    var plan = AdoptionPlan(name: request.name, number: number, findings: findings)
    guard plan.errors.isEmpty, let number else { return plan }
    do {
      let work = try self.work(number: number, seeding.seeding)
      plan.work = work
      plan.findings += spaceFindings(work)
      if !plan.errors.isEmpty { plan.work = nil }
    } catch {
      plan.findings.append(.init(.error, "\(error)"))
    }
    return plan
  }

  /// The lowest number that no module of either node has.
  private func freeNumber() -> ModuleNumber? {
    let taken = Set(facts.host.modules.values).union(peer?.host.modules.values ?? [:].values)
    return (1...moduleCountMax).lazy.compactMap(ModuleNumber.init(rawValue:)).first { !taken.contains($0) }
  }

  // MARK: Steps

  /// A file to be moved, with its name in the module.
  struct Item: Hashable {
    var path: String
    var name: String
    var isOptional: Bool
  }

  /// Each file once, in the order of the disks; names that would clash get the disk's target in front.
  func items(_ definition: DomainDefinition) -> [Item] {
    var items: [Item] = []
    func add(_ path: String, prefix: String, isOptional: Bool = false) {
      guard !items.contains(where: { $0.path == path }) else { return }
      var name = path.split(separator: "/").last.map(String.init) ?? prefix
      if items.contains(where: { $0.name == name }) { name = "\(prefix)-\(name)" }
      var serial = 2
      while items.contains(where: { $0.name == name }) {
        name = "\(prefix)-\(serial)-\(path.split(separator: "/").last ?? "")"
        serial += 1
      }
      items.append(Item(path: path, name: name, isOptional: isOptional))
    }
    for disk in definition.disks where disk.isWritable {
      for image in facts.disks[disk.target]?.chain ?? [] { add(image.path, prefix: disk.target) }
    }
    if let nvram = Self.nvramPath(definition) { add(nvram, prefix: "nvram", isOptional: true) }
    return items
  }

  private func seedPlan() -> (findings: [AdoptionFinding], seeding: AdoptionSeeding?) {
    guard let directory = request.seedDirectory, let peer, let definition = facts.definition,
      let name = ModuleName(request.name)
    else { return ([], nil) }
    return AdoptionSeedPlanner(
      directory: directory, items: items(definition), files: facts.files, peer: peer, name: name,
      backing: ModuleConfiguration.backingDirectory(of: name, in: facts.host.directory.path)
    ).plan()
  }

  private func work(number: ModuleNumber, _ seeding: AdoptionSeeding?) throws -> AdoptionWork {
    guard let name = ModuleName(request.name), let definition = facts.definition, let domain = facts.domain else {
      throw AdoptionError(.refused, what: request.name, why: "its facts are incomplete", next: "repeat the command")
    }
    let directory = facts.host.directory
    let backing = ModuleConfiguration.backingDirectory(of: name, in: directory.path)
    let mount = ModuleConfiguration.mountPoint(of: name, in: directory.path)
    let items = self.items(definition)
    let names = Dictionary(uniqueKeysWithValues: items.map { ($0.path, $0.name) })
    let rebases = self.rebases(definition, names: names)
    let adapted = try rewriting(definition, names: names, mount: mount).apply(to: facts.xml)
    let module = try self.module(
      name: name, number: number, definition, items: items, backing: backing, mount: mount)
    let record = AdoptionRecord(
      originalXML: facts.xml, wasAutostarted: domain.isAutostarted, rebases: rebases,
      optionalFiles: items.filter(\.isOptional).map(\.name))
    let files = AdoptionModuleFiles(module: module, domainXML: adapted, record: record)

    var steps: [AdoptionStep] = [
      .guardModule(name), .makeFolder(path: backing, mode: Self.backingMode),
      .makeFolder(path: mount, mode: Self.mountMode),
    ]
    var discards: [AdoptionStep] = []
    for item in items {
      let file = facts.files[item.path] ?? .missing
      let move = AdoptionMove(
        from: item.path, to: "\(backing)/\(item.name)", bytes: file.bytes, modified: file.modified,
        isOptional: item.isOptional)
      if file.kind == .missing { continue }
      if file.mount == directory.mount {
        steps.append(.rename(move))
      } else {
        steps.append(.copy(move))
        discards.append(.discardSource(move))
      }
    }
    steps += rebases.map {
      .rebase(
        image: "\(backing)/\($0.file)", format: $0.format, backingFormat: $0.backingFormat, from: $0.original,
        to: $0.adapted)
    }
    steps += [.writeModule(files), .installOnPeer(files)]
    if let seeding { steps.append(.seedPeer(seeding)) }
    steps += [
      .define(
        name: name.text, xml: adapted, autostart: false, oldXML: facts.xml, oldAutostart: domain.isAutostarted),
      .createRecord(module),
    ]
    return AdoptionWork(kind: .add, name: name, steps: steps + discards)
  }

  /// Images whose header names their backing file by a path that will not be right any more.
  private func rebases(_ definition: DomainDefinition, names: [String: String]) -> [AdoptionRebase] {
    var found: [AdoptionRebase] = []
    for disk in definition.disks where disk.isWritable {
      let chain = facts.disks[disk.target]?.chain ?? []
      for (image, backing) in zip(chain, chain.dropFirst()) {
        guard let file = names[image.path], let below = names[backing.path], let original = image.backingReference
        else { continue }
        // A colon would make qemu read the part before it as a protocol.
        let adapted = below.contains(":") ? "./\(below)" : below
        guard original != adapted, !found.contains(where: { $0.file == file }) else { continue }
        found.append(
          AdoptionRebase(
            file: file, format: image.format, backingFormat: image.backingFormat ?? backing.format,
            original: original, adapted: adapted))
      }
    }
    return found
  }

  private func rewriting(_ definition: DomainDefinition, names: [String: String], mount: String) -> DomainRewriting {
    var rewriting = DomainRewriting(disks: [:])
    for disk in definition.disks where disk.isWritable {
      guard let path = facts.disks[disk.target]?.path, let name = names[path] else { continue }
      rewriting.disks[disk.target] = .init(path: "\(mount)/\(name)", format: disk.format ?? "raw")
    }
    for (path, name) in names { rewriting.backingPaths[path] = "\(mount)/\(name)" }
    rewriting.nvram = Self.nvramPath(definition).flatMap { names[$0] }.map { "\(mount)/\($0)" }
    return rewriting
  }

  private func module(
    name: ModuleName, number: ModuleNumber, _ definition: DomainDefinition, items: [Item], backing: String,
    mount: String
  ) throws -> ModuleConfiguration {
    var disks: [ModuleDisk] = []
    for disk in definition.disks where disk.isWritable {
      guard let path = facts.disks[disk.target]?.path, let item = items.first(where: { $0.path == path }) else {
        continue
      }
      disks.append(
        ModuleDisk(target: disk.target, file: item.name, originalPath: path, format: disk.format ?? "raw"))
    }
    let tops = Set(disks.map(\.originalPath))
    let module = ModuleConfiguration(
      name: name, number: number, uuid: definition.identity.uuid, backingDirectory: backing, mountPoint: mount,
      preferredNode: request.preferredNode ?? facts.node, disks: disks,
      otherFiles: items.filter { !tops.contains($0.path) }.map { ModuleFile(file: $0.name, originalPath: $0.path) })
    try module.validate()
    return module
  }

  // MARK: Space

  /// What a copy leaves free, so that a full file system does not follow from it.
  static let spaceReserveBytes: UInt64 = 64 << 20

  private func spaceFindings(_ work: AdoptionWork) -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    var moved: UInt64 = 0
    var grown: UInt64 = 0
    var copied: UInt64 = 0
    /// Carried files that are moved take no more room than they have.
    var thereAlready: UInt64 = 0
    for step in work.steps {
      switch step {
      case .rename(let move), .copy(let move):
        let file = facts.files[move.from] ?? .missing
        moved += min(file.allocatedBytes, file.bytes)
        if case .copy = step { copied += min(file.allocatedBytes, file.bytes) }
      case .seedPeer(let seeding):
        for seed in seeding.seeds where !seed.isCopied {
          let name = AdoptionFiles.name(of: seed.move.from)
          thereAlready += peer?.seed?.files[name].map { min($0.allocatedBytes, $0.bytes) } ?? 0
        }
      default: break
      }
    }
    for disk in facts.disks.values { if let top = disk.chain.first { grown += top.virtualBytes } }
    let here = facts.host.directory
    if copied > 0, copied + Self.spaceReserveBytes > here.freeBytes {
      found.append(
        .init(
          .error,
          "\(byteText(copied)) must be copied to \(here.path), where \(byteText(here.freeBytes)) are free",
          whatToDo: "free some space, or choose another folder with --dir"))
    }
    guard let there = peer?.host.directory else { return found }
    let text = "the other node has \(byteText(there.freeBytes)) free for \(there.path)"
    if max(moved, thereAlready) - thereAlready + Self.spaceReserveBytes > there.freeBytes {
      found.append(
        .init(
          .error, "\(text); the disks take \(byteText(moved))",
          whatToDo: "free some space there, or choose another folder with --dir"))
    } else if grown > there.freeBytes + thereAlready {
      found.append(
        .init(
          .warning, "\(text); the disks can grow to \(byteText(grown))",
          whatToDo: "watch the space there: without room the other node drops out of sync"))
    }
    return found
  }
}
