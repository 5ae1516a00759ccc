# What a lab looks like, and waiting for something to become true.
# shellcheck shell=bash

count() { wc -w <<< "$1"; }

service_state() { if [ -n "$(node_processes "$1" "$2")" ]; then echo running; else echo -; fi; }

running_guests() { # NODE
  local pid
  for pid in $(node_processes "$1" qemu-system-x86); do
    { tr '\0' '\n' < "/proc/$pid/cmdline" | sed -n 's/^guest=\([^,]*\),.*/\1/p'; } 2> /dev/null || true
  done | sort | tr '\n' ' ' | sed 's/ $//'
}

status_json() {
  local n link nodes="[]" guests="[]" links name
  for n in 1 2; do
    links="{}"
    for link in repl lan; do
      links=$(jq -c --arg k "$link" --arg v "$(link_state "$n" "$link")" '.[$k]=$v' <<< "$links")
    done
    nodes=$(jq -c --arg name "node$n" --arg power "$(node_power "$n")" --arg libvirtd "$(service_state "$n" libvirtd)" \
      --arg vmhad "$(service_state "$n" vmhad)" --arg engines "$(count "$(node_processes "$n" vmha-replicad)")" \
      --argjson links "$links" --arg running "$(running_guests "$n")" \
      '. + [{name:$name,power:$power,libvirtd:($libvirtd=="running"),vmhad:($vmhad=="running"),
             engines:($engines|tonumber),
             links:$links,running:($running|split(" ")|map(select(.!="")))}]' <<< "$nodes")
  done
  while read -r name; do
    guests=$(jq -c --arg name "$name" --arg address "$(guest_address "$name")" \
      '. + [{name:$name,address:$address}]' <<< "$guests")
  done < "$LAB/guests"
  jq -n --arg name "$LAB_NAME" --arg folder "$LAB" --argjson nodes "$nodes" --argjson guests "$guests" \
    '{name:$name,folder:$folder,nodes:$nodes,guests:$guests}'
}

command_status() {
  local n name
  if [ "${1:-}" = --json ]; then
    need_lab
    status_json
    return
  fi
  [ $# = 0 ] || misuse "'$1' is not understood"
  need_lab
  say "lab '$LAB_NAME' in $LAB, client at $CLIENT_ADDRESS"
  printf '%-6s %-7s %-9s %-8s %-8s %-12s %-12s %s\n' NODE POWER LIBVIRTD VMHAD ENGINES REPL LAN "RUNNING GUESTS"
  for n in 1 2; do
    printf '%-6s %-7s %-9s %-8s %-8s %-12s %-12s %s\n' "node$n" "$(node_power "$n")" "$(service_state "$n" libvirtd)" \
      "$(service_state "$n" vmhad)" "$(count "$(node_processes "$n" vmha-replicad)")" "$(link_state "$n" repl)" \
      "$(link_state "$n" lan)" "$(running_guests "$n")"
  done
  if [ -s "$LAB/guests" ]; then
    printf '\n%-12s %s\n' GUEST ADDRESS
    while read -r name; do printf '%-12s %s\n' "$name" "$(guest_address "$name")"; done < "$LAB/guests"
  fi
}

# wait_until SECONDS WHAT COMMAND...: asks every 100 ms.
wait_until() {
  local end what=$2
  end=$(($(now_ms) + $1 * 1000))
  shift 2
  until "$@"; do
    [ "$(now_ms)" -lt "$end" ] || return 1
    sleep 0.1
  done
}

vmha_answers() { in_node "$1" timeout 5 vmha status --json > /dev/null 2>&1; }

command_wait_for() {
  local what=${1:-} seconds=60 words=() began
  [ $# -gt 0 ] && shift
  while [ $# -gt 0 ]; do
    case $1 in
      --timeout)
        whole_number "${2:-}" 1 3600 "--timeout in seconds"
        seconds=$2
        shift 2
        ;;
      -*) misuse "'$1' is not understood" ;;
      *) words+=("$1") && shift ;;
    esac
  done
  began=$(now_ms)
  case $what in
    answer)
      need_lab
      need_guest "${words[0]:-}"
      (command_probe --once --seconds "$seconds" "${words[0]}") > /dev/null \
        || fail "${words[0]} does not answer at $ADDRESS after $seconds s"
      ;;
    vmhad)
      node_number "${words[0]:-}"
      need_node "$NODE"
      wait_until "$seconds" vmhad vmha_answers "$NODE" \
        || fail "vmhad on node$NODE does not answer after $seconds s" "See $(node_root "$NODE")/var-log-vmha/vmhad.log"
      ;;
    protected | stopped)
      [ -n "${words[0]:-}" ] || misuse "which VM?"
      need_lab
      wait_for_module "$what" "${words[0]}" "$seconds"
      ;;
    *) misuse "'$what' is none of answer, protected, stopped, vmhad" ;;
  esac
  say "after $(($(now_ms) - began)) ms: $what ${words[*]}"
}
