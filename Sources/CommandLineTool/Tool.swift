import ArgumentParser
import ControlAPI
import ControlHTTP
import Foundation

/// What a command works with.
struct Tool: Sendable {
  var client: any ControlService
  var console: Console
  /// Between two looks at something that is waited for.
  var pollInterval: Duration = .milliseconds(200)
  /// Where drills leave their reports.
  var drillFolder = "/var/lib/vmha/drills"

  /// Prints errors of this kind and goes on; used where one of several VMs fails.
  func print(_ error: ControlError) {
    for line in ErrorRendering.lines(error, console) { console.errorLine(line) }
  }

  func printJSON(_ value: some Encodable) throws {
    console.line(String(decoding: try ControlCoding.encode(value, pretty: true), as: UTF8.self))
  }

  /// Asks for consent. Without a terminal there is nobody to ask: refused, unless `--yes` was given.
  func confirm(_ question: String, yes: Bool) throws {
    if yes { return }
    guard console.canAsk else {
      throw ControlError(
        .refused, "nothing was done: there is nobody to ask", why: "this is not a terminal",
        next: "give --yes to answer beforehand")
    }
    console.write("\(question) [y/N] ")
    let answer = console.readAnswer()?.lowercased() ?? ""
    guard answer == "y" || answer == "yes" else {
      throw ControlError(.refused, "nothing was done", why: "the answer was not yes")
    }
  }
}

/// Options that every command has.
struct CommonOptions: ParsableArguments {
  @Flag(name: [.customShort("q"), .long], help: "Print nothing but errors and what was asked for.")
  var quiet = false

  @Option(help: ArgumentHelp("Socket of vmhad.", visibility: .hidden))
  var socket = "/run/vmha/vmhad.sock"
}

/// A subcommand. It returns its exit code, or throws a `ControlError` that gives it.
protocol ToolCommand: ParsableCommand {
  var common: CommonOptions { get }
  func execute(_ tool: Tool) async throws -> ExitStatus
}

/// `vmha` itself.
public enum CommandLineTool {
  /// Parses, runs, prints. Never exits the process.
  public static func run(_ arguments: [String], console: Console) async -> ExitStatus {
    await run(arguments, console: console) { _ in }
  }

  static func run(
    _ arguments: [String], console: Console, adjust: @Sendable (inout Tool) -> Void
  ) async -> ExitStatus {
    let command: any ParsableCommand
    do {
      command = try VMHA.parseAsRoot(arguments)
    } catch {
      return explain(error, console)
    }
    guard let command = command as? any ToolCommand else { return help(command, console) }
    var tool = Tool(client: ControlClient(socketPath: command.common.socket), console: console)
    adjust(&tool)
    do {
      return try await command.execute(tool)
    } catch let error as ControlError {
      tool.print(error)
      return ExitStatus(error)
    } catch let error as ValidationError {
      return explain(error, console)
    } catch {
      tool.print(ControlError(.failed, "unexpected failure", why: "\(error)"))
      return .failure
    }
  }

  /// `help` in its forms, or a group of commands named without one of them (which is wrong, and answered by its help).
  private static func help(_ command: any ParsableCommand, _ console: Console) -> ExitStatus {
    let isGroup = command is VMHA || command is ClusterCommand || command is BranchCommand
    if isGroup {
      console.errorLine(VMHA.helpMessage(for: type(of: command)))
      return .usage
    }
    var command = command
    do {
      try command.run()
      return .success
    } catch {
      return explain(error, console)
    }
  }

  private static func explain(_ error: any Error, _ console: Console) -> ExitStatus {
    let text = VMHA.fullMessage(for: error)
    if VMHA.exitCode(for: error) == .success {
      console.line(text)
      return .success
    }
    console.errorLine(text)
    return .usage
  }
}

struct VMHA: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "vmha", abstract: "Keeps KVM virtual machines running on two hosts.",
    discussion: """
      Exit codes: 0 done, 1 failed, 2 wrong command line, 3 vmhad not reachable, 4 refused and nothing changed, \
      5 not done in time, 6 the copies differ (verify). See vmha(8).
      """,
    subcommands: [
      StatusCommand.self, StartCommand.self, StopCommand.self, SwapCommand.self, WhyCommand.self, LogCommand.self,
      AddCommand.self, RemoveCommand.self, SetCommand.self, VerifyCommand.self, CheckCommand.self, ResolveCommand.self,
      BranchCommand.self, ClusterCommand.self, DrillCommand.self, VersionCommand.self,
    ])
}
