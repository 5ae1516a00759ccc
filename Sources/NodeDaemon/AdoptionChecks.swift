import Model
import ModuleConfig
import VirtualMachines

/// Every reason why a VM cannot be added as it is, and what an operator should know before it is. Pure.
struct AdoptionChecks {
  let request: AdoptionRequest
  let facts: AdoptionFacts
  let peer: AdoptionPeerFacts?
  let peerProblem: String

  func findings() -> [AdoptionFinding] {
    guard let domain = facts.domain, let definition = facts.definition else {
      return [
        .init(
          .error, "libvirt on this node has no VM named '\(request.name)'",
          whatToDo: "'virsh list --all' shows the names; run the command on the node that has it")
      ]
    }
    return nameFindings() + stateFindings(domain) + diskFindings(definition) + hostTies(definition)
      + placeFindings(definition) + peerFindings(definition) + notices(domain, definition)
  }

  private func nameFindings() -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    guard let name = ModuleName(request.name) else {
      return [
        .init(
          .error, "'\(request.name)' cannot be a module's name: 1 to 64 of A-Z a-z 0-9 . _ + - are allowed",
          whatToDo: "rename it: virsh domrename '\(request.name)' NEWNAME")
      ]
    }
    if facts.host.modules[name] != nil {
      found.append(.init(.error, "\(name) is already protected", whatToDo: "'vmha status \(name)' shows it"))
    } else if peer?.host.modules[name] != nil {
      found.append(
        .init(
          .error, "the other node has a module \(name) that this node does not know",
          whatToDo: "look at /etc/vmha/modules/\(name) there; remove the folder if it is a left-over"))
    }
    found += facts.host.moduleProblems.map { .init(.error, $0, whatToDo: "mend or remove that file") }
    found += (peer?.host.moduleProblems ?? []).map {
      .init(.error, "on the other node: \($0)", whatToDo: "mend or remove that file")
    }
    return found
  }

  private func stateFindings(_ domain: DomainFacts) -> [AdoptionFinding] {
    let name = request.name
    var found: [AdoptionFinding] = []
    if !domain.isPersistent {
      found.append(
        .init(
          .error, "\(name) exists only while it runs (it is transient)",
          whatToDo: "make it permanent: virsh dumpxml \(name) > x.xml; virsh define x.xml"))
    }
    if domain.state.isActive {
      found.append(
        .init(
          .error, "\(name) is running: its open disks cannot be moved under it",
          whatToDo: "shut it down: virsh shutdown \(name)"))
    }
    if domain.hasSavedState {
      found.append(
        .init(
          .error, "\(name) has a saved memory image, which would not fit the disks any more once they went on",
          whatToDo: "start it and shut it down, or drop the image: virsh managedsave-remove \(name)"))
    }
    if domain.snapshotCount > 0 {
      found.append(
        .init(
          .error, "\(name) has \(domain.snapshotCount) snapshots or checkpoints, which libvirt keeps on this node only",
          whatToDo: "delete them: virsh snapshot-list \(name); virsh snapshot-delete \(name) NAME"))
    }
    return found
  }

  // MARK: Disks

  private func diskFindings(_ definition: DomainDefinition) -> [AdoptionFinding] {
    let disks = definition.disks.filter(\.isWritable)
    guard !disks.isEmpty else {
      return [.init(.error, "\(request.name) has no disk of its own: there is nothing to replicate")]
    }
    var found = disks.flatMap(kindFindings)
    guard found.isEmpty else { return found }
    var seen: Set<String> = []
    for disk in disks {
      guard let facts = facts.disks[disk.target] else { continue }
      if let problem = facts.problem {
        found.append(.init(.error, "disk \(disk.target): \(problem)"))
        continue
      }
      if let path = facts.path, !seen.insert(path).inserted {
        found.append(.init(.error, "disk \(disk.target): another disk of this VM is the same file \(path)"))
      }
      found += chainFindings(disk, facts)
    }
    if let nvram = AdoptionPlanner.nvramPath(definition), let file = self.facts.files[nvram], file.kind != .missing {
      found += fileFindings("the UEFI variables", nvram, file)
    }
    return found
  }

  private func kindFindings(_ disk: DomainDisk) -> [AdoptionFinding] {
    func refused(_ why: String, _ whatToDo: String) -> [AdoptionFinding] {
      [.init(.error, "disk \(disk.target): \(why)", whatToDo: whatToDo)]
    }
    let toFile = "copy it into a file: qemu-img convert, then point the disk at it with virsh edit"
    switch disk.source {
    case .block(let path): return refused("\(path) is a block device; files are replicated", toFile)
    case .network(let kind): return refused("it is reached over the network (\(kind)); files are replicated", toFile)
    case .other(let kind): return refused("disks of type \(kind) cannot be replicated", toFile)
    case .empty: return refused("it has no source", "give it a file, or remove it, with virsh edit")
    case .file, .volume: break
    }
    if disk.device == "lun" { return refused("it passes SCSI commands to a device", "make it device='disk'") }
    if disk.isShareable {
      return refused("it is shareable: two VMs may write to it at once", "remove <shareable/> if it is this VM's own")
    }
    if disk.isTransient { return refused("it is transient: its changes are thrown away", "remove <transient/>") }
    if disk.isEncrypted {
      return refused("libvirt decrypts it with a secret of this host", "encrypt inside the guest instead")
    }
    if !["raw", "qcow2"].contains(disk.format ?? "raw") {
      return refused("format \(disk.format ?? "") is not supported", "convert it: qemu-img convert -O qcow2")
    }
    return []
  }

  private func chainFindings(_ disk: DomainDisk, _ facts: DiskFacts) -> [AdoptionFinding] {
    let subject = "disk \(disk.target)"
    guard let path = facts.path, let top = self.facts.files[path] else {
      return [.init(.error, "\(subject): its file cannot be found")]
    }
    guard top.kind == .regular, !facts.chain.isEmpty else { return fileFindings(subject, path, top) }
    var found: [AdoptionFinding] = []
    for (level, image) in facts.chain.enumerated() {
      let name = level == 0 ? subject : "\(subject), backing file"
      if image.isEncrypted {
        found.append(
          .init(
            .error, "\(name): \(image.path) is encrypted with a secret of this host",
            whatToDo: "encrypt inside the guest instead"))
      }
      if let data = image.dataFile {
        found.append(
          .init(
            .error, "\(name): \(image.path) keeps its data in another file, \(data)",
            whatToDo: "convert it: qemu-img convert -O qcow2"))
      }
      guard image.path.hasPrefix("/"), let file = self.facts.files[image.path] else {
        found.append(
          .init(
            .error, "\(name): \(image.path) is no file of this host",
            whatToDo: "make the disk independent of it: qemu-img rebase -b '' \(path)"))
        continue
      }
      found += fileFindings(name, image.path, file)
    }
    return found
  }

  private func fileFindings(_ subject: String, _ path: String, _ file: FileFacts) -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    func refuse(_ why: String, _ whatToDo: String) {
      found.append(.init(.error, "\(subject): \(path) \(why)", whatToDo: whatToDo))
    }
    switch file.kind {
    case .regular: break
    case .missing: refuse("does not exist", "correct the path with virsh edit")
    case .symbolicLink: refuse("is a symbolic link", "name the file itself: virsh edit \(request.name)")
    case .blockDevice: refuse("is a block device; files are replicated", "copy it into a file: qemu-img convert")
    case .folder, .other: refuse("is not a regular file", "copy it into a file: qemu-img convert")
    }
    if file.kind == .regular, file.linkCount > 1 {
      refuse("has \(file.linkCount) names (hard links): something else may use it", "copy it, and use the copy")
    }
    if !file.users.isEmpty {
      refuse("is open in \(file.users.joined(separator: ", "))", "end that program first")
    }
    if let others = facts.otherUsers[path], !others.isEmpty {
      refuse(
        "is also used by the VM \(others.joined(separator: ", "))",
        "give this VM its own: qemu-img convert -O qcow2 makes a copy without backing file")
    }
    return found
  }

  // MARK: Things that stay behind

  private func hostTies(_ definition: DomainDefinition) -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    func refuse(_ what: String, _ whatToDo: String) { found.append(.init(.error, what, whatToDo: whatToDo)) }
    for path in definition.sharedDirectories {
      refuse("it shares the host folder \(path), which is not replicated", "remove it with virsh edit")
    }
    for device in definition.hostDevices {
      refuse("it uses a device of this host (\(device)), which the other node cannot give it", "remove it")
    }
    for memory in definition.hostMemory {
      refuse("it has memory in the host (\(memory)), which is not replicated", "remove it with virsh edit")
    }
    if let tpm = definition.tpm {
      refuse(
        "it has a TPM (\(tpm.backend)), whose state is kept outside its disks and would not follow it",
        "remove the TPM with virsh edit, after saving what is sealed with it (disk encryption keys)")
    }
    for interface in definition.interfaces {
      if case .other(let kind) = interface {
        if kind == "hostdev" || kind == "vdpa" {
          refuse("a network interface is a device of this host (\(kind))", "use a bridge or a libvirt network")
        } else {
          found.append(
            .init(.warning, "a network interface is of type '\(kind)'", whatToDo: "see that it works on both nodes"))
        }
      }
    }
    if definition.hasRawArguments {
      found.append(
        .init(
          .warning, "it hands arguments of its own to QEMU (<qemu:commandline>)",
          whatToDo: "see that they hold on both nodes; files named there are not replicated"))
    }
    return found
  }

  private func placeFindings(_ definition: DomainDefinition) -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    let directory = facts.host.directory
    // Without a disk to live beside there is no folder to judge; the disks' own findings say why.
    if request.directory == nil, directory.path == "/" { return [] }
    let parts = directory.path.split(separator: "/", omittingEmptySubsequences: false).dropFirst()
    if !directory.path.hasPrefix("/") || directory.path == "/"
      || parts.contains(where: { $0.isEmpty || $0 == "." || $0 == ".." })
    {
      return [.init(.error, "'\(directory.path)' cannot be the folder", whatToDo: "give an absolute path with --dir")]
    }
    if !directory.exists {
      found.append(.init(.error, "the folder \(directory.path) does not exist on this node", whatToDo: "make it first"))
    }
    found += places("on this node", facts.host)
    if let peer { found += places("on the other node", peer.host) }
    return found
  }

  private func places(_ whereIs: String, _ host: AdoptionHostFacts) -> [AdoptionFinding] {
    let directory = facts.host.directory.path
    var found: [AdoptionFinding] = []
    if !host.mountPoint.isFree {
      found.append(
        .init(
          .error, "\(whereIs) there is something at \(directory)/\(request.name), where the module shall be mounted",
          whatToDo: "move it away, or choose another folder with --dir"))
    }
    if !host.backingDirectory.isFree {
      let path = "\(directory)/.vmha-\(request.name)"
      found.append(
        .init(
          .error, "\(whereIs) there is something in \(path), perhaps a copy that an earlier 'vmha remove' left",
          whatToDo: "if it is not needed: rm -r '\(path)'"
            + (whereIs == "on this node" ? "" : "; to begin with it: move it elsewhere there and give --seed-from")))
    }
    if !host.hasHook {
      found.append(
        .init(
          .warning, "\(whereIs) vmha's libvirt hook is not installed: nothing keeps virsh from starting the VM there",
          whatToDo: "install hooks/qemu as /etc/libvirt/hooks/qemu and restart libvirtd"))
    }
    return found
  }

  // MARK: The other node

  private func peerFindings(_ definition: DomainDefinition) -> [AdoptionFinding] {
    guard let peer else {
      return [.init(.error, "the other node cannot be asked: \(peerProblem)", whatToDo: "see 'vmha status'")]
    }
    if let problem = peer.hypervisorProblem {
      return [.init(.error, "libvirt on the other node does not answer: \(problem)", whatToDo: "start libvirtd there")]
    }
    var found: [AdoptionFinding] = []
    func refuse(_ what: String, _ whatToDo: String) {
      found.append(.init(.error, "on the other node \(what)", whatToDo: whatToDo))
    }
    if let other = peer.domainWithName {
      refuse("there is a VM named \(other.name) already", "rename or undefine it there: virsh undefine \(other.name)")
    }
    if let other = peer.domainWithUUID, other != peer.domainWithName {
      refuse("the VM \(other.name) has the same UUID \(other.uuid)", "undefine it there: virsh undefine \(other.name)")
    }
    for (name, state) in peer.networks.sorted(by: { $0.key < $1.key }) {
      switch state {
      case .active: break
      case .inactive:
        refuse("the network '\(name)' is not active", "virsh net-start \(name); virsh net-autostart \(name)")
      case .missing:
        refuse("there is no libvirt network '\(name)'", "define it there as here: virsh net-dumpxml \(name)")
      }
    }
    for device in peer.missingDevices {
      refuse("there is no bridge or network device '\(device)'", "make it there under the same name")
    }
    if let problem = peer.machineProblem {
      refuse("this kind of machine (\(definition.machine.machine)) cannot run: \(problem)", "install the same QEMU")
    }
    let media = Set(
      definition.disks.compactMap { disk -> String? in
        if !disk.isWritable, case .file(let path) = disk.source { path } else { nil }
      })
    for path in peer.missingFiles {
      let isMedium = media.contains(path)
      refuse(
        "\(path) is missing; it is not replicated, and the VM does not start without it",
        "copy it there: scp -p \(path) OTHER:\(path)" + (isMedium ? ", or take the medium out: virsh edit" : ""))
    }
    return found
  }

  // MARK: Worth knowing

  private func notices(_ domain: DomainFacts, _ definition: DomainDefinition) -> [AdoptionFinding] {
    var found: [AdoptionFinding] = []
    if domain.isAutostarted {
      found.append(.init(.info, "autostart is switched off: from now on vmha starts it, on the right node"))
    }
    for path in AdoptionPlanner.neededFiles(definition) {
      found.append(.init(.info, "\(path) is not moved and not replicated; keep it the same on both nodes"))
    }
    return found
  }
}
