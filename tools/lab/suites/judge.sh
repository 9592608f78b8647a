# Linux's own driver and the verbs tools against two emulated NICs.
. /job/lab/check.sh
LIMIT=45

check "vmw_pvrdma takes both NICs" lab-rdma
set -- $(ls /sys/class/infiniband)
one=$1 two=$2
[ -n "$two" ] || { dmesg | grep -i -E 'pvrdma|vmxnet3' | tail -n 20; exit 1; }
check "ibv_devices lists both" sh -c "ibv_devices | grep -q $two"
check "ibv_devinfo -v answers" sh -c "ibv_devinfo -v -d $one"
active() { ibv_devinfo -d $1 | grep -q PORT_ACTIVE; }
check "the port is active" active $one
check "the driver bound a GID" sh -c "cat /sys/class/infiniband/$one/ports/1/gids/0 | grep -qv '^0000:0000:0000:0000:0000:0000:0000:0000\$'"

# pair TOOL ARGS...: the tool as a server on the first NIC and as a client on the second.
pair() {
    tool=$1
    shift
    timeout "$LIMIT" "$tool" -d $one "$@" >/tmp/server.log 2>&1 &
    server=$!
    await_port $server 18515
    timeout "$LIMIT" "$tool" -d $two "$@" 127.0.0.1
    client=$?
    wait $server
    server=$?
    echo "client: $client, server: $server"
    sed 's/^/server: /' /tmp/server.log
    [ $client = 0 ] && [ $server = 0 ]
}

# perftest has no events for WRITE.
for events in "" "-e"; do
    check "ibv_rc_pingpong $events" pair ibv_rc_pingpong -g 0 -n 200 -c $events
    check "ibv_ud_pingpong $events" pair ibv_ud_pingpong -g 0 -n 200 -c $events
    check "ibv_srq_pingpong $events" pair ibv_srq_pingpong -g 0 -n 200 -q 4 -c $events
    for op in send write read atomic; do
        [ "$op$events" = write-e ] || check "ib_${op}_lat $events" pair ib_${op}_lat -x 0 -n 200 -F $events
    done
    for op in send write read; do
        [ "$op$events" = write-e ] ||
            check "ib_${op}_bw $events" pair ib_${op}_bw -x 0 -n 200 -s 65536 -F $events
    done
done
check "ib_write_bw, 8 queue pairs" pair ib_write_bw -x 0 -n 100 -q 8 -F
check "ib_send_bw, all sizes" pair ib_send_bw -x 0 -n 20 -a -F
check "ib_send_lat over UD" pair ib_send_lat -x 0 -n 200 -c UD -F
check "ib_atomic_lat, compare and swap" pair ib_atomic_lat -x 0 -n 200 -A CMP_AND_SWAP -F
check "rmmod vmw_pvrdma" rmmod vmw_pvrdma
check "vmw_pvrdma takes both NICs again" lab-rdma
check "ibv_rc_pingpong after that" pair ibv_rc_pingpong -g 0 -n 50 -c
[ $failed = 0 ]
