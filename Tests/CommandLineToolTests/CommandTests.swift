import ControlAPI
import ControlTestSupport
import Foundation
import Model
import Testing

@testable import CommandLineTool

@Suite(.timeLimit(.minutes(1))) struct CommandTests {
  @Test(arguments: [
    [], ["cluster"], ["frobnicate"], ["status", "--nope"], ["start"], ["start", "vm1", "--all"],
    ["start", "vm1", "vm1"], ["stop", "vm1", "--timeout", "x"], ["stop", "vm1", "--timeout", "-1"],
    ["swap", "vm1", "--wait", "0"], ["swap", "vm1", "--wait", "5", "--no-wait"], ["log", "-n", "0"],
    ["log", "a", "b"], ["add"], ["add", "vm3", "--dir", "relative"], ["add", "vm3", "--json"], ["remove"],
    ["cluster", "init", "--name", "c"], ["cluster", "init", "--link", "repl=10.0.0.1,replication"],
    ["cluster", "init", "--name", "c", "--link", "repl=10.0.0.1"], ["cluster", "init", "--name", "c", "--link", "x"],
    ["cluster", "init", "--name", "c", "--link", "a=1.1.1.1,replication", "--link", "a=1.1.1.2"],
    ["cluster", "join", "10.0.0.1", "--fingerprint", "ab", "--token", "cd", "--link", "a=1.1.1.1"],
    ["cluster", "set"], ["cluster", "set", "detection"], ["cluster", "set", "detection=5"],
    ["cluster", "set", "arbiter=dice"], ["cluster", "set", "colour=red"], ["cluster", "set", "--add-link", "a=b"],
    ["drill", "vm1"], ["drill", "vm1", "--swap", "--crash"], ["drill", "--swap"],
  ])
  func wrongCommandLinesAreUsageErrors(arguments: [String]) async {
    let result = await run(arguments)
    #expect(result.status == .usage)
    #expect(result.output.isEmpty && !result.errors.isEmpty)
  }

  @Test(arguments: [["--help"], ["help", "add"], ["add", "--help"], ["cluster", "set", "--help"]])
  func helpGoesToStandardOutput(arguments: [String]) async {
    let result = await run(arguments)
    #expect(result.status == .success && result.errors.isEmpty)
    #expect(result.output.contains("USAGE: vmha"))
  }

  @Test func completionsAreMade() async {
    for shell in ["bash", "zsh", "fish"] {
      let result = await run(["--generate-completion-script", shell])
      #expect(result.status == .success && result.output.contains("swap"))
    }
  }

  @Test func noDaemonIsCodeThree() async {
    let socket = ["--socket", "/tmp/vmha-none/vmhad.sock"]
    for arguments in [
      ["status"], ["start", "vm1"], ["log"], ["add", "vm1"], ["cluster", "show"], ["drill", "vm1", "--swap"],
    ] {
      let result = await run(arguments + socket)
      #expect(result.status == .unreachable)
      #expect(result.errors.contains("next:  systemctl start vmhad"))
    }
    let version = await run(["version"] + socket)
    #expect(version.status == .success && version.output.contains(ProductVersion.text))
  }

  @Test func logLines() async throws {
    let fake = FakeControlService { state in
      state.append(Samples.event(0, "vmhad starts", kind: .daemon, module: nil))
      state.append(Samples.event(0, "goes on alone", node: "node2", severity: .warning, rule: "R4", after: 877))
      state.append(Samples.event(0, "other", module: "vm2"))
    }
    let day = Samples.time.localDate
    let first = Samples.time.localTimeOfDay
    let second = WallTime(milliseconds: Samples.time.milliseconds + 877).localTimeOfDay
    let result = try await vmha(["log", "-n", "3"], on: fake)
    #expect(
      result.output == """
        \(day) \(first).123  node1  vmhad starts
        \(day) \(second).000  node2  vm1: warning: goes on alone [R4]
        \(day) \(first).123  node1  vm2: other

        """)
    let one = try await vmha(["log", "vm2", "--json"], on: fake)
    #expect(try ControlCoding.decode(JournalEvent.self, from: Data(one.output.utf8)).sentence == "other")
    #expect(try await vmha(["log", "nosuch"], on: fake).status == .refused)
  }

  @Test func whyTellsTheLastIncident() async throws {
    let fake = FakeControlService { state in
      state.append(Samples.event(0, "long ago"))
      state.append(
        Samples.event(
          0, "node1 is lost", kind: .nodeLost, module: nil, node: "node2", severity: .warning, after: 100_000))
      state.append(Samples.event(0, "goes on alone", node: "node2", severity: .warning, rule: "R4", after: 100_877))
      state.append(Samples.event(0, "promoted: goes on alone", kind: .promoted, node: "node2", after: 100_877))
      state.append(Samples.event(0, "ALONE transient: goes on alone", kind: .state, node: "node2", after: 100_878))
      state.append(Samples.event(0, "the guest runs", node: "node2", after: 113_000))
      state.peerClockAhead = -1500
      state.status.time = WallTime(milliseconds: Samples.time.milliseconds + 413_000)
    }
    func time(_ after: Int64) -> String { WallTime(milliseconds: Samples.time.milliseconds + after).localTimeOfDay }
    let result = try await vmha(["why", "vm1"], on: fake)
    #expect(
      result.output == """
        vm1 on node1: PRIM ready: serves the guest; both copies are the same
        vm1 on node2: SECOND ready: follows node1

        \(Samples.time.localDate) \(time(100_000)), 3 steps in 13.0 s, 5 min ago
          \(time(100_000)).123            node2  node1 is lost
          \(time(101_000)).000  +0.877 s  node2  vm1: goes on alone [R4] -> promoted, ALONE transient
          \(time(113_000)).123   +12.1 s  node2  vm1: the guest runs

        What node2 did after \(Samples.time.localDate) \(time(0)) is not known here.
        The clock of node2 is 1.500 s behind this node's; its times are corrected. Mend that: chrony or NTP on both hosts.

        """)
    let both = try await vmha(["why", "vm1", "-n", "2"], on: fake)
    #expect(both.output.contains("long ago") && !result.output.contains("long ago"))
    let json = try await vmha(["why", "--json"], on: fake)
    #expect(try ControlCoding.decode(Timeline.self, from: Data(json.output.utf8)).events.count == 6)
    #expect(try await vmha(["why", "nosuch"], on: fake).status == .refused)
    #expect(try await vmha(["why", "-n", "0"], on: fake).status == .usage)
    #expect(try await vmha(["why", "--decisions"], on: fake).status == .usage)
    #expect(try await vmha(["why", "vm1", "--decisions"], on: fake).output == "{\"entries\":[]}\n")
  }

  private func addPlan() -> AddPlan {
    AddPlan(
      name: "vm3", number: 3,
      findings: [
        .init(.info, "the VM is off"), .init(.warning, "one link only", whatToDo: "add a second link"),
      ], steps: ["make /d/.vmha-vm3", "copy a.raw"], bytesToCopy: 3 << 30)
  }

  @Test func addShowsAsksAndFollows() async throws {
    let fake = FakeControlService { state in
      state.plan = addPlan()
      var operation = OperationStatus(id: OperationID(rawValue: "op-1"), kind: .add, module: "vm3", sentence: "copies")
      operation.steps = ["make /d/.vmha-vm3"]
      operation.bytesTotal = 3 << 30
      operation.bytesDone = 1 << 30
      state.operations.append(operation)
      operation.steps.append("copy a.raw")
      operation.sentence = "vm3 is protected"
      operation.finished = true
      state.operations.append(operation)
    }
    let result = try await vmha(
      ["add", "vm3", "--prefer", "node2", "--dir", "/d"], on: fake, isTerminal: true, answer: "y")
    #expect(result.status == .success)
    #expect(
      masked(result.output) == """
        Checks for vm3:
          warning  one link only
                   -> add a second link
          ok       the VM is off
        What will be done (as module 3):
           1. make /d/.vmha-vm3
           2. copy a.raw
          3.0 GiB are copied from one disk to another.
        Protect vm3 now? [y/N] # s  make /d/.vmha-vm3
        \r\u{1B}[K         [##########--------------------]  33 %  1.0 GiB of 3.0 GiB\r\u{1B}[K # s  copy a.raw
        vm3 is protected

        """)
    #expect(result.calls == ["plan vm3", "add vm3", "operation op-1", "operation op-1"])
    #expect(fake.edit { $0.add } == AddRequest(name: "vm3", preferredNode: "node2", directory: "/d"))
  }

  @Test func addIsRefusedByAnErrorAndByNobodyToAsk() async throws {
    let fake = FakeControlService { state in
      state.plan = addPlan()
      state.plan.findings.append(.init(.error, "the VM runs", whatToDo: "shut it down: virsh shutdown vm3"))
    }
    let refused = try await vmha(["add", "vm3", "--yes"], on: fake)
    #expect(refused.status == .refused && refused.calls == ["plan vm3"])
    #expect(refused.output.contains("  FAILED   the VM runs\n           -> shut it down: virsh shutdown vm3\n"))
    #expect(!refused.output.contains("What will be done"))
    let nobody = try await vmha(["add", "vm3"], on: FakeControlService { $0.plan = addPlan() })
    #expect(nobody.status == .refused && nobody.calls == ["plan vm3"])
    let dry = try await vmha(["add", "vm3", "--dry-run", "--json"], on: FakeControlService { $0.plan = addPlan() })
    #expect(dry.status == .success && dry.calls == ["plan vm3"])
    #expect(try ControlCoding.decode(AddPlan.self, from: Data(dry.output.utf8)) == addPlan())
  }

  @Test func aFailedOperationIsTheCommandsFailure() async throws {
    let fake = FakeControlService { state in
      state.plan = addPlan()
      var operation = OperationStatus(id: OperationID(rawValue: "op-1"), kind: .add, module: "vm3", sentence: "undone")
      operation.finished = true
      operation.error = ControlError(.failed, "vm3 is not protected", why: "the disk is full", next: "free some space")
      state.operations = [operation]
    }
    let result = try await vmha(["add", "vm3", "--yes", "-q"], on: fake)
    #expect(result.status == .failure && result.output.isEmpty)
    #expect(result.errors == "error: vm3 is not protected\nwhy:   the disk is full\nnext:  free some space\n")
  }

  @Test func removeAsksAndPurges() async throws {
    var done = OperationStatus(id: OperationID(rawValue: "op-2"), kind: .remove, module: "vm1", sentence: "given back")
    done.finished = true
    let finished = done
    let fake = FakeControlService { $0.operations = [finished] }
    let result = try await vmha(["remove", "vm1", "--purge-copy"], on: fake, answer: "yes")
    #expect(result.status == .success && result.calls == ["purge vm1", "operation op-2"])
    #expect(result.output.contains("The copy on the other node is DELETED."))
    let no = try await vmha(["remove", "vm1"], on: FakeControlService(), answer: "")
    #expect(no.status == .refused && no.calls.isEmpty)
    // One that was interrupted shows no module any more, and was agreed to before.
    let interrupted = FakeControlService { state in
      state.status.modules = []
      state.operations = [finished]
    }
    let again = try await vmha(["remove", "vm1"], on: interrupted)
    #expect(again.status == .success && again.calls == ["remove vm1", "operation op-2"], "\(again)")
  }

  @Test func clusterCommands() async throws {
    let fake = FakeControlService()
    let made = try await vmha(
      ["cluster", "init", "--name", "lab", "--link", "repl=10.77.1.1,replication", "--link", "lan=10.77.0.1"], on: fake)
    #expect(made.status == .success)
    let fingerprint = String(repeating: "ab", count: 32)
    let token = String(repeating: "5c", count: 16)
    let line =
      "vmha cluster join 10.77.1.1 --fingerprint \(fingerprint) --token \(token) --link repl=ADDRESS --link lan=ADDRESS"
    #expect(made.output.contains("\n  \(line)\n"))
    #expect(fake.edit { $0.initialise?.links.map(\.replication) } == [true, false])
    #expect(try await vmha(["cluster", "ticket", "-q"], on: fake).output == line + "\n")

    let join = ["cluster", "join", "10.77.1.1", "--fingerprint", fingerprint.uppercased(), "--token", token]
    let joined = try await vmha(join + ["--link", "repl=10.77.1.2"], on: fake)
    #expect(joined.status == .success && joined.output.hasPrefix("This host has joined.\ncluster lab\n"))
    #expect(fake.edit { $0.join?.fingerprint } == fingerprint)
    let unedited = try await vmha(join + ["--link", "repl=ADDRESS"], on: fake)
    #expect(unedited.status == .usage && unedited.errors.contains("in place of ADDRESS"))

    let set = try await vmha(
      [
        "cluster", "set", "detection=5s", "pulse=250ms", "boot-wait=2m", "arbiter=wait", "--add-link",
        "third=10.1.0.1,10.1.0.2,replication", "--remove-link", "lan",
      ], on: fake)
    #expect(set.status == .success)
    var changes = ClusterChanges()
    changes.detectionMilliseconds = 5000
    changes.pulseMilliseconds = 250
    changes.bootWaitMilliseconds = 120_000
    changes.arbiter = "wait"
    changes.addLinks = [
      .init(name: "third", addresses: ["node1": "10.1.0.1", "node2": "10.1.0.2"], replication: true)
    ]
    changes.removeLinks = ["lan"]
    #expect(fake.edit { $0.changes } == changes)
    let policy = try await vmha(["cluster", "set", "arbiter=policy=none"], on: fake)
    #expect(policy.status == .success && fake.edit { $0.changes?.arbiter } == "policy=none")

    let witness = try await vmha(
      [
        "cluster", "set", "arbiter=witness", "witness-endpoints=https://10.0.0.3:2379,https://10.0.0.4:2379",
        "witness-user=vmha", "witness-password-file=/etc/vmha/witness.password", "fence-1=",
      ], on: fake)
    #expect(witness.status == .success && fake.edit { $0.changes?.arbiter } == "witness")
    #expect(
      fake.edit { $0.changes?.arbiterSettings } == [
        "witness-endpoints": "https://10.0.0.3:2379,https://10.0.0.4:2379", "witness-user": "vmha",
        "witness-password-file": "/etc/vmha/witness.password", "fence-1": "",
      ])
  }

  @Test func checkSaysWhatWorksAndFailsIfAnythingDoesNot() async throws {
    let table = try await vmha(["check"])
    #expect(table.status == .failure && table.calls == ["check"])
    #expect(
      table.output == """
        arbiter: witness: etcd at https://10.77.0.3:2379 decides who goes on

        NODE   CHECK                        RESULT  MS  DETAIL
        node1  read https://10.77.0.3:2379  ok       3  etcd cluster cdf8
        node2  web: register                FAILED   1  the module's register is missing

        """)
    let json = try await vmha(["check", "--json"])
    #expect(json.status == .failure)
    #expect(try ControlCoding.decode(CheckReport.self, from: Data(json.output.utf8)) == Samples.check)
    #expect(try await vmha(["check", "-q"]).output.isEmpty)
  }

  @Test func clusterShow() async throws {
    #expect(
      try await vmha(["cluster", "show"]).output == """
        cluster lab
          uuid        0b6f7d52-8d5e-4f0e-9f0a-3f1f4f0c7a11
          revision    4
          node 1      node1
          node 2      node2
          link repl   node1 10.77.1.1, node2 10.77.1.2, replication
          link lan    node1 10.77.0.1, node2 10.77.0.2, heartbeat only
          pulse       250 ms
          detection   3 s
          boot wait   60 s
          arbiter     policy=none
          CA SHA-256  \(String(repeating: "ab", count: 32))

        """)
  }

  @Test func drillIsRefusedWithoutTwoGoodCopies() async throws {
    let result = try await vmha(["drill", "vm2", "--crash", "--yes"])
    #expect(result.status == .refused && result.calls.isEmpty)
    #expect(result.errors.contains("no drill with vm2 now: it could leave no good copy"))
  }
}
