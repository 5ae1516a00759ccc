import Model
import ModuleConfig
import VirtualMachines

/// A file that moves into the module, or back.
public struct AdoptionMove: Codable, Sendable, Hashable {
  public var from: String
  public var to: String
  /// As it was when the plan was made; a copy of a file that has changed since is refused.
  public var bytes: UInt64
  public var modified: Int64
  /// Not there is as good: UEFI variables of a guest that was never started.
  public var isOptional: Bool
  public init(from: String, to: String, bytes: UInt64, modified: Int64, isOptional: Bool = false) {
    self.from = from
    self.to = to
    self.bytes = bytes
    self.modified = modified
    self.isOptional = isOptional
  }
}

/// A backing file's name inside an image.
public struct AdoptionRebase: Codable, Sendable, Hashable {
  public var format: String
  public var backingFormat: String
  /// As written in the image: by `add` first this one...
  public var original: String
  /// ...then this one.
  public var adapted: String
  /// The image, below the module's folder.
  public var file: String
  public init(file: String, format: String, backingFormat: String, original: String, adapted: String) {
    self.file = file
    self.format = format
    self.backingFormat = backingFormat
    self.original = original
    self.adapted = adapted
  }
}

/// How the VM was before `add`: what `remove` needs, kept on both nodes beside module.xml.
public struct AdoptionRecord: Codable, Sendable, Hashable {
  public var version = 1
  public var originalXML: String
  public var wasAutostarted: Bool
  public var rebases: [AdoptionRebase]
  /// Files, relative to the module's folder, that may be absent.
  public var optionalFiles: [String]
  public init(originalXML: String, wasAutostarted: Bool, rebases: [AdoptionRebase], optionalFiles: [String]) {
    self.originalXML = originalXML
    self.wasAutostarted = wasAutostarted
    self.rebases = rebases
    self.optionalFiles = optionalFiles
  }
}

/// The files of /etc/vmha/modules/NAME, the same on both nodes.
public struct AdoptionModuleFiles: Codable, Sendable, Hashable {
  public var module: ModuleConfiguration
  /// The adapted definition.
  public var domainXML: String
  public var record: AdoptionRecord
  public init(module: ModuleConfiguration, domainXML: String, record: AdoptionRecord) {
    self.module = module
    self.domainXML = domainXML
    self.record = record
  }
}

/// A step of `add` or `remove`. Each can be done again after it was done, wholly or in part, and so can its undoing.
public enum AdoptionStep: Codable, Sendable, Hashable {
  /// From now on the libvirt hook refuses to start the VM here.
  case guardModule(ModuleName)
  case makeFolder(path: String, mode: UInt32)
  /// Within one mount.
  case rename(AdoptionMove)
  /// Across mounts; the source stays until `discardSource`.
  case copy(AdoptionMove)
  /// `image`: where the image is now.
  case rebase(image: String, format: String, backingFormat: String, from: String, to: String)
  case writeModule(AdoptionModuleFiles)
  case installOnPeer(AdoptionModuleFiles)
  /// After `installOnPeer`, which makes the folder.
  case seedPeer(AdoptionSeeding)
  case define(name: String, xml: String, autostart: Bool, oldXML: String, oldAutostart: Bool)
  /// The durable record of replication (R0), made by the daemon.
  case createRecord(ModuleConfiguration)
  /// A copy of the current definition for the administrator.
  case saveDefinition(path: String, xml: String)
  // Final from here on: what these do is not undone.
  case discardSource(AdoptionMove)
  case withdrawFromPeer(AdoptionWithdrawal)
  case removeModule(ModuleName)
  case removeFolder(path: String)

  /// From here on it can only go forward.
  public var isFinal: Bool {
    switch self {
    case .discardSource, .withdrawFromPeer, .removeModule, .removeFolder: true
    default: false
    }
  }

  /// Bytes it copies, for the progress bar.
  public var bytes: UInt64 {
    switch self {
    case .copy(let move): move.bytes
    case .seedPeer(let seeding): seeding.bytesToCopy
    default: 0
    }
  }

  /// What it does, for people.
  public var sentence: String {
    switch self {
    case .guardModule(let name): "keep \(name) from being started outside vmha"
    case .makeFolder(let path, _): "make the folder \(path)"
    case .rename(let move): "move \(move.from) to \(move.to)"
    case .copy(let move): "copy \(move.from) to \(move.to) (\(byteText(move.bytes)))"
    case .rebase(let image, _, _, _, let to): "set the backing file of \(image) to \(to)"
    case .writeModule(let files): "write the module's files on this node (number \(files.module.number.rawValue))"
    case .seedPeer(let seeding): seeding.sentence
    case .installOnPeer: "make the module and define the VM on the other node"
    case .define(let name, _, let autostart, _, _):
      "define \(name) anew on this node, for its disks' new places, autostart \(autostart ? "on" : "off")"
    case .createRecord: "begin the module's durable record"
    case .saveDefinition(let path, _): "save the present definition as \(path)"
    case .discardSource(let move): "delete \(move.from), whose copy is complete"
    case .withdrawFromPeer(let withdrawal):
      "remove the module and the VM's definition on the other node"
        + (withdrawal.copy == .purge
          ? ", and its copy of the disks" : "; its copy of the disks stays there in \(withdrawal.backingDirectory)")
    case .removeModule: "remove the module's files on this node"
    case .removeFolder(let path): "remove the folder \(path)"
    }
  }
}

/// What is to be done, whole: it goes into the journal before the first step.
public struct AdoptionWork: Codable, Sendable, Hashable {
  public enum Kind: String, Codable, Sendable, Hashable { case add, remove }
  public var kind: Kind
  public var name: ModuleName
  public var steps: [AdoptionStep]
  public init(kind: Kind, name: ModuleName, steps: [AdoptionStep]) {
    self.kind = kind
    self.name = name
    self.steps = steps
  }
  public var bytesToCopy: UInt64 { steps.reduce(0) { $0 + $1.bytes } }
}

/// The judgement: what was found, and what will be done if no finding is an error.
public struct AdoptionPlan: Codable, Sendable, Hashable {
  public var name: String
  /// nil if none is free.
  public var number: ModuleNumber?
  public var findings: [AdoptionFinding]
  /// nil if a finding is an error.
  public var work: AdoptionWork?
  public init(name: String, number: ModuleNumber? = nil, findings: [AdoptionFinding], work: AdoptionWork? = nil) {
    self.name = name
    self.number = number
    self.findings = findings
    self.work = work
  }
  public var errors: [AdoptionFinding] { findings.filter { $0.severity == .error } }
  public var isPossible: Bool { work != nil }
  /// In order, one sentence each.
  public var sentences: [String] { work?.steps.map(\.sentence) ?? [] }
}

/// 1536 -> 1.5 KiB.
func byteText(_ bytes: UInt64) -> String {
  let units = ["KiB", "MiB", "GiB", "TiB"]
  guard bytes >= 1024 else { return "\(bytes) bytes" }
  var value = bytes * 10 / 1024
  var unit = 0
  while value >= 10_240, unit + 1 < units.count {
    value /= 1024
    unit += 1
  }
  return "\(value / 10).\(value % 10) \(units[unit])"
}

/// An add or remove that did not come to its end.
public struct AdoptionError: Error, Codable, Sendable, Hashable, CustomStringConvertible {
  public enum Code: String, Codable, Sendable, Hashable {
    /// The checks found errors; nothing was changed.
    case refused
    /// It failed, and everything is as it was before.
    case undone
    /// It failed half-way; repeating the command completes it or takes it back.
    case unfinished
    /// Another add or remove is going on.
    case busy
    /// The other node did not answer, or refused.
    case peer
    /// What stands on the disk is not what it must be.
    case conflict
  }
  public var code: Code
  public var what: String
  public var why: String
  public var next: String
  public init(_ code: Code, what: String, why: String, next: String) {
    self.code = code
    self.what = what
    self.why = why
    self.next = next
  }
  public var description: String { "\(what): \(why); \(next)" }
}

/// How far it is.
public struct AdoptionProgress: Codable, Sendable, Hashable {
  public var sentence: String
  public var bytesDone: UInt64
  /// Of all copies together; 0 = nothing is copied.
  public var bytesTotal: UInt64
  public init(sentence: String, bytesDone: UInt64, bytesTotal: UInt64) {
    self.sentence = sentence
    self.bytesDone = bytesDone
    self.bytesTotal = bytesTotal
  }
}
