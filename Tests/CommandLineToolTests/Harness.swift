import ControlAPI
import ControlTestSupport
import Synchronization

@testable import CommandLineTool

/// What a command printed and how it ended.
struct Outcome: Sendable {
  var status: ExitStatus
  var output: String
  var errors: String
  var calls: [String]
}

/// Runs `vmha ARGUMENTS` against a served fake, with a console that records.
func vmha(
  _ arguments: [String], on fake: FakeControlService = FakeControlService(), isTerminal: Bool = false,
  answer: String? = nil, drillFolder: String = "/nonexistent"
) async throws -> Outcome {
  try await withServer(fake) { path async throws in
    var result = await run(
      arguments + ["--socket", path], isTerminal: isTerminal, answer: answer, drillFolder: drillFolder)
    result.calls = fake.calls.filter { $0 != "log" && $0 != "status" }
    return result
  }
}

/// The same without a daemon.
func run(
  _ arguments: [String], isTerminal: Bool = false, answer: String? = nil, drillFolder: String = "/nonexistent"
) async -> Outcome {
  final class Record: Sendable {
    let output = Mutex("")
    let errors = Mutex("")
  }
  let record = Record()
  let console = Console(
    isTerminal: isTerminal, canAsk: answer != nil, usesColour: false, width: 200,
    write: { text in record.output.withLock { $0 += text } },
    writeError: { text in record.errors.withLock { $0 += text } }, readAnswer: { answer })
  let status = await CommandLineTool.run(arguments, console: console) { tool in
    tool.pollInterval = .milliseconds(2)
    tool.drillFolder = drillFolder
  }
  return Outcome(
    status: status, output: record.output.withLock { $0 }, errors: record.errors.withLock { $0 }, calls: [])
}

/// Times differ from run to run: every "12.3 s" becomes "# s", with the spaces before it.
func masked(_ text: String) -> String {
  text.replacing(#/\ *[0-9]+\.[0-9]\ s/#, with: " # s")
}
