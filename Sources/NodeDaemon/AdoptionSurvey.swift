import Glibc
import HostSystem
import Model
import ModuleConfig
import VirtualMachines

/// Looks at this host for `vmha add` and `vmha remove`. Changes nothing.
struct AdoptionSurvey: Sendable {
  let paths: HostPaths
  let node: NodeID
  let hypervisor: any Hypervisor

  /// Everything about the VM that is to be added. Throws `HypervisorError` or `HostError` if the host cannot be asked.
  func facts(for request: AdoptionRequest) throws -> AdoptionFacts {
    let mounts = try MountTable.read()
    let modules = try self.modules()
    guard let domain = try hypervisor.facts(of: request.name) else {
      let host = try hostFacts(name: request.name, directory: request.directory ?? "/", mounts: mounts)
      return AdoptionFacts(node: node, domain: nil, host: host)
    }
    let xml = try hypervisor.domainXML(of: request.name, inactive: true)
    let definition = try DomainDefinition(xml: xml)
    var disks: [String: DiskFacts] = [:]
    for disk in definition.disks where disk.isWritable {
      disks[disk.target] = diskFacts(disk, modules: modules.configurations)
    }
    // Not from a disk that has a problem: its folder may be a module's mount, which is not touched.
    let usable = definition.disks.compactMap { disks[$0.target] }.first { $0.problem == nil && $0.path != nil }
    let directory = request.directory ?? usable?.path.map(AdoptionFiles.parent) ?? "/"
    let host = try hostFacts(name: request.name, directory: directory, mounts: mounts)
    // A module's own files are behind its mount, which may hang; a plan refuses those anyway.
    guard modules.configurations[request.name] == nil else {
      return AdoptionFacts(
        node: node, domain: domain, xml: xml, definition: definition, disks: disks, host: host)
    }
    var facts = AdoptionFacts(
      node: node, domain: domain, xml: xml, definition: definition, disks: disks, host: host)
    try addFiles(to: &facts, definition, mounts: mounts, modules: modules.configurations)
    return facts
  }

  private func diskFacts(_ disk: DomainDisk, modules: [String: ModuleConfiguration]) -> DiskFacts {
    var path: String?
    do {
      switch disk.source {
      case .file(let file): path = file
      case .volume(let pool, let volume): path = try hypervisor.volumePath(pool: pool, volume: volume)
      case .block, .network, .empty, .other: return DiskFacts(path: nil)
      }
      guard let path else { return DiskFacts(path: nil) }
      if let owner = modules.values.first(where: { MountTable.covers($0.mountPoint, path) }) {
        return DiskFacts(path: path, problem: "\(path) belongs to the module \(owner.name)")
      }
      let file = try fileFacts(path)
      guard file.kind == .regular || file.kind == .symbolicLink else { return DiskFacts(path: path) }
      // A raw disk is one file, whatever it holds; the other formats are qemu-img's to read.
      if disk.format ?? "raw" == "raw" {
        let image = DiskImage(
          path: path, format: "raw", virtualBytes: file.bytes, actualBytes: file.allocatedBytes)
        return DiskFacts(path: path, chain: [image])
      }
      return DiskFacts(path: path, chain: try DiskImageTool.chain(of: path, format: disk.format))
    } catch {
      return DiskFacts(path: path, problem: "\(error)")
    }
  }

  private func addFiles(
    to facts: inout AdoptionFacts, _ definition: DomainDefinition, mounts: MountTable,
    modules: [String: ModuleConfiguration]
  ) throws {
    var movable: Set<String> = []
    for disk in facts.disks.values where disk.problem == nil {
      if let path = disk.path { movable.insert(path) }
      movable.formUnion(disk.chain.map(\.path).filter { $0.hasPrefix("/") })
    }
    if let nvram = AdoptionPlanner.nvramPath(definition) { movable.insert(nvram) }
    let real = Dictionary(uniqueKeysWithValues: movable.map { ($0, Self.resolved($0)) })
    let users = try OpenFiles.users(of: Set(real.values))
    for path in movable {
      var file = try fileFacts(path)
      file.mount = mounts.mount(of: real[path] ?? path)
      file.users = users[real[path] ?? path] ?? []
      facts.files[path] = file
    }
    for path in AdoptionPlanner.neededFiles(definition) { facts.files[path] = try fileFacts(path) }
    let others = try otherUsers(than: definition.identity.name, modules: modules)
    for path in movable {
      if let domains = others[real[path] ?? path] { facts.otherUsers[path] = domains.sorted() }
    }
  }

  /// Domains by the files of their disks, backing files included.
  func otherUsers(
    than name: String, modules: [String: ModuleConfiguration]
  ) throws -> [String: Set<String>] {
    var found: [String: Set<String>] = [:]
    for domain in try hypervisor.list() where domain.identity.name != name && modules[domain.identity.name] == nil {
      let other = domain.identity.name
      guard let definition = try definition(of: other) else { continue }
      for disk in definition.disks {
        let facts = diskFacts(disk, modules: modules)
        // A chain that cannot be read has at least its first file.
        let files = facts.chain.isEmpty ? facts.path.map { [$0] } ?? [] : facts.chain.map(\.path)
        for file in files { found[Self.resolved(file), default: []].insert(other) }
      }
    }
    return found
  }

  /// nil if it was undefined meanwhile.
  private func definition(of name: String) throws(HypervisorError) -> DomainDefinition? {
    do throws(HypervisorError) {
      return try DomainDefinition(xml: try hypervisor.domainXML(of: name, inactive: true))
    } catch {
      if error.code == .noSuchDomain { return nil }
      throw error
    }
  }

  // MARK: The host

  func hostFacts(name: String, directory: String, mounts: MountTable) throws -> AdoptionHostFacts {
    let modules = try self.modules()
    var numbers: [ModuleName: ModuleNumber] = [:]
    for module in modules.configurations.values { numbers[module.name] = module.number }
    return AdoptionHostFacts(
      modules: numbers, moduleProblems: modules.problems, directory: try folderFacts(directory, mounts: mounts),
      mountPoint: try placeFacts("\(directory)/\(name)", mounts: mounts),
      backingDirectory: try placeFacts("\(directory)/.vmha-\(name)", mounts: mounts), hasHook: hasHook())
  }

  /// Every module.xml of this host, by name.
  func modules() throws -> (configurations: [String: ModuleConfiguration], problems: [String]) {
    var found: [String: ModuleConfiguration] = [:]
    var problems: [String] = []
    for folder in try AdoptionFiles.names(in: paths.modules) {
      guard let name = ModuleName(folder) else { continue }
      do {
        guard let module = try ModuleConfiguration(of: name, paths) else { continue }
        found[folder] = module
      } catch {
        problems.append("\(error)")
      }
    }
    return (found, problems)
  }

  func fileFacts(_ path: String) throws -> FileFacts {
    guard let status = try AdoptionFiles.status(path) else { return .missing }
    let kind: FileFacts.Kind =
      switch status.st_mode & S_IFMT {
      case S_IFREG: .regular
      case S_IFDIR: .folder
      case S_IFLNK: .symbolicLink
      case S_IFBLK: .blockDevice
      default: .other
      }
    return FileFacts(
      kind: kind, bytes: UInt64(max(0, status.st_size)), allocatedBytes: UInt64(max(0, status.st_blocks)) * 512,
      linkCount: Int(status.st_nlink), inode: UInt64(status.st_ino), modified: AdoptionFiles.modified(status))
  }

  func placeFacts(_ path: String, mounts: MountTable) throws -> PlaceFacts {
    let name = AdoptionFiles.name(of: path)
    let above = Self.resolved(AdoptionFiles.parent(path))
    if mounts.isMounted(at: above == "/" ? "/\(name)" : "\(above)/\(name)") { return .mounted }
    guard let status = try AdoptionFiles.status(path) else { return .absent }
    guard status.st_mode & S_IFMT == S_IFDIR else { return .occupied }
    return try AdoptionFiles.names(in: path).isEmpty ? .emptyFolder : .occupied
  }

  func folderFacts(_ path: String, mounts: MountTable) throws -> FolderFacts {
    let status = try AdoptionFiles.status(Self.resolved(path))
    let exists = status.map { $0.st_mode & S_IFMT == S_IFDIR } ?? false
    var nearest = path
    var system = statvfs()
    while statvfs(nearest, &system) != 0 {
      guard errno == ENOENT || errno == ENOTDIR, nearest != "/" else {
        throw HostError.system("adoption.space", path: nearest, errno: errno)
      }
      nearest = AdoptionFiles.parent(nearest)
    }
    return FolderFacts(
      path: path, exists: exists, freeBytes: UInt64(system.f_bavail) * UInt64(system.f_frsize),
      mount: mounts.mount(of: Self.resolved(nearest)))
  }

  private func hasHook() -> Bool {
    let hooks = "\(paths.root)/etc/libvirt/hooks"
    let dropIns = (try? AdoptionFiles.names(in: "\(hooks)/qemu.d")) ?? []
    return (["qemu"] + dropIns.map { "qemu.d/\($0)" }).contains { name in
      // A hook that cannot be read or run is as good as none: the plan warns.
      guard access("\(hooks)/\(name)", X_OK) == 0, let text = try? DurableFile.read("\(hooks)/\(name)") else {
        return false
      }
      return String(decoding: text, as: UTF8.self).contains("protected by vmha")
    }
  }

  /// Without symbolic links; the path itself if it does not exist.
  static func resolved(_ path: String) -> String {
    guard let text = realpath(path, nil) else { return path }
    defer { free(text) }
    return String(cString: text)
  }

  // MARK: For the other node

  func answer(_ question: AdoptionPeerQuestion) throws -> AdoptionPeerFacts {
    let mounts = try MountTable.read()
    var facts = AdoptionPeerFacts(
      host: try hostFacts(name: question.name.text, directory: question.directory, mounts: mounts))
    facts.missingDevices = try question.devices.filter {
      try AdoptionFiles.status("/sys/class/net/\($0)") == nil
    }
    facts.missingFiles = try question.files.filter { try fileFacts(Self.resolved($0)).kind != .regular }
    do {
      facts.domainWithName = try hypervisor.find(name: question.name.text)
      facts.domainWithUUID = try hypervisor.find(uuid: question.uuid)
      for network in question.networks {
        let isActive = try hypervisor.isNetworkActive(network)
        facts.networks[network] = isActive.map { $0 ? .active : .inactive } ?? .missing
      }
    } catch {
      facts.hypervisorProblem = "\(error)"
      return facts
    }
    if let seed = question.seed {
      do { facts.seed = try seedFacts(seed, mounts: mounts, domain: question.name.text) } catch {
        facts.seed = AdoptionSeedFacts(
          directory: seed.directory, problem: "\(seed.directory) cannot be looked at: \(error)")
      }
    }
    do {
      try hypervisor.checkMachine(question.machine)
    } catch {
      facts.machineProblem = error.message
    }
    return facts
  }
}
