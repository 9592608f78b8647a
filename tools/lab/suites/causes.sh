# What happens to memory and files besides layout operations (an emulated NVDIMM); see
# tools/lab/storm/src/causes.rs.
. /job/lab/check.sh
fs=${ROW:?}
mnt=/mnt/dax
device=0000:00:10.0

# The device goes from under a mounted file system that has a region. xfs ends those who map its
# files, and never returns from the removal, region or not; ext4 lets the kernel go on with pages
# that are gone (an oops in 6.1's umount, a lockup of 7.3), so that there is nothing to be seen there.
removed() {
    fallocate -l 4M $mnt/data
    holdfast watch --device $device $mnt/data >/tmp/removed.log 2>&1 &
    driver=$!
    until grep -q watching /tmp/removed.log; do
        sleep 0.2
        kill -0 $driver || { cat /tmp/removed.log; return 1; }
    done
    echo pfn0.0 >/sys/bus/nd/drivers/nd_pmem/unbind &
    ends_within 30 $driver
    echo "the driver ended with $?"
    for try in 1 2 3 4 5 6 7 8 9 10; do
        pgrep -f "[h]oldfast keeper" || break
        sleep 1
    done
    cat /tmp/removed.log
    [ $try -lt 10 ] && grep -q "containers were emptied, then" /tmp/removed.log
}

# Enough for a region, for the part that it gets back, and for scrap.
huge_pages() {
    echo 24 >/proc/sys/vm/nr_hugepages
    grep -x 24 /proc/sys/vm/nr_hugepages
    mkdir -p $1 && mount -t hugetlbfs none $1
}

check "the NIC is bound to vfio-pci" bind_vfio $device
check "the NVDIMM becomes an fsdax namespace" fsdax $fs
check "$fs is made on it and mounted with dax=always" make_dax $fs $mnt
check "a hugetlbfs is mounted, with pages" huge_pages /mnt/huge
lab-storm causes --device $device --dir $mnt --disk /var/tmp --huge /mnt/huge || failed=1
case $fs-$(uname -r) in
xfs-6.1.* | ext4-*) ;;
*)
    check "$fs is made anew" make_dax $fs $mnt
    check "a device that is removed ends the driver, and its keeper lets everything go" removed
    ;;
esac
[ $failed = 0 ]
