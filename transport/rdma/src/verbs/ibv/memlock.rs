//! Whether so much memory may be locked: asked before, so that the answer names the limit and what to do.

use rustix::process::{Resource, getrlimit};

use crate::verbs::Failure;

/// Fails if registering `len` bytes more would go beyond RLIMIT_MEMLOCK, `locked` bytes being registered by this process.
pub(super) fn check(len: usize, locked: usize) -> Result<(), Failure> {
    let limit = getrlimit(Resource::Memlock).current;
    match limit {
        Some(limit) if (len + locked) as u64 > limit && !may_lock_any() => {
            Err(too_little(len, locked, limit))
        }
        _ => Ok(()),
    }
}

/// The text for a kernel that says "no memory".
pub(super) fn refused(len: usize, locked: usize) -> Failure {
    match getrlimit(Resource::Memlock).current {
        Some(limit) if !may_lock_any() => too_little(len, locked, limit),
        _ => Failure(format!(
            "cannot register {} MiB of memory: the kernel has no memory to lock; give the process less (--memory)",
            len >> 20
        )),
    }
}

fn too_little(len: usize, locked: usize, limit: u64) -> Failure {
    Failure(format!(
        "cannot register {} MiB of memory with the device ({} MiB are registered): RLIMIT_MEMLOCK is {} KiB; run \
         `ulimit -l unlimited`, set LimitMEMLOCK=infinity in the systemd unit, or give the process less memory",
        len.div_ceil(1 << 20),
        locked >> 20,
        limit >> 10
    ))
}

/// Whether this process has CAP_IPC_LOCK, to which the limit does not apply.
fn may_lock_any() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_names_the_limit_and_the_next_step() {
        let Failure(text) = too_little(2 << 30, 64 << 20, 8 << 20);
        for part in ["2048 MiB", "64 MiB", "8192 KiB", "ulimit -l unlimited", "LimitMEMLOCK"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(check(0, 0), Ok(()));
    }
}
