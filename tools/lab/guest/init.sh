#!/bin/sh
# Process 1 of a lab guest: unpacks the job from its disk, runs its command on the console, sends
# the exit status and the contents of /job/out back through virtio ports, and powers off.
export PATH=/job/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root LC_ALL=C.UTF-8 TERM=linux

mkdir -p /dev/pts /dev/shm /dev/hugepages /job
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs tmp /tmp
mount -t tracefs tracefs /sys/kernel/tracing 2>/dev/null
mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null
ln -sf /proc/self/fd /dev/fd
hostname lab
ip link set lo up
ulimit -l unlimited
ulimit -n 65536
echo 1 >/proc/sys/kernel/printk

port() { # port NAME: its device
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name" 2>/dev/null)" = "$1" ] && echo "/dev/${port##*/}"
    done
}
disk() { # disk SERIAL: its device
    for block in /sys/block/vd*; do
        [ "$(cat "$block/serial" 2>/dev/null)" = "$1" ] && echo "/dev/${block##*/}"
    done
}

tar -xf "$(disk lab-job)" -C /job
mkdir -p /job/out
cd /job || exit 1
[ -e lab/env ] && . lab/env
if [ -e lab/modules ]; then
    while read -r module; do modprobe "$module"; done <lab/modules
fi

echo '@lab:begin@'
# stty waits for the output to drain: what is left of it is lost when the session ends.
setsid -c -w /bin/sh -c '/bin/sh lab/command; status=$?; stty sane; exit $status' \
    </dev/console >/dev/console 2>&1
status=$?
echo '@lab:end@'

dmesg >/job/out/dmesg
out=$(port lab.out)
[ -n "$out" ] && tar -C /job/out -cf "$out" .
report=$(port lab.status)
[ -n "$report" ] && echo "$status" >"$report"
sync
echo o >/proc/sysrq-trigger
sleep 10
echo b >/proc/sysrq-trigger # a driver that hangs keeps the machine from powering off
while :; do sleep 1; done
