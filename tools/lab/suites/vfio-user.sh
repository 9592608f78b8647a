# Holdfast with real VFIO: two emulated NICs behind vfio-user-pci and a vIOMMU.
. /job/lab/check.sh
case $ROW in
*vmxnet3*) modprobe vmxnet3; one=0000:00:10.1 two=0000:00:11.1 members=2 ;;
*) one=0000:00:10.0 two=0000:00:11.0 members=1 ;;
esac
numbers=/job/out/numbers
mkdir -p $numbers

bound_members() { # bound_members BDF: how many functions of its group vfio-pci has
    for member in /sys/bus/pci/devices/$1/iommu_group/devices/*; do
        readlink "$member/driver"
    done | grep -c 'vfio-pci$'
}
bound() { [ "$(bound_members $1)" = $members ]; }
pingpong() { holdfast pingpong --device $one --device $two "$@"; }
nothing_left() { # what a NIC has when nobody owns it, within a second or two
    tries=0
    until
        state=$(nic state)
        [ "$(echo "$state" | grep -o '"mappings":0,"queue_pairs":0' | wc -l)" = 2 ]
    do
        echo "$state"
        tries=$((tries + 1))
        [ $tries -lt 20 ] || return 1
        sleep 0.1
    done
}
# A command that goes on until it is stopped; its number is in $victim, what it says in victim.log.
start_traffic() { # start_traffic BDF...
    devices=
    for device in "$@"; do devices="$devices --device $device"; done
    holdfast pingpong $devices --iters 100000000 --timeout 5 >victim.log 2>&1 &
    victim=$!
    sleep 2
    kill -0 $victim || { cat victim.log; return 1; }
}
ends_and_says() { # ends_and_says WORDS: the command fails within 30 s, and says why
    ends_within 30 $victim
    status=$?
    cat victim.log
    [ $status = 1 ] && grep -q "$1" victim.log
}
gone() { # gone BDF: the function disappears from the bus
    tries=0
    while [ -e /sys/bus/pci/devices/$1 ]; do
        tries=$((tries + 1))
        [ $tries -lt 100 ] || return 1
        sleep 0.1
    done
}

check "both NICs are listed" sh -c '[ "$(holdfast devices | grep -c PVRDMA)" = 2 ]'
check "bind gives the whole group to vfio-pci" holdfast bind $one
check "all $members functions of the group belong to vfio-pci" bound $one
check "bind gives the second group too" holdfast bind $two
check "bind again has nothing to do" holdfast bind $one

for size in 0 1 4095 4096 4097; do
    check "pingpong of $size bytes between two NICs" pingpong --size $size --iters 20
done
check "pingpong of 1 MiB between two NICs" pingpong --size 1M --iters 4
check "pingpong within one NIC" holdfast pingpong --device $one --size 4K --iters 20
check "pingpong into huge pages" sh -c "
    echo 16 >/proc/sys/vm/nr_hugepages
    holdfast pingpong --device $one --device $two --size 64K --iters 10 --region hugetlb
    status=\$?
    echo 0 >/proc/sys/vm/nr_hugepages
    exit \$status"

for op in write read send cas faa; do
    check "bench $op lat" sh -c "
        holdfast bench $op lat --device $one --device $two --iters 500 --json >$numbers/${op}_lat.json"
done
check "bench write bw, 64 KiB" sh -c "
    holdfast bench write bw --device $one --device $two --size 64K --iters 200 --json >$numbers/write_bw.json"
check "bench write rate, batch 32" sh -c "
    holdfast bench write rate --device $one --device $two --batch 32 --iters 5000 --json >$numbers/write_rate.json"

# The end-to-end tests, each a check by its own name, with their files on tmpfs: Linux 6.5 and later
# pin no page of another file for writing.
cd /tmp
export HOLDFAST_TEST_DEVICES="$one $two" RUST_BACKTRACE=1
for program in opcodes errors interrupts many reset; do
    tests=$(test-$program --list --format terse | sed -n 's/: test$//p')
    check "$program: the tests are there" [ -n "$tests" ]
    for test in $tests; do
        LIMIT=300 check "$program: $(echo $test | tr _ ' ')" \
            sh -c "test-$program --exact $test >test.log 2>&1
                status=\$?
                cat test.log
                [ \$status = 0 ] && grep -q '1 passed' test.log"
    done
done
cd /job
check "the NICs have nothing left of all that" nothing_left

killed() {
    start_traffic $one $two || return 1
    kill -9 $victim || return 1
    wait $victim
    nothing_left && pingpong --iters 10
}
check "after a kill -9 of its driver nothing is left in the NICs, and they work again" killed
removed() {
    start_traffic $one $two || return 1
    # Returns when the owner has let go.
    timeout 30 sh -c "echo 1 >/sys/bus/pci/devices/$two/remove" || return 1
    ends_and_says "$two is being removed" && gone $two && nothing_left || return 1
    ! grep ERROR victim.log || return 1
    echo 1 >/sys/bus/pci/rescan
    holdfast bind $two && pingpong --iters 10
}
check "a NIC that is removed under load is let go of, its user told, and comes back" removed
check "unbind gives the group back" holdfast unbind $one
check "bind takes it again" holdfast bind $one
check "and it works" pingpong --iters 10

pulled() {
    start_traffic $two || return 1
    nic "unplug 1" || return 1
    ends_and_says "$two: the device is gone" && nothing_left
}
check "a NIC that is pulled without a word is missed, and its user told" pulled
missing() {
    pingpong --iters 1 >missing.log 2>&1
    status=$?
    cat missing.log
    [ $status = 1 ] && grep -q "the device is gone" missing.log
}
check "and is not opened again" missing
check "the other one still works" holdfast pingpong --device $one --iters 20
[ $failed = 0 ]
