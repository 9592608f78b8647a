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
check "no keeper is left" sh -c '! pgrep -f "[h]oldfast keeper"'

[ $failed = 0 ]
