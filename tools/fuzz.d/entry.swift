import Glibc
import HostSystem

/// What libFuzzer calls. VMHA_FUZZ_TARGET names the target; with VMHA_FUZZ_SEEDS its seeds are written to that folder first.
private let target: FuzzTarget = {
  let name = getenv("VMHA_FUZZ_TARGET").map { String(cString: $0) } ?? ""
  guard let target = FuzzTarget(rawValue: name) else { preconditionFailure("VMHA_FUZZ_TARGET: '\(name)' is no target") }
  return target
}()

@_cdecl("LLVMFuzzerInitialize")
public func initialize(
  _ count: UnsafeMutablePointer<Int32>?,
  _ arguments: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?>?
) -> Int32 {
  guard let folder = getenv("VMHA_FUZZ_SEEDS").map({ String(cString: $0) }) else { return 0 }
  do {
    for (number, seed) in target.seeds.enumerated() { try DurableFile.write(seed, to: "\(folder)/seed-\(number)") }
  } catch { preconditionFailure("\(error)") }
  exit(0)
}

@_cdecl("LLVMFuzzerTestOneInput")
public func testOneInput(_ start: UnsafePointer<UInt8>?, _ count: Int) -> Int32 {
  do { try target.check(Array(UnsafeBufferPointer(start: start, count: count))) } catch {
    preconditionFailure("\(target): \(error)")
  }
  return 0
}
