import HostSystem

/// The policy `ping`: is this node's own network alive?
public enum PingAddresses {
  /// For one address.
  static let waitSeconds = 1

  /// The first address that answers. Blocks for at most two seconds an address. Throws `ArbitrationError` if none does.
  public static func first(of addresses: [String]) throws -> String {
    for address in addresses {
      do {
        let result = try ChildProcess.run(
          ["ping", "-n", "-q", "-c", "1", "-W", "\(waitSeconds)", address], timeout: .seconds(waitSeconds + 1))
        if result.status == 0 { return address }
      } catch let error as HostError where error.code == .timedOut { continue }
    }
    throw ArbitrationError(.unreachable, "no answer from \(addresses.joined(separator: ", "))")
  }
}
