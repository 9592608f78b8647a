# The keeper with a real container and a file on an emulated NVDIMM; see tools/lab/keeper.
. /job/lab/check.sh
fs=${ROW:?}
device=0000:00:10.0

check "the device is bound to vfio-pci" bind_vfio $device
check "the NVDIMM becomes an fsdax namespace" fsdax $fs
check "$fs is made on it and mounted with dax=always" make_dax $fs /mnt/dax

lab-keeper --holdfast "$(command -v holdfast)" --device $device --file /mnt/dax/file check ||
    failed=1
check "no keeper is left" sh -c '! pgrep -f "[h]oldfast keeper"'

[ $failed = 0 ]
