import ArgumentParser
import ControlAPI
import Model

struct SetCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "set", abstract: "Change a protected VM's settings, on both nodes.",
    discussion: """
      --resync-priority: of the VMs whose copies wait to be brought up to date, those of a higher priority come first, then \
      those that have waited longest. A resync that runs is not interrupted.

      --arbiter: who lets a node go on alone with this VM, instead of the cluster's arbiter; cluster = the cluster's again. \
      Which etcd, fence agents and ping addresses is said with 'vmha cluster set'. It is changed only while the VM is in \
      sync or stopped, with both nodes up, and only if the rehearsal succeeds on both (docs/operating/arbiters.md).
      """)

  @OptionGroup var common: CommonOptions
  @OptionGroup var selection: ModuleSelection
  @Option(
    name: .customLong("resync-priority"), help: ArgumentHelp("high, normal or low.", valueName: "priority"),
    completion: .list(ResyncPriority.allCases.map(\.rawValue)), transform: Self.priority)
  var resyncPriority: ResyncPriority?

  @Option(
    help: ArgumentHelp("\(arbiters.joined(separator: ", ")).", valueName: "arbiter"),
    completion: .list(arbiters), transform: Self.arbiter)
  var arbiter: String?

  private static let arbiters = ClusterSetCommand.arbiters + [ModuleChanges.clustersArbiter]

  private static func arbiter(_ text: String) throws -> String {
    guard arbiters.contains(text) else {
      throw ValidationError("'\(text)' is none of \(arbiters.joined(separator: ", ")).")
    }
    return text
  }

  private static func priority(_ text: String) throws -> ResyncPriority {
    guard let priority = ResyncPriority(rawValue: text) else {
      throw ValidationError("'\(text)' is none of \(ResyncPriority.allCases.map(\.rawValue).joined(separator: ", ")).")
    }
    return priority
  }

  func validate() throws {
    if resyncPriority == nil, arbiter == nil { throw ValidationError("Say what to set: --resync-priority, --arbiter.") }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    for name in try await selection.resolve(tool) {
      try await tool.client.setModule(name, ModuleChanges(resyncPriority: resyncPriority, arbiter: arbiter))
      if !common.quiet { tool.console.line("\(name): set on both nodes") }
    }
    if !common.quiet, let note = arbiter.flatMap(Self.consequence) { tool.console.line(note) }
    return .success
  }

  /// What an operator must know who has asked for this one.
  private static func consequence(_ arbiter: String) -> String? {
    if arbiter.contains("fence") {
      return "note: a fence powers the whole other node off, under all its VMs, whatever their arbiters are"
    }
    return arbiter.hasPrefix("policy=")
      ? "note: can split; if both nodes live and lose sight of each other, both go on with it" : nil
  }
}
