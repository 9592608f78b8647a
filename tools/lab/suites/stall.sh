# What a guard costs (docs/measuring.md), on an emulated NVDIMM. It fails only if nothing could be
# measured: what is slow here may be the machine as well as the guard.
. /job/lab/check.sh
fs=$ROW
mnt=/mnt/dax
device=0000:00:10.0

measured() { # measured ORDER: holdfast's table
    holdfast stall --device $device --folder $mnt --order "$1" --rounds 30 --sizes 1M,16M,128M,1G \
        --regions 1,10,100,1000
}

check "the NVDIMM becomes an fsdax namespace" fsdax $fs
check "the NIC is bound to vfio-pci" bind_vfio $device
check "$fs is made and mounted with dax=always" make_dax $fs $mnt
mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null
# Scrap of huge pages costs one mapping for each chunk.
echo 32 >/proc/sys/vm/nr_hugepages
for order in chunk-by-chunk fence-first; do
    check "it is measured with --order $order" measured $order
    cat "$log"
done
[ $failed = 0 ]
