import HostSystem
import Model
import ModuleConfig
import VirtualMachines

// `vmha add --seed-from`: a copy of the disks that was carried to the other node by hand becomes that node's copy. It is never trusted:
// the first resync compares all of it, and only what differs travels.

/// What the other node is asked about such a copy.
public struct AdoptionSeedQuestion: Codable, Sendable, Hashable {
  public var directory: String
  /// Every name that one of the files may have there.
  public var names: [String]
  public init(directory: String, names: [String]) {
    self.directory = directory
    self.names = names
  }
}

/// What the other node answers.
public struct AdoptionSeedFacts: Codable, Sendable, Hashable {
  /// Without symbolic links.
  public var directory: String
  /// Why nothing can be taken from there.
  public var problem: String?
  /// By name; what is not there is left out.
  public var files: [String: FileFacts]
  /// VMs of that node that use one of these files, by name.
  public var otherUsers: [String: [String]]
  public init(
    directory: String, problem: String? = nil, files: [String: FileFacts] = [:], otherUsers: [String: [String]] = [:]
  ) {
    self.directory = directory
    self.problem = problem
    self.files = files
    self.otherUsers = otherUsers
  }
}

/// One file of the carried copy.
public struct AdoptionSeed: Codable, Sendable, Hashable {
  /// From the operator's folder to the module's, both on the other node; `bytes` and `modified` are those of the carried file.
  public var move: AdoptionMove
  /// Between two mounts: it is copied, and the operator's file stays where it is.
  public var isCopied: Bool
  public init(move: AdoptionMove, isCopied: Bool) {
    self.move = move
    self.isCopied = isCopied
  }
}

/// The carried files of one module.
public struct AdoptionSeeding: Codable, Sendable, Hashable {
  public var name: ModuleName
  public var backingDirectory: String
  public var seeds: [AdoptionSeed]
  public init(name: ModuleName, backingDirectory: String, seeds: [AdoptionSeed]) {
    self.name = name
    self.backingDirectory = backingDirectory
    self.seeds = seeds
  }
  public var bytesToCopy: UInt64 { seeds.reduce(0) { $0 + ($1.isCopied ? $1.move.bytes : 0) } }

  /// What it does, for people.
  var sentence: String {
    let files = seeds.map { seed in
      "\(seed.move.from) (\(seed.isCopied ? "copied, \(byteText(seed.move.bytes)); it stays there" : "moved"))"
    }
    return "on the other node, take over what was carried there: " + files.joined(separator: ", ")
  }
}

/// Which carried file becomes which file of the module, and why it cannot. Pure.
struct AdoptionSeedPlanner {
  let directory: String
  let items: [AdoptionPlanner.Item]
  /// Of the files on this node, by path.
  let files: [String: FileFacts]
  let peer: AdoptionPeerFacts
  let name: ModuleName
  let backing: String

  /// A file of the module is looked for by its name in the module, then by the name it has now, unless that is another one's name in
  /// the module. UEFI variables and the like are small and always travel.
  static func names(of item: AdoptionPlanner.Item, among items: [AdoptionPlanner.Item]) -> [String] {
    let base = item.path.split(separator: "/").last.map(String.init) ?? item.name
    return base == item.name || items.contains { $0.name == base } ? [item.name] : [item.name, base]
  }

  static func question(_ directory: String, _ items: [AdoptionPlanner.Item]) -> AdoptionSeedQuestion {
    AdoptionSeedQuestion(
      directory: directory, names: items.filter { !$0.isOptional }.flatMap { names(of: $0, among: items) })
  }

  func plan() -> (findings: [AdoptionFinding], seeding: AdoptionSeeding?) {
    guard let facts = peer.seed else {
      let what = "the other node's vmhad does not know --seed-from"
      return ([.init(.error, what, whatToDo: "install the same version of vmha on both nodes")], nil)
    }
    if let problem = facts.problem {
      return ([.init(.error, "on the other node \(problem)", whatToDo: "name the folder of the copy there")], nil)
    }
    var findings: [AdoptionFinding] = []
    var seeds: [AdoptionSeed] = []
    for item in items where !item.isOptional {
      guard let here = files[item.path], here.kind == .regular else { continue }
      let wanted = Self.names(of: item, among: items)
      guard let name = wanted.first(where: { facts.files[$0] != nil }), let file = facts.files[name] else {
        findings.append(
          .init(
            .error,
            "on the other node there is no \(wanted.map { "\(facts.directory)/\($0)" }.joined(separator: " or "))",
            whatToDo: "carry a copy of \(item.path) there, or leave out --seed-from"))
        continue
      }
      let found = problems(of: file, at: "\(facts.directory)/\(name)", users: facts.otherUsers[name] ?? [], here: here)
      findings += found
      guard found.isEmpty else { continue }
      let move = AdoptionMove(
        from: "\(facts.directory)/\(name)", to: "\(backing)/\(item.name)", bytes: file.bytes, modified: file.modified)
      seeds.append(AdoptionSeed(move: move, isCopied: file.mount != peer.host.directory.mount))
    }
    guard findings.isEmpty else { return (findings, nil) }
    findings.append(
      .init(.info, "the copy in \(facts.directory) is not trusted: all of it is compared, and what differs is sent"))
    return (findings, AdoptionSeeding(name: name, backingDirectory: backing, seeds: seeds))
  }

  private func problems(
    of file: FileFacts, at path: String, users: [String], here: FileFacts
  ) -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    func refuse(_ why: String, _ whatToDo: String) {
      found.append(.init(.error, "on the other node \(path) \(why)", whatToDo: whatToDo))
    }
    switch file.kind {
    case .regular: break
    case .symbolicLink: refuse("is a symbolic link", "name the folder that has the file itself")
    case .missing, .blockDevice, .folder, .other: refuse("is not a regular file", "copy it into a file")
    }
    guard file.kind == .regular else { return found }
    if file.linkCount > 1 {
      refuse("has \(file.linkCount) names (hard links): something else may use it", "copy it, and use the copy")
    }
    if !file.users.isEmpty { refuse("is open in \(file.users.joined(separator: ", "))", "end that program first") }
    if !users.isEmpty {
      refuse("is used by the VM \(users.joined(separator: ", "))", "take it out of that VM, or use another copy")
    }
    if file.bytes != here.bytes {
      refuse(
        "has \(file.bytes) bytes, the disk here \(here.bytes): it may be another file",
        "if it is an older copy of this disk, give it that size there: truncate -s \(here.bytes) '\(path)'")
    }
    return found
  }
}

extension AdoptionSurvey {
  /// On the other node: what is in the folder of the carried copy. Changes nothing.
  func seedFacts(_ question: AdoptionSeedQuestion, mounts: MountTable, domain: String) throws -> AdoptionSeedFacts {
    let modules = try self.modules().configurations
    // Before it is looked at: a module's mount may hang.
    func owner(_ path: String) -> ModuleName? {
      modules.values.first {
        MountTable.covers($0.mountPoint, path) || MountTable.covers($0.backingDirectory, path)
      }?.name
    }
    func refused(_ path: String, _ why: String) -> AdoptionSeedFacts {
      AdoptionSeedFacts(directory: path, problem: "\(path) \(why)")
    }
    if let owner = owner(question.directory) {
      return refused(question.directory, "belongs to the module \(owner)")
    }
    let directory = Self.resolved(question.directory)
    if let owner = owner(directory) { return refused(directory, "belongs to the module \(owner)") }
    guard try fileFacts(directory).kind == .folder else { return refused(directory, "is not a folder") }
    var facts = AdoptionSeedFacts(directory: directory)
    let users = try OpenFiles.users(of: Set(question.names.map { "\(directory)/\($0)" }))
    for name in question.names where !name.contains("/") {
      let path = "\(directory)/\(name)"
      var file = try fileFacts(path)
      guard file.kind != .missing else { continue }
      file.mount = mounts.mount(of: path)
      file.users = users[path] ?? []
      facts.files[name] = file
    }
    let others = try otherUsers(than: domain, modules: modules)
    for name in facts.files.keys {
      if let domains = others["\(directory)/\(name)"] { facts.otherUsers[name] = domains.sorted() }
    }
    return facts
  }
}
