import FoundationEssentials
import Glibc
import HostSystem
import Model
import ReplicatedFiles
import Replication
import Testing

/// Not a test of right or wrong: prints latencies against a plain file of the same disk. Only with VMHA_MEASURE set, and
/// meaningful only in a release build.
@Suite(.serialized, .enabled(if: getenv("VMHA_MEASURE") != nil))
struct Measurements {
  @Test func latencies() throws {
    let pair = try Pair()
    defer { pair.end() }
    let session = try pair.connect()
    try pair.inSync(source: pair.one, target: pair.two, session)
    let disks = [("plain file", pair.folder), ("replicated", pair.one.mountPoint)]
    for (_, folder) in disks {
      try shell("dd if=/dev/zero of=$1/bench.img bs=1M count=1024 status=none; sync", [folder])
    }
    let cases = [
      ("4 KiB write depth 1", "-w -s 4k -d 1 -c 20000"), ("4 KiB write depth 16", "-w -s 4k -d 16 -c 60000"),
      ("1 MiB write depth 4", "-w -s 1M -d 4 -c 2000"), ("4 KiB read depth 1", "-s 4k -d 1 -c 20000"),
    ]
    for (name, options) in cases {
      for mode in ["native", "threads"] {
        for (what, folder) in disks {
          var runs: [Double] = []
          for _ in 0..<3 {
            let text = try shell(
              "qemu-img bench -f raw -t none -i \(mode) \(options) $1/bench.img 2>&1",
              [folder])
            if let seconds = text.split(separator: " ").compactMap({ Double($0) }).last { runs.append(seconds) }
          }
          let count = Double(options.split(separator: " ").last ?? "1") ?? 1
          print("MEASURE \(name) \(mode) \(what): \(runs.sorted().map { Int($0 / count * 1e6) }) us an operation")
        }
      }
    }
  }

  @Test func resyncRate() throws {
    let pair = try Pair()
    defer { pair.end() }
    let bytes = 2_000_000_000
    try shell(
      "head -c $2 /dev/urandom > $1/disk; truncate -s 100G $1/thin; sync $1/disk", [pair.one.backing, "\(bytes)"])
    let session = try pair.connect()
    try pair.one.mount()
    pair.one.tell(.setPolicy(.alone))
    for load in [false, true] {
      try pair.two.accept(session)
      let over = Flag()
      let path = "\(pair.one.mountPoint)/disk"
      let guest = try HostThread.start(name: "guest", detached: false) {
        guard load else { return }
        var count = 0
        let file = open(path, O_WRONLY)
        let block = [UInt8](repeating: 7, count: 4096)
        while !over.isSet {
          _ = pwrite(file, block, block.count, off_t(count % 100_000 * 4096))
          count += 1
        }
        close(file)
        print("MEASURE guest writes during the resync: \(count)")
      }
      let start = monotonicNow()
      try pair.one.resync(session)
      let seconds = Double((monotonicNow() - start).milliseconds) / 1000
      over.set()
      guest.join()
      pair.one.tell(.setPolicy(.alone))
      let rate = Int(Double(bytes) / seconds / 1e6)
      print("MEASURE resync, guest \(load ? "writing" : "idle"): \(rate) MB/s, \(seconds) s")
    }
  }
}
