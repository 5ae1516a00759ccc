import ControlAPI
import Foundation

/// Takes a `text/event-stream` apart: the data of each event, in order. Comments, ids and names are skipped.
struct ServerSentEvents {
  /// Longest line and longest event, in bytes.
  static let bytesMax = 256 * 1024

  private var line: [UInt8] = []
  private var data: [UInt8] = []

  mutating func feed(_ bytes: some Sequence<UInt8>) throws(ControlError) -> [Data] {
    var events: [Data] = []
    for byte in bytes {
      guard byte == UInt8(ascii: "\n") else {
        line.append(byte)
        guard line.count + data.count <= Self.bytesMax else {
          throw ControlError(.badAnswer, "an event is longer than \(Self.bytesMax) bytes")
        }
        continue
      }
      if line.last == UInt8(ascii: "\r") { line.removeLast() }
      if line.isEmpty {
        if !data.isEmpty { events.append(Data(data)) }
        data.removeAll(keepingCapacity: true)
      } else if line.starts(with: "data:".utf8) {
        if !data.isEmpty { data.append(UInt8(ascii: "\n")) }
        let value = line.dropFirst(5)
        data += value.first == UInt8(ascii: " ") ? value.dropFirst() : value
      }
      line.removeAll(keepingCapacity: true)
    }
    return events
  }
}
