import FoundationEssentials
import Model

// etcd's v3 API as its JSON gateway speaks it (3.4 and later): bytes in base64, 64-bit numbers as strings, zeros left out.

struct EtcdHeader: Decodable {
  var cluster: UInt64
  var revision: Int64
  enum CodingKeys: String, CodingKey {
    case cluster = "cluster_id"
    case revision
  }
  init(from decoder: any Decoder) throws {
    let container = try decoder.container(keyedBy: CodingKeys.self)
    cluster = try container.decode(EtcdNumber<UInt64>.self, forKey: .cluster).value
    revision = try container.decode(EtcdNumber<Int64>.self, forKey: .revision).value
  }
}

struct EtcdNumber<Value: FixedWidthInteger & Sendable>: Decodable {
  var value: Value
  init(from decoder: any Decoder) throws {
    let container = try decoder.singleValueContainer()
    let text = try container.decode(String.self)
    guard let value = Value(text) else {
      throw DecodingError.dataCorruptedError(in: container, debugDescription: "'\(text)' is no number")
    }
    self.value = value
  }
}

/// Not serializable: answered through a quorum.
struct EtcdRange: Encodable { var key: Data }

struct EtcdRangeAnswer: Decodable {
  struct Entry: Decodable {
    var createRevision: EtcdNumber<Int64>
    var modRevision: EtcdNumber<Int64>
    var value: Data?
    enum CodingKeys: String, CodingKey {
      case createRevision = "create_revision"
      case modRevision = "mod_revision"
      case value
    }
  }
  var header: EtcdHeader
  var kvs: [Entry]?
}

/// Put if the key's last change is still that one; 0 = there is no key.
struct EtcdCompareAndPut: Encodable {
  struct Compare: Encodable {
    var target = "MOD"
    var result = "EQUAL"
    var key: Data
    var modRevision: String
    enum CodingKeys: String, CodingKey {
      case target, result, key
      case modRevision = "mod_revision"
    }
  }
  struct Operation: Encodable {
    struct Put: Encodable {
      var key: Data
      var value: Data
    }
    var put: Put
    enum CodingKeys: String, CodingKey { case put = "request_put" }
  }
  var compare: [Compare]
  var success: [Operation]

  init(key: Data, expect: Int64, value: Data) {
    compare = [Compare(key: key, modRevision: "\(expect)")]
    success = [Operation(put: Operation.Put(key: key, value: value))]
  }
}

struct EtcdTransactionAnswer: Decodable {
  var succeeded: Bool?
  var header: EtcdHeader
}

struct EtcdLogin: Encodable {
  var name: String
  var password: String
}
struct EtcdToken: Decodable { var token: String }

struct EtcdFailure: Decodable {
  var message: String?
  var error: String?
  /// gRPC's.
  var code: Int?
}

/// The register's value as it stands in etcd, readable for people.
struct RegisterText: Codable {
  static let versionNow = 1
  var version: Int
  var branch: String
  var number: UInt32
  var holder: NodeID
  var parent: String

  init(_ register: WitnessRegister) {
    version = Self.versionNow
    branch = register.branch.description
    number = register.number
    holder = register.holder
    parent = register.parent.description
  }

  /// nil: of another version, or not a register.
  var register: WitnessRegister? {
    guard version == Self.versionNow, branch.count == 16, parent.count == 16, let branch = UInt64(branch, radix: 16),
      let parent = UInt64(parent, radix: 16)
    else { return nil }
    return WitnessRegister(
      branch: BranchID(rawValue: branch), number: number, holder: holder, parent: BranchID(rawValue: parent))
  }
}
