import HostSystem
import ModuleConfig

/// A fence agent's `key=value` lines: checked, and what they say of the machine that loses its power.
public struct FenceOptions: Sendable {
  /// As `target`: nothing in the file tells.
  public static let unnamed = "the options name no machine: whom it powers off cannot be told"

  /// As the agent gets them, in the order of the file.
  let lines: [String]
  private let values: [(key: String, value: String)]

  /// Throws `ArbitrationError` (`configuration`).
  init(text: String, file: String) throws {
    let lines = text.split(whereSeparator: \.isNewline).map { $0.drop(while: \.isWhitespace) }
      .filter { !$0.isEmpty && !$0.hasPrefix("#") }
    var values: [(key: String, value: String)] = []
    for line in lines {
      guard let equals = line.firstIndex(of: "="), equals > line.startIndex else {
        throw ArbitrationError(.configuration, "\(file) has a line that is not key=value")
      }
      let key = trimmed(String(line[..<equals])).lowercased()
      guard key != "action" else {
        throw ArbitrationError(.configuration, "\(file) must not set the action")
      }
      let value = trimmed(String(line[line.index(after: equals)...])).lowercased()
      values.append((Self.newName(key), Self.withoutQuotes(value)))
    }
    self.lines = lines.map(String.init)
    self.values = values
  }

  var text: String { lines.map { $0 + "\n" }.joined() }

  /// What the device calls the machine; nil for devices of one machine.
  var plug: String? { values.last { $0.key == "plug" }?.value }
  var address: String? { values.last { $0.key == "ip" }?.value }

  /// The machine, in words that are equal for equal machines, without secrets. What tells machines apart besides address and plug
  /// (a region, a UUID) is in the number at the end.
  func target(agent: String) -> String {
    let facts = values.filter { !Self.saysNothing($0.key) && !$0.value.isEmpty }
    // An agent of the site's own may find the other node by itself.
    guard facts.contains(where: { Self.machineKeys.contains($0.key) || $0.key == "ip" }) else { return Self.unnamed }
    let others = facts.filter { $0.key != "plug" && $0.key != "ip" }.map { "\($0.key)=\($0.value)" }.sorted()
    let name = agent.split(separator: "/").last.map(String.init) ?? agent
    let words = [name, plug.map { "plug \($0)" } ?? "", address.map { "at \($0)" } ?? ""].filter { !$0.isEmpty }
    let rest = others.isEmpty ? "" : ", further options " + Self.number(others)
    return words.joined(separator: " ") + rest
  }

  /// Why this would power off the node that runs it; nil = it does not say so.
  func objection(ownName: String, ownAddresses: [String], target: String) -> String? {
    for (key, value) in values where Self.machineKeys.contains(key) && Self.isName(value, of: ownName, not: target) {
      return "\(key)=\(value) is this node itself"
    }
    if let address, ownAddresses.contains(where: { $0.lowercased() == address }) {
      return "ip=\(address) is an address of this node itself"
    }
    return nil
  }

  private static let machineKeys = ["plug", "nodename", "uuid"]

  /// As Debian's agents take a value.
  private static func withoutQuotes(_ value: String) -> String {
    value.count > 1 && value.hasPrefix("\"") && value.hasSuffix("\"") ? String(value.dropFirst().dropLast()) : value
  }

  /// The old names that Debian's agents still take.
  private static func newName(_ key: String) -> String {
    switch key {
    case "port": "plug"
    case "ipaddr", "ip_address", "host": "ip"
    default: key
    }
  }

  /// Who logs in, how patient and how talkative the agent is: no matter of which machine. What may be a secret is never looked at.
  private static func saysNothing(_ key: String) -> Bool {
    let parts = [
      "pass", "secret", "token", "key", "login", "user", "community", "credential", "identity", "timeout", "wait",
      "delay",
      "retry", "verbose", "debug", "quiet", "ssl", "tls", "ssh", "secure", "method", "log",
    ]
    return parts.contains { key.contains($0) }
  }

  /// Whether this is the host's name, with its domain or without it where that is enough to tell it from the other one.
  static func isName(_ text: String, of host: String, not other: String) -> Bool {
    func firstLabel(_ name: String) -> String { String(name.lowercased().prefix { $0 != "." }) }
    return text.lowercased() == host.lowercased()
      || firstLabel(text) == firstLabel(host) && firstLabel(host) != firstLabel(other)
  }

  /// To tell two apart, nothing more.
  private static func number(_ options: [String]) -> String {
    String(Checksum.crc32c(options.joined(separator: "\n").utf8), radix: 16)
  }
}
