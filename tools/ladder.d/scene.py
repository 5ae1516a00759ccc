"""One lab with one guest, and what the guest acknowledged on its console: no pulled cable silences that."""
import json
import os
import re
import subprocess
import threading
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
LABS = os.environ.get("LAB_DIR", "/var/tmp/vmha-lab")
VM = "vm1"
NODES = ("node1", "node2")
# Seconds.
COMMAND_MAX = 180
STATUS_MAX = 15
LOOK_PERIOD = 0.05
PROTECTED_MAX = 150
HISTORY_MAX = 60
SERVED_MAX = 90
# A start of the guest that acknowledges for longer than this beside another node's is a second writer.
OVERLAP_MAX = 0.5
ACKNOWLEDGED = re.compile(rb"ACK boot=(\d+) begun=(\d+) seq=(\d+)\r?\n")
HISTORY = re.compile(r"boot=(\d+) begun=(\d+) last=(\d+)")

ASK_HISTORY = r'exec 3<> "/dev/tcp/$1/80" && printf "GET /history HTTP/1.0\r\n\r\n" >&3 && cat <&3'


class Trouble(Exception):
    """What could not be done, with the last words of who said so."""


def other(node):
    return NODES[1 - NODES.index(node)]


def run(command, limit):
    """(exit code, standard output, standard error). Never longer than `limit` seconds."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True)
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, 9)
        process.wait()
        raise Trouble(f"{' '.join(command[3:])} did not end in {limit} s") from error
    return process.returncode, out, err


class Consoles(threading.Thread):
    """Reads both nodes' consoles as they grow."""

    def __init__(self, lab_name):
        super().__init__(daemon=True)
        self.files = {n: f"{LABS}/{lab_name}/n{n[-1]}/var-log-libvirt/qemu/{VM}-console.log" for n in NODES}
        self.places = dict.fromkeys(NODES, 0)
        self.lock = threading.Lock()
        self.over = threading.Event()
        # (moment, node, boot, begun, seq), in the order in which they were seen.
        self.all = []

    def run(self):
        while not self.over.wait(LOOK_PERIOD):
            for node in NODES:
                self.look(node)

    def look(self, node):
        try:
            with open(self.files[node], "rb") as file:
                file.seek(self.places[node])
                new = file.read()
        except FileNotFoundError:
            return
        now, end = time.monotonic(), 0
        for match in ACKNOWLEDGED.finditer(new):
            end = match.end()
            with self.lock:
                self.all.append((now, node, *(int(word) for word in match.groups())))
        # A line that is half there is read again; one that a power cut tore is left behind with what follows it.
        self.places[node] += end

    def count(self):
        with self.lock:
            return len(self.all)

    def since(self, place):
        with self.lock:
            return self.all[place:]


class Scene:
    """A lab whose guest is protected under one arbiter."""

    def __init__(self, name, programs, arbiter):
        self.name, self.programs, self.arbiter = name, programs, arbiter
        self.consoles = None
        self.manual, self.warnings = [], {}
        # What was acknowledged from here on is not yet shown to be on the disk.
        self.proven, self.lost = 0, 0

    # commands

    def try_tool(self, *words, limit=COMMAND_MAX):
        return run([f"{REPOSITORY}/tools/lab", "--name", self.name, *words], limit)

    def tool(self, *words, limit=COMMAND_MAX):
        code, out, err = self.try_tool(*words, limit=limit)
        if code != 0:
            last = " / ".join((err.strip() or out.strip()).splitlines()[-3:])
            raise Trouble(f"{' '.join(words)} failed (exit code {code}): {last}")
        return out

    def on(self, node, *words, limit=COMMAND_MAX):
        return self.tool("exec", node, *words, limit=limit)

    def together(self, *commands):
        """Commands at the same moment."""
        failed = []

        def one(words):
            try:
                self.tool(*words)
            except Trouble as error:
                failed.append(error)
        threads = [threading.Thread(target=one, args=(words,)) for words in commands]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]

    # what stands

    def up(self):
        self.down()
        self.tool("up", "--bin", self.programs)
        self.tool("cluster")
        self.tool("guest", VM, "--node", "node1", "--interval", "100", "--tell-console")
        self.on("node1", "vmha", "add", VM, "--yes", "--quiet", "--prefer", "node1")
        # What is measured is who may go on, not how long a site waits for a host that boots.
        self.on("node1", "vmha", "cluster", "set", "boot-wait=15s")
        self.on("node1", "vmha", "start", VM, "--quiet")
        self.consoles, self.proven, self.lost = Consoles(self.name), 0, 0
        self.consoles.start()
        self.wait_protected()
        self.tool("arbiter", self.arbiter)

    def down(self):
        if self.consoles:
            self.consoles.over.set()
            self.consoles.join()
            self.consoles = None
        self.try_tool("down")

    def power(self):
        status = json.loads(self.tool("status", "--json", limit=STATUS_MAX))
        return {node["name"]: node for node in status["nodes"]}

    def views(self):
        """What each node that answers says of the VM: {node: (own part, module)}; and what it warns of."""
        found = {}
        for node in NODES:
            try:
                code, out, _ = self.try_tool(
                    "exec", node, "timeout", "5", "vmha", "status", "--json", limit=STATUS_MAX)
                if code != 0:
                    continue
                status = json.loads(out)
                module = next(m for m in status["modules"] if m["name"] == VM)
                self.warnings[node] = [w["what"] for w in status["warnings"] if w["what"].startswith("DEGRADED")]
                found[node] = (next(n for n in module["nodes"] if n["node"] == node), module)
            except (Trouble, StopIteration, ValueError):
                continue
        return found

    @staticmethod
    def is_protected(views):
        own = [view[0] for view in views.values()]
        return len(own) == 2 and not any(view[1]["split"] for view in views.values()) and sorted(
            (n["state"], n["readiness"], n.get("standing")) for n in own
        ) == [("PRIM", "ready", "uptodate"), ("SECOND", "ready", "uptodate")] and all(
            n["state"] != "PRIM" or n["guest"] == "running" for n in own)

    def wait_protected(self):
        """In sync again. Does what an operator is told to do, and notes it. Returns the primary's node."""
        deadline, acted = time.monotonic() + PROTECTED_MAX, 0
        while True:
            views = self.views()
            if self.is_protected(views):
                return next(n for n, view in views.items() if view[0]["state"] == "PRIM")
            if time.monotonic() > deadline:
                said = "; ".join(f"{n}: {v[0]['state']} {v[0]['readiness']}: {v[0]['sentence']}" for n, v in views.items())
                raise Trouble(f"not in sync after {PROTECTED_MAX} s: {said}")
            if len(views) == 2 and time.monotonic() - acted > 10 and self.operate(views):
                acted = time.monotonic()
            time.sleep(1)

    def operate(self, views):
        if any(view[1]["split"] for view in views.values()):
            served = [entry[1] for entry in self.consoles.since(self.proven)]
            keep = max(NODES, key=served.count)
            return self.by_hand(f"resolve --keep {keep}", "exec", "node1", "vmha", "resolve", VM, "--keep", keep, "--yes")
        for name, (own, module) in views.items():
            _, domain, _ = self.try_tool("exec", name, "timeout", "5", "virsh", "domstate", VM, "--reason")
            if domain.strip() == "paused (I/O error)":
                return self.by_hand("virsh resume", "exec", name, "virsh", "resume", VM)
            if own["readiness"] == "blocked" or module["wish"] == "stopped":
                return self.by_hand("vmha start", "exec", name, "vmha", "start", VM)
        return False

    def by_hand(self, what, *words):
        if what not in self.manual:
            self.manual.append(what)
        # Whether it did what it should is seen by what the nodes say next.
        self.try_tool(*words)
        return True

    def wait_served(self):
        """The guest acknowledges; returns the place in what it did from which on that is so."""
        place = self.consoles.count()
        deadline = time.monotonic() + SERVED_MAX
        while len(self.consoles.since(place)) < 10:
            if time.monotonic() > deadline:
                raise Trouble(f"the guest acknowledges nothing within {SERVED_MAX} s before the fault")
            time.sleep(0.2)
        return place

    def to_prove(self):
        entries = self.consoles.since(self.proven)
        self.proven += len(entries)
        return entries

    def history(self):
        """What the running guest's disk holds: {(boot, begun): last record}."""
        deadline = time.monotonic() + HISTORY_MAX
        address = next(g["address"] for g in json.loads(self.tool("status", "--json"))["guests"] if g["name"] == VM)
        while True:
            code, out, _ = self.try_tool("client", "timeout", "5", "bash", "-c", ASK_HISTORY, "bash", address)
            if code == 0 and "boot=" in out:
                return {(int(b), int(t)): int(last) for b, t, last in HISTORY.findall(out)}
            if time.monotonic() > deadline:
                raise Trouble(f"{VM} does not answer after {HISTORY_MAX} s")
            time.sleep(0.3)


def lost(entries, history):
    """Records that a console acknowledged and the disk does not hold."""
    count = 0
    for _, _, boot, begun, sequence in entries:
        if history.get((boot, begun), 0) < sequence:
            count += 1
    return count


def writers_overlap(entries):
    """For how long in seconds a start of the guest went on to acknowledge after another node's start had begun to. The first record
    of those does not count: it may have been acknowledged before, and only been printed when a node that stood still went on.
    What follows it was written later."""
    spans = {}
    for moment, node, boot, begun, _ in entries:
        spans.setdefault((node, boot, begun), []).append(moment)
    longest = 0.0
    for one, moments in spans.items():
        for two, (begin, *_) in spans.items():
            late = [moment for moment in moments if moment > begin][1:]
            if one[0] != two[0] and moments[0] <= begin and late:
                longest = max(longest, late[-1] - begin)
    return longest
