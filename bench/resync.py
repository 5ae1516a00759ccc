"""How long a copy takes to become whole again: a new file, scattered differences, and after a power cut."""
import json
import statistics
import time

from lab import IMAGES, LabError, say
from workloads import MIB, SPARSE_BYTES

DONE_SECONDS_MAX = 300
GIB = 1 << 30
HOT_ZONES = 16

# Sends a file over TCP, or takes one and makes it durable: what "a plain copy" of these bytes takes on this machine.
COPY = r"""
import os, socket, sys
role, path, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
if role == "take":
    server = socket.create_server(("10.77.1.2", 9999)); print("ready", flush=True); peer, _ = server.accept()
    memory = memoryview(bytearray(1 << 20))
    with open(path, "wb", buffering=0) as file:
        while (count := peer.recv_into(memory)): file.write(memory[:count])
        os.fsync(file.fileno())
    peer.send(b"1")
else:
    import time
    begun = time.monotonic(); peer = socket.create_connection(("10.77.1.2", 9999))
    with open(path, "rb") as file: peer.sendfile(file, 0, size)
    peer.shutdown(socket.SHUT_WR); assert peer.recv(1) == b"1"
    print(time.monotonic() - begun)
"""
# Writes `count` MiB of random bytes, one zone in each `stride` of them.
SCATTER = r"""
import os, sys
path, count, stride = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open(path, "r+b", buffering=0) as file:
    for n in range(count):
        file.seek(n * stride << 20); file.write(os.urandom(1 << 20))
    os.fsync(file.fileno())
"""
# Rewrites random blocks of the first zones until it is killed.
HOT = r"""
import os, random, sys
file = os.open(sys.argv[1], os.O_RDWR)
while True: os.pwrite(file, os.urandom(4096), random.randrange(int(sys.argv[2]) * 256) * 4096)
"""


def measure(playground, everyone, is_quick):
    """Each in seconds; the module that was alone is used for the first two."""
    target = next(t for t in everyone if t.name == "alone")
    size = GIB // 8 if is_quick else GIB
    found = {}
    # What the measurements before have left to copy is not counted.
    join(playground, target)
    say("a plain copy")
    plain = [plain_copy(playground, everyone[0].address, size) for _ in range(3)]
    found["plain"] = {"title": f"plain copy of {size // MIB} MiB over TCP, with fsync, without TLS",
                      "seconds": round(statistics.median(plain), 2), "MiB_per_second": rate(size, plain)}
    say("a full resync")
    found["full"] = full(playground, target, size)
    say("differences in a sparse image of 100 GiB")
    found["delta"] = delta(playground, target, size)
    found["delta"]["times_a_plain_copy"] = round(found["delta"]["seconds"] / statistics.median(plain), 2)
    say("a power cut")
    found["crash"] = crash(playground, target)
    return found


def rate(size, seconds):
    return round(size / MIB / statistics.median(seconds))


def settle(playground):
    """What was measured before must not be written back at the cost of this."""
    for node in (1, 2):
        playground.on(node, "sync", "-f", IMAGES)


def plain_copy(playground, path, size):
    settle(playground)
    taker = playground.start(2, "python3", "-c", COPY, "take", f"{IMAGES}/bench/copy", str(size))
    if taker.stdout.readline().strip() != "ready":
        raise LabError("the receiver of a plain copy did not start")
    seconds = float(playground.on(1, "python3", "-c", COPY, "give", path, str(size)))
    taker.wait(timeout=60)
    playground.on(2, "rm", f"{IMAGES}/bench/copy")
    return seconds


def part(playground, target):
    playground.part_engines(target.number)
    playground.wait_for_state(target.vm, 1, "ALONE")


def join(playground, target):
    """Lets the engines meet again, and waits for the resync."""
    settle(playground)
    last = max((event["id"] for event in journal(playground, target.vm)), default=0)
    playground.join_engines(target.number)
    return finished(playground, target.vm, last)


def journal(playground, vm, node=1):
    lines = playground.on(node, "vmha", "log", "--json", "-n", "200", vm).splitlines()
    return [json.loads(line) for line in lines]


def finished(playground, vm, last, node=1):
    """From the connection of the engines to the moment from which both copies count as the same."""
    deadline = time.monotonic() + DONE_SECONDS_MAX
    while time.monotonic() < deadline:
        new = [event for event in journal(playground, vm, node) if event["id"] > last]
        done = next((event for event in new if event["kind"] == "resync_done"), None)
        begun = next((event for event in reversed(new) if is_connection(event)), None)
        insync = next((event for event in new if done and event["id"] > done["id"]
                       and event["sentence"].startswith(("in sync", "the guest runs here, in sync"))), None)
        if begun and insync:
            seconds = (insync["monotonic_ns"] - begun["monotonic_ns"]) / 1e9
            details = done["details"]
            return {"seconds": round(seconds, 2), "MiB_compared": round(int(details["bytes_compared"]) / MIB, 1),
                    "MiB_sent": round(int(details["bytes_sent"]) / MIB, 1)}
        time.sleep(0.2)
    raise LabError(f"{vm}: no resync ended within {DONE_SECONDS_MAX} s")


def is_connection(event):
    return event["kind"] == "decision" and event["sentence"].startswith("connected to")


def full(playground, target, size):
    """A file that the other node has never seen."""
    part(playground, target)
    path = f"{IMAGES}/{target.vm}/full.raw"
    playground.shell(1, 'head -c "$2" /dev/urandom > "$1"; sync "$1"', path, str(size))
    result = join(playground, target)
    result["title"] = f"full resync of a new file of {size // MIB} MiB"
    result["MiB_per_second"] = rate(size, [result["seconds"]])
    playground.on(1, "rm", path)
    return result


def delta(playground, target, size):
    """Zones of a large, mostly empty image, all of whose data was rewritten while the other node was away."""
    path = f"{IMAGES}/{target.vm}/delta.raw"
    count = size // MIB
    stride = SPARSE_BYTES // MIB // count
    playground.on(1, "truncate", "-s", str(SPARSE_BYTES), path)
    playground.on(1, "python3", "-c", SCATTER, path, str(count), str(stride))
    # So that the map knows the file, as it does any that was there when its module began.
    part(playground, target)
    join(playground, target)
    part(playground, target)
    playground.on(1, "python3", "-c", SCATTER, path, str(count), str(stride))
    result = join(playground, target)
    result["title"] = f"delta resync: {count} zones rewritten in a sparse image of 100 GiB"
    playground.on(1, "rm", path)
    return result


def crash(playground, target):
    """The writing node loses its power; the other takes over; the first returns with its map."""
    path = f"{IMAGES}/{target.vm}/bench.raw"
    playground.start(1, "python3", "-c", HOT, path, str(HOT_ZONES))
    # Longer than two rounds of clearing: only what is hot is left in the maps.
    time.sleep(15)
    last = max((event["id"] for event in journal(playground, target.vm, 2)), default=0)
    playground.tool("power-cut", "node1")
    playground.wait_for_state(target.vm, 2, "ALONE")
    began = time.monotonic()
    playground.tool("boot", "node1")
    result = finished(playground, target.vm, last, node=2)
    result["title"] = f"after a power cut of the writing node, {HOT_ZONES} zones hot"
    result["seconds_since_boot_began"] = round(time.monotonic() - began, 1)
    return result
