#!/bin/sh
# Runs once, before the shell.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /tmp
hostname volvelle
echo
echo "Linux $(uname -r) with $(nproc) CPU(s) and $(($(sed -n 's/MemTotal: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024)) MiB on Volvelle."
echo "\`poweroff\` ends the machine, \`reboot\` starts it again; Ctrl-A x leaves at once."
echo
# For the test of exact repetition: show what the clock and every interrupt did, and leave.
if grep -q volvelle.leave /proc/cmdline; then
    cat /proc/uptime /proc/interrupts /proc/stat
    poweroff -f
fi
