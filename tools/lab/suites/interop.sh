# Holdfast and Linux's own driver connected to each other; see tools/lab/peer.
. /job/lab/check.sh
LIMIT=90
nic=0000:00:11.0

check "Holdfast's NIC goes to vfio-pci" holdfast bind $nic || exit 1
check "vmw_pvrdma takes the other one" lab-rdma
verbs=$(ls /sys/class/infiniband)
[ -n "$verbs" ] || { dmesg | grep -i -E 'pvrdma|vmxnet3' | tail -n 20; exit 1; }

# Linux looks up a RoCE v2 peer among its IP neighbours. Holdfast has no IP stack to answer for its
# GID, so the neighbour is entered by hand.
neighbour() {
    set -- $(lab-peer gid --device $nic)
    ip -6 neigh replace $1 lladdr $2 nud permanent dev "$(ls /sys/bus/pci/devices/0000:00:10.0/net)"
}
check "Linux learns where Holdfast's GID is" neighbour

# both SERVER CLIENT: two shell lines; the second runs once the first listens.
both() {
    timeout "$LIMIT" sh -c "exec $1" >/tmp/server.log 2>&1 &
    server=$!
    await_port $server 18515
    timeout "$LIMIT" sh -c "exec $2"
    client=$?
    wait $server
    server=$?
    echo "client: $client, server: $server"
    sed 's/^/server: /' /tmp/server.log
    [ $client = 0 ] && [ $server = 0 ] && ! grep -q 'invalid data' /tmp/server.log
}
# Our side and the tool, each as the server and as the client.
for size in 1 1000 4096 65536; do
    ours="lab-peer pingpong rc --device $nic --size $size --iters 100"
    theirs="ibv_rc_pingpong -d $verbs -g 0 -n 100 -c -s $size"
    check "ibv_rc_pingpong serves Holdfast, $size bytes" both "$theirs" "$ours --connect 127.0.0.1:18515"
    check "Holdfast serves ibv_rc_pingpong, $size bytes" both "$ours --listen 127.0.0.1:18515" "$theirs 127.0.0.1"
done
ours="lab-peer pingpong rc --device $nic --size 4096 --iters 100"
theirs="ibv_rc_pingpong -d $verbs -g 0 -n 100 -c -e -s 4096"
check "ibv_rc_pingpong -e serves Holdfast" both "$theirs" "$ours --connect 127.0.0.1:18515"
check "Holdfast serves ibv_rc_pingpong -e" both "$ours --listen 127.0.0.1:18515" "$theirs 127.0.0.1"
for size in 1 1000; do
    ours="lab-peer pingpong ud --device $nic --size $size --iters 100"
    theirs="ibv_ud_pingpong -d $verbs -g 0 -n 100 -c -s $size"
    check "ibv_ud_pingpong serves Holdfast, $size bytes" both "$theirs" "$ours --connect 127.0.0.1:18515"
    check "Holdfast serves ibv_ud_pingpong, $size bytes" both "$ours --listen 127.0.0.1:18515" "$theirs 127.0.0.1"
done

# perftest, unmodified, with bytes in its buffers that Holdfast knows and compares.
lab-peer perftest-payload >/tmp/payload
perftest() { # perftest TOOL SIZE: both ways; more iterations than ib_write_lat's byte counts to
    ours="lab-peer perftest $1 --device $nic --size $2 --iters 300"
    theirs="ib_$1 -d $verbs -x 0 -n 300 -F --payload_file_path=/tmp/payload"
    [ "$1" = atomic_lat ] || theirs="$theirs -s $2" # these are always 8 bytes
    check "ib_$1 serves Holdfast, $2 bytes" both "$theirs" "$ours --connect 127.0.0.1:18515"
    check "Holdfast serves ib_$1, $2 bytes" both "$ours --listen 127.0.0.1:18515" "$theirs 127.0.0.1"
}
for size in 8 65536; do
    for tool in write_lat write_bw read_lat read_bw send_lat send_bw; do
        perftest $tool $size
    done
done
perftest atomic_lat 8

lab-peer joint --device $nic --verbs $verbs || failed=$((failed + 1))
check "rmmod vmw_pvrdma" rmmod vmw_pvrdma
[ $failed = 0 ]
