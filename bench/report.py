"""Medians, ratios, the table and the JSON."""
import statistics


def digest(samples):
    times = [sample.us for sample in samples]
    moved = sum(sample.bytes_moved for sample in samples)
    spent = sum(sample.cpu for sample in samples)
    return {
        "us_median": round(statistics.median(times), 1),
        "us_min": round(min(times), 1),
        "us_max": round(max(times), 1),
        "mib_per_second": round(statistics.median(sample.mib_per_second for sample in samples), 1),
        "cpu_seconds_per_gib": round(spent / (moved / 2**30), 2) if spent and moved else None,
        "us": [round(value, 1) for value in times],
    }


def whole(results, copies, facts):
    import workloads
    titles = {load.name: load.title for load in workloads.ALL}
    rows = {}
    for name, by_target in results.items():
        measured = {target: digest(samples) for target, samples in by_target.items() if samples}
        for numbers in measured.values():
            for peer in ("local", "qemu-mirror"):
                if peer in measured:
                    ratio = numbers["us_median"] / measured[peer]["us_median"]
                    numbers["time_to_" + peer.replace("-", "_")] = round(ratio, 2)
        rows[name] = {"title": titles[name], "targets": measured}
    return {"machine": facts, "workloads": rows, "resync": copies}


def table(everything):
    facts = everything["machine"]
    lines = ["", f"{facts['rounds']} rounds, {facts['cores']} cores, kernel {facts['kernel']}, load at the end "
             f"{facts['load_at_end']:.1f}, {facts['seconds']} s. Times of one operation in microseconds.", ""]
    head = f"{'':14} {'median':>9} {'min':>9} {'max':>9} {'MiB/s':>8} {'x local':>8} {'x mirror':>8} {'CPU s/GiB':>9}"
    for row in everything["workloads"].values():
        lines += [row["title"], head]
        for target, n in row["targets"].items():
            lines.append(
                f"{target:>14} {n['us_median']:9.1f} {n['us_min']:9.1f} {n['us_max']:9.1f} {n['mib_per_second']:8.0f} "
                f"{_of(n, 'time_to_local')} {_of(n, 'time_to_qemu_mirror')} "
                + (f"{n['cpu_seconds_per_gib']:9.2f}" if n["cpu_seconds_per_gib"] is not None else f"{'-':>9}"))
        lines.append("")
    if everything["resync"]:
        lines.append("Resync")
        for name, n in everything["resync"].items():
            words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in n.items() if key != "title")
            lines.append(f"  {n.get('title', name)}: {words}")
        lines.append("")
    for name, why in facts["left_out"].items():
        lines.append(f"{name} was left out: {why}")
    return "\n".join(lines)


def _of(numbers, key):
    return f"{numbers[key]:8.2f}" if key in numbers else f"{'-':>8}"
