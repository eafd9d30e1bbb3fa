//! How a thread waits: whether it looks for completions before it sleeps, and for how long.
//!
//! Sleeping and being woken cost some microseconds and leave the processor to others; looking costs the processor. With
//! [`Poll::Adaptive`] a thread looks for as long as its recent waits make it likely that something comes meanwhile:
//!
//! | a wait took | then the next one looks for |
//! |---|---|
//! | no longer than it was looked | as long as before |
//! | longer, but less than [`LOOK_MAX`] | twice as long, [`LOOK_MIN`] at least |
//! | longer than that, or nothing came | no time |
//!
//! (The idea is that of the kernel's halt polling, virt/kvm/halt_poll.c.)
//!
//! 1. A thread without work does not look: each wait that ends with nothing, or late, makes the next one sleep at once.
//! 2. Nothing is looked for longer than [`LOOK_MAX`], unless it is never to sleep.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// What a thread does that has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// It looks until something comes: the lowest latency, for a processor of its own.
    Spin,
    /// It looks for a bounded time while something is likely to come soon, then sleeps.
    #[default]
    Adaptive,
    /// It sleeps.
    Sleep,
}

impl FromStr for Poll {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "spin" => Ok(Self::Spin),
            "adaptive" => Ok(Self::Adaptive),
            "sleep" => Ok(Self::Sleep),
            other => Err(format!("poll {other}: unknown; use spin, adaptive or sleep")),
        }
    }
}

impl fmt::Display for Poll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Spin => "spin",
            Self::Adaptive => "adaptive",
            Self::Sleep => "sleep",
        })
    }
}

/// A thread's patience, from wait to wait.
#[derive(Debug)]
pub(crate) struct Patience {
    poll: Poll,
    /// How long the next wait looks, if that is adaptive.
    look: Duration,
}

impl Patience {
    pub(crate) const fn new(poll: Poll) -> Self {
        Self { poll, look: Duration::ZERO }
    }

    /// How long to look for completions in a wait of at most `limit` (`None`: for ever).
    pub(crate) fn look(&self, limit: Option<Duration>) -> Duration {
        let limit = limit.unwrap_or(Duration::MAX);
        match self.poll {
            Poll::Spin => limit,
            Poll::Adaptive => self.look.min(limit),
            Poll::Sleep => Duration::ZERO,
        }
    }

    pub(crate) const fn poll(&self) -> Poll {
        self.poll
    }

    /// Whether it wants to know how long waits take.
    pub(crate) const fn is_adaptive(&self) -> bool {
        matches!(self.poll, Poll::Adaptive)
    }

    /// A wait has slept, and has taken so long in all; `came`: because something came.
    pub(crate) fn slept(&mut self, waited: Duration, came: bool) {
        self.look = if came && waited < LOOK_MAX {
            (self.look * 2).clamp(LOOK_MIN, LOOK_MAX)
        } else {
            Duration::ZERO
        };
    }
}

/// A round trip on a fast network, and what a device takes to read a block that it has cached. Chosen by that, not measured:
/// `cargo bench -p sealfs-net` compares.
pub(crate) const LOOK_MAX: Duration = Duration::from_micros(50);
/// Less than it costs to sleep and be woken.
const LOOK_MIN: Duration = Duration::from_micros(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_as_they_are_written() {
        for poll in [Poll::Spin, Poll::Adaptive, Poll::Sleep] {
            assert_eq!(poll.to_string().parse(), Ok(poll));
        }
        let error = "busy".parse::<Poll>().unwrap_err();
        assert!(error.contains("busy") && error.contains("spin, adaptive or sleep"), "{error}");
    }

    #[test]
    fn who_sleeps_never_looks_and_who_spins_looks_to_the_end() {
        let minute = Duration::from_secs(60);
        assert_eq!(Patience::new(Poll::Sleep).look(Some(minute)), Duration::ZERO);
        assert_eq!(Patience::new(Poll::Spin).look(Some(minute)), minute);
        assert_eq!(Patience::new(Poll::Spin).look(None), Duration::MAX);
    }

    #[test]
    fn looking_begins_with_short_waits_and_ends_with_the_first_long_or_vain_one() {
        let short = LOOK_MAX - Duration::from_micros(1);
        for (waited, came) in [(LOOK_MAX, true), (short, false)] {
            let mut patience = Patience::new(Poll::Adaptive);
            assert_eq!(patience.look(None), Duration::ZERO, "nothing is known yet");
            for _ in 0..20 {
                patience.slept(short, true);
                assert!(patience.look(None) >= LOOK_MIN && patience.look(None) <= LOOK_MAX);
            }
            assert_eq!(patience.look(None), LOOK_MAX);
            assert_eq!(patience.look(Some(LOOK_MIN)), LOOK_MIN, "a deadline is nearer");
            patience.slept(waited, came);
            assert_eq!(patience.look(None), Duration::ZERO);
        }
    }
}
