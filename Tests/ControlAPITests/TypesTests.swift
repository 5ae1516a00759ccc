import ControlAPI
import ControlTestSupport
import Foundation
import Model
import Testing

@Suite struct TypesTests {
  @Test func statusRoundTrips() throws {
    let status = Samples.status()
    let data = try ControlCoding.encode(status, pretty: true)
    #expect(try ControlCoding.decode(ClusterStatus.self, from: data) == status)
    if let path = ProcessInfo.processInfo.environment["VMHA_WRITE_SAMPLE"] {
      try data.write(to: URL(fileURLWithPath: path))
    }
  }

  @Test func jsonNamesAreSnakeCase() throws {
    let data = try ControlCoding.encode(Samples.status())
    let object = try JSONSerialization.jsonObject(with: data)
    var keys: Set<String> = []
    func collect(_ value: Any) {
      if let dictionary = value as? [String: Any] {
        keys.formUnion(dictionary.keys)
        dictionary.values.forEach(collect)
      } else if let array = value as? [Any] {
        array.forEach(collect)
      }
    }
    collect(object)
    #expect(keys.filter { $0 != $0.lowercased() } == [])
    #expect(keys.isSuperset(of: ["state", "readiness", "standing", "guest", "generation", "sentence", "resync"]))
  }

  @Test(arguments: [
    "1970-01-01T00:00:00.000Z", "2026-11-22T20:56:14.123Z", "2024-02-29T23:59:59.999Z", "1969-12-31T23:59:59.001Z",
  ])
  func timesRoundTrip(text: String) throws {
    #expect(try #require(WallTime(text)).description == text)
  }

  @Test(arguments: [
    ("2026-11-22T20:56:14Z", "2026-11-22T20:56:14.000Z"), ("2026-11-22T20:56:14.5Z", "2026-11-22T20:56:14.500Z"),
    ("2026-11-22T20:56:14.123456Z", "2026-11-22T20:56:14.123Z"),
  ])
  func otherFractionsAreRead(text: String, canonical: String) throws {
    #expect(try #require(WallTime(text)).description == canonical)
  }

  @Test(arguments: [
    "", "Z", "2026-11-22", "2026-11-22T20:56:14", "2026-13-22T20:56:14Z", "2026-11-22T20:56:14.Z",
    "2026-11-22T20:56:14.1x3Z", "2026-11-22 20:56:14Z", "2026-11-22T20:56:14+01:00",
    "2026-11-22T20:56:14.1234567890123456789012345Z",
  ])
  func wrongTimesAreRefused(text: String) {
    #expect(WallTime(text) == nil)
  }

  @Test func wrongBodiesSayWhere() {
    let missing = #expect(throws: ControlError.self) {
      try ControlCoding.decode(ClusterJoinRequest.self, from: Data(#"{"address":"10.0.0.1","links":[]}"#.utf8))
    }
    #expect(missing?.code == .invalidRequest && missing?.httpStatus == 400)
    #expect(missing?.why?.contains("'fingerprint' is missing") == true)
    let garbage = #expect(throws: ControlError.self) {
      try ControlCoding.decode(AddRequest.self, from: Data("not json".utf8))
    }
    #expect(garbage?.code == .invalidRequest)
  }

  @Test func errorsRoundTripAndSayWhetherAnythingChanged() throws {
    let refused = ControlError(.refused, "swap of vm1 refused", why: "node2 is not in sync", next: "wait")
    let copy = try ControlCoding.decode(ControlError.self, from: ControlCoding.encode(refused))
    #expect(copy == refused)
    #expect(copy.nothingChanged)
    #expect(!ControlError(.failed, "x").nothingChanged)
  }

  @Test func protectionNeedsBothCopies() {
    var module = Samples.protected("vm1", number: 1)
    #expect(module.isProtected)
    #expect(module.primary?.node == "node1")
    module.nodes[1].standing = .inconsistent
    #expect(!module.isProtected)
    module = Samples.protected("vm1", number: 1)
    module.nodes[1].current = false
    #expect(!module.isProtected)
    #expect(!Samples.resyncing("vm2", number: 2).isProtected)
  }
}
