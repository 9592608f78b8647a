#!/bin/busybox sh
# First program of a lab guest: loads the modules that find the disks, puts the root file system
# together and hands over to lab-init.
bb=/bin/busybox
fail() { echo "lab: $*"; $bb sleep 1; echo b >/proc/sysrq-trigger; }

$bb mkdir -p /proc /sys /dev /root
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $bb insmod "/modules/$module" || echo "lab: cannot load $module"
done </modules/order

disk() { # disk SERIAL: its device, once it is there
    tries=0
    while [ $tries -lt 200 ]; do
        for block in /sys/block/vd*; do
            [ -e "$block/serial" ] || continue
            if [ "$($bb cat "$block/serial")" = "$1" ]; then
                echo "/dev/${block##*/}"
                return
            fi
        done
        tries=$((tries + 1))
        $bb usleep 50000
    done
}

root=$(disk lab-root)
[ -n "$root" ] || fail "no root disk"
$bb mount -t ext4 -o noatime "$root" /root || fail "cannot mount the root disk"
$bb mkdir -p /root/usr/lib/modules /root/proc /root/sys /root/dev /root/run
$bb mount -t ext4 -o ro "$(disk lab-modules)" /root/usr/lib/modules || fail "cannot mount the modules"
disk lab-job >/dev/null
$bb mount -t tmpfs -o mode=755 run /root/run
$bb cp /lab-init /root/run/lab-init
for mount in proc sys dev; do
    $bb mount -o move /$mount /root/$mount
done
exec $bb switch_root /root /run/lab-init
fail "cannot start /run/lab-init"
