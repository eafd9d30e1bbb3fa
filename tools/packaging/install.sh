#!/usr/bin/env bash
# Installs sealfs: the binary, its names for mount(8), manual pages, completions, systemd units.
# Usage: [DESTDIR=/stage] [PREFIX=/usr/local] [SBINDIR=/sbin] [BINARY=target/release/sealfs] tools/packaging/install.sh
#   DESTDIR  a tree to install into, for packages; paths inside of it are those without it
#   PREFIX   where binary, manual pages, completions and units go
#   SBINDIR  where mount(8) looks for mount.sealfs: /sbin, wherever that is
#   BINARY   what to install; built if it is not given
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
SBINDIR=${SBINDIR:-$(readlink -f /sbin)}

if [ -z "${BINARY:-}" ]; then
    (cd "$root" && cargo build --release --quiet -p sealfs)
    BINARY=${CARGO_TARGET_DIR:-$root/target}/release/sealfs
fi
[ -x "$BINARY" ] || { echo "install.sh: $BINARY is no program; build it with cargo build --release -p sealfs" >&2; exit 1; }

bin=$PREFIX/bin
share=$PREFIX/share
units=$PREFIX/lib/systemd/system
mkdir -p "$DESTDIR$bin" "$DESTDIR$SBINDIR" "$DESTDIR$share/man/man1" "$DESTDIR$units" "$DESTDIR$share/doc/sealfs" \
    "$DESTDIR$share/bash-completion/completions" "$DESTDIR$share/zsh/site-functions" \
    "$DESTDIR$share/fish/vendor_completions.d"

# A new file beside the old one, then its name: a node that runs keeps the file that it was started from.
install -m 755 "$BINARY" "$DESTDIR$bin/.sealfs.new"
mv -f "$DESTDIR$bin/.sealfs.new" "$DESTDIR$bin/sealfs"
for name in mount.sealfs mount.fuse.sealfs; do
    ln -sfn "$bin/sealfs" "$DESTDIR$SBINDIR/$name"
done

"$BINARY" man "$DESTDIR$share/man/man1"
"$BINARY" completions bash >"$DESTDIR$share/bash-completion/completions/sealfs"
"$BINARY" completions zsh >"$DESTDIR$share/zsh/site-functions/_sealfs"
"$BINARY" completions fish >"$DESTDIR$share/fish/vendor_completions.d/sealfs.fish"

for unit in "$here"/*.service; do
    sed "s|@BINDIR@|$bin|g" "$unit" >"$DESTDIR$units/${unit##*/}"
    chmod 644 "$DESTDIR$units/${unit##*/}"
done
install -m 644 "$here/node.toml.example" "$root/README.md" "$root/docs/metrics.md" "$root/docs/operating.md" \
    "$DESTDIR$share/doc/sealfs/"
# Settings and keys.
mkdir -p "$DESTDIR/etc/sealfs"

echo "installed into ${DESTDIR}${PREFIX}"
if [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
