import HostSystem
import Model
import ModuleConfig

/// R5: one of Debian's fence agents, spoken to as cluster managers do: `key=value` lines on its standard input. Calls block and throw
/// `ArbitrationError`.
public struct FenceAgent: Sendable {
  /// "off" may wait for the power to be really gone.
  public static let offMax: Duration = .seconds(60)
  public static let statusMax: Duration = .seconds(20)
  /// Looks at the status after "off" before it counts as not confirmed.
  public static let looksMax = 3
  static let outputBytesMax = 64 << 10

  /// The agents' API gives the state as exit code, and 2 is "off" as well as "bad arguments" in their library: the words count too.
  private enum Power {
    case on, off
    init?(_ result: ChildProcess.Result) {
      let text = result.outputText.lowercased()
      switch result.status {
      case 0 where text.contains("status: on"): self = .on
      case 2 where text.contains("status: off"): self = .off
      default: return nil
      }
    }
  }

  private let configuration: FenceConfiguration
  private let target: String
  private let ownName: String
  private let ownAddresses: [String]

  /// `target`: the host it powers off, for sentences. `ownName`, `ownAddresses`: the node that runs it, which must not be the target.
  public init(_ configuration: FenceConfiguration, target: String, ownName: String, ownAddresses: [String]) {
    self.configuration = configuration
    self.target = target
    self.ownName = ownName
    self.ownAddresses = ownAddresses
  }

  /// Powers off and returns only when the status says so.
  public func off() throws {
    let options = try checkedOptions()
    var why = "its status does not say off"
    do {
      let result = try run("off", options, Self.offMax)
      if result.status != 0 { why = Self.lastLine(result) }
    } catch let error as ArbitrationError { why = error.text }
    // Whatever "off" said: only the status proves it.
    for look in 0..<Self.looksMax {
      if look > 0 { HostThread.sleep(for: .seconds(1)) }
      do {
        let result = try run("status", options, Self.statusMax)
        let power = Power(result)
        if power == .off { return }
        if power == nil { why = Self.lastLine(result) }
      } catch let error as ArbitrationError { why = error.text }
    }
    throw ArbitrationError(.failed, "\(configuration.agent) did not confirm that \(target) is off: \(why)")
  }

  /// The device can be reached and the login works; for health and rehearsals. Powers nothing.
  public func monitor() throws {
    let result = try run("monitor", checkedOptions(), Self.statusMax)
    guard result.status == 0 else {
      throw ArbitrationError(.failed, "\(configuration.agent) for \(target): \(Self.lastLine(result))")
    }
  }

  /// True = on.
  public func isOn() throws -> Bool {
    let result = try run("status", checkedOptions(), Self.statusMax)
    switch Power(result) {
    case .on: return true
    case .off: return false
    case nil: throw ArbitrationError(.failed, "\(configuration.agent) for \(target): \(Self.lastLine(result))")
    }
  }

  /// Whom the options name, in words that are equal on both nodes only if both would power off the same machine.
  public func describeTarget() throws -> String { try checkedOptions().target(agent: configuration.agent) }

  /// Whether the device itself says that the plug belongs to this node. Says nothing of devices that list no names.
  public func checkList() throws -> String {
    let options = try checkedOptions()
    guard let plug = options.plug else { return "the options name no plug" }
    let result = try run("list", options, Self.statusMax)
    guard result.status == 0 else { return "this agent lists no plugs" }
    let rows = result.outputText.split(whereSeparator: \.isNewline)
      .map { $0.split(separator: ",", omittingEmptySubsequences: false).map { $0.lowercased() } }
    guard let row = rows.first(where: { $0.prefix(2).contains(plug) }) else {
      return "the device does not tell whose plug \(plug) is"
    }
    guard !row.contains(where: { FenceOptions.isName($0, of: ownName, not: target) }) else {
      throw ArbitrationError(
        .configuration,
        "\(configuration.optionsFile) is for \(target), but the device says that plug \(plug) is this node, \(ownName)")
    }
    return "the device knows plug \(plug)"
      + (row.contains { FenceOptions.isName($0, of: target, not: ownName) } ? " as \(target)" : "")
  }

  /// R5: options that name this node are no way to power off the other one.
  private func checkedOptions() throws -> FenceOptions {
    let file = configuration.optionsFile
    let options = try FenceOptions(text: try SecretFile.read(file), file: file)
    if let why = options.objection(ownName: ownName, ownAddresses: ownAddresses, target: target) {
      throw ArbitrationError(
        .configuration, "\(file) is for \(target), but would power off the node that runs it: \(why)")
    }
    return options
  }

  private func run(_ action: String, _ options: FenceOptions, _ limit: Duration) throws -> ChildProcess.Result {
    do {
      // Secrets go through the pipe only: no argument, no environment, no log.
      return try ChildProcess.run(
        [configuration.agent], input: Array((options.text + "action=\(action)\n").utf8), timeout: limit,
        outputBytesMax: Self.outputBytesMax)
    } catch {
      throw ArbitrationError(.failed, "\(configuration.agent) (\(action), for \(target)): \(error)")
    }
  }

  private static func lastLine(_ result: ChildProcess.Result) -> String {
    let said = [result.errorText, result.outputText].flatMap { $0.split(whereSeparator: \.isNewline) }
    let line = said.last { $0.contains { $0.isLetter } }.map { ": \($0.prefix(200))" } ?? ""
    return "exit status \(result.status)\(line)"
  }
}
