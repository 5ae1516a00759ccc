# What a node's disk can suffer while the node runs on.
# shellcheck shell=bash

# The disk's folder, seen from here; only while the node lives.
disk_folder() { echo "/proc/$(node_pid "$1")/root$(node_root "$1")/disk"; }

# Before its processes are ended: they wait in the kernel for it. NODE
disk_go_on() {
  [ -e "$(node_root "$1")/disk-hangs" ] || return 0
  fsfreeze --unfreeze "$(disk_folder "$1")" 2> /dev/null || true
  rm -f "$(node_root "$1")/disk-hangs"
}

disk_fill() { # FOLDER: to the last block, root's reserve included
  local blocks size part=0
  read -r blocks size <<< "$(stat -f -c '%f %S' "$1")"
  while [ "$blocks" -gt 0 ]; do
    if fallocate -l $((blocks * size)) "$1/filling.$part" 2> /dev/null; then
      part=$((part + 1))
    else
      rm -f "$1/filling.$part"
      blocks=$((blocks / 2))
    fi
  done
}

command_disk() {
  local folder
  node_number "${1:-}"
  [ $# = 2 ] || misuse "disk NODE fill|free|hang|go-on|fail"
  need_lab
  [ "$(node_power "$NODE")" != off ] || fail "node$NODE is off" "tools/lab --name $LAB_NAME boot node$NODE"
  lock_lab
  folder=$(disk_folder "$NODE")
  case $2 in
    fill) disk_fill "$folder" ;;
    free) rm -f "$folder"/filling.* ;;
    hang)
      touch "$(node_root "$NODE")/disk-hangs"
      fsfreeze --freeze "$folder" || {
        rm -f "$(node_root "$NODE")/disk-hangs"
        fail "the disk of node$NODE hangs already, or cannot be made to"
      }
      ;;
    go-on) disk_go_on "$NODE" ;;
    fail)
      build_tool powerloss "$TOOLS/lab.d/powerloss.c"
      "$TOOL" "$folder"
      ;;
    *) misuse "'$2' is none of fill, free, hang, go-on, fail" ;;
  esac
  say "node$NODE: disk $2 at_ms=$(now_ms)"
}
