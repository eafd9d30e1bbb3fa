#!/bin/sh
# Sets soft-RoCE up on an ordinary machine or VM, to try RDMA without an adapter.
# Usage: ci/rxe-setup.sh [NETDEV]   (default: the network device of the default route)
#        ci/rxe-setup.sh --remove
# Every machine of the cluster needs it; they reach each other by UDP port 4791.
set -eu
name=rxe_sealfs
fail() { echo "rxe-setup: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "it loads modules and makes a device; run it as root"
command -v rdma >/dev/null || fail "there is no rdma(8); install iproute2"

if [ "${1:-}" = --remove ]; then
    rdma link delete $name
    exit
fi
netdev=${1:-$(ip -o route show default | sed -n 's/.* dev \([^ ]*\).*/\1/p;q')}
[ -n "$netdev" ] || fail "there is no default route; name a network device"
[ -e "/sys/class/net/$netdev" ] || fail "there is no network device $netdev; \`ip link\` lists them"

# The checksum first: rdma_rxe of many kernels refuses a device without it. Newer ones have no such module.
modprobe crc32_generic 2>/dev/null || true
modprobe rdma_rxe || fail "the kernel $(uname -r) has no module rdma_rxe; a distribution's ordinary kernel has (on Debian
linux-image-amd64, not -cloud-; on Ubuntu linux-modules-extra-$(uname -r)), those of containers and small VMs often have not"
modprobe -a ib_uverbs rdma_ucm
rdma link show | grep -q "netdev $netdev " || rdma link add $name type rxe netdev "$netdev"
rdma link show

# The libraries, where it can be told: a VM's busybox has no ldconfig.
if command -v ldconfig >/dev/null; then
    missing=
    for library in libibverbs.so.1 librdmacm.so.1; do
        ldconfig -p | grep -q "$library " || missing="$missing $library"
    done
    # Providers lie in a directory beside libibverbs, by the name of their driver.
    verbs=$(ldconfig -p | sed -n 's/.*libibverbs\.so\.1 .*=> //p')
    provider=
    for path in $verbs; do
        ls "${path%/*}"/libibverbs/librxe-rdmav*.so >/dev/null 2>&1 && provider=$path
    done
    [ -n "$provider" ] || missing="$missing librxe"
    [ -z "$missing" ] || fail "the device is there, but not the libraries:$missing; run
\`apt install rdma-core ibverbs-providers librdmacm1\`, elsewhere install rdma-core"
fi
echo "ready; \`sealfs doctor --transport rdma\` checks the rest"
