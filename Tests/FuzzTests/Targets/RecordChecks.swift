import FoundationEssentials
import Model
import NodeDaemon

@testable import HostSystem

/// Small things from disk and network.
enum RecordChecks {
  /// First byte: bit 0 = a valid copy around the rest, with damage at the place that the next two bytes say; else the copy as it stands.
  static func pair(_ input: [UInt8]) throws {
    guard let mode = input.first else { return }
    guard mode & 1 == 1, input.count > 4 else {
      if case .valid(let payload, let sequence) = DurablePair.decode(Array(input[1...]), file: "copy") {
        guard DurablePair.encode(payload, sequence: sequence) == Array(input[1...]) else {
          throw Finding("a copy was read that is written in another way")
        }
      }
      return
    }
    let payload = Array(input[4...])
    let copy = DurablePair.encode(payload, sequence: UInt64(mode) + 1)
    guard case .valid(payload, UInt64(mode) + 1) = DurablePair.decode(copy, file: "copy") else {
      throw Finding("what was written is not read")
    }
    var damaged = copy
    damaged[(Int(input[1]) | Int(input[2]) << 8) % damaged.count] ^= input[3] | 1
    if case .valid = DurablePair.decode(damaged, file: "copy") {
      throw Finding("a damaged copy is taken for a good one")
    }
    if case .valid = DurablePair.decode(Array(copy.dropLast()), file: "copy") {
      throw Finding("a torn copy is taken for a good one")
    }
  }

  static func pairSeeds() -> [[UInt8]] {
    [[0] + DurablePair.encode(Array("payload".utf8), sequence: 3), [1, 20, 0, 4] + Array("payload".utf8)]
  }

  /// What is understood means the same when it is written and read again.
  static func record(_ input: [UInt8]) throws {
    guard let record = try? JSONDecoder().decode(DurableRecord.self, from: Data(input)) else { return }
    let again = try JSONDecoder().decode(DurableRecord.self, from: JSONEncoder().encode(record))
    guard again == record else { throw Finding("\(record) comes back as \(again)") }
  }

  static func recordSeeds() -> [[UInt8]] {
    var record = DurableRecord.empty
    record.claim = BranchID(rawValue: 9)
    record.pairing = 5
    record.history = [BranchID(rawValue: 1), BranchID(rawValue: UInt64.max)]
    record.generation = Generation(number: 7, branch: BranchID(rawValue: UInt64.max))
    return [.empty, record].compactMap { try? JSONEncoder().encode($0) }.map { Array($0) }
  }

  /// What is taken from a datagram is exactly what its bytes say.
  static func heartbeat(_ input: [UInt8]) throws {
    guard let frame = HeartbeatFrame(input) else { return }
    guard let again = frame.encode() else { throw Finding("\(frame) was read, and cannot be written") }
    guard again == input else { throw Finding("\(frame) was read from other bytes than it is written as") }
  }

  static func heartbeatSeeds() -> [[UInt8]] {
    let modules = [1, 25].compactMap { ModuleNumber(rawValue: $0) }.map { number in
      ModuleBeat(
        number: number, state: .prim, readiness: .ready, flags: [.inSync], standing: .uptodate,
        generation: Generation(number: 3, branch: BranchID(rawValue: 4)))
    }
    let frame = HeartbeatFrame(
      node: .second, revision: 3, link: 5, sequence: 6, boot: "01234567-89ab-cdef-0123-456789abcdef",
      linksHeard: [5, 6],
      modules: modules)
    return [frame.encode()].compactMap { $0 }
  }
}
