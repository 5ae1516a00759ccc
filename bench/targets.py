"""Where the writes go: a local file, two modules (in sync, and alone), QEMU's synchronous mirror, Gluster replica 2."""
import json
import shutil
import time

import lab
import resync
from lab import IMAGES, LabError, say
from workloads import FILE_BYTES, REGION_BYTES, SPARSE_BYTES

READY_SECONDS_MAX = 120
FOLDER = f"{IMAGES}/bench"


class Target:
    is_remote = False
    has_fio = True
    is_module_or_local = False
    # Of the operations of a sample, for a target so slow that the whole would take too long.
    share = 1.0

    def __init__(self, playground, name, address, carriers=()):
        self.lab = playground
        self.name = name
        self.address = address
        self.carriers = carriers
        self.regions_used = 0

    def cpu_seconds(self):
        return lab.cpu_seconds(self.carriers)

    def fio(self, depth, is_fresh):
        engine = ["--ioengine=libaio"] if depth > 1 else ["--ioengine=psync"]
        return [*engine, "--direct=1", f"--filename={self.sparse if is_fresh else self.address}"]

    def more(self, word):
        return word

    @property
    def sparse(self):
        return f"{self.address}.sparse"

    def next_region(self):
        self.regions_used += 1
        if self.regions_used * REGION_BYTES >= SPARSE_BYTES:
            raise LabError("too many rounds: no untouched zones are left")
        return self.regions_used


class QemuMirror(Target):
    is_remote = True

    def fio(self, depth, is_fresh):
        return ["--ioengine=nbd", "--uri=nbd+unix:///mirror?socket=/run/bench-mirror.sock"]

    def more(self, word):
        # NBD knows one flush, and fio's engine calls it fsync.
        return word.replace("fdatasync", "fsync")


def prepare(playground, with_peers):
    """Targets in the order in which they are measured, and what had to be left out, with the reason."""
    skipped = {}
    for node in (1, 2):
        playground.on(node, "mkdir", "-p", FOLDER)
    say("a file of random bytes")
    local = Target(playground, "local", f"{FOLDER}/local.raw")
    playground.shell(1, 'head -c "$2" /dev/urandom > "$1"; sync -f "$1"', local.address, str(FILE_BYTES))
    local.is_module_or_local = True
    playground.on(1, "truncate", "-s", str(SPARSE_BYTES), local.sparse)
    everyone = [local]
    for vm, name in (("vm1", "in-sync"), ("vm2", "alone")):
        say(f"module {vm} ({name})")
        number = playground.protect(vm)
        target = Target(playground, name, f"{IMAGES}/{vm}/bench.raw")
        target.is_module_or_local = True
        target.vm, target.number = vm, number
        fill(target, local)
        playground.on(1, "truncate", "-s", str(SPARSE_BYTES), target.sparse)
        # A file gets its place in the write-intent map with the first resync that finds it.
        resync.part(playground, target)
        resync.join(playground, target)
        if name == "alone":
            resync.part(playground, target)
        everyone.append(target)
    for target in everyone[1:]:
        target.carriers = engines(playground, target.vm)
    if with_peers:
        for name, make in (("qemu-mirror", mirror), ("gluster", gluster)):
            try:
                say(name)
                everyone.append(make(playground, local))
            except (LabError, OSError, ValueError) as error:
                skipped[name] = str(error).splitlines()[-1]
                say(f"{name} is left out: {error}")
    return everyone, skipped


def fill(target, local):
    target.lab.shell(1, 'dd if="$1" of="$2" bs=1M conv=fsync status=none', local.address, target.address)


def engines(playground, vm):
    found = []
    for node in (1, 2):
        for process in playground.processes(node, "vmha-replicad"):
            with open(f"/proc/{process}/cmdline", "rb") as file:
                if vm.encode() in file.read().split(b"\0"):
                    found.append(process)
    return found


# Addresses for QEMU's NBD connection alone, on the wire that the engines use.
MIRROR_NETWORK = "10.77.9"


def quick_network(playground):
    """QEMU 7.2's NBD server leaves Nagle's algorithm on: of the answers to several requests each but the first would wait for
    the client's delayed acknowledgement, 40 ms. To these addresses acknowledgements are not delayed."""
    for node in (1, 2):
        own = f"{MIRROR_NETWORK}.{node}"
        playground.on(node, "ip", "address", "add", f"{own}/24", "dev", "repl")
        playground.on(node, "ip", "route", "change", f"{MIRROR_NETWORK}.0/24", "dev", "repl", "proto", "kernel",
                      "scope", "link", "src", own, "quickack", "1")


def mirror(playground, local):
    for program in ("qemu-storage-daemon", "qemu-nbd"):
        if not shutil.which(program):
            raise LabError(f"{program} is not installed (qemu-utils, qemu-system-common)")
    quick_network(playground)
    playground.shell(1, 'cp --reflink=never "$1" "$2/mirror.raw"; sync -f "$2"', local.address, FOLDER)
    playground.shell(2, 'head -c "$2" /dev/zero > "$1/mirror.raw"; sync -f "$1"', FOLDER, str(FILE_BYTES))
    playground.start(
        2, "qemu-nbd", "-f", "raw", "--cache=none", "--aio=native", "-t", "-x", "mirror", "-b", f"{MIRROR_NETWORK}.2",
        "-p", "10809", f"{FOLDER}/mirror.raw")
    time.sleep(1)
    daemon = playground.start(
        1, "qemu-storage-daemon",
        "--blockdev", f"driver=file,node-name=f,filename={FOLDER}/mirror.raw,cache.direct=on,aio=native",
        "--blockdev", "driver=raw,node-name=source,file=f",
        "--blockdev", f"driver=nbd,node-name=target,server.type=inet,server.host={MIRROR_NETWORK}.2,server.port=10809,"
        "export=mirror",
        "--nbd-server", "addr.type=unix,addr.path=/run/bench-mirror.sock",
        "--chardev", "stdio,id=monitor", "--monitor", "chardev=monitor")
    command = qmp(daemon)
    command("qmp_capabilities")
    # Before the mirror begins, which then takes its place above the source: an export made later would write below it, to
    # this node alone.
    command("block-export-add", type="nbd", id="export", writable=True, name="mirror", **{"node-name": "source"})
    command("blockdev-mirror", **{
        "job-id": "mirror", "device": "source", "target": "target", "sync": "full", "copy-mode": "write-blocking"})
    deadline = time.monotonic() + READY_SECONDS_MAX
    while not any(job["ready"] for job in command("query-block-jobs")):
        if time.monotonic() > deadline:
            raise LabError(f"QEMU's mirror was not ready after {READY_SECONDS_MAX} s")
        time.sleep(0.2)
    prove(playground, "nbd+unix:///mirror?socket=/run/bench-mirror.sock", f"{FOLDER}/mirror.raw")
    carriers = playground.processes(1, "qemu-storage-da") + playground.processes(2, "qemu-nbd")
    target = QemuMirror(playground, "qemu-mirror", "nbd+unix:///mirror?socket=/run/bench-mirror.sock", carriers)
    engines_of_fio = playground.on(1, "fio", "--enghelp", check=False).split()
    target.has_fio = "nbd" in engines_of_fio
    return target


def prove(playground, address, copy):
    """What is written at `address` is in the other node's file when the write is acknowledged."""
    for pattern in (90, 165):
        playground.on(1, "qemu-img", "bench", "-f", "raw", "-t", "none", "-w", "-c", "1", "-s", "4096",
                      f"--pattern={pattern}", address)
        found = playground.shell(2, 'head -c 4096 "$1" | od -An -v -tu1 | tr -s " " "\\n" | sort -u', copy).split()
        if found != [str(pattern)]:
            raise LabError(f"a write at {address} did not reach {copy} on the other node")


def qmp(daemon):
    def answer():
        while True:
            line = daemon.stdout.readline()
            if not line:
                raise LabError("qemu-storage-daemon ended")
            message = json.loads(line)
            if "event" not in message:
                return message

    def command(name, /, **arguments):
        daemon.stdin.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        daemon.stdin.flush()
        message = answer()
        if "error" in message:
            raise LabError(f"QEMU refused {name}: {message['error'].get('desc')}")
        return message["return"]

    answer()
    return command


# As its documentation advises for images of virtual machines (group virt), and what helps it further.
GLUSTER_OPTIONS = {
    "performance.quick-read": "off", "performance.read-ahead": "off", "performance.io-cache": "off",
    "performance.low-prio-threads": "32", "network.remote-dio": "disable", "performance.strict-o-direct": "on",
    "cluster.eager-lock": "enable", "server.event-threads": "4", "client.event-threads": "4",
    "performance.client-io-threads": "on",
}


def gluster(playground, local):
    for program in ("glusterd", "gluster", "mount.glusterfs"):
        if not shutil.which(program):
            raise LabError(f"{program} is not installed (glusterfs-server)")
    for node in (1, 2):
        # The node's own layer over the machine's folder: both nodes begin as new ones.
        playground.shell(
            node, 'rm -rf /var/lib/glusterd/*; mkdir -p "$1/brick" /run/gluster /run/bench-gluster; glusterd', FOLDER)
    deadline = time.monotonic() + READY_SECONDS_MAX
    while "Connected" not in playground.on(1, "gluster", "--mode=script", "peer", "status", check=False):
        playground.on(1, "gluster", "--mode=script", "peer", "probe", "10.77.1.2", check=False)
        if time.monotonic() > deadline:
            raise LabError(f"Gluster's nodes did not find each other in {READY_SECONDS_MAX} s")
        time.sleep(0.5)
    time.sleep(2)
    playground.on(1, "gluster", "--mode=script", "volume", "create", "bench", "replica", "2",
                  f"10.77.1.1:{FOLDER}/brick", f"10.77.1.2:{FOLDER}/brick", "force")
    for option, value in GLUSTER_OPTIONS.items():
        playground.on(1, "gluster", "--mode=script", "volume", "set", "bench", option, value)
    playground.on(1, "gluster", "--mode=script", "volume", "start", "bench")
    time.sleep(2)
    playground.on(1, "mount", "-t", "glusterfs", "10.77.1.1:/bench", "/run/bench-gluster")
    carriers = [process for node in (1, 2) for process in playground.processes(node, "glusterfsd", "glusterfs")]
    target = Target(playground, "gluster", "/run/bench-gluster/bench.raw", carriers)
    # Ten times slower than the others.
    target.share = 0.15
    fill(target, local)
    return target
