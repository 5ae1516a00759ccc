import Glibc
import HostSystem

/// Files that only this daemon's user may read: a password, a fence agent's options.
public enum SecretFile {
  public static let bytesMax = 16 << 10

  /// The whole text. Throws `ArbitrationError` (`configuration`) if it is missing, too large, or open to others.
  public static func read(_ path: String) throws -> String {
    func refuse(_ why: String) -> ArbitrationError {
      ArbitrationError(.configuration, "\(path) cannot be used: \(why)")
    }
    var status = stat()
    do { try HostCalls.perform("secret.stat", path: path) { stat(path, &status) } } catch {
      throw refuse(reason(error))
    }
    guard status.st_mode & S_IFMT == S_IFREG else { throw refuse("it is not a plain file") }
    guard status.st_uid == geteuid(), status.st_mode & 0o077 == 0 else {
      throw refuse("others may read it; chown root and chmod 600 it")
    }
    do { return String(decoding: try DurableFile.read(path, bytesMax: bytesMax), as: UTF8.self) } catch {
      throw refuse("\(error)")
    }
  }

  /// Why a file cannot be read, where its name is said already.
  public static func reason(_ error: any Error) -> String {
    guard let error = error as? HostError, error.errno != 0 else { return "\(error)" }
    return error.errno == ENOENT ? "there is no such file on this node" : errnoText(error.errno)
  }

  /// The first line.
  static func password(_ path: String) throws -> String {
    let line = String(try read(path).prefix { !$0.isNewline })
    guard !line.isEmpty else { throw ArbitrationError(.configuration, "\(path) has no password in its first line") }
    return line
  }
}
