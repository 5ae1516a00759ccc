import ArgumentParser
import ControlAPI
import Model

struct VerifyCommand: ToolCommand {
  static let configuration = CommandConfiguration(
    commandName: "verify", abstract: "Compare both copies of protected VMs while they run.",
    discussion: """
      Everything is read from both nodes' disks and compared at the same moment of the guest's writes. Exit code 0: identical; 6: they \
      differ; 1: interrupted; 4: refused. \
      Two copies cannot tell which of them is right. --repair gives the other node what the VM's present node has, which is what the \
      guest has been reading; to keep the other copy instead, move the VM there first: vmha swap VM.
      """)

  @OptionGroup var common: CommonOptions
  @OptionGroup var selection: ModuleSelection
  @Flag(help: "Overwrite what differs on the other node with the contents of the node that runs the VM.")
  var repair = false
  @Flag(help: "Do not ask before a repair.")
  var yes = false
  @Flag(help: "End a comparison that goes on.")
  var stop = false
  @Flag(name: .customLong("no-wait"), help: "Return as soon as it has begun; the result shows in status and log.")
  var noWait = false
  @Flag(help: "Print the results as the API describes them.")
  var json = false

  /// Places printed for a VM; `vmha status VM` lists all that are known.
  static let placesShownMax = 16

  func validate() throws {
    if stop && (repair || noWait || json) { throw ValidationError("Give --stop alone.") }
    if yes && !repair { throw ValidationError("--yes is for --repair.") }
    if noWait && json { throw ValidationError("Give --no-wait or --json, not both.") }
  }

  func execute(_ tool: Tool) async throws -> ExitStatus {
    let names = try await selection.resolve(tool)
    if stop {
      for name in names { try await tool.client.stopVerification(name) }
      return .success
    }
    if repair { try await confirm(names, tool) }
    var codes: [ExitStatus] = []
    var results: [String: VerificationResult] = [:]
    for name in names {
      do {
        let operation = try await tool.client.verifyModule(name, repair: repair)
        if noWait {
          if !common.quiet { tool.console.line("\(name): the comparison has begun") }
          continue
        }
        let (code, result) = try await follow(operation, tool)
        codes.append(code)
        results[name] = result
      } catch let error as ControlError where names.count > 1 && error.code != .daemonNotRunning {
        tool.print(error)
        codes.append(ExitStatus(error))
      }
    }
    if json { try tool.printJSON(results) }
    return ExitStatus.worst(codes)
  }

  private func confirm(_ names: [String], _ tool: Tool) async throws {
    if !common.quiet && !yes {
      let modules = try await tool.client.status().modules
      for name in names {
        guard let source = modules.first(where: { $0.name == name })?.primary?.node else { continue }
        tool.console.line("\(name): where the copies differ, the other node gets what \(source) has.")
      }
      tool.console.line("Two copies cannot tell which is right; what is overwritten is gone.")
    }
    try tool.confirm("Compare and repair \(Wording.list(names)) now?", yes: yes)
  }

  private func follow(_ operation: OperationID, _ tool: Tool) async throws -> (ExitStatus, VerificationResult?) {
    let isQuiet = common.quiet || json
    let status: OperationStatus
    do {
      status = try await OperationProgress(tool: tool, isQuiet: isQuiet).follow(operation)
    } catch let error as ControlError where error.code != .daemonNotRunning {
      // Interrupted. What it found until then still is a difference.
      let result = try? await tool.client.operation(operation).verification
      tool.print(error)
      if let result { show(result, tool, isQuiet: isQuiet) }
      return (result.map { $0.differingCount > 0 } == true ? .differs : ExitStatus(error), result)
    }
    guard let result = status.verification else { return (.failure, nil) }
    show(result, tool, isQuiet: isQuiet)
    return (result.differingCount > 0 ? .differs : .success, result)
  }

  private func show(_ result: VerificationResult, _ tool: Tool, isQuiet: Bool) {
    guard !isQuiet else { return }
    for finding in result.findings.prefix(Self.placesShownMax) { tool.console.line("  " + Wording.finding(finding)) }
    let left = result.findingsCount - min(result.findings.count, Self.placesShownMax)
    if left > 0 { tool.console.line("  and \(left) more") }
  }
}

extension Wording {
  /// "disk.img: 64.0 KiB at offset 5242880 differ, repaired".
  static func finding(_ finding: VerifyFinding) -> String {
    let place = "\(finding.path): \(bytes(finding.length)) at offset \(finding.offset)"
    let text =
      switch finding.kind {
      case .differs: "\(place) differ"
      case .unreadableThere: "\(place) cannot be read on the secondary's disk"
      case .unreadableHere: "\(place) cannot be read on the primary's disk"
      case .size: "\(finding.path): the lengths differ by \(bytes(finding.length))"
      case .missing: "\(finding.path): is not on the secondary"
      case .names: "\(finding.path): names or attributes in this folder differ"
      }
    return text + (finding.isRepaired ? ", repaired" : "")
  }
}
