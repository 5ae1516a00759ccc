# What tools/demo, measure-takeover and soak have in common: the moments of a failover, from what was really there.
# shellcheck shell=bash

lab() { "$TOOLS/lab" --name "$LAB_NAME" "$@"; }
on() { local node=$1 && shift && lab exec "$node" "$@"; }
other() { if [ "$1" = node1 ]; then echo node2; else echo node1; fi; }
seconds() { awk -v ms="$1" 'BEGIN { printf "%.2f s", ms / 1000 }'; }

# For jq: a journal entry's time in milliseconds since 1970.
JQ_MS='def ms: .time | capture("^(?<s>.*)\\.(?<ms>[0-9]{3})Z$") | (.s + "Z" | fromdate) * 1000 + (.ms | tonumber);'

# The time of the first such entry in milliseconds since 1970, or nothing: journal_ms NODE SINCE_MS KIND [MODULE]
journal_ms() {
  on "$1" vmha log --json -n 400 ${4:+"$4"} | jq -rs --arg kind "$3" --argjson since "$2" "$JQ_MS"'
    [.[] | select(.kind == $kind) | ms | select(. >= $since)] | min // empty'
}

# When the process of a guest on a node was started, in milliseconds since 1970 (the kernel counts in steps of 10 ms).
qemu_started_ms() { # NODE GUEST
  # shellcheck disable=SC2016
  on "$1" bash -c 'set -- $(sed "s/.*) //" "/proc/$(cat "/run/libvirt/qemu/$1.pid")/stat")
    echo "${20} $(getconf CLK_TCK) $(cut -d" " -f1 /proc/uptime) $(date +%s%3N)"' bash "$2" \
    | awk '{ printf "%.0f\n", $4 - ($3 - $1 / $2) * 1000 }'
}

# When the guest's new incarnation first answered the client: from the lines of probe.
answered_ms() { # FILE GUEST SINCE_MS
  awk -v guest="$2" -v since="$3" '
    $2 == guest && ($3 == "incarnation" || $3 == "LOST") && $1 > since { print $1; exit }' "$1"
}

# One word of a probe's last line: summary_of FILE GUEST KEY
summary_of() {
  awk -v guest="$2" '$2 == guest && $3 == "summary"' "$1" | tr ' ' '\n' | sed -n "s/^$3=//p" | tail -1
}
