#!/bin/sh
# Runs the official IO500 on sealfs: builds `sealfs` if there is none, and hands everything to `sealfs io500`.
# Usage: io500/run.sh [OPTION...] MOUNT|HOSTLIST      (`io500/run.sh --help` lists the options)
# SEALFS_BIN names the binary; else the one of this checkout, else the one in PATH.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
binary=${SEALFS_BIN:-}
if [ -z "$binary" ]; then
    target=${CARGO_TARGET_DIR:-$root/target}
    if [ ! -x "$target/release/sealfs" ] && command -v cargo >/dev/null; then
        (cd "$root" && cargo build --release --quiet -p sealfs)
    fi
    if [ -x "$target/release/sealfs" ]; then
        binary=$target/release/sealfs
    else
        binary=$(command -v sealfs) || {
            echo "run.sh: no sealfs: build it (cargo build --release -p sealfs) or say SEALFS_BIN=PATH" >&2
            exit 1
        }
    fi
fi
exec "$binary" io500 "$@"
