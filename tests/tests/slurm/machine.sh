#!/bin/bash
# One machine of the tests' cluster.
#
#   machine.sh hold NAME DIR    in new mount and UTS namespaces: sets up the disks and /etc, then keeps them until stdin ends
#   machine.sh boot NAME DIR    in those, with new mount and PID namespaces: starts the daemons, then runs until stdin ends
#
# Disks (/etc, /var) last as long as the first, memory (/run, /tmp, processes, mounts) as long as the second. DIR is what
# all machines see, as a home on NFS: jobs/, bin/, log/ and the socket of munge.
set -eu
name=$2 dir=$3

hold() {
    hostname "$name"
    # What is mounted elsewhere would stay so for as long as this is.
    awk '/ - fuse/ { print $5 }' /proc/self/mountinfo | while read -r other; do umount -l "$other" || true; done
    mount -t tmpfs -o mode=755 etc "$dir/mnt"
    cp -a /etc/. "$dir/mnt/"
    cp -a "$dir/etc/." "$dir/mnt/"
    cat "$dir/users" >> "$dir/mnt/passwd"
    cat "$dir/groups" >> "$dir/mnt/group"
    cp "$dir/hosts" "$dir/mnt/hosts"
    mount --move "$dir/mnt" /etc
    for private in /var/lib /var/spool /var/log /mnt /usr/local/sbin; do mount -t tmpfs -o mode=755 none "$private"; done
    mount --bind "$dir/bin" /usr/local/bin
    # Where jobs' data lies is a real disk; nobody reaches another's.
    mkdir -p /var/lib/sealfs-jobs "$dir/disks/$name"
    mount --bind "$dir/disks/$name" /var/lib/sealfs-jobs
    mount -t tmpfs none "$dir/disks"
    mkdir -p /var/spool/slurmd /var/spool/slurmctld
    chown slurm /var/spool/slurmctld
}

boot() {
    # The first process of a system ends after all others: only then is the power off, and the next one may start.
    exec 9> /var/lib/power
    flock 9
    for private in /run /tmp /dev/shm; do mount -t tmpfs -o mode=755 none "$private"; done
    chmod 1777 /tmp /dev/shm
    # A machine that has booted anew says so.
    cat /proc/sys/kernel/random/uuid > /run/boot_id
    mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
    if [ "$name" = ctl ]; then
        runuser -u munge -- munged --force --key-file="$dir/munge/key" --socket="$dir/munge/socket" \
            --pid-file="$dir/munge/pid" --log-file="$dir/munge/log" --seed-file="$dir/munge/seed" 9>&-
        slurmctld -c 9>&-
    else
        # As tools/packaging/sealfs-reap.service does it.
        sealfs job reap 9>&- >&2
        slurmd -N "$name" 9>&-
    fi
}

"$1"
echo ready
# Not in the shell's place, which as the first process of a system buries the dead.
cat > /dev/null
