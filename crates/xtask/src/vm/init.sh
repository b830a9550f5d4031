#!/bin/sh
# First program of the guest: mounts what systemd mounts, with the same propagation, runs the script, switches off.
export PATH=/usr/bin:/bin HOME=/root
mount --make-rshared /
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
mkdir -p /dev/pts /dev/shm /dev/mqueue
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=000 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev shm /dev/shm
mount -t mqueue -o nosuid,nodev,noexec mqueue /dev/mqueue
mount -t tmpfs -o nosuid,nodev,mode=755 run /run
mount -t tmpfs -o nosuid,nodev,mode=1777 tmp /tmp
mount -t cgroup2 -o nosuid,nodev,noexec,nsdelegate,memory_recursiveprot cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
hostname guest
# udev creates these from the modules' names.
modprobe loop
modprobe fuse
/usr/bin/ip link set lo up
# The service's own group, as systemd would place it.
mkdir -p /sys/fs/cgroup/system.slice
echo "+cpu +memory +pids" > /sys/fs/cgroup/cgroup.subtree_control
echo "+cpu +memory +pids" > /sys/fs/cgroup/system.slice/cgroup.subtree_control
mkdir /sys/fs/cgroup/system.slice/sampan.service
sh /smoke 2>&1
dmesg | grep -E 'BUG:|Oops' | sed 's/^/@@ FAIL kernel: /'
# Emulation itself makes the kernel wonder at times.
dmesg | grep -E 'WARNING:' | sed 's/^/@@ fact kernel: /'
echo "@@ end"
poweroff -f
