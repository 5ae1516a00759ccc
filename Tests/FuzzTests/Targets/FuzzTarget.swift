/// What a reader of foreign bytes did that it must not do.
struct Finding: Error, CustomStringConvertible {
  let description: String
  init(_ description: String) { self.description = description }
}

/// The readers of bytes that come from the peer or from a disk. Each takes any bytes at all: what is wrong with them is refused or said,
/// never a crash, and never less than was written. Run by `tools/fuzz` (libFuzzer) and, with seeded mutations, by the tests.
enum FuzzTarget: String, CaseIterable, Sendable {
  case frames, manifest, intents, pair, record, heartbeat

  /// Throws a `Finding`, or stops the process.
  func check(_ bytes: [UInt8]) throws {
    switch self {
    case .frames: try FrameChecks.stream(bytes)
    case .manifest: try FrameChecks.manifest(bytes)
    case .intents: try IntentChecks.check(bytes)
    case .pair: try RecordChecks.pair(bytes)
    case .record: try RecordChecks.record(bytes)
    case .heartbeat: try RecordChecks.heartbeat(bytes)
    }
  }

  /// Where to begin: bytes that the reader takes.
  var seeds: [[UInt8]] {
    switch self {
    case .frames: FrameChecks.streamSeeds()
    case .manifest: FrameChecks.manifestSeeds()
    case .intents: IntentChecks.seeds()
    case .pair: RecordChecks.pairSeeds()
    case .record: RecordChecks.recordSeeds()
    case .heartbeat: RecordChecks.heartbeatSeeds()
    }
  }
}

/// Changes bytes as a fuzzer does, the same way for the same seed (SplitMix64).
struct Mutator: RandomNumberGenerator {
  /// Inputs do not grow beyond this.
  static let bytesMax = 1 << 16
  private var state: UInt64
  init(seed: UInt64) { state = seed }

  mutating func next() -> UInt64 {
    state &+= 0x9E37_79B9_7F4A_7C15
    var value = state
    value = (value ^ (value >> 30)) &* 0xBF58_476D_1CE4_E5B9
    value = (value ^ (value >> 27)) &* 0x94D0_49BB_1331_11EB
    return value ^ (value >> 31)
  }

  private mutating func below(_ count: Int) -> Int { Int.random(in: 0..<max(count, 1), using: &self) }

  /// One of `inputs`, changed in one to four places.
  mutating func mutated(_ inputs: [[UInt8]]) -> [UInt8] {
    var bytes = inputs[below(inputs.count)]
    for _ in 0...below(4) { change(&bytes, inputs) }
    return Array(bytes.prefix(Self.bytesMax))
  }

  private mutating func change(_ bytes: inout [UInt8], _ inputs: [[UInt8]]) {
    guard !bytes.isEmpty else { return bytes.append(UInt8(truncatingIfNeeded: next())) }
    let at = below(bytes.count)
    switch below(8) {
    case 0: bytes[at] ^= 1 << UInt8(below(8))
    case 1: bytes[at] = UInt8(truncatingIfNeeded: next())
    case 2: bytes[at] = [0, 1, 0x7F, 0x80, 0xFF][below(5)]
    case 3: bytes.removeSubrange(at..<min(at + 1 + below(16), bytes.count))
    case 4: bytes.insert(contentsOf: (0...below(16)).map { _ in UInt8(truncatingIfNeeded: next()) }, at: at)
    case 5:
      // A number that is large, or one more or less.
      for index in at..<min(at + [2, 4, 8][below(3)], bytes.count) {
        bytes[index] = below(2) == 0 ? 0xFF : bytes[index] &+ 1
      }
    case 6:
      let from = below(bytes.count)
      let piece = Array(bytes[from..<min(from + 1 + below(64), bytes.count)])
      bytes.insert(contentsOf: piece, at: at)
    default: bytes = Array(bytes[..<at]) + inputs[below(inputs.count)]
    }
  }
}
