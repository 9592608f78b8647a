# The same measurements with Linux's driver and perftest, and then with Holdfast: two processes,
# one on each NIC, the same sizes, counts, depths and batches; then both NICs by one thread, which
# needs fewer processors. See tools/lab/peer.
. /job/lab/check.sh
LIMIT=120
raw=/job/out/compare
mkdir -p $raw /job/out/numbers

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

perftest() { # perftest NAME TOOL ARGS...
    result=perftest-$1.txt
    shift
    both $result "$1 -d $one -x 0 -F $2" "$1 -d $two -x 0 -F $2 127.0.0.1"
}
check "vmw_pvrdma takes both NICs" lab-rdma
set -- $(ls /sys/class/infiniband)
one=$1 two=$2
[ -n "$two" ] || { dmesg | grep -i -E 'pvrdma|vmxnet3' | tail -n 20; exit 1; }
check "Linux: write lat" perftest write_lat ib_write_lat "-s 8 -n 2000 -I 0"
check "Linux: send lat" perftest send_lat ib_send_lat "-s 8 -n 2000 -I 0"
check "Linux: write bw" perftest write_bw ib_write_bw "-s 65536 -n 2000 -Q 1 --report_gbits"
check "Linux: write rate" perftest write_rate ib_write_bw "-s 8 -n 32000 -l 32 --report_gbits"
check "Linux: one thread, registration, control path" sh -c "lab-peer measure --verbs $one --verbs $two >$raw/linux.json"
check "rmmod vmw_pvrdma" rmmod vmw_pvrdma

one=0000:00:10.1 two=0000:00:11.1
bench() { # bench NAME ARGS
    address=127.0.0.1:18515
    both holdfast-$1.json "holdfast bench $2 --device $one --server $address --json" \
        "holdfast bench $2 --device $two --connect $address --json"
}
for net in /sys/bus/pci/devices/0000:00:1[01].0/net/*; do
    ip link set "${net##*/}" down # bind takes no NIC that is in use
done
check "both NICs go to vfio-pci" sh -c "holdfast bind $one && holdfast bind $two"
check "Holdfast: write lat" bench write_lat "write lat --size 8 --iters 2000"
check "Holdfast: send lat" bench send_lat "send lat --size 8 --iters 2000"
check "Holdfast: write bw" bench write_bw "write bw --size 64K --iters 2000 --depth 128 --batch 1"
check "Holdfast: write rate" bench write_rate "write rate --size 8 --iters 32000 --depth 128 --batch 32"
check "Holdfast: one thread, registration, control path" \
    sh -c "lab-peer measure --device $one --device $two >$raw/holdfast.json"
lab-peer table $raw --json /job/out/numbers/compare.json || failed=$((failed + 1))
[ $failed = 0 ]
