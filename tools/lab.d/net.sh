# The networks: two switches and a client machine in namespaces of their own. Nothing of the host's network is touched.
# shellcheck shell=bash
#
# What a link suffers is kept in files $LAB/net/nN-LINK.{cut,block,oneway,loss,rate}, and the whole rule set is made
# from them again at each change: so it survives a power cut, and undoing one thing never undoes another.

has_netns() { ip netns list 2> /dev/null | awk '{print $1}' | grep -qx "$1"; }

# mac KIND NODE: stable, as burnt into a card; differs between labs.
mac() { echo "52:54:${TAG:0:2}:${TAG:2:2}:$1:0$2"; }

network_up() {
  local bridge
  mkdir -p "$LAB/net"
  ip netns add "$SWITCH"
  ip netns add "$CLIENT"
  group_make client
  ip -n "$SWITCH" link set lo up
  ip -n "$CLIENT" link set lo up
  for bridge in repl lan; do
    ip -n "$SWITCH" link add "br-$bridge" type bridge forward_delay 0 stp_state 0 mcast_snooping 0
    ip -n "$SWITCH" link set "br-$bridge" up
  done
  ip -n "$SWITCH" link add client type veth peer name lan netns "$CLIENT"
  ip -n "$SWITCH" link set client master br-lan up
  ip -n "$CLIENT" link set lan address "$(mac 03 9)" up
  ip -n "$CLIENT" addr add "$CLIENT_ADDRESS/24" dev lan
}

network_down() {
  network_node_down 1
  network_node_down 2
  if has_netns "$CLIENT"; then ip netns del "$CLIENT"; fi
  if has_netns "$SWITCH"; then ip netns del "$SWITCH"; fi
}

network_node_up() {
  local n=$1 link
  ip netns add "$NS-n$n"
  ip -n "$NS-n$n" link set lo up
  for link in repl lan; do
    ip -n "$SWITCH" link add "n$n-$link" type veth peer name "$link" netns "$NS-n$n"
    ip -n "$SWITCH" link set "n$n-$link" master "br-$link"
  done
  ip -n "$NS-n$n" link set repl address "$(mac 01 "$n")" up
  ip -n "$NS-n$n" addr add "$REPL_NET.$n/24" dev repl
  # Guests' taps join br0, as on a host whose LAN card is in a bridge.
  ip -n "$NS-n$n" link add br0 address "$(mac 02 "$n")" type bridge forward_delay 0 stp_state 0 mcast_snooping 0
  ip -n "$NS-n$n" link set lan address "$(mac 02 "$n")" master br0 up
  ip -n "$NS-n$n" link set br0 up
  ip -n "$NS-n$n" addr add "$LAN_NET.$n/24" dev br0
  for link in repl lan; do
    if [ ! -e "$LAB/net/n$n-$link.cut" ]; then ip -n "$SWITCH" link set "n$n-$link" up; fi
    network_rate "$n" "$link"
  done
}

network_node_down() {
  local n=$1 link
  if has_netns "$SWITCH"; then
    for link in repl lan; do ip -n "$SWITCH" link del "n$n-$link" 2> /dev/null || true; done
  fi
  if has_netns "$NS-n$n"; then ip netns del "$NS-n$n"; fi
}

network_port() { # NODE LINK up|down
  if ip -n "$SWITCH" link show "n$1-$2" > /dev/null 2>&1; then ip -n "$SWITCH" link set "n$1-$2" "$3"; fi
}

network_rate() { # NODE LINK: applies what its file says, in both directions
  local file="$LAB/net/n$1-$2.rate" mbit
  ip -n "$SWITCH" link show "n$1-$2" > /dev/null 2>&1 || return 0
  if [ -e "$file" ]; then
    mbit=$(cat "$file")
    ip netns exec "$SWITCH" tc qdisc replace dev "n$1-$2" root tbf rate "${mbit}mbit" burst 128kb latency 50ms
    ip netns exec "$NS-n$1" tc qdisc replace dev "$2" root tbf rate "${mbit}mbit" burst 128kb latency 50ms
  else
    ip netns exec "$SWITCH" tc qdisc del dev "n$1-$2" root 2> /dev/null || true
    ip netns exec "$NS-n$1" tc qdisc del dev "$2" root 2> /dev/null || true
  fi
}

# The silent faults: the carrier stays, frames vanish in the switch.
network_rules() {
  local file port percent rules=""
  for file in "$LAB"/net/*.block "$LAB"/net/*.oneway "$LAB"/net/*.loss; do
    [ -e "$file" ] || continue
    port=$(basename "${file%.*}")
    case $file in
      *.block) rules+="iifname \"$port\" drop; oifname \"$port\" drop; " ;;
      *.oneway) rules+="iifname \"$port\" drop; " ;;
      *.loss)
        percent=$(cat "$file")
        rules+="iifname \"$port\" numgen random mod 100 < $percent drop; "
        rules+="oifname \"$port\" numgen random mod 100 < $percent drop; "
        ;;
    esac
  done
  ip netns exec "$SWITCH" nft -f - << RULES
table bridge lab {}
delete table bridge lab
table bridge lab {
  chain faults { type filter hook forward priority 0; policy accept; $rules }
}
RULES
}

link_state() { # NODE LINK -> one word or more
  local base="$LAB/net/n$1-$2" words=()
  if [ -e "$base.cut" ]; then words+=(cut); fi
  if [ -e "$base.block" ]; then words+=(blocked); fi
  if [ -e "$base.oneway" ]; then words+=(one-way); fi
  if [ -e "$base.loss" ]; then words+=("loss-$(cat "$base.loss")%"); fi
  if [ -e "$base.rate" ]; then words+=("$(cat "$base.rate")Mbit"); fi
  if [ ${#words[@]} = 0 ]; then echo ok; else (IFS=,; echo "${words[*]}"); fi
}

command_link() { # COMMAND NODE LINK [VALUE]
  local what=$1 link
  node_number "${2:-}"
  link_names "${3:-}"
  case $what in
    loss) whole_number "${4:-}" 0 99 "the loss in percent" ;;
    rate) whole_number "${4:-}" 0 100000 "the rate in Mbit/s (0: no limit)" ;;
    *) [ $# -le 3 ] || misuse "too many words: '$4'" ;;
  esac
  need_lab
  lock_lab
  for link in $LINKS; do
    local base="$LAB/net/n$NODE-$link"
    case $what in
      cut)
        touch "$base.cut"
        network_port "$NODE" "$link" down
        ;;
      heal)
        rm -f "$base.cut"
        network_port "$NODE" "$link" up
        ;;
      block) touch "$base.block" ;;
      oneway) touch "$base.oneway" ;;
      unblock) rm -f "$base.block" "$base.oneway" "$base.loss" ;;
      loss) if [ "$4" = 0 ]; then rm -f "$base.loss"; else echo "$4" > "$base.loss"; fi ;;
      rate)
        if [ "$4" = 0 ]; then rm -f "$base.rate"; else echo "$4" > "$base.rate"; fi
        network_rate "$NODE" "$link"
        ;;
    esac
  done
  case $what in block | oneway | unblock | loss) network_rules ;; esac
  for link in $LINKS; do say "node$NODE $link: $(link_state "$NODE" "$link")"; done
}

command_client() {
  [ $# -gt 0 ] || misuse "which command?"
  need_lab
  has_netns "$CLIENT" || fail "lab '$LAB_NAME' is not up" "tools/lab up --name $LAB_NAME"
  build_tool probe "$TOOLS/guest/probe.c"
  ln -sfn "$TOOL" "$LAB/client/probe.new.$$"
  mv -T "$LAB/client/probe.new.$$" "$LAB/client/probe"
  group_join client
  exec ip netns exec "$CLIENT" env PATH="$LAB/client:$PATH" "$@"
}
