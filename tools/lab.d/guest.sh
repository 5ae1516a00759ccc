# Sample guests: a Debian kernel, an initramfs of busybox, and a recorder that proves what was acknowledged.
# shellcheck shell=bash

# Debian's cloud kernel from its package (27 MB, kept in the cache), unpacked, not installed. Sets KERNEL.
fetch_kernel() {
  local package folder
  KERNEL=${LAB_KERNEL:-$CACHE/kernel}
  if compgen -G "$KERNEL/boot/vmlinuz-*" > /dev/null; then return; fi
  [ -z "${LAB_KERNEL:-}" ] \
    || fail "LAB_KERNEL=$LAB_KERNEL holds no boot/vmlinuz-*" "Unpack a linux-image package there: dpkg-deb -x."
  package=$(apt-cache depends linux-image-cloud-amd64 2> /dev/null | awk '/Depends: linux-image/ {print $2; exit}')
  [ -n "$package" ] \
    || fail "apt knows no linux-image-cloud-amd64" \
      "apt-get update; or unpack a kernel package and set LAB_KERNEL=FOLDER."
  mkdir -p "$CACHE"
  folder=$(mktemp -d "$CACHE/.kernel.XXXXXX")
  say "fetching $package (27 MB, once)"
  (cd "$folder" && apt-get download "$package" > apt.log 2>&1) \
    \
      || fail "cannot download $package: $(tail -1 "$folder/apt.log")" \
        "Without a network: unpack a kernel package, set LAB_KERNEL=FOLDER."
  dpkg-deb -x "$folder"/linux-image-*.deb "$folder/tree"
  rm -rf "$CACHE/kernel"
  mv "$folder/tree" "$CACHE/kernel"
  rm -rf "$folder"
}

# $LAB/guest/{vmlinuz,initrd.gz}, from the cache where it was built before.
build_guest() {
  local modules root recorder hash module file cached
  exec 8> "$LABS/build.lock"
  flock 8
  fetch_kernel
  build_tool recorder -static "$TOOLS"/guest/{recorder.c,fullspeed.c,fullspeed.h}
  recorder=$TOOL
  build_tool probe "$TOOLS/guest/probe.c"
  hash=$(cat "$recorder" "$TOOLS"/guest/{init,poweroff} "$(command -v busybox)" "${BASH_SOURCE[0]}" \
    <(ls "$KERNEL/boot") | sha256sum | cut -c1-16)
  cached=$CACHE/guest-$hash
  if [ ! -e "$cached/initrd.gz" ]; then
    root=$(mktemp -d "$CACHE/.guest.XXXXXX")
    mkdir -p "$root"/rd/{bin,sbin,lib/modules,etc/acpi/PWRF,proc,sys,dev,run,data,var,tmp}
    cp "$(command -v busybox)" "$root/rd/bin/busybox"
    # Links are made now: busybox --install in the guest would cost it half a second.
    for file in $("$root/rd/bin/busybox" --list); do [ "$file" = busybox ] || ln -s busybox "$root/rd/bin/$file"; done
    install -m 755 "$recorder" "$root/rd/bin/recorder"
    install -m 755 "$TOOLS/guest/init" "$root/rd/init"
    install -m 755 "$TOOLS/guest/poweroff" "$root/rd/etc/acpi/PWRF/00000080"
    modules=$(echo "$KERNEL"/lib/modules/*/kernel)
    # In the order in which they must be loaded; what this kernel has built in is not found, and not needed.
    for module in virtio_ring virtio virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_blk failover \
      net_failover virtio_net button evdev crc32c_generic libcrc32c crc16 mbcache jbd2 ext4; do
      file=$(find "$modules" -name "$module.ko*" | head -1)
      if [ -n "$file" ]; then
        cp "$file" "$root/rd/lib/modules/"
        basename "$file"
      fi
    done > "$root/rd/lib/modules.load"
    (cd "$root/rd" && find . | cpio -o -H newc -R 0:0 --quiet | gzip -1) > "$root/initrd.gz"
    cp "$(compgen -G "$KERNEL/boot/vmlinuz-*" | head -1)" "$root/vmlinuz"
    rm -rf "$root/rd"
    chmod 755 "$root"
    mv "$root" "$cached"
  fi
  exec 8>&-
  mkdir -p "$LAB/guest"
  cp "$cached/vmlinuz" "$cached/initrd.gz" "$LAB/guest/"
}

# The address of a guest follows from its place in the list of the lab's guests, its UUID and MAC from the names.
guest_xml() { # NAME ADDRESS DISK FORMAT INTERVAL WORDS
  local hash uuid
  hash=$(printf '%s/%s' "$LAB_NAME" "$1" | sha256sum)
  uuid="${hash:0:8}-${hash:8:4}-4${hash:12:3}-8${hash:15:3}-${hash:18:12}"
  cat << XML
<domain type='qemu'>
  <name>$1</name>
  <uuid>$uuid</uuid>
  <memory unit='MiB'>96</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='pc'>hvm</type>
    <kernel>$LAB/guest/vmlinuz</kernel>
    <initrd>$LAB/guest/initrd.gz</initrd>
    <cmdline>console=ttyS0 quiet panic=1 lab.name=$1 lab.ip=$2/24 lab.interval=$5$6</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='maximum' migratable='on'/>
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>restart</on_reboot>
  <on_crash>restart</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='$4' cache='none' discard='unmap'/>
      <source file='$3'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <interface type='bridge'>
      <mac address='52:54:00:${hash:30:2}:${hash:32:2}:${hash:34:2}'/>
      <source bridge='br0'/>
      <model type='virtio'/>
    </interface>
    <serial type='file'>
      <source path='/var/log/libvirt/qemu/$1-console.log' append='on'/>
      <target port='0'/>
    </serial>
    <memballoon model='none'/>
  </devices>
</domain>
XML
}

guest_address() { # NAME -> its address, or nothing
  local at
  [ -n "$1" ] || return 0
  at=$(grep -nxF -- "$1" "$LAB/guests" | cut -d: -f1 || true)
  if [ -n "$at" ]; then echo "$LAN_NET.$((10 + at))"; fi
}

need_guest() {
  ADDRESS=$(guest_address "${1:-}")
  [ -n "$ADDRESS" ] || fail "lab '$LAB_NAME' has no guest '${1:-}'" "Guests: $(tr '\n' ' ' < "$LAB/guests")"
}

command_guest() {
  local name=${1:-} size=64M format=raw interval=100 words="" start="" disk root temporary
  [[ $name =~ ^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$ ]] || misuse "'$name' is no guest name: 1 to 32 letters, digits, . _ -"
  shift
  NODE=1
  while [ $# -gt 0 ]; do
    case $1 in
      --node) node_number "${2:-}" && shift 2 ;;
      --size) size=${2:-} && shift 2 ;;
      --format) format=${2:-} && shift 2 ;;
      --interval) interval=${2:-} && shift 2 ;;
      --full-speed | --tell-console) words+=" lab.${1#--}" && shift ;;
      --start) start=yes && shift ;;
      *) misuse "'$1' is not understood" ;;
    esac
  done
  [[ $size =~ ^[0-9]{1,6}[MG]$ ]] || misuse "--size needs a size such as 64M or 2G, not '$size'"
  case $format in raw | qcow2) ;; *) misuse "--format is raw or qcow2, not '$format'" ;; esac
  whole_number "$interval" 1 60000 "--interval in milliseconds"
  need_node "$NODE"
  lock_lab
  [ -z "$(guest_address "$name")" ] || fail "lab '$LAB_NAME' has a guest '$name' already"
  [ "$(wc -l < "$LAB/guests")" -lt "$GUESTS_MAX" ] || fail "a lab has room for $GUESTS_MAX guests"
  root=/proc/$(node_pid "$NODE")/root
  disk=/var/lib/libvirt/images/$name.$format
  [ ! -e "$root$disk" ] || fail "node$NODE has a file $disk already"
  temporary=$root$disk.making
  truncate -s "$size" "$temporary"
  mke2fs -q -F -t ext4 -m 0 -E lazy_itable_init=0,lazy_journal_init=0 -L "$name" "$temporary" 2> /dev/null \
    || fail "cannot make a file system of $size for '$name'" "A guest needs about 8M at least."
  if [ "$format" = qcow2 ]; then
    qemu-img convert -f raw -O qcow2 "$temporary" "$temporary.qcow2"
    mv "$temporary.qcow2" "$temporary"
  fi
  mv "$temporary" "$root$disk"
  echo "$name" >> "$LAB/guests"
  need_guest "$name"
  guest_xml "$name" "$ADDRESS" "$disk" "$format" "$interval" "$words" > "$LAB/guest/$name.xml"
  in_node "$NODE" virsh -q -c qemu:///system define /dev/stdin < "$LAB/guest/$name.xml" > /dev/null
  in_node "$NODE" sync -f "$disk" /etc/libvirt
  if [ -n "$start" ]; then in_node "$NODE" virsh -q -c qemu:///system start "$name" > /dev/null; fi
  say "$name: defined on node$NODE, disk $disk ($size), will answer at $ADDRESS"
}

# probe words for guests: "NAME=ADDRESS ..." of those named, or of all.
command_probe() {
  local words=() options=() name
  need_lab
  while [ $# -gt 0 ]; do
    case $1 in
      --once) options+=("$1") && shift ;;
      --seconds | --period | --gap | --state) options+=("$1" "${2:?$1 needs a value}") && shift 2 ;;
      -*) misuse "'$1' is not understood" ;;
      *)
        need_guest "$1"
        words+=("$1=$ADDRESS")
        shift
        ;;
    esac
  done
  if [ ${#words[@]} = 0 ]; then
    while read -r name; do
      need_guest "$name"
      words+=("$name=$ADDRESS")
    done < "$LAB/guests"
  fi
  [ ${#words[@]} -gt 0 ] || fail "lab '$LAB_NAME' has no guest" "Make one: tools/lab guest vm1"
  command_client probe "${options[@]}" "${words[@]}"
}
