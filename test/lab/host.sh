#!/bin/bash
# The first process of one host of the lab: makes a root file system of its own and becomes that host. Started inside new
# mount, PID, network, host name and IPC namespaces, so all that it mounts or starts ends with it.
#
#   LAB_STAGE=FOLDER LAB_BINDS='SOURCE TARGET ro|rw' (a line each) [LAB_UP=FILE] host.sh NAME ROOT [COMMAND...]
#
# ROOT is never written: the host sees it through an overlay whose upper layer is in memory. Without COMMAND it stays
# until its end and reaps what is orphaned.
set -euo pipefail
name=$1 root=$2
shift 2

mount -t tmpfs -o mode=755 lab "$LAB_STAGE"
mkdir "$LAB_STAGE/upper" "$LAB_STAGE/work" "$LAB_STAGE/root"
mount -t overlay overlay -o "lowerdir=$root,upperdir=$LAB_STAGE/upper,workdir=$LAB_STAGE/work" "$LAB_STAGE/root"
cd "$LAB_STAGE/root"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 run run
mount -t tmpfs -o mode=1777 tmp tmp

# A /dev of our own: the machine's /dev/fuse keeps its mode, ours is for everybody.
mount -t tmpfs -o mode=755 dev dev
for device in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0' 'fuse 10 229'; do
  read -r node major minor <<<"$device"
  mknod -m 666 "dev/$node" c "$major" "$minor"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr

while read -r source target mode; do
  [ -n "$source" ] || continue
  if [ -d "$source" ]; then mkdir -p ".$target"; else mkdir -p ".$(dirname "$target")" && touch ".$target"; fi
  mount --rbind "$source" ".$target"
  [ "$mode" = rw ] || mount -o remount,bind,ro ".$target"
done <<<"${LAB_BINDS:-}"

hostname "$name"
exec 8>"${LAB_UP:-/dev/null}"
pivot_root . .
umount -l .
cd /
ip link set lo up
unset LAB_STAGE LAB_BINDS LAB_UP
if [ $# -gt 0 ]; then exec "$@" 8>&-; fi
echo up >&8
exec 8>&-
exec -a indraft-lab-host /bin/bash -c 'sleep infinity & wait' "$name"
