# Arbiters for the lab: an etcd and a power switch that really cuts the power, outside the two nodes.
# shellcheck shell=bash

WITNESS_URL=http://$CLIENT_ADDRESS:2379
WITNESS_SECONDS_MAX=30
# Both nodes rehearse, and the register is written at the first look after the change.
REHEARSAL_SECONDS_MAX=60

# A process of the client machine that outlives this command, and ends with the lab: outside NAME LOG COMMAND...
outside() {
  local name=$1 log=$2
  shift 2
  (
    group_join client
    exec setsid "$@" >> "$log" 2>&1 < /dev/null 9>&-
  ) &
  echo $! > "$LAB/$name.pid"
}

outside_pid() { group_noted client "$LAB/$1.pid"; } # NAME -> its process, or nothing

outside_end() {
  local pid step
  pid=$(outside_pid "$1")
  [ -n "$pid" ] || return 0
  kill -KILL "$pid"
  for ((step = 0; step < GONE_STEPS_MAX; step++)); do
    [ -n "$(outside_pid "$1")" ] || return 0
    sleep 0.01
  done
  fail "the $1 of lab '$LAB_NAME' does not end"
}

witness_answers() {
  ip netns exec "$CLIENT" env ETCDCTL_API=3 etcdctl --endpoints "$WITNESS_URL" --command-timeout 1s get x > /dev/null 2>&1
}

witness_start() {
  local tool
  for tool in etcd:etcd-server etcdctl:etcd-client; do
    command -v "${tool%%:*}" > /dev/null || fail "${tool%%:*} is missing" "apt-get install ${tool##*:}"
  done
  [ -z "$(outside_pid witness)" ] || return 0
  outside witness "$LAB/client/etcd.log" ip netns exec "$CLIENT" etcd --data-dir "$LAB/client/etcd" \
    --listen-client-urls "$WITNESS_URL" --advertise-client-urls "$WITNESS_URL" \
    --listen-peer-urls http://127.0.0.1:2380
  wait_until "$WITNESS_SECONDS_MAX" etcd witness_answers \
    || fail "etcd does not answer after $WITNESS_SECONDS_MAX s" "See $LAB/client/etcd.log"
}

# What fence_vmha_lab asks, over a pipe that both nodes' file systems show: no cable of the lab is in between.
switch_start() {
  local n
  [ -e /usr/share/fence/fencing.py ] || fail "Debian's fence agents are missing" "apt-get install fence-agents"
  mkdir -p -m 700 "$LAB/power"
  [ -p "$LAB/power/requests" ] || mkfifo -m 600 "$LAB/power/requests"
  install -m 755 "$TOOLS/lab.d/fence_vmha_lab" "$LAB/bin/fence_vmha_lab"
  for n in 1 2; do
    [ "$(node_power "$n")" = on ] || continue
    in_node "$n" bash -euc 'umask 077; for n in 1 2; do
      printf "plug=node%s\nswitch_folder=%s\n" "$n" "$1" > "/etc/vmha/fence-$n.options"; done; sync -f /etc/vmha' \
      bash "$LAB/power"
  done
  [ -n "$(outside_pid switch)" ] || outside switch "$LAB/power/log" "$TOOLS/lab" --name "$LAB_NAME" power-switch
}

# The switch itself: one request after the other.
command_power_switch() {
  local id action node word
  need_lab
  build_tool powerloss "$TOOLS/lab.d/powerloss.c"
  exec 7<> "$LAB/power/requests"
  while read -r id action node <&7; do
    [[ $id =~ ^[0-9a-f]{32}$ && $node =~ ^node[12]$ ]] || continue
    say "$(now_ms) $action $node"
    case $action in
      off) if [ "$(node_power "${node#node}")" != off ]; then (command_power_cut "$node") 7>&- || true; fi ;;
      on) if [ "$(node_power "${node#node}")" = off ]; then (command_boot "$node") 7>&- || true; fi ;;
      status) ;;
      *) continue ;;
    esac
    # A frozen host draws power too.
    if [ "$(node_power "${node#node}")" = off ]; then word=off; else word=on; fi
    echo "$word" > "$LAB/power/.answer.$id"
    mv "$LAB/power/.answer.$id" "$LAB/power/answer.$id"
  done
}

arbiter_start() { # WHAT the outside part of it
  case $1 in
    ping) ip -n "$CLIENT" link set lan up ;;
    witness) witness_start ;;
    fence) switch_start ;;
    witness+fence) witness_start && switch_start ;;
  esac
}

arbiter_stop() {
  case $1 in
    ping) ip -n "$CLIENT" link set lan down ;;
    *) outside_end witness && outside_end switch ;;
  esac
}

arbiter_rehearsed() { in_node 1 timeout 60 vmha check > "$LAB/check" 2>&1; }

command_arbiter() {
  local kind=${1:-} settings=()
  [ $# = 1 ] || misuse "one of none, ping, witness, fence, witness+fence; or stop, start"
  need_lab
  case $kind in
    none) settings=(arbiter=policy=none) ;;
    ping) settings=(arbiter=policy=ping "ping=$CLIENT_ADDRESS") ;;
    witness | fence | witness+fence) settings=("arbiter=$kind") ;;
    stop | start)
      [ -e "$LAB/arbiter" ] || fail "this lab has no arbiter yet" "tools/lab arbiter witness"
      kind=$(cat "$LAB/arbiter")
      lock_lab
      "arbiter_$1" "$kind"
      say "what arbiter $kind asks: $1"
      return
      ;;
    *) misuse "'$kind' is none of none, ping, witness, fence, witness+fence, stop, start" ;;
  esac
  need_node 1
  need_node 2
  lock_lab
  arbiter_start "$kind"
  echo "$kind" > "$LAB/arbiter"
  # The switch takes this lock too.
  exec 9>&-
  case $kind in
    witness*) settings+=("witness-endpoints=$WITNESS_URL") ;;
  esac
  case $kind in
    *fence) settings+=(fence-1=fence_vmha_lab:/etc/vmha/fence-1.options fence-2=fence_vmha_lab:/etc/vmha/fence-2.options) ;;
  esac
  in_node 1 timeout 180 vmha cluster set "${settings[@]}" > /dev/null || fail "vmha cluster set ${settings[*]} failed"
  wait_until "$REHEARSAL_SECONDS_MAX" rehearsal arbiter_rehearsed \
    || fail "vmha check fails with arbiter $kind: $(cat "$LAB/check")"
  say "arbiter: $kind (vmha cluster set ${settings[*]})"
}
