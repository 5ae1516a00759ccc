import Foundation

/// JSON as the API speaks it: names as in the types' coding keys, keys sorted so that answers can be compared as text.
public enum ControlCoding {
  /// Largest body of a request or an answer, in bytes.
  public static let bodyBytesMax = 4 * 1024 * 1024

  public static func encode(_ value: some Encodable, pretty: Bool = false) throws(ControlError) -> Data {
    let encoder = JSONEncoder()
    encoder.outputFormatting =
      pretty ? [.sortedKeys, .withoutEscapingSlashes, .prettyPrinted] : [.sortedKeys, .withoutEscapingSlashes]
    do {
      return try encoder.encode(value)
    } catch {
      throw ControlError(.failed, "an answer could not be written as JSON", why: "\(error)")
    }
  }

  /// Throws `invalidRequest` with the path of the member that is wrong.
  public static func decode<Value: Decodable>(_ type: Value.Type, from data: Data) throws(ControlError) -> Value {
    do {
      return try JSONDecoder().decode(type, from: data)
    } catch {
      throw ControlError(
        .invalidRequest, "the JSON body is not a \(type)", why: explain(error), next: "see docs/api.md for its members")
    }
  }

  static func explain(_ error: any Error) -> String {
    guard let error = error as? DecodingError else { return "\(error)" }
    switch error {
    case .keyNotFound(let key, let context):
      return "member '\(path(context.codingPath + [key]))' is missing"
    case .typeMismatch(_, let context):
      return "member '\(path(context.codingPath))' has the wrong type: \(context.debugDescription)"
    case .valueNotFound(_, let context):
      return "member '\(path(context.codingPath))' has no value"
    case .dataCorrupted(let context):
      let place = path(context.codingPath)
      return place.isEmpty ? context.debugDescription : "member '\(place)': \(context.debugDescription)"
    @unknown default:
      return "\(error)"
    }
  }

  private static func path(_ keys: [any CodingKey]) -> String {
    keys.map { key in key.intValue.map { "[\($0)]" } ?? key.stringValue }.joined(separator: ".")
  }
}
