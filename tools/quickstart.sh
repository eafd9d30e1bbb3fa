#!/usr/bin/env bash
# From a fresh checkout to a mounted cluster on this machine: installs what is missing, builds, starts three nodes, mounts
# them on MOUNTPOINT, writes and checks a file.
# Usage: tools/quickstart.sh MOUNTPOINT
set -euo pipefail
[ $# = 1 ] || { echo "usage: $0 MOUNTPOINT" >&2; exit 2; }
mkdir -p "$1"
mountpoint=$(realpath "$1")
cd "$(dirname "$0")/.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }
packages=()
command -v fusermount3 >/dev/null || packages+=(fuse3)
command -v cc >/dev/null || packages+=(gcc libc6-dev)
# The RDMA bindings are made when they are built.
command -v cmake >/dev/null || packages+=(cmake)
ldconfig -p | grep -q libclang || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || packages+=(libclang-dev)
if [ ${#packages[@]} -gt 0 ]; then
    echo "installing ${packages[*]}"
    as_root apt-get -o DPkg::Lock::Timeout=300 -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq -y install "${packages[@]}" >/dev/null
fi
command -v cargo >/dev/null || { echo "Rust is missing: install it, then run this again" >&2; exit 1; }
[ -e /dev/fuse ] || { echo "/dev/fuse is missing: load the kernel module 'fuse' (in a container: pass --device /dev/fuse)" >&2; exit 1; }

echo "building (a few minutes the first time)"
cargo build --quiet --release -p sealfs
sealfs=${CARGO_TARGET_DIR:-$PWD/target}/release/sealfs

"$sealfs" local up "$mountpoint"
file=$mountpoint/quickstart.bin
sum=$(head -c 10000000 /dev/urandom | tee "$file" | sha256sum)
[ "$sum" = "$(sha256sum < "$file")" ] || { echo "$file does not hold what was written" >&2; exit 1; }
rm "$file"

cat <<EOF

A 10 MB file was written over three nodes and read back right. The mount is yours: $mountpoint
  $sealfs bench $mountpoint     measure it
  $sealfs local status          what runs
  $sealfs local down            end it, keep the data (--wipe: remove it)
EOF
