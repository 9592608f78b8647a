#!/bin/sh
# Brings up Linux's vmw_pvrdma on every emulated NIC of the guest that no driver has yet: the
# Ethernet function beside it first, because the RDMA driver takes its GIDs and its link state from
# there. The NICs are bound one after the other: the driver acts on link events for a NIC whose
# probe has not come half way and follows a null pointer (pvrdma_netdevice_event_work, seen in
# Linux 6.1).
set -e
modprobe -a vmxnet3 ib_uverbs rdma_ucm ib_umad ib_core
number=0
for net in /sys/class/net/*; do
    [ -e "$net/device/driver" ] || continue
    [ "$(basename "$(readlink "$net/device/driver")")" = vmxnet3 ] || continue
    name=${net##*/}
    number=$((number + 1))
    echo 0 >"/proc/sys/net/ipv6/conf/$name/accept_dad"
    ip link set "$name" up
    ip addr replace "10.9.0.$number/24" dev "$name"
done
up() { cat /sys/class/net/*/operstate | grep -c '^up$'; }
tries=0
until [ "$(up)" -ge $number ] || [ $tries = 50 ]; do
    tries=$((tries + 1))
    sleep 0.1
done
echo 0 >/sys/bus/pci/drivers_autoprobe
insmod /job/vmw_pvrdma.ko
for device in /sys/bus/pci/devices/*; do
    [ "$(cat "$device/vendor" "$device/device" | tr '\n' ' ')" = "0x15ad 0x0820 " ] || continue
    [ -e "$device/driver" ] && continue
    echo "${device##*/}" >/sys/bus/pci/drivers/vmw_pvrdma/bind
    sleep 1
done
echo 1 >/sys/bus/pci/drivers_autoprobe
tries=0
until [ "$(ls /sys/class/infiniband 2>/dev/null | wc -l)" = $number ]; do
    tries=$((tries + 1))
    [ $tries -lt 50 ] || { echo "lab-rdma: vmw_pvrdma made no RDMA device:"; dmesg | tail -n 20; exit 1; }
    sleep 0.1
done
ls /sys/class/infiniband
