# Files on persistent memory (an emulated NVDIMM) under ext4 or xfs; see tools/lab/dax.
. /job/lab/check.sh
fs=${ROW:?}
[ "$fs" = strict ] && fs=ext4
mnt=/mnt/dax

# namespace MODE: makes the NVDIMM one of that mode; it has no label area, so there is just one.
namespace() { ndctl create-namespace -f -e namespace0.0 -m "$@"; }
make_fs() {
    case $fs in
    ext4) mkfs.ext4 -q -F -b 4096 -E stride=512,stripe_width=512 /dev/pmem0 ;;
    xfs)
        # Linux 6.1 mounts no xfs that can exchange ranges.
        case $(uname -r) in 6.1.*) exchange=0 ;; *) exchange=1 ;; esac
        mkfs.xfs -q -f -d su=2m,sw=1 -i exchange=$exchange /dev/pmem0
        ;;
    esac
}
mounted() { # mounted OPTIONS: mounts it anew
    umount $mnt 2>/dev/null
    mkdir -p $mnt
    mount -o "$1" /dev/pmem0 $mnt
}

modprobe nfit
modprobe nd_pmem
modprobe loop
modprobe $fs
check "the NVDIMM becomes an fsdax namespace" namespace fsdax -M mem
check "$fs is made on it" make_fs
check "it is mounted with dax=always" mounted dax=always
head -c 64K /dev/zero >$mnt/plain

if [ "$ROW" = strict ]; then
    lab-dax no-window $mnt/plain "boot the kernel with iomem=relaxed" || failed=1
    [ $failed = 0 ]
    exit
fi

lab-dax sources $mnt $fs || failed=1
lab-dax pins $mnt || failed=1
lab-dax operations $mnt $fs || failed=1
lab-dax notices $mnt $fs || failed=1

# What is not DAX, and why.
head -c 64K /dev/zero >/root/plain
head -c 64K /dev/zero >/tmp/plain
lab-dax refused fsdax:/root/plain "is not persistent memory" || failed=1
lab-dax refused fsdax:/tmp/plain "use ext4 or xfs on a pmem device" || failed=1
lab-dax refused /dev/null "only those are memory" || failed=1
lab-dax no-proof /root "is not persistent memory" || failed=1
lab-dax no-proof /tmp "use ext4 or xfs on a pmem device" || failed=1
check "it is mounted with dax=never" mounted dax=never
lab-dax refused fsdax:$mnt/plain "is mounted with dax=never" || failed=1
lab-dax no-proof $mnt "is mounted with dax=never" || failed=1
check "it is mounted with dax=inode" mounted dax=inode
lab-dax refused fsdax:$mnt/plain "is mounted without -o dax" || failed=1
check "it is mounted with dax" mounted dax

# Who may not.
setpriv --bounding-set=-sys_admin lab-dax no-window $mnt/plain CAP_SYS_ADMIN || failed=1
setpriv --bounding-set=-sys_rawio lab-dax no-window $mnt/plain CAP_SYS_RAWIO || failed=1

# The same memory without a file system, and in a mode without DAX.
check "it is unmounted" umount $mnt
check "the NVDIMM becomes a devdax namespace" namespace devdax -M mem
modprobe device_dax
lab-dax devdax /dev/dax0.0 || failed=1
check "the NVDIMM becomes a raw namespace" namespace raw
check "$fs is made on it" make_fs
check "it is mounted" mounted rw
head -c 64K /dev/zero >$mnt/plain
lab-dax refused fsdax:$mnt/plain "persistent memory without DAX" || failed=1

# Last, because there is no way back.
check "it is unmounted" umount $mnt
check "the NVDIMM becomes an fsdax namespace again" namespace fsdax -M mem
check "$fs is made on it once more" make_fs
check "it is mounted with dax once more" mounted dax
head -c 64K /dev/zero >$mnt/plain
mount -t securityfs none /sys/kernel/security 2>/dev/null
echo integrity >/sys/kernel/security/lockdown
lab-dax no-window $mnt/plain "locked down (integrity)" || failed=1

[ $failed = 0 ]
