import CLibxml2

/// One parsed XML document of libxml2, with the parser's dangers switched off: no network, no DTD, no entities, bounded size.
/// A document belongs to one thread at a time.
public final class XMLDocument {
  /// Larger input is refused before it is parsed. The largest real domain definitions are some ten kilobytes.
  public static let bytesMax = 1 << 20

  public let handle: xmlDocPtr
  public let root: xmlNodePtr

  private static let initialised: Void = xmlInitParser()

  /// `name` is what errors call the input, normally its path.
  public init(bytes: [UInt8], name: String) throws(ConfigurationError) {
    _ = Self.initialised
    guard bytes.count <= Self.bytesMax else {
      throw ConfigurationError(
        .unreadable, file: name, what: "it has \(bytes.count) bytes", allowed: "at most \(Self.bytesMax) are read")
    }
    guard let context = xmlNewParserCtxt() else {
      throw ConfigurationError(.unreadable, file: name, what: "no memory to parse it", allowed: "free some memory")
    }
    defer { xmlFreeParserCtxt(context) }
    let options =
      XML_PARSE_NONET.rawValue | XML_PARSE_NOERROR.rawValue | XML_PARSE_NOWARNING.rawValue
      | XML_PARSE_BIG_LINES.rawValue
    let parsed = bytes.withUnsafeBytes { raw in
      xmlCtxtReadMemory(
        context, raw.baseAddress?.assumingMemoryBound(to: CChar.self), CInt(raw.count), nil, nil,
        CInt(bitPattern: options))
    }
    guard let document = parsed else {
      throw Self.malformed(context, name: name)
    }
    guard document.pointee.intSubset == nil, document.pointee.extSubset == nil else {
      xmlFreeDoc(document)
      throw ConfigurationError(
        .malformed, file: name, line: 1, what: "it has a DOCTYPE", allowed: "DOCTYPE and entities are not accepted")
    }
    guard let root = xmlDocGetRootElement(document) else {
      xmlFreeDoc(document)
      throw ConfigurationError(.malformed, file: name, what: "it has no element", allowed: "one root element is needed")
    }
    handle = document
    self.root = root
  }

  deinit { xmlFreeDoc(handle) }

  private static func malformed(_ context: xmlParserCtxtPtr, name: String) -> ConfigurationError {
    guard let error = xmlCtxtGetLastError(context) else {
      return ConfigurationError(.malformed, file: name, what: "it is empty", allowed: "well-formed XML is needed")
    }
    let message = error.pointee.message.map { trimmed(String(cString: $0)) } ?? "unknown error"
    return ConfigurationError(
      .malformed, file: name, line: Int(error.pointee.line), what: message, allowed: "well-formed XML is needed")
  }

  /// The root element as UTF-8 text, without XML declaration.
  public func rootText() -> String {
    guard let buffer = xmlBufferCreate() else { return "" }
    defer { xmlBufferFree(buffer) }
    guard xmlNodeDump(buffer, handle, root, 0, 0) >= 0, let content = xmlBufferContent(buffer) else { return "" }
    return String(cString: content)
  }

  /// The whole document as plain values.
  public var element: XMLElement { XMLElement(copying: root) }

  /// The first violation of a RelaxNG schema, or nil. Its wording is libxml2's.
  func violation(ofSchema schema: String) -> (line: Int, message: String)? {
    let parsed = schema.utf8.withContiguousStorageIfAvailable { raw in
      raw.withMemoryRebound(to: CChar.self) { xmlRelaxNGNewMemParserCtxt($0.baseAddress, CInt($0.count)) }
    }
    guard let parser = parsed ?? nil else { return (0, "the schema cannot be read") }
    defer { xmlRelaxNGFreeParserCtxt(parser) }
    let found = Violation()
    let context = Unmanaged.passUnretained(found).toOpaque()
    xmlRelaxNGSetParserStructuredErrors(parser, noteViolation, context)
    guard let compiled = xmlRelaxNGParse(parser) else { return (0, "the schema is wrong: \(found.message)") }
    defer { xmlRelaxNGFree(compiled) }
    guard let validation = xmlRelaxNGNewValidCtxt(compiled) else { return (0, "no memory to check the schema") }
    defer { xmlRelaxNGFreeValidCtxt(validation) }
    xmlRelaxNGSetValidStructuredErrors(validation, noteViolation, context)
    guard xmlRelaxNGValidateDoc(validation, handle) != 0 else { return nil }
    return (found.line, found.message)
  }
}

private final class Violation {
  var line = 0
  var message = ""
}

/// Keeps the first message: those that follow are consequences of it.
private let noteViolation: xmlStructuredErrorFunc = { context, error in
  guard let context, let error else { return }
  let violation = Unmanaged<Violation>.fromOpaque(context).takeUnretainedValue()
  guard violation.message.isEmpty, let message = error.pointee.message else { return }
  violation.message = trimmed(String(cString: message))
  violation.line = Int(error.pointee.line)
}

/// Without white space at both ends.
public func trimmed(_ text: String) -> String {
  let isSpace = { (character: Character) in character.isWhitespace }
  guard let first = text.firstIndex(where: { !isSpace($0) }), let last = text.lastIndex(where: { !isSpace($0) }) else {
    return ""
  }
  return String(text[first...last])
}

/// Text made safe to stand in XML text and in attributes in single or double quotes.
public func escapedXML(_ text: String) -> String {
  var out = ""
  for scalar in text.unicodeScalars {
    switch scalar {
    case "&": out += "&amp;"
    case "<": out += "&lt;"
    case ">": out += "&gt;"
    case "\"": out += "&quot;"
    case "'": out += "&apos;"
    case "\n": out += "&#10;"
    case "\r": out += "&#13;"
    case "\t": out += "&#9;"
    default: out.unicodeScalars.append(scalar)
    }
  }
  return out
}

/// An element as a plain value. Comments, processing instructions and namespaces are left out.
public struct XMLElement: Sendable, Hashable {
  public var name: String
  /// From 1.
  public var line: Int
  public var attributes: [String: String]
  public var children: [XMLElement]
  /// The element's own text, without white space at both ends.
  public var text: String

  /// Depth is bounded by libxml2 itself (256 levels).
  init(copying node: xmlNodePtr) {
    name = node.pointee.name.map { String(cString: $0) } ?? ""
    line = xmlGetLineNo(node)
    attributes = [:]
    children = []
    var attribute = node.pointee.properties
    while let current = attribute {
      if let key = current.pointee.name, let value = xmlNodeListGetString(node.pointee.doc, current.pointee.children, 1)
      {
        attributes[String(cString: key)] = String(cString: value)
        vmha_xml_free(value)
      } else if let key = current.pointee.name {
        attributes[String(cString: key)] = ""
      }
      attribute = current.pointee.next
    }
    var text = ""
    var child = node.pointee.children
    while let current = child {
      switch current.pointee.type {
      case XML_ELEMENT_NODE: children.append(XMLElement(copying: current))
      case XML_TEXT_NODE, XML_CDATA_SECTION_NODE: text += current.pointee.content.map { String(cString: $0) } ?? ""
      default: break
      }
      child = current.pointee.next
    }
    self.text = trimmed(text)
  }

  /// Equal but for the lines on which things stand, and the order of elements of different names.
  public func hasSameContents(as other: XMLElement) -> Bool {
    guard name == other.name, attributes == other.attributes, text == other.text,
      children.count == other.children.count
    else { return false }
    // Grouped by name; within a group the order counts, as it does for disks and interfaces.
    let (mine, theirs) = (Dictionary(grouping: children, by: \.name), Dictionary(grouping: other.children, by: \.name))
    return mine.keys == theirs.keys
      && mine.allSatisfy { name, group in
        let others = theirs[name] ?? []
        return group.count == others.count && zip(group, others).allSatisfy { $0.hasSameContents(as: $1) }
      }
  }

  public func first(_ name: String) -> XMLElement? { children.first { $0.name == name } }
  public func all(_ name: String) -> [XMLElement] { children.filter { $0.name == name } }
  /// The first element under a path of names.
  public func first(_ path: [String]) -> XMLElement? {
    path.reduce(Optional(self)) { $0?.first($1) }
  }
}
