//! Whether so much memory may be locked: asked before, so that the answer names the limit and what to do.

#[cfg(feature = "rdma")]
use rustix::process::{Resource, getrlimit};

use crate::verbs::Failure;

/// How many bytes may be locked; `None`: the kernel's own limits are all there is.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Lockable(pub(crate) Option<u64>);

impl Lockable {
    /// RLIMIT_MEMLOCK of this process, if it applies.
    #[cfg(feature = "rdma")]
    pub(crate) fn by_this_process() -> Self {
        let limit = getrlimit(Resource::Memlock).current;
        Self(limit.filter(|_| !may_lock_any()))
    }

    /// Fails if registering `len` bytes more would go beyond the limit, `locked` bytes being registered by this process.
    pub(crate) fn check(self, len: usize, locked: usize) -> Result<(), Failure> {
        match self.0 {
            Some(limit) if (len + locked) as u64 > limit => Err(too_little(len, locked, limit)),
            _ => Ok(()),
        }
    }

    /// The text for a kernel that says "no memory".
    #[cfg(feature = "rdma")]
    pub(crate) fn refused(self, len: usize, locked: usize) -> Failure {
        match self.0 {
            Some(limit) => too_little(len, locked, limit),
            None => Failure(format!(
                "cannot register {} MiB of memory: the kernel has no memory to lock; give the process less (--memory)",
                len >> 20
            )),
        }
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
#[cfg(feature = "rdma")]
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
    }

    #[test]
    fn what_is_registered_already_counts() {
        let lockable = Lockable(Some(8 << 20));
        assert_eq!(lockable.check(8 << 20, 0), Ok(()));
        assert!(lockable.check(4 << 20, (4 << 20) + 1).is_err());
        assert_eq!(Lockable(None).check(1 << 40, 0), Ok(()));
    }
}
