import FoundationEssentials
import Glibc
import HostSystem
import Testing

/// The fuzz targets without a fuzzer: their seeds, every input that once was a finding, and seeded mutations of both. `make fuzz` runs
/// them under libFuzzer.
@Suite struct FuzzTests {
  /// Inputs kept beside this file, in a folder named like their target.
  private static func corpus(_ target: FuzzTarget) throws -> [[UInt8]] {
    let folder = "\(URL(filePath: #filePath).deletingLastPathComponent().path)/Corpus/\(target.rawValue)"
    guard access(folder, F_OK) == 0 else { return [] }
    return try FileManager.default.contentsOfDirectory(atPath: folder).sorted()
      .map { try DurableFile.read("\(folder)/\($0)") }
  }

  @Test(arguments: FuzzTarget.allCases) func noReaderIsDeceived(_ target: FuzzTarget) throws {
    let inputs = target.seeds + (try Self.corpus(target))
    #expect(!inputs.isEmpty)
    for input in inputs { try target.check(input) }
    var mutator = Mutator(seed: 1)
    for round in 0..<(target == .intents ? 150 : 3000) {
      let input = mutator.mutated(inputs)
      #expect(throws: Never.self, "round \(round): \(Data(input).base64EncodedString())") { try target.check(input) }
    }
  }
}
