import FoundationEssentials
import HostSystem
import Model

/// The one open invitation to join the cluster: a token of 128 random bits that lives 15 minutes and lets one host in.
/// Only its hash is stored. The host that used it may repeat its request (same key) until the time is over, so that a
/// join whose answer got lost can be completed by repeating the command.
public struct JoinTicketBook: Sendable {
  public static let lifetime: Duration = .seconds(15 * 60)
  static let tokenBytes = 16

  private struct Entry: Codable {
    var tokenHash: String
    /// The time counts in this boot only; after a reboot the ticket is void.
    var boot: String
    var expires: Instant
    /// SHA-256 of the public key of the host that used it.
    var usedBy: String?
  }

  public enum Refusal: Error, Sendable, Hashable, CustomStringConvertible {
    case none, expired, wrongToken, used
    public var description: String {
      let again = "run 'vmha cluster ticket' on the node that is in the cluster and use the line it prints"
      return switch self {
      case .none: "no join ticket is open: \(again)"
      case .expired: "the join ticket is older than 15 minutes or from before a reboot: \(again)"
      case .wrongToken: "the token is wrong (another ticket may have been issued since): \(again)"
      case .used: "the join ticket was already used by another host: \(again)"
      }
    }
  }

  private let path: String
  private let boot: String

  /// `path` = where the hash is kept (mode 0600); `boot` = the host's boot id.
  public init(path: String, boot: String) {
    self.path = path
    self.boot = boot
  }

  /// A new token, 32 hexadecimal digits; an older ticket is void from now on. Throws `HostError`.
  public func issue(now: Instant) throws -> String {
    let token = randomBytes(Self.tokenBytes)
    try store(Entry(tokenHash: hexadecimal(sha256(token)), boot: boot, expires: now + Self.lifetime))
    return hexadecimal(token)
  }

  public func isOpen(now: Instant) -> Bool {
    guard let entry = try? load() else { return false }
    return entry.boot == boot && now < entry.expires
  }

  /// Whether this token would let the host with this public key (its SHA-256) in; changes nothing. Throws `Refusal` or
  /// `HostError`.
  public func check(token: String, by key: [UInt8], now: Instant) throws {
    _ = try entry(token, key, now)
  }

  /// Uses the ticket for the host with this public key (its SHA-256), durably. Throws `Refusal` or `HostError`.
  public func redeem(token: String, by key: [UInt8], now: Instant) throws {
    var entry = try entry(token, key, now)
    entry.usedBy = hexadecimal(key)
    try store(entry)
  }

  private func entry(_ token: String, _ key: [UInt8], _ now: Instant) throws -> Entry {
    guard let entry = try load() else { throw Refusal.none }
    guard entry.boot == boot, now < entry.expires else { throw Refusal.expired }
    guard let given = bytes(hexadecimal: token), let expected = bytes(hexadecimal: entry.tokenHash),
      isEqualConstantTime(sha256(given), expected)
    else { throw Refusal.wrongToken }
    guard entry.usedBy == nil || entry.usedBy == hexadecimal(key) else { throw Refusal.used }
    return entry
  }

  private func load() throws -> Entry? {
    guard let contents = try DurableFile.readIfPresent(path, bytesMax: 4096) else { return nil }
    // An unreadable ticket is no ticket; issuing a new one repairs it.
    return try? JSONDecoder().decode(Entry.self, from: Data(contents))
  }

  private func store(_ entry: Entry) throws {
    try DurableFile.write(JSONEncoder().encode(entry), to: path, mode: 0o600)
  }
}
