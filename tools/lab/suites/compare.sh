# The same measurements with Linux's driver and perftest, and with Holdfast, by turns: two
# processes, one on each NIC, the same sizes, counts, depths and batches; then both NICs by one
# thread, which needs fewer processors. What drifts in the machine meets both. See tools/lab/peer.
. /job/lab/check.sh
LIMIT=120
rounds=3
near=0000:00:10.1
far=0000:00:11.1
mkdir -p /job/out/numbers

# both RESULT SERVER CLIENT: two shell lines; the client's output is the result.
both() {
    timeout "$LIMIT" sh -c "exec $2" >/tmp/server.log 2>&1 &
    server=$!
    await_port $server 18515
    timeout "$LIMIT" sh -c "exec $3" >"$raw/$1" 2>/tmp/client.log
    client=$?
    wait $server
    server=$?
    cat "$raw/$1" /tmp/client.log
    sed 's/^/server: /' /tmp/server.log
    [ $client = 0 ] && [ $server = 0 ]
}

# perftest NAME TOOL ARGS: again if it could not make out how fast the processor's clock is, which
# it says with exit status 0 and figures like "inf".
perftest() {
    for try in 1 2 3 4 5; do
        both "perftest-$1.txt" "$2 -d $one -x 0 -F $3" "$2 -d $two -x 0 -F $3 127.0.0.1" || return
        grep -q 'Correlation coefficient' /tmp/client.log || return 0
    done
    return 1
}

bench() { # bench NAME ARGS
    address=127.0.0.1:18515
    both holdfast-$1.json "holdfast bench $2 --device $near --server $address --json" \
        "holdfast bench $2 --device $far --connect $address --json"
}

linux() {
    check "round $round: vmw_pvrdma takes both NICs" lab-rdma
    set -- $(ls /sys/class/infiniband)
    one=$1 two=$2
    [ -n "$two" ] || { dmesg | grep -i -E 'pvrdma|vmxnet3' | tail -n 20; exit 1; }
    check "round $round: Linux: write lat" perftest write_lat ib_write_lat "-s 8 -n 1000 -I 0"
    check "round $round: Linux: send lat" perftest send_lat ib_send_lat "-s 8 -n 1000 -I 0"
    check "round $round: Linux: write bw" \
        perftest write_bw ib_write_bw "-s 65536 -n 2000 -Q 1 --report_gbits"
    check "round $round: Linux: write rate" \
        perftest write_rate ib_write_bw "-s 8 -n 32000 -l 32 --report_gbits"
    check "round $round: Linux: one thread, registration, control path" \
        sh -c "lab-peer measure --verbs $one --verbs $two >$raw/linux.json"
    check "round $round: rmmod vmw_pvrdma" rmmod vmw_pvrdma
}

holdfast_too() {
    for net in /sys/bus/pci/devices/0000:00:1[01].0/net/*; do
        ip link set "${net##*/}" down # bind takes no NIC that is in use
    done
    check "round $round: both NICs go to vfio-pci" \
        sh -c "holdfast bind $near && holdfast bind $far"
    check "round $round: Holdfast: write lat" bench write_lat "write lat --size 8 --iters 1000"
    check "round $round: Holdfast: send lat" bench send_lat "send lat --size 8 --iters 1000"
    check "round $round: Holdfast: write bw" \
        bench write_bw "write bw --size 64K --iters 2000 --depth 128 --batch 1"
    check "round $round: Holdfast: write rate" \
        bench write_rate "write rate --size 8 --iters 32000 --depth 128 --batch 32"
    check "round $round: Holdfast: one thread, registration, control path" \
        sh -c "lab-peer measure --device $near --device $far >$raw/holdfast.json"
    check "round $round: both NICs are given back" \
        sh -c "holdfast unbind $near && holdfast unbind $far"
}

for round in $(seq $rounds); do
    raw=/job/out/compare/$round
    mkdir -p $raw
    linux
    holdfast_too
done
lab-peer table /job/out/compare/* --json /job/out/numbers/compare.json || failed=$((failed + 1))
[ $failed = 0 ]
