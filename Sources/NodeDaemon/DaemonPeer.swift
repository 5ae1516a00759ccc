import ControlAPI
import FoundationEssentials
import Glibc
import HostSystem
import MirrorModule
import Model
import ModuleConfig
import VirtualMachines

// What this node does for the other one.
extension Daemon {
  /// One request of the peer's vmhad; runs on its connection's thread.
  func servePeer(_ request: Data) -> Data {
    let reply: PeerReply
    do { reply = try answerPeer(JSONDecoder().decode(PeerRequest.self, from: request)) } catch {
      reply = .failed(why: "\(error)")
    }
    do { return try JSONEncoder().encode(reply) } catch {
      preconditionFailure("a reply of this program must be encodable: \(error)")
    }
  }

  private func answerPeer(_ request: PeerRequest) throws -> PeerReply {
    switch request {
    case .consent(let name, let consent):
      guard let reply = try requireRunner(name).consent(to: consent) else {
        return .failed(why: "the consent could not be made durable")
      }
      return .consent(reply)
    case .command(let name, let verb, let version):
      if case .start = verb, let refusal = try unfinishedAdoption(name) {
        return .forbidden(what: refusal.message, why: refusal.why ?? "", next: refusal.next ?? "")
      }
      return .answer(try command(requireRunner(name), verb, version))
    case .wishes(let theirs):
      let mine = snapshot().runners.mapValues(\.wish)
      follow(theirs)
      return .wishes(mine)
    case .report: return .report(ownReports())
    case .journal(let cursor): return .journal(try journalPiece(since: cursor))
    case .crashGuest(let name):
      try crashGuestHere(requireRunner(name))
      return .done
    case .resolve(let name, let mine, let theirs):
      return .answer(try giveUp(requireRunner(name), mine: mine, theirs: theirs))
    case .branches(let name): return .branches(try branchesHere(requireRunner(name)))
    case .verify(let name, let id, let repairs):
      try beginVerification(requireRunner(name), id: id, repairs: repairs)
      return .done
    case .stopVerify(let name):
      try requireRunner(name).stopVerify()
      return .done
    case .set(let name, let changes):
      try setHere(requireRunner(name), changes)
      return .done
    case .adoption(let bytes): return .adoption(try serveAdoption(bytes))
    case .cluster(let request): return .cluster(clusterSetup.answer(request))
    case .rehearse(let xml):
      return .checks(try rehearse(xml.map { try ClusterConfiguration(xml: $0, file: "the planned cluster.xml") }))
    }
  }

  func requireRunner(_ name: ModuleName) throws -> ModuleRunner {
    guard let runner = runner(name) else { throw ControlError.noSuchModule(name.text) }
    return runner
  }

  func command(_ runner: ModuleRunner, _ verb: PeerVerb, _ version: UInt64) throws -> Answer {
    switch verb {
    case .start(let force): return try runner.command(.start(force: force), wishVersion: version)
    case .stop(let timeout):
      runner.stopWithin(timeout)
      return try runner.command(.stop, wishVersion: version)
    case .swap: return try runner.command(.swap, wishVersion: version)
    }
  }

  /// For drills: QEMU is killed as a crash would; libvirt and the core find out by themselves.
  func crashGuestHere(_ runner: ModuleRunner) throws {
    guard let process = try hypervisor.processID(of: runner.module.text), process > 1 else {
      throw ControlError(
        .refused, "\(runner.module) has no guest here", why: "there is no QEMU process on \(nodeName)",
        next: "see: vmha status")
    }
    record(.command, .warning, "drill: the guest's QEMU (process \(process)) is killed", module: runner.module.text)
    guard kill(process, SIGKILL) == 0 else {
      throw HostError.system("drill.kill", path: runner.module.text, errno: errno)
    }
  }
}
