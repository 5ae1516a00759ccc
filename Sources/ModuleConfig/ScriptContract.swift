import Glibc
import Model

// What the module's scripts and the event hooks are given. vm-modules/kvm/README.md and hooks/on-state-change.example are its
// documentation for users.

extension ModuleScript {
  /// A script that runs longer is killed, with its process group.
  public static let timeout: Duration = .seconds(60)

  /// The script's path, or nil if the folder has no executable file of that name.
  public func path(inModuleFolder folder: String) -> String? {
    let path = "\(folder)/\(rawValue)"
    return access(path, X_OK) == 0 ? path : nil
  }

  /// Its words on the command line, the program first.
  public func arguments(path: String, module: ModuleName) -> [String] { [path, module.text, rawValue] }

  /// What it finds in its environment, besides the daemon's own PATH.
  public static func environment(
    _ module: ModuleConfiguration, node: NodeID, cluster: ClusterConfiguration, reason: String
  ) -> [String: String] {
    [
      "VMHA_MODULE": module.name.text, "VMHA_NUMBER": String(module.number.rawValue), "VMHA_UUID": module.uuid,
      "VMHA_NODE": String(node.rawValue), "VMHA_NODE_NAME": cluster.node(node)?.name ?? "",
      "VMHA_PEER_NAME": cluster.node(node.peer)?.name ?? "", "VMHA_MOUNT": module.mountPoint, "VMHA_REASON": reason,
    ]
  }
}

/// The hook that is told of every change of a module's state.
public enum StateChangeHook {
  public static let name = "on-state-change"
  public static let timeout: Duration = .seconds(30)

  /// `time`: wall clock, ISO 8601 in UTC.
  public static func environment(
    module: ModuleName, node: NodeID, cluster: ClusterConfiguration, from old: ModuleState, to new: ModuleState,
    readiness: Readiness, sentence: String, time: String
  ) -> [String: String] {
    [
      "VMHA_MODULE": module.text, "VMHA_NODE_NAME": cluster.node(node)?.name ?? "",
      "VMHA_PEER_NAME": cluster.node(node.peer)?.name ?? "", "VMHA_OLD_STATE": old.rawValue,
      "VMHA_STATE": new.rawValue, "VMHA_READINESS": readiness.rawValue, "VMHA_SENTENCE": sentence, "VMHA_TIME": time,
    ]
  }
}
