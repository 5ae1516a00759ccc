import CCurl
import FoundationEssentials
import Glibc
import Model
import ModuleConfig
import Synchronization

/// POSTs over libcurl: TLS with the configured CA and client certificate, every call bounded in time and size, connections kept.
/// For any thread; a call blocks its thread.
final class HTTPSCalls: Sendable {
  /// One call to one endpoint, from the name to the last byte.
  static let callMax: Duration = .seconds(2)
  static let answerBytesMax = 1 << 20
  /// Connections kept for the next call.
  static let idleMax = 4

  struct Answer {
    var status: Int
    var body: [UInt8]
  }

  /// A handle belongs to one call at a time; libcurl asks for no more.
  private struct Handle: @unchecked Sendable { let pointer: UnsafeMutableRawPointer }
  private final class Output { var bytes: [UInt8] = [] }

  private let witness: WitnessConfiguration
  private let idle = Mutex<[Handle]>([])

  init(_ witness: WitnessConfiguration) { self.witness = witness }

  deinit {
    for handle in idle.withLock({ $0 }) { curl_easy_cleanup(handle.pointer) }
  }

  /// Once for the process, before threads use it.
  private static let isReady: Bool = vmha_curl_start() == CURLE_OK

  /// Throws `ArbitrationError`; any HTTP status is an answer.
  func post(_ url: String, body: [UInt8], authorization: String?) throws -> Answer {
    guard Self.isReady else { throw ArbitrationError(.failed, "libcurl cannot be used") }
    let handle = try take()
    let curl = handle.pointer
    curl_easy_reset(curl)
    var headers = curl_slist_append(nil, "Content-Type: application/json")
    if let authorization { headers = curl_slist_append(headers, "Authorization: \(authorization)") }
    defer { curl_slist_free_all(headers) }
    var errors = [CChar](repeating: 0, count: Int(CURL_ERROR_SIZE))
    let output = Output()
    let (code, status) = errors.withUnsafeMutableBufferPointer { errors -> (CURLcode, Int) in
      body.withUnsafeBytes { body in
        let code = perform(curl, url, body, headers, errors.baseAddress, output)
        return (code, code == CURLE_OK ? vmha_curl_status(curl) : 0)
      }
    }
    guard code == CURLE_OK else {
      // Whatever state its connection is in, nobody uses it again.
      curl_easy_cleanup(curl)
      let text = String(decoding: errors.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
      throw failure(code, url, text)
    }
    give(handle)
    return Answer(status: status, body: output.bytes)
  }

  private func perform(
    _ curl: UnsafeMutableRawPointer, _ url: String, _ body: UnsafeRawBufferPointer,
    _ headers: UnsafeMutablePointer<curl_slist>?, _ errors: UnsafeMutablePointer<CChar>?, _ output: Output
  ) -> CURLcode {
    let limit = Int(Self.callMax.milliseconds)
    var settings: [CURLcode] = [
      vmha_curl_errors(curl, errors), vmha_curl_text(curl, CURLOPT_URL, url),
      // Neither files nor redirections, and no proxy of the environment: the witness is what the configuration says.
      vmha_curl_text(curl, CURLOPT_PROTOCOLS_STR, "http,https"), vmha_curl_text(curl, CURLOPT_PROXY, ""),
      vmha_curl_number(curl, CURLOPT_NOSIGNAL, 1), vmha_curl_number(curl, CURLOPT_TIMEOUT_MS, limit),
      vmha_curl_number(curl, CURLOPT_CONNECTTIMEOUT_MS, limit), vmha_curl_headers(curl, headers),
      vmha_curl_body(curl, body.baseAddress, body.count),
      vmha_curl_output(
        curl,
        { bytes, size, count, context in
          guard let bytes, let context else { return 0 }
          let output = Unmanaged<Output>.fromOpaque(context).takeUnretainedValue()
          guard output.bytes.count + size * count <= HTTPSCalls.answerBytesMax else { return 0 }
          output.bytes += UnsafeRawBufferPointer(start: bytes, count: size * count)
          return size * count
        }, Unmanaged.passUnretained(output).toOpaque()),
    ]
    if let file = witness.authorityFile { settings.append(vmha_curl_text(curl, CURLOPT_CAINFO, file)) }
    if let file = witness.certificateFile { settings.append(vmha_curl_text(curl, CURLOPT_SSLCERT, file)) }
    if let file = witness.keyFile { settings.append(vmha_curl_text(curl, CURLOPT_SSLKEY, file)) }
    if let failed = settings.first(where: { $0 != CURLE_OK }) { return failed }
    return withExtendedLifetime(output) { curl_easy_perform(curl) }
  }

  private func failure(_ code: CURLcode, _ url: String, _ text: String) -> ArbitrationError {
    let place = url.split(separator: "/").prefix(2).joined(separator: "//")
    let detail = text.isEmpty ? String(cString: curl_easy_strerror(code)) : text
    return switch code {
    case CURLE_OPERATION_TIMEDOUT:
      ArbitrationError(.timedOut, "\(place) gave no answer within \(Self.callMax.milliseconds / 1000) s")
    case CURLE_PEER_FAILED_VERIFICATION, CURLE_SSL_CACERT_BADFILE, CURLE_SSL_CERTPROBLEM, CURLE_SSL_ISSUER_ERROR:
      ArbitrationError(
        .untrusted,
        "TLS with \(place) failed: \(detail)"
          + (witness.authorityFile.map { "; its certificate must be of the CA in \($0)" } ?? "; no witness-ca is set"))
    case CURLE_SSL_CONNECT_ERROR:
      ArbitrationError(
        .untrusted, "TLS with \(place) failed: \(detail); it may not speak TLS there, or refuse this node's certificate"
      )
    case CURLE_WRITE_ERROR: ArbitrationError(.failed, "\(place) answered more than \(Self.answerBytesMax) bytes")
    // Also where etcd ends the connection because it wants a client certificate.
    case CURLE_RECV_ERROR, CURLE_SEND_ERROR:
      ArbitrationError(
        .untrusted,
        "\(place) ended the connection: \(detail)"
          + (witness.certificateFile == nil ? "; it may ask for a client certificate" : ""))
    default: ArbitrationError(.unreachable, "\(place) cannot be reached: \(detail)")
    }
  }

  private func take() throws -> Handle {
    if let handle = idle.withLock({ $0.popLast() }) { return handle }
    guard let pointer = curl_easy_init() else { throw ArbitrationError(.failed, "libcurl has no memory") }
    return Handle(pointer: pointer)
  }

  private func give(_ handle: Handle) {
    let isKept = idle.withLock { idle in
      guard idle.count < Self.idleMax else { return false }
      idle.append(handle)
      return true
    }
    if !isKept { curl_easy_cleanup(handle.pointer) }
  }
}
