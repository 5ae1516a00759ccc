import Foundation

/// What `vmha status --json` tells, as far as the tests look at it: their own reading, so that a change of the JSON shows.
struct ClusterView: Decodable, Sendable {
  struct Module: Decodable, Sendable {
    struct OnNode: Decodable, Sendable {
      struct Generation: Decodable, Sendable, Equatable {
        var number: Int
        var branch: String
      }
      var node: String
      var current: Bool
      var state: String
      var readiness: String
      var standing: String?
      var guest: String
      var generation: Generation?
      var sentence: String
    }
    var name: String
    var preferred_node: String
    var wish: String
    var split: Bool
    var nodes: [OnNode]

    func on(_ node: String) -> OnNode? { nodes.first { $0.node == node } }
    /// Where it runs now.
    var primary: OnNode? { nodes.first { $0.current && ($0.state == "PRIM" || $0.state == "ALONE") } }
    /// Either node may be lost without harm.
    var isProtected: Bool {
      !split && nodes.count == 2
        && nodes.contains {
          $0.current && $0.state == "PRIM" && $0.readiness == "ready" && $0.standing == "uptodate"
            && $0.guest == "running"
        }
        && nodes.contains {
          $0.current && $0.state == "SECOND" && $0.readiness == "ready" && $0.standing == "uptodate"
        }
    }
    var account: String {
      name
        + nodes.map {
          " \($0.node): \($0.state) \($0.readiness) \($0.standing ?? "-") guest \($0.guest)"
            + " \($0.current ? "" : "(not current) ")\"\($0.sentence)\""
        }.joined(separator: ";") + (split ? " SPLIT" : "")
    }
  }
  var this_node: String
  var modules: [Module]

  func module(_ name: String) throws -> Module {
    guard let module = modules.first(where: { $0.name == name }) else {
      throw CommandFailure(description: "\(this_node) knows no module \(name)")
    }
    return module
  }
  var account: String { "seen from \(this_node): " + modules.map(\.account).joined(separator: " | ") }
}

/// The last line of `tools/lab probe` for one guest, and every line before it.
struct ProbeReport: Sendable {
  var lines: [String]
  var lost: Int
  var gapMax: Int
  /// From the last answer to the end of the watch.
  var silent: Int
  var answers: Int
  var incarnations: Int
  var high: Int

  init(_ output: String, guest: String) throws {
    lines = output.split(separator: "\n").map(String.init).filter {
      $0.split(separator: " ").dropFirst().first == guest[...]
    }
    guard let summary = lines.last, summary.contains(" summary ") else {
      throw CommandFailure(description: "probe said nothing about \(guest): \(output)")
    }
    func number(_ key: String) -> Int {
      for word in summary.split(separator: " ") where word.hasPrefix(key + "=") {
        return Int(word.dropFirst(key.count + 1)) ?? -1
      }
      return -1
    }
    lost = number("lost")
    gapMax = number("gap_ms_max")
    silent = number("silent_ms")
    answers = number("answers")
    incarnations = number("incarnations")
    high = number("high")
  }
  var account: String { lines.joined(separator: "\n") }
}

/// Seeded, so that a failed round can be repeated (SplitMix64).
struct Dice: RandomNumberGenerator {
  private var state: UInt64
  init(seed: UInt64) { state = seed }
  mutating func next() -> UInt64 {
    state &+= 0x9e37_79b9_7f4a_7c15
    var z = state
    z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
    z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
    return z ^ (z >> 31)
  }
}
