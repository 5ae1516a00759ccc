#!/bin/bash
# Process 1 of a lab node: node-init.sh NUMBER FOLDER LAB_FOLDER. Runs in namespaces of its own; everything that is
# mounted here ends with it. Reaps orphans, as process 1 must.
set -euo pipefail
number=$1 folder=$2 lab=$3
disk=$folder/disk

hostname "node$number"
# As under systemd; QEMU's own mount namespaces then see mounts that are made, and lose those that are removed, later.
mount --make-rshared /
mount -t proc proc /proc
# Whoever started the lab may wait for the end of a pipe that it left open.
for descriptor in /proc/self/fd/*; do
  descriptor=${descriptor##*/}
  if [ "$descriptor" -gt 2 ] && [ "$descriptor" != 255 ]; then eval "exec $descriptor>&-"; fi
done

# What a boot begins with empty.
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock /run/lab/layers
cat /proc/sys/kernel/random/uuid > /run/lab/boot_id
# All nodes share one kernel, whose boot id never changes: a power cut must change it.
mount --bind /run/lab/boot_id /proc/sys/kernel/random/boot_id

# Sample guests are emulated, so that every machine runs the same. A /dev/kvm that QEMU's user may not open makes
# libvirtd probe QEMU anew at each start, which takes seconds; one that nobody can open does not.
if [ -e /dev/kvm ]; then
  mknod /run/lab/no-kvm c 0 0
  mount --bind /run/lab/no-kvm /dev/kvm
fi

# The host's folders can be read, and what is written to them stays in this node and dies with it.
for layered in /etc /var/lib /var/log /var/cache; do
  layer=/run/lab/layers${layered//\//-}
  mkdir -p "$layer/upper" "$layer/work"
  mount -t overlay -o "lowerdir=$layered,upperdir=$layer/upper,workdir=$layer/work" overlay "$layered"
done

# The node's own disk: the journal is replayed here after a power cut. /var/lib/libvirt and the rest live on it.
mount -o loop "$folder/disk.img" "$disk"
# Past the host's cache, so that its speed is that of the host's disk.
if [ -e "$folder/direct-disk" ]; then losetup --direct-io=on "$(findmnt -no SOURCE "$disk")"; fi
for kept in etc/vmha etc/libvirt var/lib/vmha var/lib/libvirt; do
  mkdir -p "/$kept"
  mount --bind "$disk/${kept//\//-}" "/$kept"
done
# Logs and libvirt's capability cache are kept on the host: to read after a power cut, and to start faster.
for kept in var/log/libvirt var/log/vmha var/cache/libvirt; do
  mkdir -p "/$kept"
  mount --bind "$folder/${kept//\//-}" "/$kept"
done
mount --bind "$lab/guest" "$lab/guest"
mount -o remount,bind,ro "$lab/guest"

echo "node$number" > /etc/hostname
printf '%s\n' "127.0.0.1 localhost" "10.77.1.1 node1" "10.77.1.2 node2" > /etc/hosts
getent group vmha > /dev/null || groupadd -r vmha
export PATH="$lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
export HOME=/root LC_ALL=C.UTF-8 LANG=C.UTF-8

# What systemd does with Restart=always, RestartSec=500ms.
keep_running() { # LOG COMMAND...
  local log=$1
  shift
  while :; do
    code=0
    "$@" >> "$log" 2>&1 < /dev/null || code=$?
    echo "$(date '+%F %T.%3N') lab: $(basename "$1") ended with code $code, starting it again" >> "$log"
    sleep 0.5
  done
}

start_services() {
  local step
  keep_running /var/log/libvirt/libvirtd-console.log /usr/sbin/libvirtd -p /run/libvirtd.pid &
  for ((step = 0; step < 600; step++)); do
    virsh -c qemu:///system version > /dev/null 2>&1 && break
    sleep 0.05
  done
  touch /run/lab/libvirtd-answers
  if [ -x "$lab/bin/vmhad" ]; then keep_running /var/log/vmha/vmhad.log "$lab/bin/vmhad" & fi
}

touch /run/lab/up
start_services &
trap : TERM
while :; do
  sleep 3600 &
  wait $! || true
done
