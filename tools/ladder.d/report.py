"""The ladder's results as a file, and as a page."""
import fcntl
import json
import os
import platform

HEAD = """# The fault ladder

Written by `tools/lab-ladder`; do not edit. Each fault of [failures](failures.md) under each [arbiter](arbiters.md), made in the
[lab](lab.md) with one guest that writes a numbered, flushed record every 100 ms and acknowledges it on its console.

* *who runs the VM* at the end of the fault, before anything is mended: the guest *stays* on its node, the *other node* runs it,
  *nobody*, or *both* (SPLIT).
* *seconds* in which no record was acknowledged, the boot of an emulated guest included; of several rounds the longest.
* *lost*: acknowledged records that the disk does not hold when both nodes are in sync again; of several rounds the sum. A SPLIT is
  resolved for the side that acknowledged more, and the other branch's records, which its archive keeps, count as lost.
* *by hand*: what the operator had to do beside repairing the hardware.
* `-`: not measured.

boot-wait is 15 s here (60 s by default). Measured with {programs} programs on {cpus} cores, {kernel}, load average {load}: where that
is more than the cores, the seconds are no figures, and *nobody* may mean that the guest still boots.
"""


def keep(path, results, fault, arbiter, entry):
    """The results with one more entry. In the file, if there is one, beside what other runs have put there."""
    if not path:
        results.setdefault(fault, {})[arbiter] = entry
        return results
    with open(path + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if os.path.exists(path):
            with open(path, encoding="utf-8") as file:
                results = json.load(file)
        results.setdefault(fault, {})[arbiter] = entry
        replace(path, json.dumps(results, indent=1))
    return results


def replace(path, text):
    new = f"{path}.{os.getpid()}.new"
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(new, path)


def cell(entry):
    rows = [row for row in entry["rounds"] if "failed" not in row]
    if not rows:
        return "**could not be run**"
    who = " / ".join(sorted({row["who"] for row in rows}))
    text = f"{who}, {max(row['silent'] for row in rows):.0f} s, {sum(row['lost'] for row in rows)} lost"
    hands = sorted({hand.split(" --")[0] for row in rows for hand in row["by_hand"]})
    if hands:
        text += f"; by hand: {', '.join(hands)}"
    if len(rows) < len(entry["rounds"]):
        text += f"; {len(entry['rounds']) - len(rows)} rounds could not be run"
    return text


def write(path, results, faults, arbiters):
    shown = [a for a in arbiters if any(a in row for row in results.values())]
    entries = [entry for row in results.values() for entry in row.values()]
    loads = sorted(row["load"] for entry in entries for row in entry["rounds"] if "load" in row)
    lines = [HEAD.format(
        programs=" and ".join(sorted({entry["programs"] for entry in entries})) or "no", cpus=os.cpu_count(),
        kernel=f"Linux {'.'.join(platform.release().split('.')[:2])}", load=f"{loads[0]} to {loads[-1]}" if loads else "unknown")]
    lines.append("| fault | " + " | ".join(shown) + " |")
    lines.append("|---" * (len(shown) + 1) + "|")
    for fault in faults:
        row = results.get(fault.name, {})
        if row:
            cells = [cell(row[a]) if a in row else "-" for a in shown]
            lines.append(f"| {fault.text} | " + " | ".join(cells) + " |")
    lines += ["", "## What `vmha status` says of the VM", "At the end of the fault, on the node that runs it; on all that answer if nobody does."]
    for fault in faults:
        row = results.get(fault.name, {})
        for arbiter in shown:
            for measured in row.get(arbiter, {}).get("rounds", [])[:1]:
                said = measured.get("failed") or measured["status"]
                lines.append(f"- {fault.text}, `{arbiter}`: {said}")
    replace(path, "\n".join(lines) + "\n")
