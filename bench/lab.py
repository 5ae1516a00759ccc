"""Two nodes by tools/lab, and what the measurements need of them."""
import json
import os
import shlex
import subprocess
import sys
import time

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
IMAGES = "/var/lib/libvirt/images"
COMMAND_SECONDS_MAX = 600
TICKS = os.sysconf("SC_CLK_TCK")


class LabError(Exception):
    """What could not be done, with the last words of who said so."""


class Lab:
    def __init__(self, name):
        self.name = name
        self.background = []

    def tool(self, *words, check=True):
        return run([f"{REPOSITORY}/tools/lab", "--name", self.name, *words], check=check)

    def on(self, node, *words, check=True):
        return self.tool("exec", f"node{node}", *words, check=check)

    def shell(self, node, script, *words, check=True):
        return self.on(node, "bash", "-euc", script, "bash", *words, check=check)

    def start(self, node, *words):
        """A process of the node that runs on, with pipes. It ends with the lab at the latest."""
        command = [f"{REPOSITORY}/tools/lab", "--name", self.name, "exec", f"node{node}", *words]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.background.append(process)
        return process

    def up(self, programs):
        say("two nodes")
        self.tool("up", "--bin", programs, "--disk", "40G", "--direct-disk")
        self.tool("cluster")

    def down(self):
        for process in self.background:
            if process.poll() is None:
                process.kill()
        self.tool("down", check=False)

    # vmha

    def protect(self, vm):
        """A VM whose guest does next to nothing; its mount is what is measured. Answers the module's number."""
        self.tool("guest", vm, "--node", "node1", "--size", "64M", "--interval", "60000")
        self.on(1, "vmha", "add", vm, "--yes", "--quiet", "--prefer", "node1")
        self.on(1, "vmha", "start", vm, "--quiet")
        self.tool("wait-for", "protected", vm, "--timeout", "120")
        return self.module(vm)["number"]

    def module(self, vm, node=1):
        status = json.loads(self.on(node, "vmha", "status", "--json"))
        return next(module for module in status["modules"] if module["name"] == vm)

    def wait_for_state(self, vm, node, *states, seconds=60):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            here = next((n for n in self.module(vm, node)["nodes"] if n["id"] == node), {})
            if here.get("state") in states and here.get("readiness") == "ready":
                return
            time.sleep(0.1)
        raise LabError(f"{vm} on node{node} is not {' or '.join(states)} after {seconds} s")

    def part_engines(self, number):
        """The engines of one module do not reach each other; everything else does: it goes on ALONE on node 1."""
        self.on(2, "nft", "add", "table", "inet", f"bench{number}")
        self.on(2, "nft", "add", "chain", "inet", f"bench{number}", "in",
                "{ type filter hook input priority 0; }")
        self.on(2, "nft", "add", "rule", "inet", f"bench{number}", "in", "tcp", "dport", str(7440 + number), "drop")

    def join_engines(self, number):
        self.on(2, "nft", "delete", "table", "inet", f"bench{number}")

    # processes

    def processes(self, node, *names):
        """Process ids, as this machine counts them, of the node's programs with these names."""
        space = os.stat(f"/run/netns/vmha-lab-{self.name}-n{node}").st_ino
        found = []
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/comm", encoding="utf-8") as file:
                    name = file.read().strip()
                if name in names and os.stat(f"/proc/{entry}/ns/net").st_ino == space:
                    found.append(int(entry))
            except OSError:
                continue
        return found


def cpu_seconds(processes):
    """User and system time of all their threads so far."""
    total = 0
    for process in processes:
        try:
            with open(f"/proc/{process}/stat", encoding="utf-8") as file:
                fields = file.read().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        except OSError:
            continue
    return total / TICKS


def run(command, check=True):
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            timeout=COMMAND_SECONDS_MAX, check=False)
    except subprocess.TimeoutExpired as error:
        raise LabError(f"{shlex.join(command)} did not end in {COMMAND_SECONDS_MAX} s") from error
    if check and done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip()).splitlines()[-4:]
        raise LabError(f"{shlex.join(command)} failed (exit code {done.returncode}): " + "\n".join(words))
    return done.stdout


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)
