import Glibc
import HostSystem
import Model
import Testing

@testable import ModuleConfig

private let good = """
  <module name="vm1" number="7" uuid="2f6c1a0e-0b4d-4f5e-9d57-0c6b1f3f0a11">
    <directory backing="/var/lib/libvirt/images/.vmha-vm1" mount="/var/lib/libvirt/images/vm1"/>
    <preferred node="2"/>
    <start timeout="30s"/>
    <stop timeout="5m"/>
    <restarts max="5" window="12h"/>
    <check><tcp address="10.0.0.9" port="80"/></check>
    <disks>
      <disk target="vda" path="root.qcow2" format="qcow2" original="/var/lib/libvirt/images/root.qcow2"/>
      <disk target="vdb" path="data &amp; more.raw" format="raw" original="/srv/data &amp; more.raw"/>
    </disks>
    <files>
      <file path="base.qcow2" original="/srv/base.qcow2"/>
    </files>
  </module>
  """

private func read(_ text: String) throws -> ModuleConfiguration {
  try ModuleConfiguration(xml: Array(text.utf8), file: "module.xml")
}

@Test func moduleFileIsRead() throws {
  let module = try read(good)
  #expect(module.name.text == "vm1")
  #expect(module.number.rawValue == 7)
  #expect(module.preferredNode == .second)
  #expect(module.startTimeout == .seconds(30))
  #expect(module.stopTimeout == .seconds(300))
  #expect(module.restartsMax == 5)
  #expect(module.restartWindow == .seconds(43_200))
  #expect(module.check == .tcp(address: "10.0.0.9", port: 80))
  #expect(module.disks.map(\.file) == ["root.qcow2", "data & more.raw"])
  #expect(module.allFiles.count == 3)
  #expect(ClusterPorts.engine(module.number) == 7447)
}

/// Normal is what is not written: a file of an earlier version says the same.
@Test func resyncPriorityIsRead() throws {
  #expect(try read(good).resyncPriority == nil)
  for (word, priority) in [("high", ResyncPriority.high), ("low", .low), ("normal", nil)] {
    let module = try read(good.replacing("number=\"7\"", with: "number=\"7\" resync-priority=\"\(word)\""))
    #expect(module.resyncPriority == priority)
    #expect(module.xml().contains("resync-priority=\"\(word)\"") == (priority != nil))
  }
}

@Test func moduleFileIsWrittenAsRead() throws {
  var module = try read(good)
  for check in [ModuleCheck.tcp(address: "fd00::1", port: 65_535), .ping(address: "10.1.1.1"), nil] {
    module.check = check
    module.otherFiles[0].originalPath = "/srv/'\"<>\u{e4}\u{1F600}/base.qcow2"
    module.resyncPriority = check == nil ? .low : .high
    let text = module.xml()
    #expect(try read(text) == module)
    #expect(try read(text).xml() == text)
  }
}

struct ModuleMistake: Sendable, CustomTestStringConvertible {
  var from: String
  var to: String
  var line: Int?
  var says: String
  var testDescription: String { "\(to) -> \(says)" }
  init(_ from: String, _ to: String, _ line: Int?, _ says: String) {
    self.from = from
    self.to = to
    self.line = line
    self.says = says
  }
}

private let mistakes: [ModuleMistake] = [
  .init("name=\"vm1\"", "name=\".vm1\"", 1, "not starting with"),
  .init("name=\"vm1\"", "name=\"vm2\"", 2, "must be the module's name, 'vm2'"),
  .init("number=\"7\"", "number=\"7\" resync-priority=\"5\"", 1, "high, normal or low"),
  .init("number=\"7\"", "number=\"26\"", 1, "1 to 25"),
  .init("number=\"7\"", "number=\"0\"", 1, "1 to 25"),
  .init("number=\"7\"", "", 1, "'number' is missing"),
  .init("0a11", "0a1", 1, "UUID"),
  .init("backing=\"/var", "backing=\"var", 2, "absolute path"),
  .init("backing=\"/var/lib/libvirt/images/.vmha-vm1", "backing=\"/srv/.vmha-vm1", 2, "beside the mount point"),
  .init("mount=\"/var/lib/libvirt", "mount=\"/var/lib/../libvirt", 2, "absolute path"),
  .init("<directory", "<directori", 2, "unknown element <directori>"),
  .init("<preferred node=\"2\"/>", "", 1, "<preferred> is missing"),
  .init("<preferred node=\"2\"/>", "<preferred node=\"host2\"/>", 3, "1 or 2"),
  .init("<start timeout=\"30s\"/>", "<start timeout=\"0s\"/>", 4, "1s <= timeout <= 1h"),
  .init("<start timeout=\"30s\"/>", "<start timeout=\"soon\"/>", 4, "with a unit"),
  .init("<stop timeout=\"5m\"/>", "<stop timeout=\"2h\"/>", 5, "1s <= timeout <= 1h"),
  .init("max=\"5\"", "max=\"101\"", 6, "0 <= max <= 100"),
  .init("max=\"5\"", "max=\"-1\"", 6, "0 <= max <= 100"),
  .init("max=\"5\"", "max=\"many\"", 6, "0 to 100"),
  .init("window=\"12h\"", "window=\"30s\"", 6, "1m <= window <= 30d"),
  .init("port=\"80\"", "port=\"0\"", 7, "1 to 65535"),
  .init("address=\"10.0.0.9\"", "address=\"www\"", 7, "numeric"),
  .init("<tcp address=\"10.0.0.9\" port=\"80\"/>", "", 7, "exactly one of"),
  .init("port=\"80\"/>", "port=\"80\"/><ping address=\"10.0.0.9\"/>", 7, "exactly one of"),
  .init("<tcp address=\"10.0.0.9\" port=\"80\"/>", "<http/>", 7, "unknown element <http>"),
  .init("target=\"vdb\"", "target=\"vda\"", 9, "targets must differ"),
  .init("path=\"root.qcow2\"", "path=\"../root.qcow2\"", 9, "below the module's folder"),
  .init("path=\"root.qcow2\"", "path=\"/root.qcow2\"", 9, "below the module's folder"),
  .init("path=\"root.qcow2\"", "path=\"\"", 9, "below the module's folder"),
  .init("format=\"qcow2\"", "format=\"q cow\"", 9, "letters, digits"),
  .init("path=\"base.qcow2\"", "path=\"root.qcow2\"", nil, "comes from two places"),
  .init("original=\"/srv/base.qcow2\"", "original=\"/var/lib/libvirt/images/root.qcow2\"", nil, "from one place"),
  .init("original=\"/srv/base.qcow2\"", "", 13, "'original' is missing"),
]

@Test(arguments: mistakes) func wrongModuleFileIsRefused(_ mistake: ModuleMistake) throws {
  let text = good.replacing(mistake.from, with: mistake.to, maxReplacements: 1)
  #expect(text != good)
  do {
    _ = try read(text)
    Issue.record("accepted: \(mistake.to)")
  } catch let error as ConfigurationError {
    if let line = mistake.line { #expect(error.line == line, "\(error)") }
    #expect("\(error)".contains(mistake.says), "\(error)")
  }
}

@Test func moduleWithoutDisksIsRefused() throws {
  var module = try read(good)
  module.disks = []
  #expect(throws: ConfigurationError.self) { try module.validate() }
  #expect(throws: ConfigurationError.self) { try read(module.xml()) }
}

/// What the daemon carries must be what editors and readers are given.
@Test func embeddedSchemasAreTheShippedOnes() throws {
  let package = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()
  for (path, embedded) in [
    ("packaging/cluster.rng", Schemas.cluster), ("vm-modules/kvm/module.rng", Schemas.module),
  ] {
    let shipped = try DurableFile.read("\(package)/\(path)")
    #expect(String(decoding: shipped, as: UTF8.self) == embedded, "\(path)")
  }
}

/// The strict reader speaks first because it says more; the schema must still refuse the same structure by itself.
@Test func schemaRefusesWrongStructure() throws {
  func violation(_ text: String) throws -> String? {
    try XMLDocument(bytes: Array(text.utf8), name: "x").violation(ofSchema: Schemas.module)?.message
  }
  #expect(try violation(good) == nil)
  for (from, to) in [
    ("number=\"7\"", "number=\"26\""), ("<preferred node=\"2\"/>", ""), ("max=\"5\"", "max=\"many\""),
    ("<disks>", "<disks><sub/>"), ("port=\"80\"", "port=\"70000\""), ("timeout=\"5m\"", "timeout=\"5\""),
  ] {
    #expect(try violation(good.replacing(from, with: to)) != nil, "\(to)")
  }
}

@Test func shippedTemplateIsRight() throws {
  let package = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()
  let path = "\(package)/vm-modules/kvm/module.xml"
  let module = try ModuleConfiguration(xml: try DurableFile.read(path), file: path)
  let plain = ModuleConfiguration(
    name: module.name, number: module.number, uuid: module.uuid, backingDirectory: module.backingDirectory,
    mountPoint: module.mountPoint, preferredNode: .first, check: module.check, disks: module.disks,
    otherFiles: module.otherFiles)
  // What the template's comments call the defaults.
  #expect(module == plain)
}

@Test func scriptsGetWhatTheDocumentationSays() throws {
  let package = #filePath.split(separator: "/").dropLast(3).map { "/" + $0 }.joined()
  let module = try read(good)
  let cluster = ClusterConfiguration(
    uuid: module.uuid, name: "c", nodes: [.init(id: .first, name: "a"), .init(id: .second, name: "b")],
    links: [.init(name: "l", replication: true, addresses: [.first: "10.0.0.1", .second: "10.0.0.2"])])
  try cluster.validate()
  let script = ModuleScript.environment(module, node: .second, cluster: cluster, reason: "because")
  #expect(script["VMHA_NODE_NAME"] == "b" && script["VMHA_PEER_NAME"] == "a" && script["VMHA_NUMBER"] == "7")
  let readme = String(decoding: try DurableFile.read("\(package)/vm-modules/kvm/README.md"), as: UTF8.self)
  for name in script.keys { #expect(readme.contains("`\(name)`"), "\(name)") }
  for script in ModuleScript.allCases { #expect(readme.contains("`\(script.rawValue)`")) }
  let hook = StateChangeHook.environment(
    module: module.name, node: .first, cluster: cluster, from: .second, to: .alone, readiness: .ready, sentence: "s",
    time: "t")
  let example = String(decoding: try DurableFile.read("\(package)/hooks/on-state-change.example"), as: UTF8.self)
  for name in hook.keys { #expect(example.contains("# \(name) "), "\(name)") }
}

@Test func scriptsAreFoundIfExecutable() throws {
  var template = Array("/tmp/vmha-test-XXXXXX".utf8CString)
  let made = template.withUnsafeMutableBufferPointer { $0.baseAddress.flatMap { mkdtemp($0) } }
  let folder = String(cString: try #require(made))
  defer { _ = try? ChildProcess.run(["rm", "-rf", folder], timeout: .seconds(30)) }
  #expect(ModuleScript.beforeStart.path(inModuleFolder: folder) == nil)
  try DurableFile.write([], to: "\(folder)/before-start", mode: 0o755)
  let path = try #require(ModuleScript.beforeStart.path(inModuleFolder: folder))
  let name = try #require(ModuleName("vm1"))
  #expect(ModuleScript.beforeStart.arguments(path: path, module: name) == [path, "vm1", "before-start"])
}

@Test func contentsAreComparedWithoutLines() throws {
  func element(_ text: String) throws -> XMLElement { try XMLDocument(bytes: Array(text.utf8), name: "x").element }
  let first = try element("<a x='1' y='2'><b/><c>t</c><b n='2'/></a>")
  #expect(first.hasSameContents(as: try element("<a y='2'\n x='1'>\n<c> t </c><b/><b n='2'/></a>")))
  for other in [
    "<a x='1'><b/><c>t</c><b n='2'/></a>", "<a x='1' y='2'><b n='2'/><c>t</c><b/></a>",
    "<a x='1' y='2'><b/><c>t</c></a>",
    "<a x='1' y='2'><b/><c>u</c><b n='2'/></a>", "<a x='1' y='2'><b/><d>t</d><b n='2'/></a>",
  ] { #expect(!first.hasSameContents(as: try element(other)), "\(other)") }
}
