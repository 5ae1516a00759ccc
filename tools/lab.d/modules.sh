# vmha in the lab: the cluster made by its own commands, and what only a look at both nodes' disks can prove.
# shellcheck shell=bash

IMAGES=/var/lib/libvirt/images
STATUS_SECONDS_MAX=10

# Both nodes in one cluster, as the quick start does it on two hosts.
command_cluster() {
  local output line
  [ $# = 0 ] || misuse "'$1' is not understood"
  need_node 1
  need_node 2
  [ -x "$LAB/bin/vmha" ] \
    || fail "this lab has no vmha" \
      "It was made with --no-vmha: tools/lab install --bin FOLDER, then boot the nodes anew."
  command_wait_for vmhad node1 > /dev/null
  command_wait_for vmhad node2 > /dev/null
  output=$(in_node 1 timeout 60 vmha cluster init --name "lab-$LAB_NAME" \
    --link "repl=$REPL_NET.1,replication" --link "lan=$LAN_NET.1") \
      || fail "vmha cluster init failed on node1" "Its message is above."
  line=$(grep -o 'vmha cluster join .*' <<< "$output" | tail -1)
  [ -n "$line" ] || fail "vmha cluster init printed no join line, but: $output"
  line=${line/repl=ADDRESS/repl=$REPL_NET.2}
  line=${line/lan=ADDRESS/lan=$LAN_NET.2}
  # shellcheck disable=SC2086
  in_node 2 timeout 60 $line > /dev/null || fail "vmha cluster join failed on node2" "It was: $line"
  say "node1 and node2 are a cluster"
}

# A node that is on and whose vmhad answers; its status goes to STATUS.
any_status() {
  local n
  for n in 1 2; do
    [ "$(node_power "$n")" = on ] || continue
    if STATUS=$(in_node "$n" timeout "$STATUS_SECONDS_MAX" vmha status --json 2> /dev/null); then return 0; fi
  done
  return 1
}

# module_is VM protected|answered-by-jq: the jq condition on one module of the status.
module_holds() { # VM CONDITION
  any_status || return 1
  jq -e --arg vm "$1" '.modules[] | select(.name == $vm) | '"$2" <<< "$STATUS" > /dev/null
}

# As vmha's own ModuleStatus.isProtected, with the guest running.
PROTECTED='(.split | not) and ([.nodes[] | select(.current and .state == "PRIM" and .readiness == "ready"
  and .standing == "uptodate" and .guest == "running")] | length == 1) and ([.nodes[] | select(.current
  and .state == "SECOND" and .readiness == "ready" and .standing == "uptodate")] | length == 1)'
STOPPED='all(.nodes[]; .state == "STOP" and .readiness == "ready" and (.guest == "off"))'

wait_for_module() { # protected|stopped VM SECONDS
  local condition=$PROTECTED
  if [ "$1" = stopped ]; then condition=$STOPPED; fi
  wait_until "$3" "$2" module_holds "$2" "$condition" || {
    any_status && jq --arg vm "$2" '.modules[] | select(.name == $vm) | .nodes' <<< "$STATUS" >&2
    fail "$2 is not $1 after $3 s" "tools/lab exec node1 vmha status; vmha log $2"
  }
}

# One line per file of a module's copy: checksum, owner, mode, size, name.
copy_listing() { # NODE VM
  in_node "$1" bash -euc 'cd "$1/.vmha-$2"; find . -mindepth 1 -printf "%P\n" | LC_ALL=C sort | while read -r f; do
    if [ -f "$f" ]; then sum=$(sha256sum < "$f" | cut -c1-64); else sum=-; fi
    printf "%s %s %s\n" "$sum" "$(stat -c "%U:%G %a %F" "$f")" "$f"; done' bash "$IMAGES" "$2"
}

command_compare() {
  local one two vm=${1:-}
  [ $# = 1 ] || misuse "which VM?"
  need_node 1
  need_node 2
  if [ -n "$(node_processes 1 qemu-system-x86 "^guest=$vm,")$(node_processes 2 qemu-system-x86 "^guest=$vm,")" ]; then
    fail "$vm runs: its copies change while they are read" "Stop it first: vmha stop $vm"
  fi
  one=$(copy_listing 1 "$vm") || fail "node1 has no copy of '$vm' in $IMAGES/.vmha-$vm"
  two=$(copy_listing 2 "$vm") || fail "node2 has no copy of '$vm' in $IMAGES/.vmha-$vm"
  if [ "$one" != "$two" ]; then
    diff <(echo "$one") <(echo "$two") >&2 || true
    fail "the copies of $vm differ (< node1, > node2)"
  fi
  say "$vm: both copies are identical"
  say "$one" | cut -c1-16,65-
}

command_fsck() {
  local vm=${2:-}
  node_number "${1:-}"
  [ -n "$vm" ] || misuse "which VM?"
  need_node "$NODE"
  if [ -n "$(node_processes "$NODE" qemu-system-x86 "^guest=$vm,")" ]; then
    fail "$vm runs on node$NODE" "Stop it first."
  fi
  in_node "$NODE" bash -euc '
    folder=$1/.vmha-$2
    [ -d "$folder" ] || folder=$1
    if [ -e "$folder/$2.qcow2" ]; then
      # 3 is clusters without an owner: QEMU counts a cluster before it refers to it, so a power cut between the two
      # leaves one behind. It costs room and loses nothing.
      qemu-img check -q "$folder/$2.qcow2" || [ $? = 3 ]
      image=$(mktemp /run/lab/fsck.XXXXXX)
      trap "rm -f $image" EXIT
      qemu-img convert -O raw "$folder/$2.qcow2" "$image"
    else
      image=$folder/$2.raw
    fi
    e2fsck -fn "$image"' bash "$IMAGES" "$vm" || fail "the file system of $vm on node$NODE is damaged"
}
