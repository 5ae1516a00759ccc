import CLibxml2
import ModuleConfig

/// What `vmha add` changes in a domain's XML. Everything that is not named here stays as it is.
public struct DomainRewriting: Codable, Sendable, Hashable {
  public struct Disk: Codable, Sendable, Hashable {
    public var path: String
    /// Set where the XML names none, so that nothing is probed.
    public var format: String
    public init(path: String, format: String) {
      self.path = path
      self.format = format
    }
  }
  /// By target (vda). These also get the error policies `stop`: an error must never reach the guest as one of its disk, because the
  /// other node has good data.
  public var disks: [String: Disk]
  /// Paths in explicit backing chains, old to new.
  public var backingPaths: [String: String]
  /// Where the UEFI variables are from now on; nil = leave as it is.
  public var nvram: String?
  public init(disks: [String: Disk], backingPaths: [String: String] = [:], nvram: String? = nil) {
    self.disks = disks
    self.backingPaths = backingPaths
    self.nvram = nvram
  }

  /// Throws `HypervisorError` with code `invalidDefinition`, also if a disk is not there.
  public func apply(to xml: String) throws(HypervisorError) -> String {
    let document = try DomainDefinition.document(xml)
    guard let devices = child(document.root, "devices") else { throw DomainDefinition.invalid("it has no <devices>") }
    var missing = Set(disks.keys)
    for disk in children(devices) where name(disk) == "disk" {
      guard let target = child(disk, "target").flatMap({ attribute($0, "dev") }), let change = disks[target] else {
        continue
      }
      missing.remove(target)
      rewrite(disk, change)
    }
    guard missing.isEmpty else {
      throw DomainDefinition.invalid("it has no disk \(missing.sorted().joined(separator: ", "))")
    }
    if let nvram {
      guard let os = child(document.root, "os") else { throw DomainDefinition.invalid("it has no <os>") }
      setText(childMade(os, "nvram"), nvram)
    }
    return document.rootText() + "\n"
  }

  private func rewrite(_ disk: xmlNodePtr, _ change: Disk) {
    set(disk, "type", "file")
    let source = childMade(disk, "source")
    for name in ["pool", "volume", "mode", "dev"] { xmlUnsetProp(source, name) }
    set(source, "file", change.path)
    let driver = childMade(disk, "driver")
    if attribute(driver, "name") == nil { set(driver, "name", "qemu") }
    set(driver, "type", change.format)
    set(driver, "error_policy", "stop")
    set(driver, "rerror_policy", "stop")
    var backing = child(disk, "backingStore")
    while let level = backing {
      if let source = child(level, "source"), let old = attribute(source, "file"), let new = backingPaths[old] {
        set(source, "file", new)
      }
      backing = child(level, "backingStore")
    }
  }
}

// libxml2's tree in a few words. Nodes live as long as their document.

private func name(_ node: xmlNodePtr) -> String { node.pointee.name.map { String(cString: $0) } ?? "" }

private func children(_ node: xmlNodePtr) -> [xmlNodePtr] {
  var found: [xmlNodePtr] = []
  var next = node.pointee.children
  while let current = next {
    if current.pointee.type == XML_ELEMENT_NODE { found.append(current) }
    next = current.pointee.next
  }
  return found
}

private func child(_ node: xmlNodePtr, _ wanted: String) -> xmlNodePtr? { children(node).first { name($0) == wanted } }

/// The child, made if it is missing.
private func childMade(_ node: xmlNodePtr, _ wanted: String) -> xmlNodePtr {
  if let found = child(node, wanted) { return found }
  guard let new = xmlNewChild(node, nil, wanted, nil) else { preconditionFailure("no memory for an XML element") }
  return new
}

private func attribute(_ node: xmlNodePtr, _ name: String) -> String? {
  guard let value = xmlGetNoNsProp(node, name) else { return nil }
  defer { vmha_xml_free(value) }
  return String(cString: value)
}

private func set(_ node: xmlNodePtr, _ name: String, _ value: String) { xmlSetProp(node, name, value) }

private func setText(_ node: xmlNodePtr, _ text: String) {
  // Element content is parsed for entities by libxml2, so it goes in as a text node.
  xmlNodeSetContent(node, nil)
  xmlAddChild(node, xmlNewText(text))
}
