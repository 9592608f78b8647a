# Read by every suite's script: runs checks and says how each went, one line each, which is what
# the runner on the host reads. A program may print such lines itself:
#   ok   NAME (1.2 s)
#   FAIL NAME (1.2 s): REASON

failed=0

now() { cut -d' ' -f1 /proc/uptime; }

# check NAME COMMAND...: runs the command with its output in a log; a failure shows the log's end.
# LIMIT (seconds, 60 by default) ends a command that hangs.
check() {
    name=$1
    shift
    log=/job/out/$(echo "$name" | tr -c 'A-Za-z0-9._\n-' _).log
    before=$(now)
    (if command -v "$1" >/dev/null && [ "$(command -v "$1")" = "$1" ]; then
        "$@" # a shell function: no time limit of its own
    else
        exec timeout -k 5 "${LIMIT:-60}" "$@"
    fi) >"$log" 2>&1 </dev/null
    status=$?
    took=$(echo "$(now) $before" | awk '{ printf "%.1f", $1 - $2 }')
    if [ $status = 0 ]; then
        echo "ok   $name ($took s)"
    else
        failed=$((failed + 1))
        why="exit status $status"
        [ $status = 124 ] && why="no end within ${LIMIT:-60} s"
        echo "FAIL $name ($took s): $why"
        tail -n 25 "$log" | sed 's/^/     | /'
    fi
    return $status
}

# bind_vfio BDF...: gives functions to vfio-pci.
bind_vfio() {
    for bdf in "$@"; do
        device=/sys/bus/pci/devices/$bdf
        echo vfio-pci >"$device/driver_override"
        [ -e "$device/driver" ] && echo "$bdf" >"$device/driver/unbind"
        echo "$bdf" >/sys/bus/pci/drivers_probe
        [ "$(basename "$(readlink "$device/driver")")" = vfio-pci ] || return 1
    done
}

# port NAME: the device of a virtio serial port, which ends at something outside of the guest.
port() {
    for port in /sys/class/virtio-ports/*; do
        [ "$(cat "$port/name")" = "$1" ] && echo "/dev/${port##*/}"
    done
}

# nic REQUEST: what the control socket of the emulated NICs answers. It is asked again when the
# connection was just being made anew.
nic() {
    device=$(port lab.nic)
    for try in 1 2 3; do
        timeout 15 sh -c 'exec 3<>"$1"; echo "$2" >&3; IFS= read -r answer <&3 && echo "$answer"' \
            - "$device" "$1" && return
    done
    return 1
}

# ends_within SECONDS PID: waits for a process; its exit status, or 124 if it does not end.
ends_within() {
    tries=$(($1 * 5))
    while kill -0 "$2" 2>/dev/null; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || { echo "process $2 does not end"; kill -9 "$2"; return 124; }
        sleep 0.2
    done
    wait "$2"
}

# await_port PID PORT: waits until somebody listens on a TCP port, at most until the process ends.
await_port() {
    port=$(printf '%04X' "$2")
    tries=0
    until grep -q ":$port .* 0A " /proc/net/tcp /proc/net/tcp6; do
        tries=$((tries + 1))
        [ $tries -lt 150 ] && kill -0 "$1" 2>/dev/null || return 1
        sleep 0.2
    done
}

# make_dax FS MNT [all]: makes a file system (ext4 or xfs) on the NVDIMM, whose blocks are aligned to
# 2 MiB, and mounts it with dax=always, in the place of what was mounted there. With "all", files can
# have all there is: else a "full" one keeps some MiB free for itself (ext4 reserves clusters, xfs
# room for the growth of its trees), and what a file gives up is seldom what the next one gets. But
# without its trees, xfs does not tell who maps the files of a device that is removed.
make_dax() {
    umount "$2" 2>/dev/null
    case $1 in
    ext4) mkfs.ext4 -q -F -b 4096 -m 0 -E stride=512,stripe_width=512 /dev/pmem0 ;;
    xfs)
        # Linux 6.1 mounts no xfs that can exchange ranges.
        case $(uname -r) in 6.1.*) exchange=0 ;; *) exchange=1 ;; esac
        [ "$3" = all ] && trees="-m rmapbt=0,finobt=0,inobtcount=0" || trees=
        mkfs.xfs -q -f -d su=2m,sw=1,agcount=2 -l size=64m -i exchange=$exchange $trees /dev/pmem0
        ;;
    esac && mkdir -p "$2" && mount -o dax=always /dev/pmem0 "$2" || return
    [ "$1-$3" != ext4-all ] || echo 0 >/sys/fs/ext4/pmem0/reserved_clusters
}

# fsdax FS: loads what an NVDIMM and the file system on it need, and makes it an fsdax namespace.
fsdax() {
    modprobe -a nfit nd_pmem "$1" && ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem
}
