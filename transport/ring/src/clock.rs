//! The present and the processor: what a thread's loop tells the code that may not ask.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use sealfs_proto::Time;
use sealfs_transport::{Instant, Now};

static START: LazyLock<std::time::Instant> = LazyLock::new(std::time::Instant::now);

/// The present: monotonic since the process first asked (the same for all its threads), and of the wall. Cost: two vDSO
/// calls.
#[must_use]
pub fn now() -> Now {
    let start = *START;
    let mono = start.elapsed();
    let wall = match SystemTime::now().duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => Time { seconds: since.as_secs() as i64, nanos: since.subsec_nanos() },
        Err(error) => before_1970(error.duration()),
    };
    Now { mono: Instant(mono.as_nanos() as u64), wall }
}

fn before_1970(before: Duration) -> Time {
    let (seconds, nanos) = (before.as_secs() as i64, before.subsec_nanos());
    if nanos == 0 {
        Time { seconds: -seconds, nanos: 0 }
    } else {
        Time { seconds: -seconds - 1, nanos: 1_000_000_000 - nanos }
    }
}

/// Keeps the calling thread on processor `core`.
pub fn pin(core: usize) -> io::Result<()> {
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    if allowed.iter().any(|one| one.id == core)
        && core_affinity::set_for_current(core_affinity::CoreId { id: core })
    {
        return Ok(());
    }
    let allowed: Vec<usize> = allowed.into_iter().map(|one| one.id).collect();
    Err(io::Error::other(format!(
        "cannot pin a thread to processor {core}; this process may use {allowed:?} (taskset, cgroup cpuset)"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_forward_and_the_wall_is_after_2020() {
        let (first, second) = (now(), now());
        assert!(first.mono <= second.mono);
        assert!(first.wall.seconds > 1_577_836_800 && first.wall.nanos < 1_000_000_000);
    }

    #[test]
    fn times_before_1970_have_positive_nanoseconds() {
        let time = before_1970(Duration::new(1, 1));
        assert_eq!(time, Time { seconds: -2, nanos: 999_999_999 });
        assert_eq!(before_1970(Duration::new(3, 0)), Time { seconds: -3, nanos: 0 });
    }

    #[test]
    fn a_core_that_does_not_exist_is_named() {
        assert!(pin(100_000).unwrap_err().to_string().contains("100000"));
    }
}
