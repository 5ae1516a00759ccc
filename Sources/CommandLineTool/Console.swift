import Foundation
import Glibc

/// Where a command writes and what it may ask. Tests give one that records.
public struct Console: Sendable {
  /// True if standard output is a terminal: progress is drawn in place, `--watch` clears the screen.
  public var isTerminal: Bool
  /// True if questions can be asked: standard input and output are a terminal.
  public var canAsk: Bool
  public var usesColour: Bool
  /// Columns of the terminal.
  public var width: Int
  public var write: @Sendable (String) -> Void
  public var writeError: @Sendable (String) -> Void
  /// One line of the answer without its end; nil at the end of the input.
  public var readAnswer: @Sendable () -> String?

  public init(
    isTerminal: Bool, canAsk: Bool, usesColour: Bool, width: Int, write: @escaping @Sendable (String) -> Void,
    writeError: @escaping @Sendable (String) -> Void, readAnswer: @escaping @Sendable () -> String?
  ) {
    self.isTerminal = isTerminal
    self.canAsk = canAsk
    self.usesColour = usesColour
    self.width = width
    self.write = write
    self.writeError = writeError
    self.readAnswer = readAnswer
  }

  /// This process's own. Colour only on a terminal, and not if NO_COLOR is set (https://no-color.org) or TERM is dumb.
  public static func standard() -> Console {
    let environment = ProcessInfo.processInfo.environment
    let isTerminal = isatty(STDOUT_FILENO) == 1
    let isPlain = environment["NO_COLOR"].map { !$0.isEmpty } ?? false || environment["TERM"] == "dumb"
    return Console(
      isTerminal: isTerminal, canAsk: isTerminal && isatty(STDIN_FILENO) == 1, usesColour: isTerminal && !isPlain,
      width: columns(environment), write: { put($0, STDOUT_FILENO) }, writeError: { put($0, STDERR_FILENO) },
      readAnswer: { readLine(strippingNewline: true) })
  }

  public func line(_ text: String = "") { write(text + "\n") }
  public func errorLine(_ text: String) { writeError(text + "\n") }

  private static func columns(_ environment: [String: String]) -> Int {
    if let text = environment["COLUMNS"], let number = Int(text), number > 0 { return number }
    var size = winsize()
    return ioctl(STDOUT_FILENO, UInt(TIOCGWINSZ), &size) == 0 && size.ws_col > 0 ? Int(size.ws_col) : 100
  }

  /// Unbuffered, so that what is on the screen is what happened.
  private static func put(_ text: String, _ descriptor: Int32) {
    let bytes = Array(text.utf8)
    var sent = 0
    while sent < bytes.count {
      let count = bytes.withUnsafeBytes {
        Glibc.write(descriptor, $0.baseAddress.map { $0 + sent }, bytes.count - sent)
      }
      if count < 0 && errno == EINTR { continue }
      if count < 0 && errno == EPIPE {
        // The network library ignores this signal; a command in a pipeline has to end by it (`vmha log -f | head`).
        signal(SIGPIPE, SIG_DFL)
        raise(SIGPIPE)
      }
      guard count > 0 else { return }
      sent += count
    }
  }
}

enum Colour: String, Sendable {
  case red = "31"
  case green = "32"
  case yellow = "33"
  case dim = "2"
  case bold = "1"
}

/// Text and how it looks. The length is that of the text alone.
struct Styled: Sendable, ExpressibleByStringLiteral {
  var text: String
  var colour: Colour?
  init(_ text: String, _ colour: Colour? = nil) {
    self.text = text
    self.colour = colour
  }
  init(stringLiteral text: String) { self.init(text) }

  func rendered(_ console: Console) -> String {
    guard console.usesColour, let colour, !text.isEmpty else { return text }
    return "\u{1B}[\(colour.rawValue)m\(text)\u{1B}[0m"
  }
}
