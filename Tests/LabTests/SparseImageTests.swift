import Foundation
import Testing

/// Random writes all over a large sparse image, by a program on the primary: what was flushed, and which zones can differ, is known exactly.
struct SparseWriter {
  static let imageGiB = 20
  static let zoneBytes = 1 << 20
  /// Writes between two flushes.
  static let batch = 8
  /// After each flush, so that a busy machine keeps up: some 300 writes a second.
  static let pauseSeconds = 0.02

  /// The same offsets again for the same seed; 4 KiB each, filled with the number of the write.
  private static func sequence(_ seed: Int) -> String {
    """
    import os, sys
    x = \(seed) | 1
    def following():
      global x
      x = (x * 6364136223846793005 + 1442695040888963407) % (1 << 64)
      return (x >> 33) % (\(imageGiB) << 18) * 4096
    def block(n): return n.to_bytes(8, 'little') * 512

    """
  }

  static func write(_ path: String, seed: Int) -> String {
    sequence(seed) + """
      import time
      f = os.open('\(path)', os.O_RDWR)
      n = 0
      while True:
        for _ in range(\(batch)):
          n += 1
          at = following()
          print('w', n, at, time.monotonic(), flush=True)
          os.pwrite(f, block(n), at)
        os.fdatasync(f)
        print('f', n, 0, time.monotonic(), flush=True)
        time.sleep(\(pauseSeconds))
      """
  }

  /// Every write up to `flushed` must be there, unless a later one, up to `issued`, went to the same place.
  static func verify(_ path: String, seed: Int, flushed: Int, issued: Int) -> String {
    sequence(seed) + """
      wanted = {}
      for n in range(1, \(issued) + 1):
        at = following()
        wanted[at] = (wanted.get(at, []) if n > \(flushed) else []) + [n]
      f = os.open('\(path)', os.O_RDONLY)
      lost = 0
      for at, numbers in wanted.items():
        if numbers[0] > \(flushed): continue
        found = os.pread(f, 4096, at)
        if found not in [block(n) for n in numbers]: lost += 1
      print(len(wanted), lost)
      """
  }

  /// A sum over place and contents of all that is not zero; holes are not read.
  static func sum(_ path: String) -> String {
    """
    import os, zlib, hashlib
    f = os.open('\(path)', os.O_RDONLY); end = os.fstat(f).st_size
    at = 0; h = hashlib.sha256(b'%d' % end); zero = bytes(4096)
    while at < end:
      try: at = os.lseek(f, at, os.SEEK_DATA)
      except OSError: break
      hole = os.lseek(f, at, os.SEEK_HOLE)
      while at < hole:
        b = os.pread(f, 4096, at)
        if b != zero: h.update(b'%d ' % at + b)
        at += 4096
    print(h.hexdigest())
    """
  }

  var issued = 0
  var flushed = 0
  /// Zones written since the last flush that ended.
  var unflushedZones: Set<Int> = []
  /// Zones written in the last seconds before the end, counted from the last line.
  private var times: [(zone: Int, at: Double)] = []

  init(_ text: String) {
    // The last line may be cut short by the power cut.
    for line in text.split(separator: "\n", omittingEmptySubsequences: false).dropLast() {
      let words = line.split(separator: " ")
      guard words.count == 4, let number = Int(words[1]), let at = Int(words[2]), let time = Double(words[3]) else {
        continue
      }
      if words[0] == "w" {
        issued = number
        unflushedZones.insert(at / Self.zoneBytes)
        times.append((at / Self.zoneBytes, time))
      } else {
        flushed = number
        unflushedZones = []
      }
    }
  }

  func zones(inTheLast seconds: Double) -> Set<Int> {
    Set(times.filter { $0.at > (times.last?.at ?? 0) - seconds }.map(\.zone))
  }
  var allZones: Set<Int> { Set(times.map(\.zone)) }
}

extension Labs {
  static let sparse = Lab("sparse")
}

extension Trait where Self == InLab {
  static var sparseLab: InLab { InLab(clusterOf: Labs.sparse) }
}

extension AllLabs {
  /// Never a zone that cannot differ is compared, never a byte sent that does not differ: however large the image is.
  @Suite(.serialized, .sparseLab)
  struct SparseImage {
    var lab: Lab { Labs.sparse }
    static let images = "/var/lib/libvirt/images"
    static let seed = Machine.number("VMHA_LAB_SEED", default: Int(UInt32.random(in: 1...UInt32.max)))

    /// A zone that nobody wrote for two rounds of 5 s is cleared (R3); what a busy machine takes longer is allowed for.
    static let clearedAfterSeconds = 15.0

    @Test func powerCutUnderRandomWrites() async throws {
      let image = "\(Self.images)/big/big.raw"
      let seed = Self.seed
      try await lab.scenario("power cut under random writes to a 20 GiB sparse image (VMHA_LAB_SEED=\(seed))") {
        try await define("node1", "big", size: "\(SparseWriter.imageGiB)G")
        try await lab.vmha("node1", "add", "big", "--yes", "--quiet")
        try await lab.vmha("node1", "start", "big", "--quiet")
        try await lab.must("wait-for", "protected", "big", "--timeout", "120", within: 130)
        let writer = try lab.start(["exec", "node1", "python3", "-c", SparseWriter.write(image, seed: seed)])
        try await Task.sleep(for: .seconds(20))
        try await lab.must("power-cut", "node1")
        let written = SparseWriter(try await writer.finish(within: 120).out)
        #expect(written.flushed > 100 && written.issued - written.flushed <= SparseWriter.batch)
        try await lab.until("node2 serves it", on: "node2", within: 60) { view in
          let node = try view.module("big").primary
          return node?.node == "node2" && node?.state == "ALONE" && node?.guest == "running"
        }
        let check = SparseWriter.verify(image, seed: seed, flushed: written.flushed, issued: written.issued)
        let verified = try await lab.must(["exec", "node2", "python3", "-c", check], within: 60).out
        #expect(verified.hasSuffix(" 0\n") && verified.hasPrefix("0") == false, "places, lost: \(verified)")
        try await lab.must("boot", "node1")
        let took = try await lab.until("in sync again", on: "node2", within: 120) { try $0.module("big").isProtected }
        guard let resync = try await lab.lastResync("big", on: "node2") else {
          throw CommandFailure(description: "node2 tells of no resync")
        }
        let zones = written.unflushedZones.count
        let recent = written.zones(inTheLast: Self.clearedAfterSeconds).count
        print(
          "lab: \(written.issued) writes in \(written.allZones.count) zones of 1 MiB, \(recent) of them recently,"
            + " \(zones) since the last flush; \(resync); in sync \(String(format: "%.1f", took)) s after the boot")
        #expect(resync.sent <= 2 * max(zones, 1) * SparseWriter.zoneBytes)
        #expect(resync.compared <= recent * SparseWriter.zoneBytes)
        try await lab.vmha("node2", "stop", "big", "--timeout", "1", "--quiet")
        try await lab.must("wait-for", "stopped", "big")
        var sums: [String] = []
        for node in ["node1", "node2"] {
          let sum = SparseWriter.sum("\(Self.images)/.vmha-big/big.raw")
          sums.append(try await lab.must(["exec", node, "python3", "-c", sum], within: 60).out)
        }
        #expect(sums[0] == sums[1] && sums[0].count == 65, "the copies differ: \(sums)")
        try await lab.vmha("node2", "remove", "big", "--yes", "--purge-copy", "--quiet")
      }
    }

    /// A domain without anything to boot: it costs little and writes nothing.
    private func define(_ node: String, _ vm: String, size: String) async throws {
      let script = """
        truncate -s \(size) \(Self.images)/\(vm).raw
        virsh -q define /dev/stdin <<X
        <domain type='qemu'><name>\(vm)</name><memory unit='MiB'>16</memory>
        <os><type arch='x86_64' machine='pc'>hvm</type></os>
        <devices><disk type='file' device='disk'><driver name='qemu' type='raw' cache='none'/>
        <source file='\(Self.images)/\(vm).raw'/><target dev='vda' bus='virtio'/></disk></devices></domain>
        X
        sync -f \(Self.images)
        """
      try await lab.must(["exec", node, "bash", "-euc", script])
    }
  }
}
