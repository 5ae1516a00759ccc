import Glibc
import Model

/// One line a message on standard error; the service manager adds time and unit.
public enum Log {
  public static func note(_ message: @autoclosure () -> String) {
    let line = message().replacing("\n", with: " ") + "\n"
    let bytes = Array(line.utf8)
    // Nobody is left to tell when standard error itself is gone.
    _ = write(STDERR_FILENO, bytes, bytes.count)
  }
}
