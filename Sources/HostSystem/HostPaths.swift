import Model

/// Where vmha keeps things on a host. `root` is "" on a host and a folder of its own in tests.
public struct HostPaths: Sendable, Hashable {
  public let root: String
  public init(root: String = "") { self.root = root }

  public var configuration: String { "\(root)/etc/vmha" }
  public var clusterFile: String { "\(configuration)/cluster.xml" }
  public var modules: String { "\(configuration)/modules" }
  /// module.xml, domain.xml and the module's scripts.
  public func module(_ name: ModuleName) -> String { "\(modules)/\(name)" }
  public func moduleFile(_ name: ModuleName) -> String { "\(module(name))/module.xml" }
  public func domainFile(_ name: ModuleName) -> String { "\(module(name))/domain.xml" }
  public var eventHooks: String { "\(configuration)/hooks" }

  public var state: String { "\(root)/var/lib/vmha" }
  public var certificates: String { "\(state)/pki" }
  public var authorityFile: String { "\(certificates)/ca.crt" }
  public var authorityKeyFile: String { "\(certificates)/ca.key" }
  public var nodeCertificateFile: String { "\(certificates)/node.crt" }
  public var nodeKeyFile: String { "\(certificates)/node.key" }
  /// Key of the heartbeat datagrams, 32 bytes, mode 0600.
  public var heartbeatKeyFile: String { "\(certificates)/heartbeat.key" }
  public var journalFile: String { "\(state)/journal.sqlite" }
  /// A copy of the peer's.
  public var peerJournalFile: String { "\(state)/peer-journal.sqlite" }
  /// The durable record (R0), the operator's wish and the add/remove journal of one module.
  public func moduleState(_ name: ModuleName) -> String { "\(state)/modules/\(name)" }

  /// The write-intent map of the module's engine (R3).
  public func intentsFile(_ name: ModuleName) -> String { "\(moduleState(name))/intents" }

  /// Since when this node's branch exists, for people.
  public func branchNote(_ name: ModuleName) -> String { "\(moduleState(name))/branch.json" }

  /// Until when both copies were in sync, for people.
  public func syncNote(_ name: ModuleName) -> String { "\(moduleState(name))/in-sync.json" }

  public var runtime: String { "\(root)/run/vmha" }
  public var controlSocket: String { "\(runtime)/vmhad.sock" }
  public func engineSocket(_ name: ModuleName) -> String { "\(runtime)/engines/\(name).sock" }
  /// Exists while vmhad itself starts this VM; the libvirt hook refuses every other start.
  public func startPermit(_ name: ModuleName) -> String { "\(runtime)/permits/\(name)" }
  /// Exists while vmhad itself has suspended this VM, so that a later vmhad tells it from a pause of libvirt or the operator.
  /// Lives as long as the boot, as QEMU does.
  public func suspension(_ name: ModuleName) -> String { "\(runtime)/suspended/\(name)" }
}
