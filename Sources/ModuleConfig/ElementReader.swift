/// Reads one element strictly: every attribute and child must be one that is known, and every error says what would be right.
struct ElementReader {
  let element: XMLElement
  let file: String
  /// The element as errors call it: `link 'repl'`.
  let label: String

  /// `labelled`: the attribute that tells this element from its brothers.
  init(
    _ element: XMLElement, file: String, labelled: String? = nil, attributes: [String], children: [String] = []
  ) throws(ConfigurationError) {
    self.element = element
    self.file = file
    label = Self.label(element.name, labelled.flatMap { element.attributes[$0] })
    for name in element.attributes.keys.sorted() where !attributes.contains(name) {
      throw error(.structure, "unknown attribute '\(name)'", "known here: \(attributes.joined(separator: ", "))")
    }
    for child in element.children where !children.contains(child.name) {
      let known = children.isEmpty ? "it has no child elements" : "known here: \(children.joined(separator: ", "))"
      throw error(.structure, "unknown element <\(child.name)>", known, line: child.line)
    }
    if !element.text.isEmpty {
      throw error(.structure, "unexpected text '\(element.text.prefix(40))'", "only elements and comments stand here")
    }
  }

  static func label(_ name: String, _ key: String?) -> String { key.map { "\(name) '\($0)'" } ?? name }

  func error(_ code: ConfigurationError.Code, _ what: String, _ allowed: String, line: Int? = nil) -> ConfigurationError
  {
    ConfigurationError(code, file: file, line: line ?? element.line, element: label, what: what, allowed: allowed)
  }

  func required(_ attribute: String) throws(ConfigurationError) -> String {
    guard let value = element.attributes[attribute] else {
      throw error(.structure, "attribute '\(attribute)' is missing", "it must be given")
    }
    return value
  }

  func value<T>(
    _ attribute: String, allowed: String, _ parse: (String) -> T?
  ) throws(ConfigurationError) -> T {
    let text = try required(attribute)
    guard let value = parse(text) else {
      throw error(.value, "\(attribute)='\(text)' is not accepted", allowed)
    }
    return value
  }

  func value<T>(
    _ attribute: String, default missing: T, allowed: String, _ parse: (String) -> T?
  ) throws(ConfigurationError) -> T {
    if element.attributes[attribute] == nil { return missing }
    return try value(attribute, allowed: allowed, parse)
  }

  func duration(_ attribute: String, default missing: Duration) throws(ConfigurationError) -> Duration {
    try value(attribute, default: missing, allowed: Self.durationAllowed, TimeText.parse)
  }
  static let durationAllowed = "a whole number with a unit is needed: 250ms, 3s, 2m, 24h, 7d"

  func one(_ name: String) throws(ConfigurationError) -> XMLElement {
    guard let found = try atMostOne(name) else {
      throw error(.structure, "element <\(name)> is missing", "exactly one is needed")
    }
    return found
  }

  func atMostOne(_ name: String) throws(ConfigurationError) -> XMLElement? {
    let found = element.all(name)
    if found.count > 1 {
      throw error(
        .structure, "element <\(name)> stands here \(found.count) times", "one is enough", line: found[1].line)
    }
    return found.first
  }

  func many(_ name: String, _ range: ClosedRange<Int>) throws(ConfigurationError) -> [XMLElement] {
    let found = element.all(name)
    guard range.contains(found.count) else {
      throw error(
        .structure, "\(found.count) elements <\(name)>", "\(range.lowerBound) to \(range.upperBound) are needed")
    }
    return found
  }
}

/// A contradiction found in a configuration, whatever it was read from.
struct ConfigurationProblem: Hashable {
  var code: ConfigurationError.Code
  /// As `ElementReader.label`.
  var element: String
  var what: String
  var allowed: String
  init(_ code: ConfigurationError.Code, _ element: String, _ what: String, _ allowed: String) {
    self.code = code
    self.element = element
    self.what = what
    self.allowed = allowed
  }
}

extension XMLElement {
  /// Line of the first element that errors call `label`, for problems that are found after reading.
  func line(labelled label: String) -> Int? {
    let keys = ["name", "target", "path"]
    let matches = keys.contains { ElementReader.label(name, attributes[$0]) == label } || name == label
    if matches { return line }
    for child in children {
      if let found = child.line(labelled: label) { return found }
    }
    return nil
  }
}

/// Reads a file's bytes: root element, then the strict reader, then relations, and last the schema that is shipped for editors.
func readConfiguration<T>(
  _ bytes: [UInt8], file: String, root: String, schema: String,
  _ read: (XMLElement) throws(ConfigurationError) -> T, problems: (T) -> [ConfigurationProblem]
) throws(ConfigurationError) -> T {
  let document = try XMLDocument(bytes: bytes, name: file)
  let element = document.element
  guard element.name == root else {
    throw ConfigurationError(
      .structure, file: file, line: element.line, element: element.name, what: "it is not the right kind of file",
      allowed: "the root element must be <\(root)>")
  }
  let value = try read(element)
  if let problem = problems(value).first {
    throw ConfigurationError(
      problem.code, file: file, line: element.line(labelled: problem.element), element: problem.element,
      what: problem.what, allowed: problem.allowed)
  }
  if let violation = document.violation(ofSchema: schema) {
    throw ConfigurationError(
      .structure, file: file, line: violation.line, what: violation.message, allowed: "it must follow the schema")
  }
  return value
}
