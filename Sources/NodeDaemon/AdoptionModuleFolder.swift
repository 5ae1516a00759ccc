import Glibc
import HostSystem
import Model
import ModuleConfig

/// /etc/vmha/modules/NAME as add and remove see it.
struct AdoptionModuleFolder {
  let paths: HostPaths

  func recordFile(_ name: ModuleName) -> String { "\(paths.module(name))/adoption.json" }

  /// Where the administrator's own files of a removed module go.
  func keptFolder(_ name: ModuleName) -> String { "\(paths.configuration)/removed/\(name)" }

  /// module.xml comes last: with it the folder is a module.
  func write(_ files: AdoptionModuleFiles) throws {
    let name = files.module.name
    try DurableFile.makeFolder(paths.module(name), mode: 0o755)
    // Definitions may hold passwords (VNC), so they are root's alone.
    try DurableFile.write(try AdoptionCoding.encode(files.record), to: recordFile(name), mode: 0o600)
    try DurableFile.write(Array(files.domainXML.utf8), to: paths.domainFile(name), mode: 0o600)
    try DurableFile.write(Array(files.module.xml().utf8), to: paths.moduleFile(name), mode: 0o644)
  }

  /// nil if it is no module.
  func read(_ name: ModuleName) throws -> AdoptionModuleFiles? {
    guard let module = try ModuleConfiguration(of: name, paths) else { return nil }
    let record = try AdoptionCoding.decode(
      AdoptionRecord.self, from: try DurableFile.read(recordFile(name)), path: recordFile(name))
    let xml = try DurableFile.read(paths.domainFile(name))
    return AdoptionModuleFiles(module: module, domainXML: String(decoding: xml, as: UTF8.self), record: record)
  }

  /// Removes what `write` wrote, module.xml first, and the folder. The administrator's scripts are kept aside, not deleted.
  /// `keepingGuard`: the folder stays, so that the hook goes on refusing.
  func remove(_ name: ModuleName, keepingGuard: Bool = false) throws {
    for path in [paths.moduleFile(name), paths.domainFile(name), recordFile(name)] { try DurableFile.remove(path) }
    if keepingGuard { return }
    let left = try AdoptionFiles.names(in: paths.module(name))
    guard !left.isEmpty else {
      try AdoptionFiles.removeFolderIfEmpty(paths.module(name))
      return
    }
    let kept = keptFolder(name)
    try DurableFile.makeFolder(AdoptionFiles.parent(kept))
    try AdoptionFiles.removeTree(kept)
    try HostCalls.perform("adoption.keep", path: kept) { rename(paths.module(name), kept) }
    try DurableFile.syncFolder(AdoptionFiles.parent(kept))
    try DurableFile.syncFolder(paths.modules)
  }
}

extension ModuleConfiguration {
  /// What is on this host's disk; nil if there is no such module.
  init?(of name: ModuleName, _ paths: HostPaths) throws {
    let file = paths.moduleFile(name)
    guard let bytes = try DurableFile.readIfPresent(file) else { return nil }
    try self.init(xml: bytes, file: file)
  }
}
