import MirrorModule
import Model

@testable import Simulation

/// One scenario: the commands of a transcript file, and the text that they produce now.
///
/// A file holds `#` comments, `>` command lines and the output of each. A command line `nodes` names the options and begins anew; of
/// one that begins with `quiet` only the states at its end are told.
struct Transcript {
  struct Problem: Error { let text: String }
  private(set) var text = ""

  static func replay(_ file: String) throws -> String {
    var transcript = Transcript()
    var world: World?
    for line in file.split(separator: "\n", omittingEmptySubsequences: false) {
      if line.hasPrefix("#") { transcript.text += "\(line)\n" }
      guard line.hasPrefix("> ") else { continue }
      transcript.text += "\(line)\n"
      let commands = line.dropFirst(2).split(separator: ";").map { $0.split(separator: " ").map(String.init) }
      if let world, commands.first?.first != "nodes" {
        try transcript.play(commands, in: world)
      } else {
        world = try transcript.open(commands.first ?? [])
      }
    }
    return transcript.text
  }

  private func open(_ words: [String]) throws -> World { World(try Self.options(words)) }

  static func options(_ words: [String]) throws -> World.Options {
    guard words.first == "nodes" else { throw Problem(text: "the first command must be 'nodes'") }
    var options = World.Options()
    for word in words.dropFirst() {
      switch word {
      case "arbiter=none": options.arbiter = .none
      case "arbiter=ping": options.arbiter = .ping
      case "arbiter=wait": options.arbiter = .wait
      case "arbiter=witness": options.arbiter = .witness
      case "arbiter=fence": options.arbiter = .fence
      case "arbiter=witness+fence": options.arbiter = .witnessAndFence
      case "preferred=a": options.preferred = .first
      case "preferred=b": options.preferred = .second
      case "force-after=30s": options.forceAfter = .seconds(30)
      case "split-policy=keep-preferred": options.splitPolicy = .keepPreferred
      default: throw Problem(text: "unknown option \(word)")
      }
    }
    options.hasPowerCuts = true
    return options
  }

  private mutating func play(_ commands: [[String]], in world: World) throws {
    var lines: [String] = []
    if commands.first != ["quiet"] {
      world.recorder = { [unowned world] node, line in lines.append("  \(world.stamp) \(node.name) \(line)") }
    }
    for command in commands { try Self.perform(command, in: world) }
    world.recorder = nil
    if let violation = world.violations.first { throw Problem(text: "\(violation)") }
    text += lines.map { $0 + "\n" }.joined()
    for node in world.nodes {
      guard let status = world.status(node) else {
        text += "  = \(node.name) \(node.isOn ? "vmhad is down" : "off")\n"
        continue
      }
      text += "  = \(node.name) \(status.state.rawValue) \(status.readiness.rawValue), guest \(status.guest.rawValue): "
      text += "\(status.sentence)\n"
    }
  }

  static func perform(_ words: [String], in world: World) throws {
    let node = words.count > 1 ? world.nodes.first { $0.name == words[words.count - 1] } : nil
    switch (words.first ?? "", node) {
    case ("quiet", nil): break
    case ("run", nil): world.run(for: .milliseconds(Int(words.last ?? "") ?? 0))
    case ("settle", nil):
      world.run(for: .milliseconds(500))
      guard world.run(upTo: .seconds(90), until: { world.isConverged && world.nodes.contains { $0.guest != nil } })
      else { throw Problem(text: "does not settle") }
      world.run(for: .seconds(1))
    case ("cut", nil):
      world.replicationUp = [false, false]
      if words.last == "both" { world.lanUp = [false, false] }
    case ("heal", nil):
      world.replicationUp = [true, true]
      world.lanUp = [true, true]
    case ("mute", let node?):
      world.replicationUp[node.index] = false
      world.lanUp[node.index] = false
    case ("boot", let node?): node.isOn ? node.startDaemon() : world.powerOn(node)
    case ("power-cut", let node?): node.powerCut()
    case ("freeze", let node?): node.freeze()
    case ("thaw", let node?): node.thaw()
    case ("start", let node?): world.command(.start(force: false), at: node)
    case ("force", let node?): world.command(.start(force: true), at: node)
    case ("stop", let node?): world.command(.stop, at: node)
    case ("swap", let node?): world.command(.swap, at: node)
    case ("kill-vmhad", let node?): node.killDaemon()
    case ("kill-engine", let node?): node.killEngine()
    case ("replace-engine", let node?): node.replaceEngine()
    case ("kill-qemu", let node?): node.guest?.end(.failed)
    case ("persist-fails", let node?): node.persistFails = true
    case ("persist-works", let node?): node.persistFails = false
    case ("archive-fails", let node?): node.archiveFails = true
    case ("guest-fails", let node?): node.guestStartFails = true
    case ("guest-works", let node?): node.guestStartFails = false
    case ("give-up", let node?): world.giveUp(node)
    case ("give-up-both", nil): for node in world.nodes { world.giveUp(node) }
    case ("virsh-resume", let node?): node.guest?.resume(byHand: true)
    case ("disk-error", let node?): node.engine?.breakDisk(5)
    case ("witness-lost", nil): world.witness.isReached = [false, false]
    case ("witness-back", nil): world.witness.isReached = [true, true]
    case ("witness-empty", nil): world.witness.lose()
    case ("witness-set-back", nil): world.witness.setBack()
    case ("witness-mute", let node?): world.witness.isReached[node.index] = false
    case ("fence-fails", let node?): node.fenceFails = true
    case ("fence-works", let node?): node.fenceFails = false
    case ("disk-hangs", let node?): node.engine?.hangDisk()
    case ("lose-record", let node?): node.isRecordLost = true
    case ("disk-full", let node?): node.engine?.breakDisk(28)
    default: throw Problem(text: "unknown command \(words)")
    }
  }
}
