import Foundation
import Testing

/// All lab tests, one after the other: each needs the whole machine.
@Suite(.serialized, .enabled(if: Machine.problem == nil, "\(Machine.problem ?? "")"))
enum AllLabs {}

/// The labs of the suites.
enum Labs {}

/// A lab around a whole suite: made before its first test, taken down after its last one, whatever happened.
struct InLab: SuiteTrait, TestScoping {
  let lab: Lab
  let prepare: @Sendable (Lab) async throws -> Void

  func provideScope(
    for test: Test, testCase: Test.Case?, performing function: @Sendable () async throws -> Void
  ) async throws {
    let failure: (any Error)?
    do {
      try await prepare(lab)
      try await function()
      failure = nil
    } catch {
      failure = error
      print(await lab.evidence())
    }
    if ProcessInfo.processInfo.environment["VMHA_LAB_KEEP"] == nil { try await lab.down() }
    if let failure { throw failure }
  }
}

extension InLab {
  /// Two nodes that are a cluster, with nothing to protect yet.
  init(clusterOf lab: Lab) {
    self.init(lab: lab) {
      try await $0.up()
      try await $0.must("cluster", within: 120)
    }
  }
}

extension Lab {
  /// A test's body: an error comes with what both nodes say at that moment.
  func scenario(_ title: String, _ body: () async throws -> Void) async throws {
    print("lab \(name): \(title)")
    do {
      try await body()
    } catch {
      Issue.record("\(title): \(error)\(await evidence())")
    }
  }
}
