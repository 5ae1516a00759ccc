# The nodes: made, started, cut off their power, frozen, looked into.
# shellcheck shell=bash

DISK_BYTES_DEFAULT=8G

node_root() { echo "$LAB/n$1"; }

# Clocks of its own, beginning at 0 when the node boots: else a power cut would not look like one to libvirt (which
# tells by the boot time whether a remembered owner of a file is still valid), and the nodes would share one
# monotonic clock.
# Fills CLOCKS with unshare's options; nothing on a kernel without time namespaces.
node_clocks() {
  CLOCKS=()
  if [ -e /proc/self/ns/time ]; then
    local seconds
    seconds=$(cut -d. -f1 /proc/uptime)
    CLOCKS=(--time --monotonic "-$seconds" --boottime "-$seconds")
  fi
}

# The node's process 1 as the host sees it, or nothing.
node_pid() { group_noted "n$1" "$(node_root "$1")/pid"; }

node_power() {
  if [ -z "$(node_pid "$1")" ]; then echo off; elif group_freezing "n$1"; then echo frozen; else echo on; fi
}

need_node() {
  need_lab
  case $(node_power "$1") in
    off) fail "node$1 is off" "tools/lab --name $LAB_NAME boot node$1" ;;
    frozen) fail "node$1 is frozen" "tools/lab --name $LAB_NAME thaw node$1" ;;
  esac
}

# A root shell on the node: in all its namespaces, and in its group, so that a freeze or a power cut takes it along.
in_node() {
  local n=$1 pid
  shift
  pid=$(node_pid "$n")
  [ -n "$pid" ] || return 1
  (
    group_join "n$n"
    exec nsenter -t "$pid" -m -u -i -n -p -T env \
      PATH="$LAB/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME=/root \
      LC_ALL=C.UTF-8 LANG=C.UTF-8 "$@" 9>&-
  )
}

# Processes of the node by their name: comm, then a word that its arguments must hold (or nothing).
node_processes() { # NODE COMM [ARGUMENT]
  local pid
  for pid in $(group_pids "n$1"); do
    [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "$2" ] || continue
    if [ -z "${3:-}" ] || tr '\0' '\n' < "/proc/$pid/cmdline" 2> /dev/null | grep -qE -- "$3"; then echo "$pid"; fi
  done
}

# Fills a new node's disk: a plain Debian libvirt without the host's guests, networks and pools.
node_make() {
  local n=$1 root disk file
  root=$(node_root "$n")
  disk=$root/disk
  mkdir -p "$root"/{disk,var-log-libvirt/qemu,var-log-vmha,var-cache-libvirt}
  if [ "$DIRECT_DISK" = yes ]; then touch "$root/direct-disk"; fi
  truncate -s "$DISK_BYTES" "$root/disk.img"
  mke2fs -q -F -t ext4 -m 1 -E lazy_itable_init=1,nodiscard -L "node$n" "$root/disk.img"
  mkdir -p "$root/seed"
  (
    cd "$root/seed"
    mkdir -p etc-vmha var-lib-vmha etc-libvirt/qemu/networks etc-libvirt/hooks var-lib-libvirt/{images,qemu,boot}
    chmod 711 var-lib-libvirt/images
    for file in libvirt.conf libvirtd.conf qemu.conf virtlogd.conf virtlockd.conf qemu-lockd.conf nwfilter; do
      if [ -e "/etc/libvirt/$file" ]; then cp -a "/etc/libvirt/$file" etc-libvirt/; fi
    done
    if [ -e "$REPOSITORY/hooks/qemu" ]; then install -m 755 "$REPOSITORY/hooks/qemu" etc-libvirt/hooks/qemu; fi
    # host_uuid: without DMI both daemons of one machine would tell the same one.
    cat >> etc-libvirt/libvirtd.conf << CONF
host_uuid = "$(printf '%s%s' "$LAB_NAME" "$n" | sha256sum \
      | sed -E 's/(.{8})(.{4}).(.{3}).(.{3})(.{12}).*/\1-\2-4\3-8\4-\5/')"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_filters = "3:util.object 3:rpc 3:event 3:access"
log_outputs = "2:file:/var/log/libvirt/libvirtd.log"
CONF
    # No virtlogd, no security module, and the node's processes stay in the lab's control group.
    cat >> etc-libvirt/qemu.conf << CONF
stdio_handler = "file"
security_driver = "none"
cgroup_controllers = []
CONF
    if [ ! -e /proc/self/ns/time ]; then echo "remember_owner = 0" >> etc-libvirt/qemu.conf; fi
  )
  # Written by way of a mount in a namespace that ends with this command, so that no failure can leave it mounted.
  unshare --mount --propagation private bash -euc '
    mount -o loop "$1/disk.img" "$1/disk"
    cp -a "$1/seed/." "$1/disk/"
    umount "$1/disk"' bash "$root"
  rm -rf "$root/seed"
}

disk_released() {
  local step
  for ((step = 0; step < GONE_STEPS_MAX; step++)); do
    [ -n "$(losetup -j "$(node_root "$1")/disk.img" 2> /dev/null)" ] || return 0
    sleep 0.01
  done
  fail "the disk of node$1 is still attached: $(losetup -j "$(node_root "$1")/disk.img")" \
    "Something holds its mount: see fuser -vm."
}

node_start() {
  local n=$1 root step outer pid=""
  root=$(node_root "$n")
  disk_released "$n"
  network_node_down "$n"
  network_node_up "$n"
  rm -f "$root/pid"
  group_make "n$n"
  node_clocks
  (
    group_join "n$n"
    exec setsid ip netns exec "$NS-n$n" \
      unshare --fork "${CLOCKS[@]}" --pid --mount --uts --ipc --kill-child=SIGKILL --propagation private \
      "$TOOLS/lab.d/node-init.sh" "$n" "$root" "$LAB" >> "$root/console.log" 2>&1 < /dev/null 9>&-
  ) &
  outer=$!
  for ((step = 0; step < READY_STEPS_MAX; step++)); do
    pid=$(pgrep -P "$outer" 2> /dev/null | head -1 || true)
    if [ -n "$pid" ] && [ -e "/proc/$pid/root/run/lab/libvirtd-answers" ]; then break; fi
    if ! kill -0 "$outer" 2> /dev/null; then
      fail "node$n did not start: $(tail -3 "$root/console.log" | tr '\n' ' ')" "All of it: $root/console.log"
    fi
    sleep 0.01
  done
  if [ -z "$pid" ] || [ ! -e "/proc/$pid/root/run/lab/libvirtd-answers" ]; then
    fail "libvirtd on node$n does not answer after $((READY_STEPS_MAX / 100)) s" \
      "See $root/console.log and $root/var-log-libvirt/"
  fi
  echo "$pid" > "$root/pid"
}

# Everything at once: nobody on the node runs one more instruction, no FIN or RST leaves it, and what was not made
# durable is gone. The order matters: frozen, cables, disk, death.
node_power_cut() {
  local n=$1 pid root
  root=$(node_root "$n")
  pid=$(node_pid "$n")
  CUT_MS=$(now_ms)
  group_stop "n$n"
  ip -n "$SWITCH" link set "n$n-repl" down
  ip -n "$SWITCH" link set "n$n-lan" down
  "$TOOL" "/proc/$pid/root$root/disk"
  # Only now: what waits for a disk that hangs must not be written first.
  disk_go_on "$n"
  group_end "n$n"
  rm -f "$root/pid"
  network_node_down "$n"
  disk_released "$n"
}

command_power_cut() {
  local began
  node_number "${1:-}"
  [ $# -le 1 ] || misuse "too many words: '$2'"
  need_lab
  lock_lab
  [ "$(node_power "$NODE")" != off ] || fail "node$NODE is off already" "tools/lab --name $LAB_NAME boot node$NODE"
  build_tool powerloss "$TOOLS/lab.d/powerloss.c"
  began=$(now_ms)
  node_power_cut "$NODE"
  say "node$NODE: power cut at_ms=$CUT_MS (all gone after $(($(now_ms) - began)) ms)"
}

command_boot() {
  local began
  node_number "${1:-}"
  [ $# -le 1 ] || misuse "too many words: '$2'"
  need_lab
  lock_lab
  [ "$(node_power "$NODE")" = off ] || fail "node$NODE is $(node_power "$NODE") already"
  began=$(now_ms)
  node_start "$NODE"
  say "node$NODE: on, libvirtd answers after $(($(now_ms) - began)) ms"
}

command_freeze() {
  node_number "${1:-}"
  [ $# -le 1 ] || misuse "too many words: '$2'"
  need_node "$NODE"
  lock_lab
  group_freeze "n$NODE" \
    || fail "node$NODE does not freeze completely: a process waits in the kernel" "Thaw it: tools/lab thaw node$NODE"
  say "node$NODE: frozen at_ms=$(now_ms)"
}

command_thaw() {
  node_number "${1:-}"
  [ $# -le 1 ] || misuse "too many words: '$2'"
  need_lab
  [ "$(node_power "$NODE")" = frozen ] || fail "node$NODE is $(node_power "$NODE"), not frozen"
  lock_lab
  group_set "n$NODE" thaw
  say "node$NODE: goes on at_ms=$(now_ms)"
}

command_exec() {
  node_number "${1:-}"
  shift
  if [ "${1:-}" = -- ]; then shift; fi
  [ $# -gt 0 ] || misuse "which command?"
  need_node "$NODE"
  in_node "$NODE" "$@"
}

command_kill() {
  local pids pid what=${2:-} vm=${3:-}
  node_number "${1:-}"
  case $what in
    vmhad | libvirtd) [ -z "$vm" ] || misuse "$what takes no VM name" ;;
    vmha-replicad | vmha-keeper) ;;
    qemu) [ -n "$vm" ] || misuse "kill $1 qemu VM: which VM?" ;;
    *) misuse "'$what' is none of vmhad, vmha-replicad [VM], vmha-keeper [VM], qemu VM, libvirtd" ;;
  esac
  need_lab
  [ "$(node_power "$NODE")" != off ] || fail "node$NODE is off" "tools/lab --name $LAB_NAME boot node$NODE"
  case $what in
    qemu) pids=$(node_processes "$NODE" qemu-system-x86 "^guest=$vm,") ;;
    vmha-replicad | vmha-keeper) pids=$(node_processes "$NODE" "$what" "${vm:+^(--module=)?$vm$}") ;;
    *) pids=$(node_processes "$NODE" "$what") ;;
  esac
  [ -n "$pids" ] || fail "no $what${vm:+ of $vm} runs on node$NODE" "tools/lab --name $LAB_NAME status shows what runs."
  for pid in $pids; do kill -KILL "$pid"; done
  say "node$NODE: killed $what${vm:+ $vm} at_ms=$(now_ms) (pid$(printf ' %s' $pids))"
}

# Copies the programs, so that a build while the lab is up does not change what runs.
install_programs() {
  local program name
  mkdir -p "$LAB/bin"
  for name in vmha vmhad vmha-replicad; do
    program=$1/$name
    [ -x "$program" ] \
      || fail "$program does not exist" "Build first (swift build), name the folder with --bin, or use --no-vmha."
    cp --reflink=auto "$program" "$LAB/bin/.$name.new"
    mv "$LAB/bin/.$name.new" "$LAB/bin/$name"
  done
}

command_up() {
  local bin="" vmha=yes n
  DISK_BYTES=$DISK_BYTES_DEFAULT DIRECT_DISK=no
  while [ $# -gt 0 ]; do
    case $1 in
      --bin) bin=${2:?--bin needs a folder} && shift 2 ;;
      --no-vmha) vmha=no && shift ;;
      --disk) DISK_BYTES=${2:?--disk needs a size} && shift 2 ;;
      --direct-disk) DIRECT_DISK=yes && shift ;;
      *) misuse "'$1' is not understood" ;;
    esac
  done
  [[ $DISK_BYTES =~ ^[0-9]+[MG]$ ]] || misuse "--disk needs a size such as 8G, not '$DISK_BYTES'"
  check_host
  lock_lab
  [ ! -e "$LAB" ] \
    || fail "lab '$LAB_NAME' exists already ($LAB)" "tools/lab down --name $LAB_NAME, or choose another --name."
  if [ "$vmha" = yes ] && [ -z "$bin" ]; then
    for bin in "$REPOSITORY"/.build/debug "$REPOSITORY"/.build/release; do [ ! -x "$bin/vmhad" ] || break; done
  fi
  umask 022
  mkdir -p "$LAB/client"
  touch "$LAB/guests"
  # Whatever fails from here on: nothing stays behind.
  trap 'code=$?; if [ $code -ne 0 ]; then echo "lab: up failed, taking it down again" >&2; take_down; fi' EXIT
  if [ "$vmha" = yes ]; then install_programs "$bin"; else mkdir -p "$LAB/bin"; fi
  build_guest
  network_up
  for n in 1 2; do
    node_make "$n" 9>&- &
    MAKERS[n]=$!
  done
  for n in 1 2; do wait "${MAKERS[n]}"; done
  for n in 1 2; do
    node_start "$n" &
    MAKERS[n]=$!
  done
  for n in 1 2; do wait "${MAKERS[n]}"; done
  network_rules
  trap - EXIT
  if [ "$vmha" = yes ]; then vmha="with vmhad"; else vmha="without vmha"; fi
  say "lab '$LAB_NAME' is up: node1 and node2, $vmha"
}

command_install() {
  local bin="$REPOSITORY/.build/debug"
  if [ "${1:-}" = --bin ]; then bin=${2:?--bin needs a folder} && shift 2; fi
  [ $# = 0 ] || misuse "'$1' is not understood"
  need_lab
  lock_lab
  install_programs "$bin"
  say "lab '$LAB_NAME' has the programs of $bin; processes that run keep the old ones until they are started anew"
}

take_down() {
  local part
  group_end client
  for part in 1 2; do
    disk_go_on "$part"
    group_end "n$part"
  done
  network_down
  for part in 1 2; do
    if [ -e "$(node_root "$part")/disk.img" ]; then disk_released "$part"; fi
    group_remove "n$part"
  done
  group_remove client
  # Mounts are only in the nodes' namespaces, which are gone; should one show here, nothing may be removed through it.
  if grep -q " $LAB/" /proc/self/mounts; then fail "mounts below $LAB are left: $(grep " $LAB/" /proc/self/mounts)"; fi
  rm -rf --one-file-system "$LAB"
  rm -f "$LABS/$LAB_NAME.lock"
}

command_down() {
  [ $# = 0 ] || misuse "'$1' is not understood"
  [ "$(id -u)" = 0 ] || fail "the lab needs root"
  lock_lab
  take_down
  say "lab '$LAB_NAME' is down, nothing of it is left"
}
