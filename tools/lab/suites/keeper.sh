# The keeper with a real container and a file on an emulated NVDIMM; see tools/lab/keeper.
. /job/lab/check.sh
fs=${ROW:?}
device=0000:00:10.0

make_fs() {
    case $fs in
    ext4) mkfs.ext4 -q -F -b 4096 /dev/pmem0 ;;
    xfs)
        # Linux 6.1 mounts no xfs that can exchange ranges.
        case $(uname -r) in 6.1.*) exchange=0 ;; *) exchange=1 ;; esac
        mkfs.xfs -q -f -d su=2m,sw=1 -i exchange=$exchange /dev/pmem0
        ;;
    esac
}

check "the device is bound to vfio-pci" bind_vfio $device
modprobe nfit
modprobe nd_pmem
modprobe $fs
check "the NVDIMM becomes an fsdax namespace" \
    ndctl create-namespace -f -e namespace0.0 -m fsdax -M mem
check "$fs is made on it" make_fs
mkdir -p /mnt/dax
check "it is mounted with dax=always" mount -o dax=always /dev/pmem0 /mnt/dax

lab-keeper --holdfast "$(command -v holdfast)" --device $device --file /mnt/dax/file check ||
    failed=1

held_up() { # held_up MILLISECONDS: how long a policy of so long makes a truncate wait
    fallocate -l 4M /mnt/dax/held
    holdfast watch --device $device --policy hold=$1ms --events 2 /mnt/dax/held >/tmp/held.log 2>&1 &
    watch=$!
    until grep -q watching /tmp/held.log; do
        sleep 0.2
        kill -0 $watch || { cat /tmp/held.log; return 1; }
    done
    before=$(date +%s%N)
    truncate -s 1M /mnt/dax/held
    waited=$((($(date +%s%N) - before) / 1000000))
    wait $watch
    ended=$?
    cat /tmp/held.log
    echo "the truncate waited $waited ms"
    [ $ended = 0 ] && [ $waited -ge "$1" ] && [ $waited -lt 10000 ]
}
check "a region that wants 700 ms is given them" held_up 700
check "no keeper is left" sh -c '! pgrep -f "[h]oldfast keeper"'

[ $failed = 0 ]
