import FoundationEssentials
import Glibc
import HostSystem
import Model
import ModuleConfig
import NodeDaemon
import SecureLinks
import Synchronization
import Testing

@Suite(.serialized) struct ClusterTests {
  let port: Int
  init() throws { port = try freePort() }

  func mode(_ path: String) -> mode_t {
    var status = stat()
    return stat(path, &status) == 0 ? status.st_mode & 0o777 : 0
  }

  @Test func initialiseAndJoin() throws {
    let (first, second) = try joinedPair(port: port)
    let (a, b) = (try #require(try first.membership()), try #require(try second.membership()))
    #expect(a.configuration == b.configuration && a.configurationHash == b.configurationHash)
    #expect(a.configuration.revision == 2 && a.configuration.nodes.map(\.name) == ["n1", "n2"])
    #expect(a.node.id == .first && a.peer?.name == "n2" && b.node.id == .second && b.peer?.name == "n1")
    #expect(b.links.map(\.name) == ["repl", "lan"] && b.links[0].peerAddress == first.addresses[0])
    #expect(b.replicationLinks.map(\.name) == ["repl"] && b.heartbeat.links.count == 2)
    #expect(a.seal.open(b.seal.seal([1])) == [1])
    #expect(first.changes.withLock { $0.count } == 2 && second.changes.withLock { $0.count } == 1)
    for host in [first, second] {
      #expect(mode(host.paths.certificates) == 0o700 && mode(host.paths.authorityKeyFile) == 0o600)
      #expect(mode(host.paths.nodeKeyFile) == 0o600 && mode(host.paths.heartbeatKeyFile) == 0o600)
      #expect(mode(host.paths.clusterFile) == 0o644)
    }
    let again = clusterError { _ = try first.setup.initialise(clusterName: "x", nodeName: "n1", links: first.links) }
    #expect(again?.code == .alreadyMember && again?.description.contains(a.configuration.uuid) == true)
    let elsewhere = clusterError {
      _ = try second.setup.join(
        address: "127.0.0.1", fingerprint: String(repeating: "0", count: 64), token: "", nodeName: nil, links: [])
    }
    #expect(elsewhere?.code == .alreadyMember)
  }

  @Test func initialiseRefusesWhatCannotWork() throws {
    let host = try LinksHost("n1", number: 1, port: port)
    #expect(clusterError { _ = try host.setup.newTicket() }?.code == .notMember)
    var links = host.links
    links[1].address = "10.9.9.9"
    let absent = clusterError { _ = try host.setup.initialise(clusterName: "c", nodeName: "n1", links: links) }
    #expect(absent?.code == .addressNotHere && absent?.description.contains("10.9.9.9") == true)
    for name in ["", "a b", "-x"] {
      #expect(
        clusterError { _ = try host.setup.initialise(clusterName: "c", nodeName: name, links: host.links) }?.code
          == .invalid)
    }
    links = [host.links[1]]
    #expect(
      clusterError { _ = try host.setup.initialise(clusterName: "c", nodeName: "n1", links: links) }?.code == .invalid)
    #expect(
      clusterError { _ = try host.setup.initialise(clusterName: "c", nodeName: "n1", links: []) }?.code == .invalid)
    #expect(
      clusterError { _ = try host.setup.initialise(clusterName: "<&>", nodeName: "n1", links: host.links) }?.code
        == .invalid)
    #expect(try host.membership() == nil && host.changes.withLock { $0.isEmpty })
  }

  @Test func joinRefusesWithReasons() throws {
    let first = try LinksHost("n1", number: 1, port: port)
    let ticket = try first.setup.initialise(clusterName: "test", nodeName: "n1", links: first.links)
    let second = try LinksHost("n2", number: 2, port: port)
    func join(
      _ host: LinksHost? = nil, fingerprint: String? = nil, token: String? = nil, name: String = "n2",
      links: [ClusterOwnLink]? = nil
    ) -> ClusterError? {
      clusterError {
        let host = host ?? second
        _ = try host.setup.join(
          address: ticket.addresses[0], fingerprint: fingerprint ?? ticket.fingerprint, token: token ?? ticket.token,
          nodeName: name, links: links ?? host.links)
      }
    }
    #expect(join()?.code == .unreachable)
    let listener = try first.listen(port: port)
    defer { listener.close() }
    #expect(eventually { listener.ports.count == 2 })
    let wrongToken = join(token: String(repeating: "0", count: 32))
    #expect(wrongToken?.code == .wrongToken && wrongToken?.next.contains("vmha cluster ticket") == true)
    #expect(join(fingerprint: String(repeating: "ab", count: 32))?.code == .wrongFingerprint)
    #expect(join(fingerprint: "abc")?.code == .wrongFingerprint)
    #expect(join(name: "n1")?.code == .nodeNameTaken)
    let wrongLinks = join(links: [second.links[0]])
    #expect(wrongLinks?.code == .wrongLinks && wrongLinks?.why.contains("repl, lan") == true)
    #expect(join(links: second.links + [second.links[0]])?.code == .wrongLinks)
    var links = second.links
    links[0].address = "10.9.9.9"
    #expect(join(links: links)?.code == .addressNotHere)
    #expect(join(try LinksHost.twin(of: first, port: port))?.code == .invalid)
    // None of these used the ticket up or changed anything.
    #expect(try first.membership()?.configuration.revision == 1 && second.membership() == nil)
    #expect(join() == nil)
    let third = try LinksHost("n3", number: 3, port: port)
    #expect(join(third, name: "n3")?.code == .wrongToken)
    let late = try first.setup.newTicket()
    #expect(late.replaces == "n2")
    let full = join(third, token: late.token, name: "n3")
    #expect(full?.code == .otherCluster && full?.why.contains("already has two nodes") == true)
    // A rebuilt n2 may take its own place.
    let rebuilt = try LinksHost("n2", number: 4, port: port)
    #expect(join(rebuilt, token: late.token) == nil)
    let after = try #require(try first.membership())
    #expect(
      after.configuration.revision == 3 && after.configuration.links[0].addresses[.second] == rebuilt.addresses[0])
    #expect(try rebuilt.membership()?.configurationHash == after.configurationHash)
  }

  /// The joining host loses power at every durable step in turn: repeating the same line completes the join.
  @Test func joinIsCompletedByRepeatingIt() throws {
    for crashPoint in stride(from: 0, to: 60, by: 3) {
      let port = try freePort()
      let first = try LinksHost("n1", number: 1, port: port)
      let ticket = try first.setup.initialise(clusterName: "test", nodeName: "n1", links: first.links)
      let listener = try first.listen(port: port)
      #expect(eventually { listener.ports.count == 2 })
      defer { listener.close() }
      let second = try LinksHost("n2", number: 2, port: port)
      func join() throws {
        _ = try second.setup.join(
          address: ticket.addresses[0], fingerprint: ticket.fingerprint, token: ticket.token, nodeName: "n2",
          links: second.links)
      }
      let calls = Mutex(0)
      let root = second.paths.root
      HostCalls.setFaultHook { label, path in
        guard path.hasPrefix(root), !label.hasPrefix("file.") else { return nil }
        return calls.withLock {
          $0 += 1
          return $0 > crashPoint ? EIO : nil
        }
      }
      defer { HostCalls.setFaultHook(nil) }
      let isDone = (try? join()) != nil
      HostCalls.setFaultHook(nil)
      if !isDone, try second.membership() == nil { try join() }
      let (a, b) = (try #require(try first.membership()), try #require(try second.membership()))
      #expect(a.configurationHash == b.configurationHash, "crash at call \(crashPoint)")
      if isDone { break }
    }
  }

  /// The same for the first node: nothing, or a cluster whose ticket can be had.
  @Test func initialiseIsCompletedByRepeatingIt() throws {
    for crashPoint in stride(from: 0, to: 80, by: 3) {
      let host = try LinksHost("n1", number: 1, port: port)
      let calls = Mutex(0)
      let root = host.paths.root
      HostCalls.setFaultHook { label, path in
        guard path.hasPrefix(root), !label.hasPrefix("file.") else { return nil }
        return calls.withLock {
          $0 += 1
          return $0 > crashPoint ? EIO : nil
        }
      }
      defer { HostCalls.setFaultHook(nil) }
      let isDone = (try? host.setup.initialise(clusterName: "test", nodeName: "n1", links: host.links)) != nil
      HostCalls.setFaultHook(nil)
      if try host.membership() == nil {
        _ = try host.setup.initialise(clusterName: "test", nodeName: "n1", links: host.links)
      }
      _ = try host.setup.newTicket()
      #expect(try host.membership()?.node.name == "n1")
      if isDone { break }
    }
  }

  @Test func changesAreMadeOnBothNodes() throws {
    let (first, second) = try joinedPair(port: port)
    let toSecond: ClusterSetup.AskPeer = { second.setup.answer($0) }
    var new = try #require(try first.membership()).configuration
    new.detection = .seconds(5)
    let changed = try first.setup.change(to: new, peer: toSecond)
    #expect(changed.configuration.revision == 3 && changed.configuration.detection == .seconds(5))
    #expect(try second.membership()?.configurationHash == changed.configurationHash)
    #expect(second.changes.withLock { $0.last?.configuration.detection } == .seconds(5))
    #expect(clusterError { _ = try first.setup.change(to: new, peer: toSecond) }?.code == .changedMeanwhile)
    var bad = changed.configuration
    bad.pulse = .seconds(4)
    #expect(clusterError { _ = try first.setup.change(to: bad, peer: toSecond) }?.code == .invalid)
    bad = changed.configuration
    bad.links[0].addresses[.first] = "10.9.9.9"
    #expect(clusterError { _ = try first.setup.change(to: bad, peer: toSecond) }?.code == .addressNotHere)
    bad = changed.configuration
    bad.links[0].addresses[.second] = "10.9.9.9"
    #expect(clusterError { _ = try first.setup.change(to: bad, peer: toSecond) }?.code == .addressNotHere)
    bad = changed.configuration
    bad.nodes[1].name = "other"
    #expect(clusterError { _ = try first.setup.change(to: bad, peer: toSecond) }?.code == .invalid)
    let down = clusterError {
      _ = try first.setup.change(to: changed.configuration) { _ in throw PeerError(.unreachable, "no way") }
    }
    #expect(down?.code == .unreachable && down?.why.contains("no way") == true)
    #expect(try first.membership()?.configurationHash == changed.configurationHash)
    #expect(try second.membership()?.configurationHash == changed.configurationHash)
  }

  /// The answer is lost, or this node dies before its own write: the higher revision wins when the nodes meet.
  @Test func aHalfMadeChangeIsCompleted() throws {
    let (first, second) = try joinedPair(port: port)
    var new = try #require(try first.membership()).configuration
    new.detection = .seconds(7)
    let lost = clusterError {
      _ = try first.setup.change(to: new) { request in
        _ = second.setup.answer(request)
        throw PeerError(.outcomeUnknown, "answer lost")
      }
    }
    #expect(lost?.code == .unanswered)
    #expect(try first.membership()?.configuration.revision == 2 && second.membership()?.configuration.revision == 3)
    // Another change from the old revision is refused by the peer.
    var other = new
    other.detection = .seconds(9)
    #expect(
      clusterError { _ = try first.setup.change(to: other) { second.setup.answer($0) } }?.code == .changedMeanwhile)
    // Repeating the same one completes it.
    let repeated = try first.setup.change(to: new) { second.setup.answer($0) }
    #expect(try second.membership()?.configurationHash == repeated.configurationHash)
    // So does meeting again.
    var third = repeated.configuration
    third.detection = .seconds(11)
    _ = clusterError {
      _ = try first.setup.change(to: third) { request in
        _ = second.setup.answer(request)
        throw PeerError(.outcomeUnknown, "answer lost")
      }
    }
    #expect(try !second.setup.reconcile { first.setup.answer($0) })
    #expect(try first.setup.reconcile { second.setup.answer($0) })
    #expect(try !first.setup.reconcile { second.setup.answer($0) })
    #expect(try first.membership()?.configuration.detection == .seconds(11))
    #expect(first.changes.withLock { $0.last?.configuration.detection } == .seconds(11))
  }

  /// R5: what the other node's disk may still lose is not what it has: no second configuration may rest on it.
  @Test func aChangeThatIsNotDurableThereIsNotSaidToBe() throws {
    let (first, second) = try joinedPair(port: port)
    var new = try #require(try first.membership()).configuration
    new.detection = .seconds(7)
    let folder = second.paths.configuration
    // Not when it is read, but from its rename on.
    let isRenamed = Mutex(false)
    HostCalls.setFaultHook { label, path in
      guard path.hasPrefix(folder) else { return nil }
      return isRenamed.withLock { isRenamed in
        isRenamed = isRenamed || label == "durable.rename"
        return isRenamed && label == "durable.folder" ? EIO : nil
      }
    }
    defer { HostCalls.setFaultHook(nil) }
    for _ in 0..<2 {
      #expect(clusterError { _ = try first.setup.change(to: new) { second.setup.answer($0) } }?.code == .damaged)
      #expect(try first.membership()?.configuration.revision == 2)
    }
    HostCalls.setFaultHook(nil)
    #expect(try second.membership()?.configuration.revision == 3, "it was renamed, and is to be seen")
    #expect(try first.setup.change(to: new) { second.setup.answer($0) }.configuration.revision == 3)
  }

  @Test func twoChangesAtTheSameMomentRefuseEachOther() throws {
    let (first, second) = try joinedPair(port: port)
    var (mine, theirs) = (
      try #require(try first.membership()).configuration, try #require(try second.membership()).configuration
    )
    mine.detection = .seconds(5)
    theirs.detection = .seconds(6)
    var inner: ClusterError?
    let outer = clusterError {
      _ = try first.setup.change(to: mine) { request in
        inner = clusterError { _ = try second.setup.change(to: theirs) { first.setup.answer($0) } }
        return second.setup.answer(request)
      }
    }
    #expect(outer == nil && inner?.code == .changedMeanwhile)
    #expect(try second.membership()?.configuration.detection == .seconds(5))
  }

  @Test func handEditsAndForeignFilesAreNamed() throws {
    let (first, second) = try joinedPair(port: port)
    var edited = try #require(try second.membership()).configuration
    edited.detection = .seconds(8)
    try DurableFile.write(edited.xml().utf8, to: second.paths.clusterFile, mode: 0o644)
    let differ = clusterError { _ = try first.setup.reconcile { second.setup.answer($0) } }
    #expect(differ?.code == .damaged && differ?.why.contains("revision 2") == true)
    edited.uuid = "00000000-0000-4000-8000-000000000000"
    edited.revision = 9
    let foreign = ClusterPeerReply.current(configuration: Data(edited.xml().utf8))
    #expect(clusterError { _ = try first.setup.reconcile { _ in foreign } }?.code == .otherCluster)
    try DurableFile.write(edited.xml().utf8, to: second.paths.clusterFile, mode: 0o644)
    let mixed = clusterError { _ = try second.membership() }
    #expect(mixed?.code == .damaged && mixed?.why.contains(second.paths.clusterFile) == true)
    try DurableFile.write("<cluster".utf8, to: second.paths.clusterFile, mode: 0o644)
    #expect(clusterError { _ = try second.membership() }?.code == .damaged)
    try DurableFile.write([1, 2, 3], to: first.paths.heartbeatKeyFile)
    #expect(clusterError { _ = try first.membership() }?.why.contains("heartbeat.key") == true)
  }
}

extension LinksHost {
  /// Another host that claims the first one's addresses.
  static func twin(of host: LinksHost, port: Int) throws -> LinksHost {
    try LinksHost("n2", number: Int(host.addresses[0].split(separator: ".").last ?? "1") ?? 1, port: port)
  }
}
