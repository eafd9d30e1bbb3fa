#!/usr/bin/env bash
# Installs what the tests need and is missing, then runs every stage. As root on Debian or Ubuntu, with Rust installed.
# Usage: ci/test.sh [STAGE...]   (default: all)
set -euo pipefail
cd "$(dirname "$0")/.."

packages=()
need() { command -v "$1" >/dev/null || packages+=("$2"); }
need fusermount3 fuse3
need fio fio
need rsync rsync
need sqlite3 sqlite3
need getfacl acl
need getfattr attr
need git git
need python3 python3
need cc gcc
# The RDMA bindings are made when they are built.
need cmake cmake
ldconfig -p | grep -q libclang || compgen -G '/usr/lib/llvm-*/lib/libclang*.so*' >/dev/null || packages+=(libclang-dev)
need losetup mount
need slurmctld slurm-wlm
need munged munge
compgen -G '/usr/lib/*/slurm-wlm/burst_buffer_lua.so' >/dev/null || packages+=(slurm-wlm-basic-plugins)
need ps procps
need ip iproute2
need mkfs.ext4 e2fsprogs
need chromium chromium
need prometheus prometheus
need man man-db
need systemd-analyze systemd
need strace strace
need script bsdutils
if [ ${#packages[@]} -gt 0 ]; then
    echo "installing ${packages[*]}"
    apt-get -o DPkg::Lock::Timeout=300 -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -qq -y install "${packages[@]}" >/dev/null
fi

# Versions are pinned: a new release of a test suite is an upgrade that someone makes, not one that happens.
tool() { # command crate version
    if ! command -v "$1" >/dev/null; then
        echo "installing $2 $3"
        cargo install --quiet --locked "$2" --version "$3"
    fi
}
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
tool cargo-nextest cargo-nextest 0.9.143
tool pjdfstest pjdfstest 0.2.2
tool fsx fsx 0.3.2
tool cargo-deny cargo-deny 0.20.2

exec cargo ci "${@:-all}"
