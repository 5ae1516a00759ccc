import Foundation
import Testing

/// Every file of Transcripts/ is played again and must say what it said. VMHA_TRANSCRIPTS_UPDATE=1 rewrites them.
@Suite struct TranscriptTests {
  static let folder = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "Transcripts")

  @Test func allTranscriptsHold() throws {
    let updates = ProcessInfo.processInfo.environment["VMHA_TRANSCRIPTS_UPDATE"] == "1"
    let files = try FileManager.default.contentsOfDirectory(at: Self.folder, includingPropertiesForKeys: nil)
      .filter { $0.pathExtension == "txt" }.sorted { $0.path() < $1.path() }
    #expect(files.count >= 20)
    for file in files {
      let wanted = try String(contentsOf: file, encoding: .utf8)
      do {
        let text = try Transcript.replay(wanted)
        if updates { try text.write(to: file, atomically: true, encoding: .utf8) }
        let difference = zip(wanted.split(separator: "\n"), text.split(separator: "\n")).first { $0 != $1 }
        if !updates, text != wanted {
          Issue.record("\(file.lastPathComponent): \(difference.map { "wanted '\($0)', got '\($1)'" } ?? "length")")
        }
      } catch let problem as Transcript.Problem {
        Issue.record("\(file.lastPathComponent): \(problem.text)")
      }
    }
  }
}
