#!/bin/sh
# Brings up Linux's vmw_pvrdma on every emulated NIC of the guest: the Ethernet function beside it
# first, because the RDMA driver takes its GIDs and its link state from there.
set -e
modprobe -a vmxnet3 ib_uverbs rdma_ucm ib_umad ib_core
number=1
for net in /sys/class/net/*; do
    [ -e "$net/device/driver" ] || continue
    [ "$(basename "$(readlink "$net/device/driver")")" = vmxnet3 ] || continue
    name=${net##*/}
    ip link set "$name" up
    ip addr add "10.9.0.$number/24" dev "$name"
    number=$((number + 1))
done
insmod /job/vmw_pvrdma.ko
tries=0
until [ "$(ls /sys/class/infiniband 2>/dev/null | wc -l)" = $((number - 1)) ]; do
    tries=$((tries + 1))
    [ $tries -lt 50 ] || { echo "lab-rdma: vmw_pvrdma made no RDMA device:"; dmesg | tail -n 20; exit 1; }
    sleep 0.1
done
ls /sys/class/infiniband
