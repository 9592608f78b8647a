# Regions of DAX files under a storm of layout operations (an emulated NVDIMM); see tools/lab/storm.
. /job/lab/check.sh
fs=${ROW%%,*}
mnt=/mnt/dax
near=0000:00:10.0
far=0000:00:11.0
numbers=/job/out/numbers
mkdir -p $numbers

case $SUITE in
# The smaller the region, the more operations a minute.
coherence-long) storm=600 operations=2000 short=60 kills=150 size=2 within=1000 ;;
# A machine that does other things besides may be slow once.
*) storm=60 operations=0 short=12 kills=8 size=4 within=3000 ;;
esac
case $ROW in
*"misses fail") misses=--misses-fail ;;
*) misses= ;;
esac
# There, sharing blocks of DAX files is an experiment, and ends in "kernel BUG at fs/inode.c".
case $fs-$(uname -r) in
xfs-6.1.*) sharing=--no-sharing ;;
*) sharing= ;;
esac

run() { # run NAME ARGUMENT...: a storm, whose figures are kept under the name
    figures=$1
    shift
    lab-storm run --dir $mnt --device $near --peer $far $misses $sharing --size $size \
        --numbers $numbers/$figures.json "$@" || failed=1
}

held_up() { # held_up MILLISECONDS: how long a policy of so long makes a truncate wait
    fallocate -l 4M $mnt/held
    holdfast watch --device $near --policy hold=$1ms --events 2 $mnt/held >/tmp/held.log 2>&1 &
    watch=$!
    until grep -q watching /tmp/held.log; do
        sleep 0.2
        kill -0 $watch || { cat /tmp/held.log; return 1; }
    done
    before=$(date +%s%N)
    truncate -s 1M $mnt/held
    waited=$((($(date +%s%N) - before) / 1000000))
    wait $watch
    ended=$?
    cat /tmp/held.log
    echo "the truncate waited $waited ms"
    rm -f $mnt/held
    [ $ended = 0 ] && [ $waited -ge "$1" ] && [ $waited -lt 10000 ]
}

check "the NVDIMM becomes an fsdax namespace" fsdax $fs
check "both NICs are bound to vfio-pci" bind_vfio $near $far
check "$fs is made and mounted with dax=always" make_dax $fs $mnt all
mount -t tracefs nodev /sys/kernel/tracing 2>/dev/null
# Scrap of huge pages costs one mapping for each chunk.
echo 32 >/proc/sys/vm/nr_hugepages

check "a region that wants 700 ms is given them" held_up 700
# Somebody syncs the file all the time: Linux before 6.15 does not see a page that is just being
# written back when it looks for pinned ones.
while :; do
    sync $mnt/region 2>/dev/null
    sleep 0.02
done &
syncer=$!
run storm --seconds $storm --operations $operations --regions 3
kill $syncer
if [ -z "$misses" ]; then
    run guard_page --seconds $short --notifier guard-page
    # One that sees no operation on a file: the guard looks at its pins by itself.
    run unheard --seconds $short --notifier userfaultfd
    run delayed --seconds $short --delay-notices 1500 --stop-tracing
    lab-storm kill --dir $mnt --device $near --peer $far --times $kills --size $size \
        --within $within --numbers $numbers/kills.json || failed=1
fi
# Last, because it spoils what is there.
check "$fs is made and mounted anew" make_dax $fs $mnt all
# It ends with the first foreign byte; xfs may take a while until it gives such a block away again.
run unguarded --seconds 120 --guard off
[ $failed = 0 ]
