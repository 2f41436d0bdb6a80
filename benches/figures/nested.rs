//! A namespace within the workspace, connected as Docker connects a container: bridge, veth, masquerade.

use crate::lab::CUBIC;

/// Runs its arguments in such a namespace, as root of the workspace.
const IN_A_CONTAINER: &str = "set -e
exec 3>&1 >&2
unshare --net sleep 1000 & container=$!
until test \"$(readlink /proc/$container/ns/net)\" != \"$(readlink /proc/self/ns/net)\"; do sleep 0.01; done
ip link add br0 type bridge
ip addr add 10.9.0.1/24 dev br0
ip link add veth0 type veth peer name eth0 netns $container
ip link set veth0 master br0 up
ip link set br0 up
echo 1 > /proc/sys/net/ipv4/ip_forward
nft 'add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; };
    add rule ip nat out ip saddr 10.9.0.0/24 oifname != \"br0\" masquerade'
in_it() { nsenter --net=/proc/$container/ns/net \"$@\"; }
in_it ip link set lo up
in_it ip addr add 10.9.0.2/24 dev eth0
in_it ip link set eth0 up
in_it ip route add default via 10.9.0.1 CUBIC
status=0
in_it \"$@\" >&3 || status=$?
kill $container
exit $status";

pub fn argv(argv: &[String]) -> Vec<String> {
    let script = IN_A_CONTAINER.replace("CUBIC", CUBIC);
    ["sh", "-c", &script, "sh"].into_iter().map(str::to_owned).chain(argv.iter().cloned()).collect()
}
