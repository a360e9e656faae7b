#!/bin/bash
# The first process of the lab's centre: starts the hosts and lays the cables between them, prints "ready", and stays until
# its standard input ends, which it does when the test process ends, however that ends. It is the first process of a PID
# namespace: with it goes everything in the centre.
#
#   LAB_WORK=FOLDER LAB_ROOT=FOLDER LAB_NODES=2 LAB_SHARED_BINDS=... LAB_OUTSIDE_BINDS=... centre.sh
#
#   outside 10.78.0.1 --- 10.78.0.2 edge 10.77.0.1 --- bridge --- 10.77.0.11 n1, 10.77.0.12 n2, ...
#
# IMPORTANT: edge does not forward, and the nodes know no route but their own network (centre.test.ts, "network").
set -euo pipefail
here=$(dirname "$0")
mkdir -p "$LAB_WORK/stage" "$LAB_WORK/up"
hosts='outside edge'
for ((n = 1; n <= LAB_NODES; n++)); do hosts+=" n$n"; done

declare -A pid
for host in $hosts; do
  binds=$LAB_SHARED_BINDS
  [ "$host" != outside ] || binds=$LAB_OUTSIDE_BINDS
  LAB_STAGE=$LAB_WORK/stage LAB_BINDS=$binds LAB_UP=$LAB_WORK/up/$host \
    unshare --mount --uts --net --ipc --pid --fork --kill-child "$here/host.sh" "$host" "$LAB_ROOT" </dev/null &
  pid[$host]=$!
done
for host in $hosts; do
  until [ -s "$LAB_WORK/up/$host" ]; do
    kill -0 "${pid[$host]}" 2>/dev/null || { echo "host $host did not come up" >&2; exit 1; }
    sleep 0.05
  done
done

# ip comes from the hosts' root; the mount is this namespace's alone.
mount -t proc proc "$LAB_ROOT/proc"
on() { local host=$1; shift; nsenter -t "${pid[$host]}" --net -- chroot "$LAB_ROOT" "$@"; }
# A cable between two hosts: cable HOST INTERFACE HOST INTERFACE
cable() {
  chroot "$LAB_ROOT" ip link add "$2" netns "${pid[$1]}" type veth peer name "$4" netns "${pid[$3]}"
  on "$1" ip link set "$2" up
  on "$3" ip link set "$4" up
}
cable outside wan edge wan
on outside ip address add 10.78.0.1/24 dev wan
on edge ip address add 10.78.0.2/24 dev wan
on edge ip link add lan type bridge
on edge ip address add 10.77.0.1/24 dev lan
on edge ip link set lan up
for ((n = 1; n <= LAB_NODES; n++)); do
  cable edge "port$n" "n$n" lan
  on edge ip link set "port$n" master lan
  on "n$n" ip address add "10.77.0.$((10 + n))/24" dev lan
done
nsenter -t "${pid[edge]}" --net -- /bin/sh -c 'echo 0 >/proc/sys/net/ipv4/ip_forward'

echo ready
exec cat >/dev/null
