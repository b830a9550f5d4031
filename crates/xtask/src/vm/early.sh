#!/bin/sh
# The memory disk: loads what reaches the disk, and goes there.
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module"; done < /modules/order
tries=0
until [ -b /dev/vda ]; do
    tries=$((tries + 1))
    [ $tries -lt 300 ] || { echo "@@ FAIL boot: the disk does not appear"; poweroff -f; }
    sleep 0.1
done
mount -t ext4 -o rw /dev/vda /disk
umount /proc /sys
mount -o move /dev /disk/dev
exec switch_root /disk /init
