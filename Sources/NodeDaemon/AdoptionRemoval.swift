import HostSystem
import Model
import ModuleConfig
import VirtualMachines

/// `vmha remove`.
public struct RemovalRequest: Codable, Sendable, Hashable {
  public var name: String
  /// Also delete the other node's copy of the disks.
  public var purgeCopy: Bool
  /// What this node's copy is; nil if it is not known.
  public var record: DurableRecord?
  public init(name: String, purgeCopy: Bool, record: DurableRecord?) {
    self.name = name
    self.purgeCopy = purgeCopy
    self.record = record
  }
}

/// What the node that gives the files back knows.
struct RemovalFacts: Hashable, Sendable {
  var files: AdoptionModuleFiles
  /// nil: not defined here.
  var domain: DomainFacts?
  var xml = ""
  /// Whether the definition is still the one that `add` made.
  var isDefinitionChanged = false
  var mountPoint: PlaceFacts
  /// By name below the module's folder.
  var stored: [String: FileFacts]
  /// What is in the module's folder besides.
  var extraFiles: [String]
  /// By original path.
  var originals: [String: FileFacts]
  /// By folder of the original paths: the mount, and free bytes.
  var folders: [String: FolderFacts]
  var backingMount: Int
}

extension AdoptionSurvey {
  /// nil if there is no such module here.
  func removalFacts(_ name: ModuleName) throws -> RemovalFacts? {
    guard let files = try AdoptionModuleFolder(paths: paths).read(name) else { return nil }
    let mounts = try MountTable.read()
    let module = files.module
    var facts = RemovalFacts(
      files: files, mountPoint: try placeFacts(module.mountPoint, mounts: mounts), stored: [:], extraFiles: [],
      originals: [:], folders: [:], backingMount: mounts.mount(of: Self.resolved(module.backingDirectory)))
    facts.domain = try hypervisor.facts(of: name.text)
    if facts.domain != nil {
      facts.xml = try hypervisor.domainXML(of: name.text, inactive: true)
      facts.isDefinitionChanged = try !Self.isSame(facts.xml, files.domainXML)
    }
    for file in module.allFiles {
      facts.stored[file.file] = try fileFacts("\(module.backingDirectory)/\(file.file)")
      facts.originals[file.originalPath] = try fileFacts(file.originalPath)
      let folder = AdoptionFiles.parent(file.originalPath)
      if facts.folders[folder] == nil { facts.folders[folder] = try folderFacts(folder, mounts: mounts) }
    }
    facts.extraFiles = try AdoptionFiles.names(in: module.backingDirectory).filter { facts.stored[$0] == nil }
    return facts
  }

  private static func isSame(_ left: String, _ right: String) throws -> Bool {
    let parse = { (text: String) throws in try XMLDocument(bytes: Array(text.utf8), name: "domain XML").element }
    return try parse(left).hasSameContents(as: parse(right))
  }

  func removalAnswer(_ withdrawal: AdoptionWithdrawal) throws -> AdoptionPeerRemovalFacts {
    var answer = AdoptionPeerRemovalFacts(
      domain: nil, mountPoint: try placeFacts(withdrawal.mountPoint, mounts: try MountTable.read()))
    do {
      answer.domain = try hypervisor.facts(of: withdrawal.name.text)
    } catch {
      answer.hypervisorProblem = "\(error)"
    }
    return answer
  }
}

/// Decides whether a module can be taken apart and how. Pure.
struct RemovalPlanner {
  let request: RemovalRequest
  let name: ModuleName
  let facts: RemovalFacts
  let peer: AdoptionPeerRemovalFacts?
  let peerProblem: String
  /// Where a changed definition is saved.
  let savePath: String

  func plan() -> AdoptionPlan {
    var plan = AdoptionPlan(
      name: request.name, number: facts.files.module.number,
      findings: stateFindings() + definitionFindings() + fileFindings() + peerFindings())
    guard plan.errors.isEmpty else { return plan }
    let work = self.work()
    plan.findings += spaceFindings(work)
    if plan.errors.isEmpty { plan.work = work }
    return plan
  }

  private func stateFindings() -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    if request.record == nil {
      found.append(
        .init(
          .error, "it is not known what this node's copy is worth: its record cannot be read",
          whatToDo: "see: vmha why \(name)"))
    } else if let standing = request.record?.standing, standing != .uptodate {
      found.append(
        .init(
          .error, "this node's copy is \(standing.rawValue): giving it back would lose what was written since",
          whatToDo: "run the command on the other node"))
    }
    if facts.domain?.state.isActive == true || facts.mountPoint == .mounted {
      found.append(.init(.error, "\(name) is in use on this node", whatToDo: "stop it first: vmha stop \(name)"))
    }
    if facts.domain?.hasSavedState == true {
      found.append(
        .init(
          .error, "\(name) has a saved memory image on this node, which may not fit the disks any more",
          whatToDo: "drop it: virsh managedsave-remove \(name)"))
    }
    return found
  }

  private func definitionFindings() -> [AdoptionFinding] {
    guard facts.domain != nil else {
      return [.init(.info, "libvirt does not know \(name) on this node any more; it is defined anew")]
    }
    guard facts.isDefinitionChanged else { return [] }
    do {
      let module = facts.files.module
      let disks = try DomainDefinition(xml: facts.xml).disks
      for disk in module.disks {
        let expected = DiskSource.file("\(module.mountPoint)/\(disk.file)")
        guard let current = disks.first(where: { $0.target == disk.target }), current.source != expected else {
          continue
        }
        return [
          .init(
            .error,
            "disk \(disk.target) is not the file that was added any more: a snapshot was taken, or it was edited",
            whatToDo:
              "bring it back to \(module.mountPoint)/\(disk.file), for a snapshot with virsh blockcommit --pivot")
        ]
      }
    } catch {
      return [.init(.error, "the present definition cannot be read: \(error.message)")]
    }
    return [
      .init(
        .warning, "the definition was changed since the VM was added; the one from before the add is given back",
        whatToDo: "the present one is saved as \(savePath)")
    ]
  }

  private func fileFindings() -> [AdoptionFinding] {
    let module = facts.files.module
    var found: [AdoptionFinding] = []
    for file in module.allFiles {
      let isOptional = facts.files.record.optionalFiles.contains(file.file)
      let stored = facts.stored[file.file] ?? .missing
      if stored.kind != .regular, !(isOptional && stored.kind == .missing) {
        found.append(
          .init(
            .error, "\(module.backingDirectory)/\(file.file) is missing",
            whatToDo: "if it was renamed inside the module, name it so again"))
      }
      if let original = facts.originals[file.originalPath], original.kind != .missing {
        found.append(
          .init(
            .error, "there is another file at \(file.originalPath), where \(file.file) must go back",
            whatToDo: "move it away"))
      }
    }
    if !facts.extraFiles.isEmpty {
      found.append(
        .init(
          .warning,
          "\(module.backingDirectory) also holds \(facts.extraFiles.prefix(5).joined(separator: ", ")); it stays there",
          whatToDo: "look at it when this is done"))
    }
    return found
  }

  private func peerFindings() -> [AdoptionFinding] {
    guard let peer else {
      return [
        .init(
          .error, "the other node cannot be asked: \(peerProblem)",
          whatToDo: "bring it back first: else it would go on protecting a VM that is not protected any more")
      ]
    }
    if let problem = peer.hypervisorProblem {
      return [.init(.error, "libvirt on the other node does not answer: \(problem)", whatToDo: "start libvirtd there")]
    }
    if peer.domain?.state.isActive == true || peer.mountPoint == .mounted {
      return [.init(.error, "\(name) is in use on the other node", whatToDo: "stop it first: vmha stop \(name)")]
    }
    if let objection = peer.objection { return [objection] }
    let copy = facts.files.module.backingDirectory
    return [
      request.purgeCopy
        ? .init(.warning, "the other node's copy in \(copy) is deleted")
        : .init(.info, "the other node keeps its copy in \(copy)")
    ]
  }

  private func work() -> AdoptionWork {
    let module = facts.files.module
    let record = facts.files.record
    var steps: [AdoptionStep] = []
    var discards: [AdoptionStep] = []
    for folder in facts.folders.values.sorted(by: { $0.path < $1.path }) where !folder.exists {
      steps.append(.makeFolder(path: folder.path, mode: 0o755))
    }
    for file in module.allFiles {
      guard let stored = facts.stored[file.file], stored.kind == .regular else { continue }
      let move = AdoptionMove(
        from: "\(module.backingDirectory)/\(file.file)", to: file.originalPath, bytes: stored.bytes,
        modified: stored.modified, isOptional: record.optionalFiles.contains(file.file))
      if facts.folders[AdoptionFiles.parent(file.originalPath)]?.mount == facts.backingMount {
        steps.append(.rename(move))
      } else {
        steps.append(.copy(move))
        discards.append(.discardSource(move))
      }
    }
    let originals = Dictionary(module.allFiles.map { ($0.file, $0.originalPath) }) { first, _ in first }
    steps += record.rebases.compactMap { rebase in
      originals[rebase.file].map {
        .rebase(
          image: $0, format: rebase.format, backingFormat: rebase.backingFormat, from: rebase.adapted,
          to: rebase.original)
      }
    }
    if facts.domain != nil, facts.isDefinitionChanged { steps.append(.saveDefinition(path: savePath, xml: facts.xml)) }
    steps.append(
      .define(
        name: name.text, xml: record.originalXML, autostart: record.wasAutostarted,
        oldXML: facts.domain == nil ? facts.files.domainXML : facts.xml, oldAutostart: false))
    steps.append(
      .withdrawFromPeer(AdoptionExecutor.withdrawal(module, request.purgeCopy ? .purge : .keep, for: request.record)))
    steps += discards
    steps += [
      .removeFolder(path: module.mountPoint), .removeFolder(path: module.backingDirectory), .removeModule(name),
    ]
    return AdoptionWork(kind: .remove, name: name, steps: steps)
  }

  private func spaceFindings(_ work: AdoptionWork) -> [AdoptionFinding] {
    var needed: [String: UInt64] = [:]
    for case .copy(let move) in work.steps {
      let file = facts.stored[String(move.from.dropFirst(facts.files.module.backingDirectory.count + 1))] ?? .missing
      needed[AdoptionFiles.parent(move.to), default: 0] += min(file.allocatedBytes, file.bytes)
    }
    return needed.sorted { $0.key < $1.key }.compactMap { folder, bytes in
      let free = facts.folders[folder]?.freeBytes ?? 0
      guard bytes + AdoptionPlanner.spaceReserveBytes > free else { return nil }
      return .init(
        .error, "\(byteText(bytes)) must be copied back to \(folder), where \(byteText(free)) are free",
        whatToDo: "free some space there")
    }
  }
}
