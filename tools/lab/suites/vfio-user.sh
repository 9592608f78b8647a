# Holdfast with real VFIO: two emulated NICs behind vfio-user-pci and a vIOMMU.
. /job/lab/check.sh
case $ROW in
*vmxnet3*) modprobe vmxnet3; one=0000:00:10.1 two=0000:00:11.1 members=2 ;;
*) one=0000:00:10.0 two=0000:00:11.0 members=1 ;;
esac
numbers=/job/out/numbers
mkdir -p $numbers

both_are_listed() { holdfast devices | tee /dev/stderr | grep -c 'PVRDMA' | grep -qx 2; }
bound_members() { # bound_members BDF: how many functions of its group vfio-pci has
    for member in /sys/bus/pci/devices/$1/iommu_group/devices/*; do
        readlink "$member/driver"
    done | grep -c 'vfio-pci$'
}
bound() { [ "$(bound_members $1)" = $members ]; }

check "both NICs are listed" sh -c 'holdfast devices --json'
check "bind gives the whole group to vfio-pci" holdfast bind $one
check "all $members functions of the group belong to vfio-pci" bound $one
check "bind gives the second group too" holdfast bind $two
check "bind again has nothing to do" holdfast bind $one

pingpong() { holdfast pingpong --device $one --device $two "$@"; }
for size in 0 1 4095 4096 4097; do
    check "pingpong of $size bytes between two NICs" pingpong --size $size --iters 20
done
check "pingpong of 1 MiB between two NICs" pingpong --size 1M --iters 4
check "pingpong within one NIC" holdfast pingpong --device $one --size 4K --iters 20
check "pingpong into huge pages" sh -c "
    echo 16 >/proc/sys/vm/nr_hugepages
    holdfast pingpong --device $one --device $two --size 64K --iters 10 --region hugetlb"

for op in write read send cas faa; do
    check "bench $op lat" sh -c "
        holdfast bench $op lat --device $one --device $two --iters 500 --json >$numbers/${op}_lat.json"
done
check "bench write bw, 64 KiB" sh -c "
    holdfast bench write bw --device $one --device $two --size 64K --iters 200 --json >$numbers/write_bw.json"
check "bench write rate, batch 32" sh -c "
    holdfast bench write rate --device $one --device $two --batch 32 --iters 5000 --json >$numbers/write_rate.json"

killed() {
    holdfast pingpong --device $one --device $two --iters 100000000 &
    victim=$!
    sleep 2
    kill -9 $victim || return 1
    wait $victim
    holdfast pingpong --device $one --device $two --iters 10
}
check "after a kill -9 of its driver the device works again" killed
check "unbind gives the group back" holdfast unbind $one
check "bind takes it again" holdfast bind $one
check "and it works" pingpong --iters 10
[ $failed = 0 ]
