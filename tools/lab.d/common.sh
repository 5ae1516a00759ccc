# What every part of the lab uses: names, errors, the build of the small tools, control groups. Sourced by tools/lab.
# shellcheck shell=bash

# Waits, in steps of 10 ms.
READY_STEPS_MAX=1500
GONE_STEPS_MAX=1500
FREEZE_TRIES_MAX=8
GUESTS_MAX=80

REPL_NET=10.77.1
LAN_NET=10.77.0
CLIENT_ADDRESS=$LAN_NET.250

say() { printf '%s\n' "$*"; }

# fail WHAT [NEXT]: what went wrong, and what to do about it.
fail() {
  printf 'lab: %s\n' "$1" >&2
  if [ $# -gt 1 ]; then printf '     %s\n' "$2" >&2; fi
  exit 1
}

misuse() {
  printf 'lab: %s\n' "$1" >&2
  printf '     tools/lab %s --help explains it.\n' "${COMMAND:-}" >&2
  exit 2
}

# Sets everything that follows from the lab's name.
name_lab() {
  [[ $1 =~ ^[a-z0-9][a-z0-9-]{0,23}$ ]] || misuse "'$1' is no lab name: 1 to 24 of a-z, 0-9 and -, not beginning with -"
  LAB_NAME=$1
  LABS=${LAB_DIR:-/var/tmp/vmha-lab}
  LAB=$LABS/$LAB_NAME
  CACHE=$LABS/cache
  [ "$LAB_NAME" != cache ] || misuse "'cache' is taken: choose another lab name"
  NS=vmha-lab-$LAB_NAME
  SWITCH=$NS-switch
  CLIENT=$NS-client
  TAG=$(printf '%s' "$LAB_NAME" | sha256sum | cut -c1-8)
}

need_lab() {
  [ -d "$LAB" ] || fail "there is no lab '$LAB_NAME' ($LAB)" "Start it: tools/lab up --name $LAB_NAME"
}

# node_number node1|n1|1 -> NODE
node_number() {
  case ${1:-} in
    node1 | n1 | 1) NODE=1 ;;
    node2 | n2 | 2) NODE=2 ;;
    *) misuse "'${1:-}' is no node: node1 or node2" ;;
  esac
}

# link_names repl|lan|both -> LINKS
link_names() {
  case ${1:-} in
    repl | lan) LINKS=$1 ;;
    both) LINKS="repl lan" ;;
    *) misuse "'${1:-}' is no link: repl, lan or both" ;;
  esac
}

whole_number() { # VALUE MINIMUM MAXIMUM WHAT
  [[ ${1:-} =~ ^[0-9]{1,7}$ ]] && [ "$1" -ge "$2" ] && [ "$1" -le "$3" ] \
    || misuse "$4 must be a whole number from $2 to $3, not '${1:-}'"
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# One command that changes a lab at a time. Processes that outlive the command must close descriptor 9.
lock_lab() {
  mkdir -p "$LABS"
  exec 9> "$LABS/$LAB_NAME.lock"
  flock -w 60 9 \
    || fail "another tools/lab command has been changing lab '$LAB_NAME' for 60 s" "Look with: ps aux | grep tools/lab"
}

check_host() {
  local missing=() command
  [ "$(id -u)" = 0 ] \
    || fail "the lab needs root: it makes namespaces, mounts and loop devices" "Repeat the command with sudo."
  for command in ip:iproute2 nft:nftables tc:iproute2 unshare:util-linux nsenter:util-linux losetup:mount \
    mke2fs:e2fsprogs pgrep:procps \
    libvirtd:libvirt-daemon-system virsh:libvirt-clients qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils \
    cpio:cpio gcc:gcc busybox:busybox-static jq:jq flock:util-linux; do
    command -v "${command%%:*}" > /dev/null || missing+=("${command##*:}")
  done
  [ -e /usr/lib/x86_64-linux-gnu/libc.a ] || [ -e /usr/lib64/libc.a ] || missing+=(libc6-dev)
  if [ ${#missing[@]} -gt 0 ]; then
    fail "these packages are missing: $(printf '%s\n' "${missing[@]}" | sort -u | tr '\n' ' ')" \
      "apt-get install $(printf '%s\n' "${missing[@]}" | sort -u | tr '\n' ' ')"
  fi
  for command in /dev/net/tun /dev/loop-control /dev/fuse; do
    [ -e "$command" ] \
      || fail "$command does not exist on this machine" "In a container: give it the device, or use a virtual machine."
  done
}

# tool NAME SOURCE... -> compiled once per version of its sources, in the cache; sets TOOL
build_tool() {
  local name=$1 flags=() hash temporary
  shift
  if [ "$1" = -static ]; then
    flags+=(-static)
    shift
  fi
  hash=$(cat "$@" | sha256sum | cut -c1-16)
  TOOL=$CACHE/tools/$name-$hash
  [ -x "$TOOL" ] && return
  mkdir -p "$CACHE/tools"
  temporary=$(mktemp "$CACHE/tools/.build.XXXXXX")
  gcc -O2 -Wall -Wextra -Werror "${flags[@]}" -o "$temporary" $(printf '%s\n' "$@" | grep '\.c$') \
    || fail "cannot compile $name" "The compiler's message is above."
  chmod 755 "$temporary"
  mv "$temporary" "$TOOL"
}

# --- control groups: one per node and one for the client, to find, freeze and end everything that runs there ---------

if [ -d /sys/fs/cgroup/freezer ]; then
  CGROUPS=/sys/fs/cgroup/freezer
  CGROUP_VERSION=1
elif [ -e /sys/fs/cgroup/unified/cgroup.procs ]; then
  CGROUPS=/sys/fs/cgroup/unified
  CGROUP_VERSION=2
else
  CGROUPS=/sys/fs/cgroup
  CGROUP_VERSION=2
fi

group() { echo "$CGROUPS/$NS-$1"; } # $1 = n1, n2 or client

group_make() { mkdir -p "$(group "$1")"; }

# Moves the calling (sub)shell.
group_join() { echo "$BASHPID" > "$(group "$1")/cgroup.procs"; }

group_pids() { cat "$(group "$1")/cgroup.procs" 2> /dev/null || true; }

# The process whose number a file holds, or nothing: GROUP FILE. A number alone may by now be another process.
group_noted() {
  local pid
  pid=$(cat "$2" 2> /dev/null || true)
  if [ -n "$pid" ] && group_pids "$1" | grep -qx "$pid"; then echo "$pid"; fi
}

group_frozen() {
  if [ "$CGROUP_VERSION" = 1 ]; then
    [ "$(cat "$(group "$1")/freezer.state" 2> /dev/null)" = FROZEN ]
  else
    grep -qx 'frozen 1' "$(group "$1")/cgroup.events" 2> /dev/null
  fi
}

# Also true while a freeze is only asked for.
group_freezing() {
  if [ "$CGROUP_VERSION" = 1 ]; then
    [ "$(cat "$(group "$1")/freezer.state" 2> /dev/null || echo THAWED)" != THAWED ]
  else
    [ "$(cat "$(group "$1")/cgroup.freeze" 2> /dev/null || echo 0)" = 1 ]
  fi
}

group_set() { # GROUP freeze|thaw
  local at
  at=$(group "$1")
  [ -d "$at" ] || return 0
  if [ "$CGROUP_VERSION" = 1 ]; then
    if [ "$2" = freeze ]; then echo FROZEN > "$at/freezer.state"; else echo THAWED > "$at/freezer.state"; fi
  else
    if [ "$2" = freeze ]; then echo 1 > "$at/cgroup.freeze"; else echo 0 > "$at/cgroup.freeze"; fi
  fi
}

# For a power cut: whoever is not frozen after this waits in the kernel for one that is, and runs no code of its own.
group_stop() {
  local step
  group_set "$1" freeze
  for ((step = 0; step < 50; step++)); do
    if group_frozen "$1"; then return 0; fi
    sleep 0.002
  done
}

# A task that waits in the kernel for a FUSE daemon frozen before it cannot freeze: let all go on, then try again.
group_freeze() {
  local try step
  for ((try = 1; try <= FREEZE_TRIES_MAX; try++)); do
    group_set "$1" freeze
    for ((step = 0; step < 50; step++)); do
      if group_frozen "$1"; then return 0; fi
      sleep 0.002
    done
    group_set "$1" thaw
    sleep "0.00$try"
  done
  group_set "$1" freeze
  return 1
}

# Ends everything in the group, without letting it run one more instruction if it is frozen.
group_end() {
  local pid step
  [ -d "$(group "$1")" ] || return 0
  for ((step = 0; step < GONE_STEPS_MAX; step++)); do
    for pid in $(group_pids "$1"); do kill -KILL "$pid" 2> /dev/null || true; done
    group_set "$1" thaw
    [ -n "$(group_pids "$1")" ] || return 0
    sleep 0.01
  done
  fail "processes of $NS-$1 do not die: $(group_pids "$1" | tr '\n' ' ')" \
    "They wait in the kernel: see /proc/PID/stack; then repeat tools/lab down."
}

group_remove() {
  local step
  for ((step = 0; step < 200; step++)); do
    [ -d "$(group "$1")" ] || return 0
    if rmdir "$(group "$1")" 2> /dev/null; then return 0; fi
    sleep 0.01
  done
  fail "cannot remove the control group $(group "$1")"
}
