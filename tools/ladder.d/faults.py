"""The faults of docs/operating/failures.md, as the lab can make them."""
import time
from dataclasses import dataclass
from typing import Callable

from scene import NODES, VM, Trouble


@dataclass(frozen=True)
class Fault:
    name: str
    text: str
    # (scene, node of the guest, node of the copy)
    make: Callable
    # Seconds that are watched at least, and at most until service.
    watch: float = 12
    limit: float = 45
    # What has to be so already, and is not measured.
    before: Callable = lambda scene: None
    # What the arbiter asks is not to be had under these: nothing to show.
    without: tuple = ()


def cut_both(scene, *first):
    scene.together(("power-cut", "node1"), ("power-cut", "node2"))
    for node in first:
        scene.tool("boot", node)


def freeze(scene, node, seconds):
    scene.tool("freeze", node)
    time.sleep(seconds)
    # Under a fence it may be without power by now.
    if scene.power()[node]["power"] == "frozen":
        scene.tool("thaw", node)


def hang(scene, node, seconds):
    scene.tool("disk", node, "hang")
    time.sleep(seconds)
    if scene.power()[node]["power"] != "off":
        scene.tool("disk", node, "go-on")


def arbiter_stops(scene):
    scene.tool("arbiter", "stop")
    # Until both nodes have looked: what is said before the day it is needed. A fence device is asked once a minute.
    time.sleep(90 if "fence" in scene.arbiter else 15)


FAULTS = [
    Fault("power-primary", "power cut of the guest's node", lambda s, p, c: s.tool("power-cut", p)),
    Fault("power-copy", "power cut of the copy's node", lambda s, p, c: s.tool("power-cut", c)),
    Fault("power-both-primary-returns", "power cut of both; the guest's node alone returns",
          lambda s, p, c: cut_both(s, p), watch=10, limit=90),
    Fault("power-both-copy-returns", "power cut of both; the copy's node alone returns",
          lambda s, p, c: cut_both(s, c), watch=10, limit=90),
    Fault("power-both-return", "power cut of both; the copy's node returns first, then the other one",
          lambda s, p, c: cut_both(s, c, p), watch=10, limit=90),
    Fault("links-all", "all cables of the guest's node pulled", lambda s, p, c: s.tool("cut", p, "both"), watch=20),
    Fault("link-repl", "the replication cable pulled", lambda s, p, c: s.tool("cut", p, "repl")),
    Fault("link-lan", "the LAN cable of the guest's node pulled", lambda s, p, c: s.tool("cut", p, "lan")),
    Fault("oneway-primary", "the guest's node is not heard any more, and hears",
          lambda s, p, c: s.tool("oneway", p, "both"), watch=20),
    Fault("oneway-copy", "the copy's node is not heard any more, and hears",
          lambda s, p, c: s.tool("oneway", c, "both"), watch=20),
    Fault("vmhad-copy", "vmhad of the copy's node killed", lambda s, p, c: s.tool("kill", c, "vmhad"), watch=8),
    Fault("vmhad-both", "vmhad of both nodes killed",
          lambda s, p, c: s.together(("kill", p, "vmhad"), ("kill", c, "vmhad")), watch=8),
    Fault("engine", "the engine under the guest killed", lambda s, p, c: s.tool("kill", p, "vmha-replicad", VM), watch=8),
    Fault("keeper", "the engine and its keeper under the guest killed",
          lambda s, p, c: s.tool("kill", p, "vmha-keeper", VM)),
    Fault("qemu", "QEMU killed", lambda s, p, c: s.tool("kill", p, "qemu", VM), watch=8),
    Fault("freeze", "the guest's node stands still for 10 s, then goes on", lambda s, p, c: freeze(s, p, 10), watch=20),
    Fault("disk-full-primary", "the disk under the guest is full", lambda s, p, c: s.tool("disk", p, "fill"),
          watch=20, limit=25),
    Fault("disk-full-copy", "the disk of the copy is full", lambda s, p, c: s.tool("disk", c, "fill")),
    Fault("disk-fails-primary", "the disk under the guest gives EIO for everything",
          lambda s, p, c: s.tool("disk", p, "fail")),
    Fault("disk-fails-copy", "the disk of the copy gives EIO for everything", lambda s, p, c: s.tool("disk", c, "fail")),
    Fault("disk-hangs-primary", "the disk under the guest hangs for 20 s", lambda s, p, c: hang(s, p, 20), watch=25),
    Fault("disk-hangs-primary-long", "the disk under the guest hangs for 90 s", lambda s, p, c: hang(s, p, 90), watch=95,
          limit=150),
    Fault("disk-hangs-copy", "the disk of the copy hangs for 20 s", lambda s, p, c: hang(s, c, 20), watch=25),
    Fault("arbiter", "what the arbiter asks gives no answer, nothing else", lambda s, p, c: None,
          watch=8, before=arbiter_stops, without=("none",)),
    Fault("arbiter-power", "the same, then a power cut of the guest's node", lambda s, p, c: s.tool("power-cut", p),
          watch=20, limit=20, before=arbiter_stops, without=("none",)),
]


def mend(scene):
    """Takes back whatever a fault has done to either node. Powers on what is off, also by a fence."""
    for node, state in scene.power().items():
        if state["power"] == "frozen":
            scene.tool("thaw", node)
        if state["power"] != "off":
            scene.tool("disk", node, "go-on")
            scene.tool("disk", node, "free")
            if broken(scene, node):
                scene.tool("power-cut", node)
        if any(word != "ok" for word in state["links"].values()):
            scene.tool("heal", node, "both")
            scene.tool("unblock", node, "both")
    if scene.arbiter != "none":
        scene.tool("arbiter", "start")
    for node, state in scene.power().items():
        if state["power"] == "off":
            scene.tool("boot", node)
    for node in NODES:
        scene.tool("wait-for", "vmhad", node, "--timeout", "60")


def broken(scene, node):
    """Its disk refuses: only a boot mends that."""
    try:
        code, _, _ = scene.try_tool("exec", node, "timeout", "5", "touch", "/var/lib/vmha/.ladder", limit=15)
    except Trouble:
        return True
    return code != 0
