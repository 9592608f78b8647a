# Memory of rings on a machine with two NUMA nodes, which the kernel makes of one (numa=fake=2).
. /job/lab/check.sh
export HOLDFAST_STATS_DIR=/tmp/stats

check "there are two nodes with memory" grep -x 0-1 /sys/devices/system/node/has_memory

bench="holdfast bench write rate --iters 1000 --json"
# What the device was opened with is on node 0, where that was done.
nodes() { # nodes NODE NODES: asked for, and then in use
    taskset -c 0 $bench --ring-node "$1" | tr -d ' \n' | grep -o "\"nodes\":\[$2\]"
}
check "rings that are to be on node 0 are there" nodes 0 0
check "rings that are to be on node 1 are there" nodes 1 0,1
# Each block of rings is 2 MiB: where huge pages are is not where rings go, and one block is enough.
echo 16 >/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
check "16 huge pages are there, on node 0 alone" \
    grep -x 16 /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
check "rings that are to be on node 1 are there, and take no huge pages of node 0's" nodes 1 0,1
echo 0 >/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages
check "a node that is not there is refused" \
    sh -c "$bench --ring-node 2 2>&1 | grep 'no memory of NUMA node 2 for this process; there is of \[0, 1\]'"

[ $failed = 0 ]
