import Model
import ModuleConfig
import Testing

private let good = """
  <cluster name="site" uuid="2F6C1A0E-0b4d-4f5e-9d57-0c6b1f3f0a11" revision="4">
    <node id="2" name="host2"/><node id="1" name="host1"/>
    <link name="repl" replication="yes">
      <address node="1" ip="10.0.0.1"/><address node="2" ip="10.0.0.2"/>
    </link>
    <link name="lan" replication="no">
      <address node="1" ip="fd00::0:1"/><address node="2" ip="fd00::2"/>
    </link>
    <heartbeat pulse="200ms" detection="5s"/>
    <arbiter kind="wait"/>
    <boot wait="2m" policy="wait"/>
    <scrub interval="12h" rate="8"/>
  </cluster>
  """

private func read(_ text: String) throws -> ClusterConfiguration {
  try ClusterConfiguration(xml: Array(text.utf8), file: "cluster.xml")
}

private func refusal(_ text: String) -> ConfigurationError? {
  do {
    _ = try ClusterConfiguration(xml: Array(text.utf8), file: "cluster.xml")
    return nil
  } catch {
    return error
  }
}

@Test func clusterFileIsRead() throws {
  let cluster = try read(good)
  #expect(cluster.uuid == "2f6c1a0e-0b4d-4f5e-9d57-0c6b1f3f0a11")
  #expect(cluster.revision == 4)
  #expect(cluster.nodes.map(\.name) == ["host1", "host2"])
  #expect(cluster.links.map(\.name) == ["repl", "lan"])
  #expect(cluster.replicationLinks.map(\.name) == ["repl"])
  #expect(cluster.links[1].addresses[.first] == "fd00::1")
  #expect(cluster.pulse == .milliseconds(200))
  #expect(cluster.detection == .seconds(5))
  #expect(cluster.arbiter == .wait)
  #expect(cluster.bootWait == .seconds(120))
  #expect(cluster.bootPolicy == .wait)
  #expect(cluster.scrubInterval == .seconds(43_200) && cluster.scrubRateMiB == 8)
  #expect(cluster.warnings.isEmpty)
}

@Test func clusterFileIsWrittenAsRead() throws {
  let cluster = try read(good)
  let text = cluster.xml()
  #expect(try read(text) == cluster)
  #expect(try read(text).xml() == text)
}

@Test func ordersForTheWorstAreReadAndWritten() throws {
  #expect(try read(good).forceAfter == .zero && read(good).splitPolicy == .ask)
  let cluster = try read(
    good.replacing("policy=\"wait\"/>", with: "policy=\"wait\" force-after=\"30m\"/><split policy=\"keep-preferred\"/>")
  )
  #expect(cluster.forceAfter == .seconds(1800) && cluster.splitPolicy == .keepPreferred)
  #expect(cluster.warnings.contains { $0.what.contains("can split") })
  #expect(try read(cluster.xml()) == cluster)
}

@Test func defaultsAreFilledIn() throws {
  let cluster = try read(
    """
    <cluster name="c" uuid="2f6c1a0e-0b4d-4f5e-9d57-0c6b1f3f0a11" revision="1">
      <node id="1" name="host1"/>
      <link name="repl" replication="yes"><address node="1" ip="10.0.0.1"/></link>
    </cluster>
    """)
  #expect(cluster.pulse == .milliseconds(250))
  #expect(cluster.detection == .seconds(3))
  #expect(cluster.arbiter == .policyNone)
  #expect(cluster.bootWait == .seconds(60))
  #expect(cluster.bootPolicy == .arbiter)
  #expect(cluster.scrubInterval == .seconds(7 * 86_400) && cluster.scrubRateMiB == 32)
  #expect(cluster.warnings.count == 3)
}

/// A change to the good file, and what the refusal must say.
struct ClusterMistake: Sendable, CustomTestStringConvertible {
  var from: String
  var to: String
  var code: ConfigurationError.Code
  var line: Int?
  var says: String
  var testDescription: String { "\(to) -> \(says)" }
  init(_ from: String, _ to: String, _ code: ConfigurationError.Code, _ line: Int?, _ says: String) {
    self.from = from
    self.to = to
    self.code = code
    self.line = line
    self.says = says
  }
}

private let mistakes: [ClusterMistake] = [
  .init("</cluster>", "", .malformed, nil, "well-formed"),
  .init("<cluster name", "<!DOCTYPE cluster [<!ENTITY a 'b'>]><cluster name", .malformed, 1, "DOCTYPE"),
  .init("<cluster name=\"site\"", "<cluster nam=\"site\"", .structure, 1, "unknown attribute 'nam'"),
  .init("name=\"site\" ", "", .structure, 1, "'name' is missing"),
  .init("name=\"site\"", "name=\"-site\"", .value, 1, "name='-site'"),
  .init("2F6C1A0E-", "2F6C1A0E", .value, 1, "UUID"),
  .init("revision=\"4\"", "revision=\"0\"", .value, 1, "from 1"),
  .init("revision=\"4\"", "revision=\"4.5\"", .value, 1, "from 1"),
  .init("<node id=\"2\" name=\"host2\"/>", "<node id=\"3\" name=\"host2\"/>", .value, 2, "1 or 2"),
  .init("<node id=\"2\" name=\"host2\"/>", "<node id=\"1\" name=\"host2\"/>", .relation, nil, "each once"),
  .init("name=\"host2\"", "name=\"host1\"", .relation, 2, "names must differ"),
  .init("<node id=\"2\" name=\"host2\"/>", "", .relation, 3, "node 1 is needed"),
  .init("name=\"host2\"/>", "name=\"host2\"><sub/></node>", .structure, 2, "unknown element <sub>"),
  .init("<link name=\"lan\"", "<lnk name=\"lan\"", .malformed, nil, "lnk"),
  .init("name=\"lan\"", "name=\"repl\"", .relation, 3, "names must differ"),
  .init("replication=\"yes\"", "replication=\"no\"", .relation, 1, "no link carries replication"),
  .init("replication=\"yes\"", "replication=\"true\"", .value, 3, "'yes' or 'no'"),
  .init("replication=\"yes\"", "", .structure, 3, "'replication' is missing"),
  .init("10.0.0.2", "10.0.0.256", .value, 4, "numeric IPv4 or IPv6"),
  .init("10.0.0.2", "host2", .value, 4, "numeric IPv4 or IPv6"),
  .init("10.0.0.2", "10.0.0.0/24", .value, 4, "without prefix"),
  .init("10.0.0.2", "0.0.0.0", .value, 4, "numeric"),
  .init("10.0.0.2", "224.0.0.1", .value, 4, "numeric"),
  .init("10.0.0.2", "fe80::1%eth0", .value, 4, "scope"),
  .init("10.0.0.2", "10.0.0.1", .relation, 3, "used by both nodes"),
  .init("10.0.0.2", "fd00::9", .relation, 3, "mixes IPv4 and IPv6"),
  .init("10.0.0.2", "fd00:0::2", .relation, nil, "mixes IPv4 and IPv6"),
  .init("<address node=\"2\" ip=\"10.0.0.2\"/>", "", .relation, 3, "node 1 and node 2 is needed"),
  .init(
    "<address node=\"2\" ip=\"10.0.0.2\"/>", "<address node=\"1\" ip=\"10.0.0.2\"/>", .relation, 4, "two addresses"),
  .init("pulse=\"200ms\"", "pulse=\"200\"", .value, 9, "with a unit"),
  .init("pulse=\"200ms\"", "pulse=\"-1s\"", .value, 9, "with a unit"),
  .init("pulse=\"200ms\"", "pulse=\"99999999999999999d\"", .value, 9, "with a unit"),
  .init("pulse=\"200ms\"", "pulse=\"2s\"", .relation, 9, "pulse * 4 <= detection must hold"),
  .init("pulse=\"200ms\"", "pulse=\"10ms\"", .relation, 9, "50ms <= pulse"),
  .init("detection=\"5s\"", "detection=\"900ms\"", .relation, 9, "1s <= detection <= 120s must hold"),
  .init("detection=\"5s\"", "detection=\"3m\"", .relation, 9, "detection is 3m"),
  .init("wait=\"2m\"", "wait=\"4s\"", .relation, 11, "detection <= wait"),
  .init("kind=\"wait\"", "kind=\"dice\"", .value, 10, "policy=none, policy=ping, wait"),
  .init("kind=\"wait\"", "", .structure, 10, "'kind' is missing"),
  .init("policy=\"wait\"", "policy=\"never\"", .value, 11, "arbiter, wait"),
  .init("wait=\"2m\"", "wait=\"2m\" force-after=\"1m\"", .relation, 11, "wait <= force-after <= 30d"),
  .init("wait=\"2m\"", "wait=\"2m\" force-after=\"31d\"", .relation, 11, "wait <= force-after <= 30d"),
  .init("wait=\"2m\"", "wait=\"2m\" force-after=\"never\"", .value, 11, "'off' or a time"),
  .init("<scrub", "<split policy=\"newest\"/><scrub", .value, 12, "ask, keep-preferred"),
  .init("<arbiter kind=\"wait\"/>", "<arbiter kind=\"wait\"/><arbiter kind=\"wait\"/>", .structure, 10, "2 times"),
  .init("<arbiter kind=\"wait\"/>", "<arbiter kind=\"wait\"/>text", .structure, 1, "unexpected text"),
]

@Test(arguments: mistakes) func wrongClusterFileIsRefused(_ mistake: ClusterMistake) throws {
  let text = good.replacing(mistake.from, with: mistake.to, maxReplacements: 1)
  #expect(text != good)
  let error = try #require(refusal(text))
  #expect(error.code == mistake.code, "\(error)")
  if let line = mistake.line { #expect(error.line == line, "\(error)") }
  #expect("\(error)".contains(mistake.says), "\(error)")
  #expect("\(error)".hasPrefix("cluster.xml"))
}

@Test func otherKindsOfInputAreRefused() throws {
  #expect(refusal("")?.code == .malformed)
  #expect(refusal("<module/>")?.code == .structure)
  #expect(refusal(String(repeating: "x", count: XMLDocument.bytesMax + 1))?.code == .unreadable)
  #expect(refusal(String(repeating: "<a>", count: 100_000))?.code == .malformed)
  #expect(refusal("\u{0}\u{1}\u{2}")?.code == .malformed)
}

@Test func changedConfigurationIsChecked() throws {
  var cluster = try read(good)
  try cluster.validate()
  cluster.pulse = .seconds(4)
  #expect(throws: ConfigurationError.self) { try cluster.validate() }
  cluster.pulse = .milliseconds(250)
  cluster.links = []
  #expect(throws: ConfigurationError.self) { try cluster.validate() }
  cluster = try read(good)
  cluster.links[0].addresses[.first] = "nonsense"
  #expect(throws: ConfigurationError.self) { try cluster.validate() }
  cluster = try read(good)
  cluster.name = "a<b"
  #expect(throws: ConfigurationError.self) { try cluster.validate() }
}

@Test func durationsAreReadAndWritten() {
  let pairs: [(String, Duration)] = [
    ("0ms", .zero), ("250ms", .milliseconds(250)), ("3s", .seconds(3)), ("90s", .seconds(90)),
    ("2m", .seconds(120)), ("1d", .seconds(86_400)), ("7d", .seconds(604_800)),
  ]
  for (text, duration) in pairs {
    #expect(TimeText.parse(text) == duration)
    #expect(TimeText.format(duration) == text)
  }
  for wrong in ["", "s", "3", "3 s", "3S", "3.5s", "٣s", "3sec", "99999d"] { #expect(TimeText.parse(wrong) == nil) }
}

private func arbiter(_ text: String) -> String { good.replacing("<arbiter kind=\"wait\"/>", with: text) }

private let fullArbiter = """
  <arbiter kind="witness+fence">
    <witness ca="/etc/vmha/ca.crt" certificate="/etc/vmha/c.crt" key="/etc/vmha/c.key" user="vmha"
      password-file="/etc/vmha/password">
      <endpoint url="https://10.0.0.3:2379"/><endpoint url="https://[fd00::3]:2379"/>
    </witness>
    <fence node="1" agent="fence_ipmilan" options="/etc/vmha/fence-1"/>
    <fence node="2" agent="/opt/fence_site" options="/etc/vmha/fence-2"/>
    <ping address="10.0.0.254"/>
  </arbiter>
  """

@Test func arbitersAreReadAndWrittenAsRead() throws {
  let cluster = try read(arbiter(fullArbiter))
  #expect(cluster.arbiter == .witnessAndFence)
  #expect(cluster.witness?.endpoints == ["https://10.0.0.3:2379", "https://[fd00::3]:2379"])
  #expect(
    cluster.witness?.files == ["/etc/vmha/ca.crt", "/etc/vmha/c.crt", "/etc/vmha/c.key", "/etc/vmha/password"])
  #expect(cluster.witness?.user == "vmha")
  #expect(cluster.fences[.second] == FenceConfiguration(agent: "/opt/fence_site", optionsFile: "/etc/vmha/fence-2"))
  #expect(cluster.pingAddresses == ["10.0.0.254"])
  #expect(try read(cluster.xml()) == cluster)
  #expect(try read(cluster.xml()).xml() == cluster.xml())
  #expect(cluster.warnings.isEmpty)
}

@Test func modulesMayHaveAnArbiterOfTheirOwn() throws {
  let own = """
    <arbiter kind="wait"><ping address="10.0.0.254"/><module name="vm2" kind="policy=ping"/>
      <module name="a+b.c_d-e" kind="policy=none"/></arbiter>
    """
  let cluster = try read(arbiter(own))
  let (vm1, vm2) = (try #require(ModuleName("vm1")), try #require(ModuleName("vm2")))
  #expect(cluster.arbiter(of: vm2) == .policyPing && cluster.arbiter(of: vm1) == .wait)
  #expect(cluster.arbitersInUse == [.wait, .policyPing, .policyNone])
  #expect(try read(cluster.xml()) == cluster && read(cluster.xml()).xml() == cluster.xml())
  #expect(cluster.warnings.map(\.what) == ["can split by an arbiter of its own, without a witness: a+b.c_d-e, vm2"])
}

/// What is advised must not split either: the cluster's arbiter is no way out where it can.
@Test(arguments: [("wait", "cluster"), ("policy=ping", "wait"), ("policy=none", "wait")])
func theWayOutOfASplitCannotSplit(kind: String, advised: String) throws {
  var cluster = try read(
    arbiter(
      """
      <arbiter kind="\(kind)"><ping address="10.0.0.254"/><module name="vm2" kind="policy=none"/>
        <module name="vm1" kind="policy=ping"/><module name="vm3" kind="wait"/></arbiter>
      """))
  let own = try #require(cluster.warnings.last)
  #expect(own.what == "can split by an arbiter of its own, without a witness: vm1, vm2")
  #expect(
    own.whatToDo == "vmha set vm1 vm2 --arbiter \(advised) (docs/operating/arbiters.md); or accept it")
  // Of those that are asked for only.
  #expect(cluster.ownSplitWarning(of: [try #require(ModuleName("vm2"))])?.what.hasSuffix(": vm2") == true)
  cluster.moduleArbiters = [:]
  #expect(cluster.ownSplitWarning(of: [try #require(ModuleName("vm2"))]) == nil)
}

private func modules(_ count: Int) -> String {
  "<arbiter kind=\"wait\">" + (1...count).map { "<module name=\"vm\($0)\" kind=\"wait\"/>" }.joined() + "</arbiter>"
}

@Test(
  arguments: [
    ("<arbiter kind=\"wait\"><module name=\"vm1\" kind=\"witness\"/></arbiter>", "witness, the arbiter of vm1, needs"),
    ("<arbiter kind=\"wait\"><module name=\"vm1\" kind=\"fence\"/></arbiter>", "fence, the arbiter of vm1, needs"),
    ("<arbiter kind=\"wait\"><module name=\"vm1\" kind=\"cluster\"/></arbiter>", "one of these"),
    ("<arbiter kind=\"wait\"><module name=\".vm1\" kind=\"wait\"/></arbiter>", ".vm1"),
    (modules(1).replacing("</arbiter>", with: "<module name=\"vm1\" kind=\"wait\"/></arbiter>"), "two arbiters"),
    (modules(26), "0 to 25"),
    ("<arbiter kind=\"witness\"/>", "no endpoint"), ("<arbiter kind=\"fence\"/>", "not every node"),
    ("<arbiter kind=\"policy=ping\"/>", "no ping address"), ("<arbiter kind=\"dice\"/>", "one of these"),
    (fullArbiter.replacing("https://10.0.0.3:2379", with: "https://10.0.0.3"), "a URL such as"),
    (fullArbiter.replacing("https://10.0.0.3:2379", with: "http://10.0.0.3:2379"), "unencrypted"),
    (fullArbiter.replacing(" key=\"/etc/vmha/c.key\"", with: ""), "needs its key"),
    (fullArbiter.replacing("user=\"vmha\"", with: ""), "needs a password"),
    (fullArbiter.replacing("node=\"2\"", with: "node=\"1\""), "two fence agents"),
    (fullArbiter.replacing("fence_ipmilan", with: "ipmilan; reboot"), "a fence agent such as"),
    (fullArbiter.replacing("/etc/vmha/fence-1", with: "fence-1"), "absolute path"),
  ])
func wrongArbitersAreRefused(_ text: String, _ says: String) {
  let error = refusal(arbiter(text))
  #expect(error.map { "\($0)".contains(says) } ?? false, "\(String(describing: error))")
}
