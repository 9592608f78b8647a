# The IOMMU layer against a real type1 container and a vIOMMU; see tools/lab/domain.
. /job/lab/check.sh
testdev=0000:00:10.0
edu=0000:00:11.0
check "both engines are bound to vfio-pci" bind_vfio $testdev $edu

# First, because the kernel logs no more than ten faults in five seconds.
lab-domain $testdev hold >/job/out/hold.log 2>&1 &
holder=$!
tries=0
until grep -q holding /job/out/hold.log || [ $tries = 100 ]; do
    sleep 0.1
    tries=$((tries + 1))
done
check "the holder maps its memory" grep -q holding /job/out/hold.log
kill -9 $holder
wait $holder 2>/dev/null
lab-domain $testdev after-kill || failed=1

faults() { dmesg | grep -c "DMAR: .DMA Write.*\[\(0000:\)\?00:10\.0\] fault addr $1 "; }
check "the kernel log names the engine and the address of the refused write" \
    test "$(faults 0x40000000)" -gt 0

numbers=/job/out/numbers
mkdir -p $numbers
lab-domain $testdev basic --numbers $numbers/basic.json || failed=1
lab-domain $testdev exchange --numbers $numbers/exchange.json || failed=1
lab-domain $testdev large --numbers $numbers/large.json || failed=1
lab-domain $edu edu || failed=1

echo 200 >/sys/module/vfio_iommu_type1/parameters/dma_entry_limit
lab-domain $testdev entries || failed=1
echo 65535 >/sys/module/vfio_iommu_type1/parameters/dma_entry_limit

(ulimit -l 1024 && exec setpriv --bounding-set=-ipc_lock lab-domain $testdev memlock) || failed=1

[ $failed = 0 ]
