#!/bin/bash
#SBATCH --ntasks-per-node=1
# A file system for this job without an administrator: servers and mounts are the user's own, on all nodes of the job.
set -eu
# All nodes of the job see it, and nobody else can read what is in it.
work=$(mktemp -d -p "$SLURM_SUBMIT_DIR" "job$SLURM_JOB_ID.XXXXXX")
job=(--unprivileged --id "$SLURM_JOB_ID")
on_all() { srun --overlap --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 "$@"; }
finish() {
    on_all sealfs job down "${job[@]}" || true
    kill "$servers" 2> /dev/null || true
    rm -r "$work"
}

sealfs key "$work/key"
# Slurm ends what a step has started when the step ends: so this one stays.
on_all sh -c 'sealfs job up "$@" && exec sleep infinity' up "${job[@]}" --hosts "$SLURM_JOB_NODELIST" \
    --key "$work/key" --size 256M > "$work/paths" &
servers=$!
trap finish EXIT
until [ "$(wc -l < "$work/paths")" = "$SLURM_JOB_NUM_NODES" ]; do
    kill -0 "$servers"
    sleep 0.2
done
SEALFS_DIR=$(head -n 1 "$work/paths")
export SEALFS_DIR

# What the job is for:
echo "hello from $(hostname)" > "$SEALFS_DIR/hello"
srun cat "$SEALFS_DIR/hello"
