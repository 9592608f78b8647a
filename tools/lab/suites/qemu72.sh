# Holdfast on QEMU 7.2's own pvrdma, function 1 beside its vmxnet3, through /dev/vfio.
. /job/lab/check.sh
modprobe vmxnet3
one=0000:00:10.1 two=0000:00:11.1
numbers=/job/out/numbers
mkdir -p $numbers

vfio_has() { [ "$(basename "$(readlink /sys/bus/pci/devices/$1/driver)")" = vfio-pci ]; }
both_functions() { vfio_has $1.0 && vfio_has $1.1; }
listed() { holdfast devices | tee /dev/stderr | grep -q "^$1  VMware PVRDMA"; }

# names_send COMMAND...: fails, and its words lead to what does work.
names_send() {
    said=$("$@" 2>&1) && return 1
    echo "$said"
    case $said in *"carries out only SEND"*"holdfast bench send"*) ;; *) return 1 ;; esac
}

# From one device to itself, or to the other one.
check "the device is listed" listed $one
check "bind gives both functions of the group to vfio-pci" holdfast bind $one
check "vmxnet3 and pvrdma belong to vfio-pci" both_functions 0000:00:10
ends="--device $one"
if [ "$ROW" = "two devices" ]; then
    check "bind gives the second group too" holdfast bind $two
    check "its vmxnet3 and pvrdma belong to vfio-pci" both_functions 0000:00:11
    ends="--device $one --device $two"
fi

for size in 0 1 4095 4096 4097 1M; do
    check "pingpong of $size bytes" holdfast pingpong $ends --size $size --iters 20
done
check "bench send lat" sh -c "holdfast bench send lat $ends --iters 500 --json >$numbers/send_lat.json"
check "bench send bw, 64 KiB" sh -c "
    holdfast bench send bw $ends --size 64K --iters 200 --json >$numbers/send_bw.json"
for op in write read cas faa; do
    check "bench $op is refused, with what to do" names_send holdfast bench $op lat $ends --iters 10
done

lab-peer qemu --device $one all || failed=$((failed + 1))
[ "$ROW" = "two devices" ] && { lab-peer qemu --device $two all || failed=$((failed + 1)); }

killed() {
    lab-peer qemu --device $one hold >/tmp/holder &
    holder=$!
    tries=0
    until grep -q holding /tmp/holder; do
        tries=$((tries + 1))
        [ $tries -lt 300 ] && kill -0 $holder || return 1
        sleep 0.2
    done
    kill -9 $holder
    wait $holder
    [ $? = 137 ]
}
check "a driver that fills the device is killed" killed
lab-peer qemu --device $one after-kill || failed=$((failed + 1))
lab-peer qemu --device $one interrupts || failed=$((failed + 1))
check "pingpong after all of that" holdfast pingpong $ends --iters 20
check "unbind gives the group back" holdfast unbind $one
check "vmxnet3 has its function again" sh -c "readlink /sys/bus/pci/devices/0000:00:10.0/driver | grep vmxnet3"
[ $failed = 0 ]
