"""What is measured, by qemu-img bench and fio. A sample is the time of one operation and the CPU of the engines."""
import json
import re
from dataclasses import dataclass

import lab

MIB = 1 << 20
FILE_BYTES = 1024 * MIB
# Of a sparse file; each sample on untouched zones gets a region of its own.
SPARSE_BYTES = 100 * 1024 * MIB
REGION_BYTES = 4096 * MIB


@dataclass
class Sample:
    us: float          # time from one completion to the next, on average
    bytes_moved: int
    cpu: float         # seconds, of the processes that carry the data on both nodes

    @property
    def mib_per_second(self):
        return self.operation_bytes / MIB / (self.us / 1e6)

    operation_bytes: int = 0


@dataclass
class QemuBench:
    """qemu-img bench, which reaches every target."""
    name: str
    title: str
    is_write: bool
    depth: int
    size: int
    count: int
    step: int
    aio: str = "native"

    def fits(self, target):
        # The guest's own aio is that of the image file; a peer behind a socket has none to choose.
        return not target.is_remote or self.aio == "native"

    def measure(self, target, share):
        count = max(int(self.count * share * target.share), 16 * self.depth)
        image = ["-f", "raw", "-t", "none"] + ([] if target.is_remote else ["-i", self.aio])
        words = ["qemu-img", "bench", *image, *(["-w"] if self.is_write else []), "-d", str(self.depth),
                 "-c", str(count), "-s", str(self.size), "-S", str(self.step), target.address]
        before = target.cpu_seconds()
        output = target.lab.on(1, *words)
        spent = target.cpu_seconds() - before
        found = re.search(r"completed in ([0-9.]+) seconds", output)
        if not found:
            raise lab.LabError(f"qemu-img bench said: {output.strip()}")
        return Sample(float(found.group(1)) / count * 1e6, count * self.size, spent, self.size)


@dataclass
class Fio:
    name: str
    title: str
    mode: str
    depth: int
    size: int
    seconds: float = 1.0
    more: tuple = ()
    # On zones that no write has touched yet.
    is_fresh: bool = False
    bytes_max: int = 0
    is_settled: bool = False

    def fits(self, target):
        return target.is_module_or_local if self.is_fresh else target.has_fio

    def measure(self, target, share):
        if self.is_settled:
            # Else an fsync also pays for what the samples before left in the page cache.
            for node in (1, 2):
                target.lab.on(node, "sync", "-f", lab.IMAGES)
        before = target.cpu_seconds()
        words = ["fio", "--output-format=json", "--name=bench", f"--rw={self.mode}", f"--bs={self.size}",
                 f"--iodepth={self.depth}", "--thread", *target.fio(self.depth, self.is_fresh),
                 *(target.more(word) for word in self.more),
                 f"--size={REGION_BYTES if self.is_fresh else FILE_BYTES}"]
        if self.is_fresh:
            words.append(f"--offset={target.next_region() * REGION_BYTES}")
        if self.bytes_max:
            words.append(f"--io_size={int(self.bytes_max * share) // self.size * self.size}")
        else:
            words += ["--time_based", f"--runtime={max(int(self.seconds * share * 1000), 200)}ms"]
        output = target.lab.on(1, *words)
        spent = target.cpu_seconds() - before
        job = json.loads(output[output.index("{"):])["jobs"][0]
        if job["error"] != 0:
            raise lab.LabError(f"fio failed on {target.name}: error {job['error']}")
        runtime = max(job["read"]["runtime"], job["write"]["runtime"])
        operations = job["read"]["total_ios"] + job["write"]["total_ios"]
        moved = job["read"]["io_bytes"] + job["write"]["io_bytes"]
        return Sample(runtime * 1000 / max(operations, 1), moved, spent, self.size)


STRIDE = MIB + 4096
WARM_UP = QemuBench("warm-up", "", True, 16, 4096, 2000, STRIDE)
ALL = [
    QemuBench("write-4k-d1", "4 KiB write, depth 1", True, 1, 4096, 4000, STRIDE),
    QemuBench("write-4k-d16", "4 KiB write, depth 16", True, 16, 4096, 16000, STRIDE),
    QemuBench("write-4k-d16-threads", "4 KiB write, depth 16, aio=threads", True, 16, 4096, 16000, STRIDE, "threads"),
    QemuBench("write-64k-d4", "64 KiB write, depth 4", True, 4, 65536, 3000, MIB + 65536),
    QemuBench("write-1m", "1 MiB sequential write, depth 4", True, 4, MIB, 768, MIB),
    Fio("mixed-4k-d16", "4 KiB 70 % read 30 % write, depth 16", "randrw", 16, 4096, more=("--rwmixread=70",)),
    Fio("commit-4k", "4 KiB write + fdatasync, depth 1", "randwrite", 1, 4096, more=("--fdatasync=1",),
        is_settled=True),
    Fio("commit-log-4k", "4 KiB sequential write + fdatasync, depth 1", "write", 1, 4096, more=("--fdatasync=1",),
        is_settled=True),
    Fio("read-4k-d1", "4 KiB random read, depth 1", "randread", 1, 4096),
    Fio("read-4k-d16", "4 KiB random read, depth 16", "randread", 16, 4096),
    QemuBench("read-1m", "1 MiB sequential read, depth 4", False, 4, MIB, 1024, MIB),
    Fio("fresh-random-4k", "4 KiB random write, each zone's first touch, depth 1", "randwrite", 1, 4096,
        more=("--blockalign=1m",), is_fresh=True, is_settled=True, bytes_max=1000 * 4096),
    Fio("fresh-stream-64k", "64 KiB sequential write on untouched zones, depth 4", "write", 4, 65536, is_fresh=True,
        bytes_max=256 * MIB),
]
